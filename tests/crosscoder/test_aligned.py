"""The aligned crosscoder: what it minimises, and that separate encoders come to share one latent space."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders.analysis import evaluate_aligned
from crosscoders.crosscoder import aligned as aligned_crosscoder
from crosscoders.crosscoder import files
from crosscoders.crosscoder.encode import BatchTopK, Preactivations
from crosscoders.kernels import backends
from crosscoders.planted import concepts
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.comparisons import Planted
from crosscoders.study.settings.crosscoders import AlignedSettings
from crosscoders.training import aligned, gradients, loop
from crosscoders.training.checkpoint import Checkpoint
from crosscoders.training.recipes import AlignedRecipe


def options(alignment: float, **training) -> AlignedSettings:
    return AlignedSettings.model_validate(
        {
            "latents": 64,
            "activation": {"kind": "batchtopk", "k": 2},
            "alignment": alignment,
            "training": {
                "steps": 500,
                "batch_tokens": 256,
                "learning_rate": 3e-3,
                "warmup_steps": 20,
                "decay_share": 0.3,
                "gradient_clip": 10.0,
                "decoder_norm": 0.3,
                "dead_tokens": 5000,
            }
            | training,
        }
    )


@pytest.fixture(scope="module")
def data():
    """Two models of different width that share all 24 concepts."""
    settings = Planted(concepts={"shared": 24}, rate=0.06)
    truth = concepts.world(settings, {"small": 24, "large": 32}, 0)
    return concepts.samples(
        truth, settings, ["small", "large"], {}, {"train": 8000, "validation": 2000, "test": 2000}, 0
    )[0]


def fitted(settings: AlignedSettings, data, checkpoint=None, report=lambda state: None):
    found = loop.fit(
        AlignedRecipe(settings), data["train"], data["validation"], 0, checkpoint=checkpoint, report=report
    )
    return found.crosscoder


def test_an_interrupted_training_goes_on_with_the_same_bytes(data, tmp_path):
    torch.set_grad_enabled(False)
    settings = options(0.1, steps=60, checkpoint_steps=10)
    checkpoint = Checkpoint(tmp_path / "aligned.checkpoint", {"a": 1})

    def interrupt(state):
        if state.step == 33:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fitted(settings, data, checkpoint, interrupt)
    steps = []
    resumed = fitted(settings, data, checkpoint, lambda state: steps.append(state.step))
    assert steps[0] == 31
    whole = fitted(settings, data)
    for a, b in zip([*whole.parameters, whole.thresholds], [*resumed.parameters, resumed.thresholds], strict=True):
        assert torch.equal(a, b)


def test_codes_of_sources_of_unequal_width_rebuild_each_other(data):
    found = {}
    for strength in (0.0, 0.1):
        coder = fitted(options(strength), data)
        sums = evaluate_aligned.evaluate(coder, data["test"], data["test"].document)
        found[strength] = evaluate_aligned.to_dataset(
            coder.sources, sums, Bootstrap(bootstrap_replicates=50, confidence=0.95)
        )
    explained = found[0.1]["aligned_fraction_variance_explained"].values
    assert explained.min() > 0.8, explained
    assert explained[0, 1] > 0.9 * explained[1, 1], "the small model's code rebuilds the large one nearly as well"
    overlap = {strength: float(dataset["aligned_overlap"][0, 1]) for strength, dataset in found.items()}
    assert overlap[0.1] > 0.6
    assert overlap[0.1] > overlap[0.0]
    assert found[0.1]["aligned_l0"].values == pytest.approx([2, 2], rel=0.1)
    for name in evaluate_aligned.MEASURES:
        low, value, high = (found[0.1][f"{name}{end}"].values for end in ("_low", "", "_high"))
        assert (low <= value).all()
        assert (value <= high).all()


def test_evaluation_is_that_of_the_whole_split_and_survives_saving(data):
    """Pooled over tokens, not a mean of ratios; and the same after a round trip through the artifact."""
    coder = fitted(options(0.1, steps=60), data)
    test = data["test"]
    ones = np.ones(1, np.float32)
    normalisation = xr.Dataset(
        {
            "scale": ("source", np.ones(2)),
            "sink_norm": ("source", np.full(2, np.inf)),
            "mean_small": ("width_small", np.zeros(24)),
            "mean_large": ("width_large", np.zeros(32)),
            "other": ("x", ones),
        },
        coords={"source": ["small", "large"]},
    )
    again = files.aligned_from_dataset(files.aligned_to_dataset(coder, normalisation))
    sums = evaluate_aligned.evaluate(again, test, test.document)
    found = evaluate_aligned.to_dataset(again.sources, sums, Bootstrap(bootstrap_replicates=10, confidence=0.95))
    z = coder.encode(test.x)
    rebuilt, x = coder.decode(z)[0][:, 24:], test.x[:, 24:]
    expected = 1 - (x - rebuilt).square().sum() / (x - x.mean(0)).square().sum()
    assert found["aligned_fraction_variance_explained"][0, 1].item() == pytest.approx(expected.item(), abs=1e-5)
    on = z > 0
    assert found["aligned_overlap"][0, 1].item() == pytest.approx(float((on[0] & on[1]).sum() / (on[0] | on[1]).sum()))


def test_loss_is_the_sum_over_ordered_pairs(data):
    settings = options(0.7)
    coder = aligned_crosscoder.create(settings, ["small", "large"], [24, 32], 0)
    x = data["train"].x[:64]
    value, z = aligned_crosscoder.reference_loss(coder, x, settings, 0.0)
    parts = x.split([24, 32], dim=1)
    decoders = coder.decoder.split([24, 32], dim=1)
    expected = sum(((x_t - z_s @ w_t) ** 2).sum() for z_s in z for x_t, w_t in zip(parts, decoders, strict=True))
    size = decoders[0].norm(dim=1) + decoders[1].norm(dim=1)
    expected = (expected + 0.7 * (((z[0] - z[1]) * size) ** 2).sum()) / 64
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("penalty", ["none", "l1_of_norms", "tanh"])
@pytest.mark.parametrize(
    ("activation", "dense", "support"),
    [
        ("batchtopk", False, "each"),
        ("batchtopk", True, "each"),
        ("topk", False, "each"),
        ("relu", False, "each"),
        ("relu", True, "each"),
        ("topk", False, "global"),
        ("topk", True, "global"),
        ("batchtopk", False, "global"),
    ],
)
def test_gradients_equal_autograd_in_float64(backend, monkeypatch, activation, dense, support, penalty):
    """Three sources of unequal width, random decoders and biases; passes over pairs and dense products."""
    monkeypatch.setattr(type(backend), "dense_above", 0.0 if dense else 1.0)
    chosen = {"kind": activation} | ({} if activation == "relu" else {"k": 3})
    settings = AlignedSettings.model_validate(
        options(0.3).model_dump()
        | {"activation": chosen, "penalty": {"kind": penalty, "coefficient": 0.5}, "support": support}
    )
    generator = torch.Generator().manual_seed(0)
    coder = aligned_crosscoder.create(settings, ["a", "b", "c"], [6, 9, 70], 0)
    for name in ("encoder_bias", "decoder", "decoder_bias"):
        setattr(coder, name, 0.3 * torch.randn(getattr(coder, name).shape, generator=generator))
    coder = dataclasses.replace(
        coder,
        encoders=[part.double() for part in coder.encoders],
        encoder_bias=coder.encoder_bias.double(),
        decoder=coder.decoder.double(),
        decoder_bias=coder.decoder_bias.double(),
    )
    x = torch.randn(40, 85, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        objective = gradients.Objective(torch.ones(85), penalty, 0.4, k=coder.k, alignment=0.3)
        selections = AlignedRecipe(settings).selections(coder)
        for _ in range(2):  # the second time with carried thresholds
            result = aligned.compute(coder, x, objective, selections, backend)
    for parameter in coder.parameters:
        parameter.requires_grad_()
    expected, z = aligned_crosscoder.reference_loss(coder, x, settings, 0.4)
    expected.backward()
    assert result.loss == pytest.approx(expected.item(), rel=1e-13)
    assert result.l0 == pytest.approx(float((z > 0).sum()) / 120)
    for parameter, gradient in zip(coder.parameters, result.gradients, strict=True):
        assert (gradients.stored(gradient) - parameter.grad).norm() <= 1e-13 * parameter.grad.norm()


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_global_topk_keeps_k_latents_of_all_sources_together_and_ties_go_to_the_lower_index(activation):
    """Scores are small integers, of which many are equal; the support is that of a plain sort of their sums."""
    settings = AlignedSettings.model_validate(
        options(0.3).model_dump() | {"activation": {"kind": activation, "k": 5}, "support": "global"}
    )
    coder = aligned_crosscoder.create(settings, ["p", "q"], [4, 6], 0)
    coder.encoders = [encoder.sign() for encoder in coder.encoders]
    coder.decoder = torch.zeros_like(coder.decoder)
    coder.decoder[:, [0, 4]] = 0.5  # N_j = 1
    x = torch.randint(-1, 2, (30, 10), generator=torch.Generator().manual_seed(0)).float()
    preactivations = [Preactivations(part, w, b, backends.choose()) for part, w, b in parts_of(coder, x)]
    codes, _ = aligned.common_codes(coder.selection, preactivations, torch.ones(64), 5, [BatchTopK()])
    total = coder.preactivations(x).relu().sum(0)
    groups = total[None] if activation == "batchtopk" else total[:, None]
    expected = torch.zeros(30 * 64, dtype=torch.bool)
    for first, group in enumerate(groups.flatten(1)):
        order = sorted(range(len(group)), key=lambda i: (-group[i].item(), i))[: 5 * len(total) // len(groups)]
        expected[torch.tensor(order) + first * len(group)] = True
    support = torch.stack([code.dense() > 0 for code in codes]).any(0)
    assert int(support.sum()) == 5 * 30
    assert torch.equal(support.flatten(), expected)
    if activation == "topk":
        assert torch.equal(coder.encode(x), torch.stack([code.dense() for code in codes]))


def parts_of(coder, x):
    return zip(x.split(coder.widths, dim=1), coder.encoders, coder.encoder_bias, strict=True)


def test_global_topk_shares_nearly_all_active_latents(data):
    coder = fitted(AlignedSettings.model_validate(options(0.0, steps=120).model_dump() | {"support": "global"}), data)
    assert coder.thresholds[0] == coder.thresholds[1] > 0
    on = coder.encode(data["test"].x) > 0
    assert float(on.any(0).sum(1).float().mean()) == pytest.approx(2, rel=0.1)
    apart = fitted(options(0.0, steps=120), data).encode(data["test"].x) > 0
    jaccard = lambda codes: float((codes[0] & codes[1]).sum() / (codes[0] | codes[1]).sum())  # noqa: E731
    assert jaccard(on) > 0.8 > jaccard(apart)


def test_rescaling_a_latent_changes_no_loss_and_no_selection(data):
    settings = options(0.7)
    coder = aligned_crosscoder.create(settings, ["small", "large"], [24, 32], 0)
    x = data["train"].x[:64]
    before, codes = aligned_crosscoder.reference_loss(coder, x, settings, 0.0)
    scale = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.5
    coder.encoders = [encoder * scale[:, None] for encoder in coder.encoders]
    coder.decoder = coder.decoder / scale[:, None]
    after, rescaled = aligned_crosscoder.reference_loss(coder, x, settings, 0.0)
    assert after.item() == pytest.approx(before.item(), rel=1e-5)
    assert torch.equal(rescaled > 0, codes > 0)
