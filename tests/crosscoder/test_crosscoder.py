"""The fast paths equal the plain reference; what a block may not read or write stays exactly 0."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders.analysis import evaluate, reconstruction
from crosscoders.crosscoder import crosscoder, encode, separate
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.kernels import backends
from crosscoders.planted import concepts
from crosscoders.study import blocks
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.crosscoders import Block, CrosscoderSettings
from crosscoders.training import gradients, loop
from crosscoders.training.recipes import CrosscoderRecipe, fit_block_thresholds
from crosscoders.training.state import start

MIXED = {
    "one-way": {"share": 0.4, "reads": ["p"], "writes": ["q", "r"]},
    "tied": {"share": 0.25, "tied": True, "penalty": 0.1},
    "free": {"share": 0.35},
}
CAUSAL = {
    "causal": {"share": 0.7, "reads": "each", "writes": "onward", "window": 1},
    "own": {"share": 0.3, "reads": "each", "writes": "each"},
}
MEMBERS = [
    ("batchtopk", "none"),
    ("topk", "none"),
    ("relu", "l1_of_norms"),
    ("relu", "l2_of_norms"),
    ("batchtopk", "l1_of_norms"),
    ("relu", "tanh"),
    ("jumprelu", "tanh"),
    ("jumprelu", "l1_of_norms"),
    ("batchtopk", "decoder_sparsity"),
]
ACTIVATION_KINDS = ["batchtopk", "topk", "relu", "jumprelu"]


def make(member, activation, penalty, blocks, seed=0, widths=(10, 10, 10), **options) -> Crosscoder:
    found = crosscoder.create(
        member(activation, penalty=penalty, blocks=blocks, **options),
        ["p", "q", "r"],
        list(widths),
        seed,
        torch.float64,
    )
    generator = torch.Generator().manual_seed(seed)
    found.encoder_bias += 0.1 * torch.randn(found.latents, generator=generator, dtype=torch.float64)
    return found


def with_parameters(coder: Crosscoder, leaves: list[torch.Tensor]) -> Crosscoder:
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias", "log_threshold")
    return dataclasses.replace(coder, **dict(zip(names, leaves, strict=False)))


def inputs(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("blocks", [None, MIXED, CAUSAL], ids=["acausal", "mixed", "causal"])
@pytest.mark.parametrize(("activation", "penalty"), MEMBERS)
@pytest.mark.parametrize("shift", [0.0, -2.0], ids=["dense", "sparse"])
def test_loss_and_gradients_equal_autograd_in_float64(member, backend, monkeypatch, activation, penalty, blocks, shift):
    monkeypatch.setattr(type(backend), "dense_above", 1.0 if shift else 0.04)
    coder = make(member, activation, penalty, blocks)
    coder.encoder_bias += 0 if coder.selection.ranked_over else shift
    x = inputs(32, 30)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    selection = encode.BatchTopK()
    objective = gradients.Objective(weights, penalty, 0.3, 0.7, 4, 1.3)
    for _ in range(2):  # the second time with a carried threshold
        found = gradients.compute(coder, x, objective, [selection], backend)
    leaves = [parameter.clone().requires_grad_() for parameter in coder.parameters]
    plain = with_parameters(coder, leaves)
    loss, code = crosscoder.reference_loss(plain, x, penalty, 0.3, weights, 4, 0.7, 1.3)
    loss.backward()
    expected = [leaf.grad for leaf in leaves]
    coder.constrain(expected[0], expected[2])
    assert found.loss == pytest.approx(loss.item(), rel=1e-13)
    assert torch.equal(found.counts, (code > 0).sum(0))
    for gradient, b in zip(found.gradients, expected, strict=True):
        a = gradients.stored(gradient)
        assert (a - b).norm() <= 1e-13 * b.norm()
        if not isinstance(gradient, torch.Tensor):
            assert float(gradient.squared_norm()) == pytest.approx(float(a.square().sum()), rel=1e-13)


BUDGETS = {
    "one-way": {"share": 0.4, "reads": ["p"], "writes": ["q", "r"], "k": 1},
    "tied": {"share": 0.25, "tied": True, "k": 2},
    "free": {"share": 0.35, "k": 3},
}
DELTA = {"delta": {"of": ["q", "p"], "coefficient": 0.8}}


def losses(kinds: str, blocks: dict) -> dict:
    """Settings of nested blocks, whose order is not that of their keys, and of a loss on a difference."""
    return ({"nested": sorted(blocks, reverse=True)} if "nested" in kinds else {}) | (DELTA if "delta" in kinds else {})


@pytest.mark.parametrize("loss", ["nested", "delta", "nested delta"])
@pytest.mark.parametrize(
    ("activation", "penalty", "blocks"),
    [
        ("batchtopk", "none", MIXED),
        ("batchtopk", "l1_of_norms", BUDGETS),
        ("topk", "none", CAUSAL),
        ("relu", "l2_of_norms", MIXED),
        ("jumprelu", "tanh", MIXED),
    ],
    ids=["batchtopk", "budgets", "topk", "relu", "jumprelu"],
)
@pytest.mark.parametrize("shift", [0.0, -2.0], ids=["dense", "sparse"])
def test_nested_and_delta_losses_equal_autograd_in_float64(
    member, backend, monkeypatch, activation, penalty, blocks, shift, loss
):
    """Of a Matryoshka and of a Delta crosscoder, alone and together, with masks, ties and a k for every block."""
    monkeypatch.setattr(type(backend), "dense_above", 1.0 if shift else 0.04)
    options = member(activation, penalty=penalty, blocks=blocks, k=6, loss=losses(loss, blocks))
    coder = make(member, activation, penalty, blocks, k=6, loss=losses(loss, blocks))
    coder.encoder_bias += 0 if coder.selection.ranked_over else shift
    x, recipe = inputs(32, 30), CrosscoderRecipe(options)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    objective = gradients.Objective(weights, penalty, 0.3, 0.7, 6, 1.3)
    selections = recipe.selections(coder)
    for _ in range(2):  # the second time with carried thresholds
        found = recipe.compute(coder, x, objective, selections, backend)
    plain = with_parameters(coder, [parameter.clone().requires_grad_() for parameter in coder.parameters])
    k = recipe.budgets or 6
    value, code = crosscoder.reference_loss(plain, x, penalty, 0.3, weights, k, 0.7, 1.3)
    if recipe.delta(coder):
        value = value + crosscoder.reference_delta(plain, x, code, recipe.delta(coder))
    value.backward()
    expected = [parameter.grad for parameter in plain.parameters]
    coder.constrain(expected[0], expected[2])
    assert found.loss == pytest.approx(value.item(), rel=1e-13)
    assert torch.equal(found.counts, (code > 0).sum(0))
    for gradient, b in zip(found.gradients, expected, strict=True):
        assert (gradients.stored(gradient) - b).norm() <= 1e-13 * b.norm()


def test_nested_blocks_keep_their_order_where_keys_are_sorted(member):
    """As those of a stage's settings and of an artifact are."""
    options = member(blocks=BUDGETS, k=6, loss={"nested": ["tied", "free", "one-way"]})
    again = CrosscoderSettings.model_validate_json(json.dumps(options.model_dump(mode="json"), sort_keys=True))
    sizes = blocks.block_sizes(again, ["p", "q", "r"])
    assert list(sizes.items()) == [("tied", 16), ("free", 22), ("one-way", 26)]
    assert evaluate.nested_prefixes(again, ["p", "q", "r"]) == [16, 38, 64]
    assert CrosscoderRecipe(again).budgets == [2, 3, 1]


def test_every_block_keeps_its_own_k_and_ties_go_to_the_lower_index(member):
    options = member(blocks=BUDGETS, k=6)
    coder = crosscoder.create(options, ["p", "q", "r"], [4, 4, 4], 0)
    for tensor in (coder.encoder, coder.decoder):
        tensor.copy_(tensor.sign())  # scores are small integers, of which many are equal
    coder.constrain(coder.encoder, torch.zeros_like(coder.decoder))
    x = torch.randint(-1, 2, (16, 12), generator=torch.Generator().manual_seed(0)).float()
    recipe = CrosscoderRecipe(options)
    objective = gradients.Objective(torch.ones(12), k=6)
    found = recipe.compute(coder, x, objective, recipe.selections(coder), backends.choose())
    _, code = crosscoder.reference_loss(coder, x, "none", 0.0, torch.ones(12), recipe.budgets)
    assert torch.equal(found.counts, (code > 0).sum(0))
    kept = [int(found.counts[rows].sum()) for rows in coder.block_rows]
    assert kept == [16 * k for k in recipe.budgets]


def test_thresholds_of_blocks_give_every_block_its_k_at_inference(member):
    coder, x = make(member, "batchtopk", "none", BUDGETS, k=6), inputs(400, 30)
    coder.threshold = fit_block_thresholds(coder, [x[:150], x[150:]], [1, 2, 3])
    on = coder.encode(x) > 0
    assert [int(on[:, rows].sum()) for rows in coder.block_rows] == [400, 800, 1200]
    assert torch.equal(encode.encode_sparse(coder, x).dense() > 0, on)


SEPARATE = {"first": {"share": 1.0, "reads": "each", "writes": "each"}}


@pytest.mark.parametrize(("activation", "penalty"), MEMBERS)
def test_dictionaries_of_single_sources_kept_apart_do_what_they_do_side_by_side(member, activation, penalty):
    whole = make(member, activation, penalty, SEPARATE, widths=(10, 12, 8))
    apart = separate.separate(whole)
    x, weights = inputs(32, 30), torch.rand(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    objective = gradients.Objective(weights, penalty, 0.3, 0.7, 4, 1.3)
    expected = gradients.compute(whole, x, objective, [encode.BatchTopK()], backends.choose())
    found = gradients.compute(apart, x, objective, [encode.BatchTopK()], backends.choose())
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(found.squared_error, expected.squared_error)
    per_part = len(apart.parts[0].parameters)
    for s, part in enumerate(apart.parts):
        apart.parts[s] = with_parameters(
            part, [gradients.stored(one) for one in found.gradients[s * per_part : (s + 1) * per_part]]
        )
    joined = with_parameters(whole, [torch.zeros_like(parameter) for parameter in whole.parameters])
    apart.join(joined)
    for a, b in zip(joined.parameters, map(gradients.stored, expected.gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("blocks", [None, MIXED, CAUSAL], ids=["acausal", "mixed", "causal"])
def test_crosscoders_that_share_latents_are_not_separated(member, blocks):
    assert separate.separate(make(member, "batchtopk", "none", blocks)) is None


def test_auxiliary_loss_reaches_dead_latents_and_leaks_through_no_mask(member):
    coder = make(member, "batchtopk", "none", MIXED)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[::3] = True
    x = inputs(32, 30)
    weights = torch.ones(30, dtype=torch.float64)
    without = gradients.compute(coder, x, gradients.Objective(weights, k=1), [encode.BatchTopK()], backends.choose())
    with_it = gradients.compute(
        coder,
        x,
        gradients.Objective(weights, k=1, auxiliary_coefficient=1 / 32, dead=dead),
        [encode.BatchTopK()],
        backends.choose(),
    )
    change = [(a - b).abs() for a, b in zip(with_it.gradients, without.gradients, strict=True)]
    assert (change[0].sum(1) > 0)[dead].double().mean() > 0.9
    assert (change[2].sum(1) > 0)[dead].double().mean() > 0.9
    assert change[0][~dead].max() == change[2][~dead].max() == change[3].max() == 0
    for latents, columns in coder.forbidden(coder.reads):
        assert with_it.gradients[0][latents, columns].abs().max() == 0
    for latents, columns in coder.forbidden(coder.writes):
        assert with_it.gradients[2][latents, columns].abs().max() == 0


def test_auxiliary_gradient_equals_autograd(member):
    coder = make(member, "batchtopk", "none", None, widths=(80, 80, 80))
    dead = torch.arange(64) % 2 == 0
    x, weights = inputs(32, 240), torch.ones(240, dtype=torch.float64)
    result = [torch.zeros_like(parameter) for parameter in coder.parameters]
    error = inputs(32, 240, seed=5)
    objective = gradients.Objective(weights, auxiliary_coefficient=1 / 32, dead=dead)
    preactivations = encode.Preactivations(x, coder.encoder, coder.encoder_bias, backends.choose())
    gradients.add_auxiliary(coder, error, preactivations, objective, result)
    leaves = [parameter.clone().requires_grad_() for parameter in coder.parameters]
    chosen = slice(None, None, gradients.AUXILIARY_TOKENS)
    f = (x[chosen] @ leaves[0][dead].T + leaves[1][dead]).relu()  # 32 dead latents, fewer than k_aux = 40
    ((error[chosen] - f @ leaves[2][dead]) ** 2).sum(1).mean().mul(1 / 32).backward()
    for a, leaf in zip(result[:3], leaves[:3], strict=True):
        assert (a - leaf.grad).norm() <= 1e-12 * leaf.grad.norm()


@pytest.mark.parametrize("activation", ACTIVATION_KINDS)
def test_sparse_encoding_equals_dense_encoding(member, activation):
    coder = make(member, activation, "l1_of_norms", MIXED)
    coder.threshold = 2.0
    x = inputs(50, 30)
    code = encode.encode_sparse(coder, x)
    assert torch.equal(code.dense(), coder.encode(x))
    rebuilt = encode.decode_sparse(code, coder.decoder, coder.decoder_bias)
    torch.testing.assert_close(rebuilt, coder.decode(coder.encode(x)), rtol=1e-12, atol=1e-12)


def test_a_long_trajectory_equals_plain_adam(member, backend, monkeypatch):
    monkeypatch.setattr(type(backend), "dense_above", 1.0)
    options = member(
        steps=300, learning_rate=1e-3, decay_share=0.0, warmup_steps=0, gradient_clip=1e9, auxiliary_coefficient=0.0
    )
    fast = crosscoder.create(options, ["p", "q"], [8, 8], 0, torch.float64)
    state = start(fast, CrosscoderRecipe(options), backend)
    leaves = [parameter.clone().requires_grad_() for parameter in fast.parameters]
    plain = with_parameters(fast, leaves)
    adam = torch.optim.Adam(leaves, lr=1e-3)
    weights = torch.ones(16, dtype=torch.float64)
    for step in range(300):
        x = inputs(32, 16, seed=step)
        loop.step(state, x)
        adam.zero_grad()
        crosscoder.reference_loss(plain, x, "none", 0.0, weights, 4)[0].backward()
        adam.step()
    for a, b in zip(fast.parameters, leaves, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()


@pytest.mark.parametrize(("activation", "penalty"), MEMBERS)
def test_masks_and_ties_hold_after_every_step(member, activation, penalty):
    options = member(activation, penalty=penalty, blocks=MIXED, coefficient=0.01)
    coder = crosscoder.create(options, ["p", "q", "r"], [6, 6, 6], 0)
    state = start(coder, CrosscoderRecipe(options), backends.choose())
    for step in range(20):
        loop.step(state, inputs(32, 18, step).float())
        assert all((coder.encoder[latents, columns] == 0).all() for latents, columns in coder.forbidden(coder.reads))
        assert all((coder.decoder[latents, columns] == 0).all() for latents, columns in coder.forbidden(coder.writes))
        parts = coder.decoder[coder.tied].view(-1, 3, 6)
        assert torch.equal(parts[:, 0], parts[:, 1])
        assert torch.equal(parts[:, 0], parts[:, 2])


@pytest.mark.parametrize("activation", ACTIVATION_KINDS)
def test_rescaling_a_latent_changes_no_output_and_no_selection(member, activation):
    coder = make(member, activation, "l1_of_norms", None)
    coder.threshold = 1.5
    x = inputs(40, 30)
    before, active = coder.decode(coder.encode(x)), coder.encode(x) > 0
    scale = torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 0.1
    coder.encoder *= scale[:, None]
    coder.encoder_bias *= scale
    coder.decoder /= scale[:, None]
    torch.testing.assert_close(coder.decode(coder.encode(x)), before, rtol=1e-10, atol=1e-10)
    assert torch.equal(coder.encode(x) > 0, active)


@given(scores=st.lists(st.integers(0, 6), min_size=1, max_size=60), count=st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_selection_keeps_the_largest_and_breaks_ties_by_index(scores, count):
    keep, threshold = encode.largest(torch.tensor(scores, dtype=torch.float64), count)
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    assert sorted(keep.nonzero()[:, 0].tolist()) == sorted(expected)
    assert threshold == min(scores[i] for i in expected)


def test_carried_threshold_falls_back_when_activations_shrink(member):
    coder = make(member, "batchtopk", "none", None)
    selection, norms = encode.BatchTopK(), coder.decoder_norms().sum(1)
    selection(encode.Whole(10 * coder.preactivations(inputs(32, 30)).abs()), norms, 4)
    small = encode.Whole(coder.preactivations(inputs(32, 30, seed=1)))
    code, _ = selection(small, norms, 4)
    assert selection.fallbacks == 1
    fresh, _ = encode.BatchTopK()(small, norms, 4)
    assert torch.equal(code.dense(), fresh.dense())


def test_a_margin_that_follows_the_threshold_changes_no_selection(member):
    """Batches of rising and falling size, near each other and far: the codes are those of a selection that saw no batch."""
    coder = make(member, "batchtopk", "none", None)
    selection, norms = encode.BatchTopK(), coder.decoder_norms().sum(1)
    margins = []
    for seed, size in enumerate([1.0] * 25 + [1.05, 0.9, 3.0, 1.0, 1.0]):
        whole = encode.Whole(size * coder.preactivations(inputs(2000, 30, seed=seed)))
        code, _ = selection(whole, norms, 4)
        fresh, _ = encode.BatchTopK()(whole, norms, 4)
        assert torch.equal(code.dense(), fresh.dense())
        margins.append(selection.margin)
    assert min(margins) < 0.7 * margins[0]
    assert margins[27] == encode.MARGIN[1]
    assert 1 <= selection.fallbacks <= 2


@given(latents=st.integers(1, 500), parts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_block_sizes_sum_to_the_dictionary(latents, parts):
    shares = [part / sum(parts) for part in parts]
    sizes = blocks.group_sizes(latents, shares)
    assert sum(sizes) == latents
    assert all(abs(size - latents * share) < 1 for size, share in zip(sizes, shares, strict=True))


@pytest.mark.parametrize(
    ("block", "reads", "writes"),
    [
        ({"reads": "each", "writes": "onward"}, ["p", "q", "r"], ["pqr", "qr", "r"]),
        ({"reads": "each", "writes": "onward", "window": 1}, ["p", "q", "r"], ["pq", "qr", "r"]),
        ({"reads": "each", "writes": "each"}, ["p", "q", "r"], ["p", "q", "r"]),
        ({"reads": ["p"], "writes": ["q", "r"]}, ["p"], ["qr"]),
        ({}, ["pqr"], ["pqr"]),
    ],
    ids=["weakly causal", "window", "per-source", "transcoder", "acausal"],
)
def test_blocks_read_and_write_what_they_say(block, reads, writes):
    found = blocks.groups({"b": Block.model_validate({"share": 1.0} | block)}, ["p", "q", "r"])
    names = lambda mask: "".join(source for source, seen in zip("pqr", mask, strict=True) if seen)  # noqa: E731
    assert [names(group.reads) for group in found] == reads
    assert [names(group.writes) for group in found] == writes


@pytest.mark.parametrize("activation", ACTIVATION_KINDS)
def test_permuting_latents_permutes_everything(member, activation):
    coder = make(member, activation, "l1_of_norms", MIXED)
    order = torch.from_numpy(np.random.default_rng(0).permutation(64))
    per_latent = ("encoder", "encoder_bias", "decoder", "reads", "writes", "tied", "penalty", "log_threshold")
    moved = {name: getattr(coder, name)[order] for name in per_latent if getattr(coder, name) is not None}
    permuted, x = dataclasses.replace(coder, **moved), inputs(40, 30)
    torch.testing.assert_close(permuted.encode(x), coder.encode(x)[:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        permuted.decode(permuted.encode(x)), coder.decode(coder.encode(x)), rtol=1e-12, atol=1e-12
    )
    assert torch.equal(permuted.decoder_norms(), coder.decoder_norms()[order])


@pytest.mark.parametrize(("activation", "penalty"), [("relu", "l1_of_norms"), ("batchtopk", "none"), ("relu", "tanh")])
def test_the_loss_that_is_reported_is_the_training_loss_on_other_tokens(member, activation, penalty):
    options = member(activation, penalty=penalty)
    coder = crosscoder.create(options, ["p", "q"], [10, 14], 0)
    coder.threshold = 0.0
    x, document = inputs(40, 24).float(), np.arange(40) // 10
    data = concepts.Sample(x, ["p", "q"], [10, 14], document, np.zeros((40, 0), bool))
    sums = reconstruction.reconstruction(coder, data, document, evaluate.pair_cost(coder, options, 0.3))
    found = evaluate.to_dataset(coder, sums, np.array([1.0, 2.0]), Bootstrap(bootstrap_replicates=20, confidence=0.95))
    weights = torch.repeat_interleave(torch.tensor([1.0, 2.0]), torch.tensor([10, 14]))
    expected, _ = crosscoder.reference_loss(coder, x, penalty, 0.3, weights, k=64)  # all that is positive is kept
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(found["loss_low"]) <= float(found["loss"]) <= float(found["loss_high"])


def test_as_many_latents_per_source_cost_what_a_crosscoder_costs(member):
    whole = member(latents=64)
    apart = member(latents=192, blocks=SEPARATE)
    found = [evaluate.effort(make_from(options), options) for options in (whole, apart)]
    assert found[0]["training_flops"].item() == found[1]["training_flops"].item() == 6 * 2 * 64 * 30 * 20 * 32
    assert (found[0]["written_sources"].item(), found[1]["written_sources"].item()) == (3, 1)


def make_from(options) -> Crosscoder:
    return crosscoder.create(options, ["p", "q", "r"], [10, 10, 10], 0)
