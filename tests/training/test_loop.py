"""Training finds planted concepts, meets its sparsity, and goes on after an interruption as if there had been none."""

import io
import math

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders.analysis import evaluate
from crosscoders.analysis.reconstruction import reconstruction
from crosscoders.crosscoder import crosscoder
from crosscoders.kernels import backends
from crosscoders.planted.concepts import Sample
from crosscoders.report.stacking import stack
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.crosscoders import CrosscoderSettings
from crosscoders.training import loop
from crosscoders.training.recipes import CrosscoderRecipe, fit_threshold
from crosscoders.training.schedule import Schedule
from crosscoders.training.state import start


def concepts(tokens: int, seed: int, count: int = 24, width: int = 32, active: float = 0.06):
    """Two sources that share `count` concepts in directions of their own; the last quarter exists in the second only."""
    fixed = torch.Generator().manual_seed(7)
    directions = torch.randn(2, count, width, generator=fixed)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    strength = (torch.rand(tokens, count, generator=generator) < active) * (
        1 + torch.rand(tokens, count, generator=generator)
    )
    first = strength.clone()
    first[:, -count // 4 :] = 0
    x = torch.cat([first @ directions[0], strength @ directions[1]], dim=1)
    return 4 * (x + 0.01 * torch.randn(x.shape, generator=generator)), directions


def fit(options, steps_seed=0):
    torch.set_grad_enabled(False)
    coder = crosscoder.create(options, ["base", "chat"], [32, 32], 0)
    state = start(coder, CrosscoderRecipe(options), backends.choose())
    batch = options.training.batch_tokens
    loop.run(state, lambda step: concepts(batch, steps_seed + step)[0], lambda _: None)
    return coder, state


BATCHTOPK = {
    "latents": 64,
    "blocks": {"all": {"share": 1.0}},
    "activation": {"kind": "batchtopk", "k": 2},
    "training": {
        "steps": 800,
        "batch_tokens": 256,
        "learning_rate": 3e-3,
        "warmup_steps": 20,
        "decay_share": 0.3,
        "gradient_clip": 10.0,
        "decoder_norm": 0.3,
        "dead_tokens": 5000,
    },
}


def with_training(options: dict, changes: dict) -> CrosscoderSettings:
    return CrosscoderSettings.model_validate(options | {"training": options["training"] | changes})


@pytest.fixture(scope="module")
def batchtopk():
    return fit(with_training(BATCHTOPK, {}))


def test_planted_concepts_are_recovered_with_their_class(batchtopk):
    coder, _ = batchtopk
    _, directions = concepts(8, 0)
    decoder = coder.decoder[:, 32:] / coder.decoder[:, 32:].norm(dim=1, keepdim=True).clamp_min(1e-9)
    cosine = directions[1] @ decoder.T
    assert (cosine.amax(1) > 0.83).float().mean() >= 0.95
    norms = coder.decoder_norms()[cosine.argmax(1)]
    ratio = norms[:, 0] / norms[:, 1]
    assert (ratio[:18] > 0.5).all(), "shared concepts are written to both sources"
    assert (ratio[18:] < 0.1).all(), "a concept of one source is written to that source alone"


def test_every_prefix_of_nested_blocks_reconstructs_better_than_the_one_before(batchtopk):
    """A Matryoshka crosscoder; the first latents of one that is not nested explain less on their own."""
    sizes = {"coarse": 0.125, "middle": 0.125, "fine": 0.75}
    blocks = {name: {"share": share} for name, share in sizes.items()}
    nested, _ = fit(CrosscoderSettings.model_validate(BATCHTOPK | {"blocks": blocks, "nested": [*sizes]}))
    explained, x = {}, concepts(2048, 99_999)[0]
    data, document = Sample(x, ["base", "chat"], [32, 32], None, None), np.arange(2048) // 64
    for name, coder in {"nested": nested, "plain": batchtopk[0]}.items():
        coder.threshold = fit_threshold(coder, [concepts(2048, 10_000)[0]], 2)
        sums = reconstruction(coder, data, document, prefixes=[8, 16, 64])
        explained[name] = 1 - sums["prefix_error"].sum((0, 2)) / sums["variance"].sum()
        assert explained[name][-1] == pytest.approx(1 - sums["error"].sum() / sums["variance"].sum())
        if name == "nested":
            measured = evaluate.prefix_dataset([8, 16, 64], sums, Bootstrap(bootstrap_replicates=20, confidence=0.95))
    batchtopk[0].threshold = 0.0
    value, low, high = (measured[f"prefix_fraction_variance_explained{end}"] for end in ("", "_low", "_high"))
    assert (low <= value).all() and (value <= high).all()
    stacked = stack({("plain", 0): xr.Dataset({"l0": 2.0}), ("nested", 0): measured.assign(l0=2.0)})
    shown = stacked["prefix_fraction_variance_explained"].sel(seed=0)
    assert shown.sel(crosscoder="plain").isnull().all()
    np.testing.assert_array_equal(shown.sel(crosscoder="nested").values, value.values)
    assert (np.diff(explained["nested"]) > 0.02).all()
    assert explained["nested"][0] > explained["plain"][0] + 0.1
    assert explained["nested"][-1] > 0.9


def weak_change(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """24 concepts that two sources share to the last bit, and 6 of a third of their strength in the second source alone."""
    directions = torch.randn(30, 32, generator=torch.Generator().manual_seed(7))
    directions = directions / directions.norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(tokens, 30, generator=generator) < 0.06
    strength = on * (1 + torch.rand(tokens, 30, generator=generator))
    strength[:, 24:] *= 0.35
    x = torch.cat([strength[:, :24] @ directions[:24], strength @ directions], dim=1)
    return 4 * (x + 0.01 * torch.randn(x.shape, generator=generator)), directions


def test_a_loss_on_the_difference_recovers_more_of_a_weak_change():
    """A Delta crosscoder against the same one without that loss: concepts of one source, at equal steps, k and seeds."""
    torch.set_grad_enabled(False)
    recovered = {}
    for coefficient in (None, 4.0):
        delta = coefficient and {"delta": {"of": ["chat", "base"], "coefficient": coefficient}}
        content = BATCHTOPK | {"activation": {"kind": "batchtopk", "k": 3}} | (delta or {})
        options = with_training(content, {"gradient_clip": 100.0})
        found = []
        for seed in (0, 1):
            coder = crosscoder.create(options, ["base", "chat"], [32, 32], seed)
            state = start(coder, CrosscoderRecipe(options), backends.choose())
            loop.run(state, lambda step, seed=seed: weak_change(256, 1000 * seed + step)[0], lambda _: None)
            written = torch.nn.functional.normalize(coder.decoder[:, 32:], dim=1)
            exclusive = coder.decoder_norms()[:, 0] < 0.5 * coder.decoder_norms()[:, 1]
            cosine = weak_change(8, 0)[1][24:] @ written[exclusive].T
            found.append(float((cosine.amax(1) > 0.83).float().mean()))
        recovered[coefficient] = np.mean(found)
    assert recovered[4.0] >= max(recovered[None], 0.6), recovered


def test_lower_precision_reconstructs_as_well(batchtopk):
    """Moments and factors of products in bfloat16: the loss on fresh data is within 3% of that in float32."""
    coder, _ = batchtopk
    x, losses = concepts(4096, 99_999)[0], []
    for options in (None, {"adam_moments": "bfloat16"}, {"adam_moments": "bfloat16", "precision": "bfloat16"}):
        found = coder if options is None else fit(with_training(BATCHTOPK, options))[0]
        found.threshold = fit_threshold(found, [concepts(2048, 10_000)[0]], 2)
        losses.append(float((x - found.decode(found.encode(x))).square().mean() / x.square().mean()))
        found.threshold = 0.0
    assert losses[0] < 0.05
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=0.03)


def test_held_out_threshold_gives_the_wanted_l0(batchtopk):
    coder, _ = batchtopk
    held_out = [concepts(512, 10_000 + i)[0] for i in range(4)]
    coder.threshold = fit_threshold(coder, held_out, 2)
    fresh = concepts(4096, 99_999)[0]
    l0 = (coder.encode(fresh) > 0).sum() / len(fresh)
    assert l0 == pytest.approx(2, rel=0.05)


def test_threshold_counts_exactly_on_the_data_it_was_fitted_to(batchtopk):
    coder, _ = batchtopk
    x = concepts(500, 5)[0]
    coder.threshold = fit_threshold(coder, [x[:200], x[200:]], 2)
    assert int((coder.encode(x) > 0).sum()) == 1000


def test_the_penalty_is_steered_to_the_wanted_l0(member):
    options = member(
        "relu",
        penalty="l1_of_norms",
        coefficient=0.5,
        target=3.0,
        steps=600,
        batch_tokens=256,
        learning_rate=3e-3,
        gradient_clip=10.0,
        decoder_norm=0.3,
    )
    coder, state = fit(options)
    x = concepts(4096, 99_999)[0]
    assert float((coder.encode(x) > 0).sum() / len(x)) == pytest.approx(3.0, rel=0.1)
    assert state.coefficient != options.penalty.coefficient


def test_the_penalty_is_steered_as_fast_while_the_learning_rate_decays(member):
    """L0 cannot reach what is wanted here, so the coefficient rises by the same factor at every step, to the last."""
    options = member(
        "relu", penalty="l1_of_norms", coefficient=1e-6, target=0.01, steps=40, learning_rate=1e-6, decay_share=0.9
    )
    _, state = fit(options)
    coefficient = np.array(state.history["penalty_coefficient"])
    np.testing.assert_allclose(coefficient[1:] / coefficient[:-1], math.exp(loop.STEERING_LIMIT), rtol=1e-6)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_resuming_gives_the_same_bytes_as_never_stopping(member, moments):
    options = member(penalty="l1_of_norms", coefficient=0.01, target=4.0, steps=40, adam_moments=moments)
    torch.set_grad_enabled(False)

    def batch(step):
        return concepts(32, step)[0]

    def fresh():
        return start(
            crosscoder.create(options, ["base", "chat"], [32, 32], 0), CrosscoderRecipe(options), backends.choose()
        )

    whole = fresh()
    loop.run(whole, batch, lambda _: None)
    first, saved = fresh(), io.BytesIO()

    def stop(state):
        if state.step == 17:
            torch.save(state.to_dict(), saved)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        loop.run(first, batch, stop)
    second = fresh()
    saved.seek(0)
    second.restore(torch.load(saved, weights_only=True))
    loop.run(second, batch, lambda _: None)
    for a, b in zip(whole.crosscoder.parameters, second.crosscoder.parameters, strict=True):
        assert torch.equal(a, b)
    assert whole.history == second.history
    assert (whole.threshold, whole.coefficient) == (second.threshold, second.coefficient)


@pytest.mark.parametrize(
    ("activation", "penalty", "revived"),
    [("batchtopk", "none", 0.0), ("batchtopk", "none", 1 / 32), ("relu", "l1_of_norms", 0.0)],
)
def test_no_pass_reads_memory_that_it_has_not_written(backend, member, monkeypatch, activation, penalty, revived):
    """So that a training need not fill it, as torch does for the sake of determinism."""
    options, found = member(activation, penalty=penalty, auxiliary_coefficient=revived), []
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        for filled in (True, False):
            torch.utils.deterministic.fill_uninitialized_memory = filled
            assert bool(torch.empty(3).isnan().all()) or not filled
            found.append(fit(options)[1])
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(*(state.crosscoder.parameters for state in found), strict=True):
        assert torch.equal(a, b)


def test_equal_sources_give_equal_norms_so_that_no_latent_looks_exclusive(member):
    options = member(latents=32, steps=60)
    coder = crosscoder.create(options, ["base", "chat"], [16, 16], 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 16, generator=generator)
    torch.set_grad_enabled(False)
    state = start(coder, CrosscoderRecipe(options), backends.choose())
    loop.run(state, lambda step: torch.cat([x, x], 1)[32 * (step % 16) : 32 * (step % 16) + 32], lambda _: None)
    norms = coder.decoder_norms()
    torch.testing.assert_close(norms[:, 0], norms[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_biases_are_set_so_that_all_latents_fire_equally_often(member, activation):
    coder = crosscoder.create(member(activation, penalty="tanh"), ["base", "chat"], [32, 32], 0)
    x = concepts(2048, 3)[0]
    with torch.no_grad():
        crosscoder.equalise_rates(coder, x, 6.4)
        rates = (coder.encode(x) > 0).float().mean(0)  # a learned threshold counts
    torch.testing.assert_close(rates, torch.full_like(rates, 0.1), rtol=0.02, atol=0.0)


@pytest.mark.parametrize(("initial_seed", "alike"), [(None, False), (3, True)])
def test_seeds_may_begin_with_the_same_weights(member, initial_seed, alike):
    """With `initial_seed` two seeds differ in the order of the tokens alone."""
    sample = Sample(concepts(256, 0)[0], ["base", "chat"], [32, 32], np.zeros(256, int), np.zeros((256, 0), bool))
    options = member(steps=1, learning_rate=1e-9, initial_seed=initial_seed)
    trained = [loop.fit(CrosscoderRecipe(options), sample, sample, seed).crosscoder for seed in (0, 1)]
    assert torch.allclose(trained[0].decoder, trained[1].decoder, atol=1e-6) == alike
    assert torch.allclose(trained[0].encoder, trained[1].encoder, atol=1e-6) == alike


def test_divergence_is_an_error_not_a_result(member):
    options = member()
    state = start(
        crosscoder.create(options, ["base", "chat"], [32, 32], 0), CrosscoderRecipe(options), backends.choose()
    )
    before = [parameter.clone() for parameter in state.crosscoder.parameters]
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        loop.run(state, lambda _: torch.full((32, 64), math.nan), lambda _: None)
    assert state.step == 0 and all(map(torch.equal, before, state.crosscoder.parameters))


def test_schedules(member):
    options = member(steps=100, warmup_steps=10, decay_share=0.2)
    schedule = Schedule(options)
    rates = np.array([schedule.learning_rate(step) for step in range(100)])
    assert rates[0] == pytest.approx(1e-3)
    assert (rates[9:81] == 1e-2).all()
    assert (np.diff(rates[80:]) < 0).all()
    assert rates[-1] == pytest.approx(1e-2 / 20)
