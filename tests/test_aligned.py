"""The aligned crosscoder: what it minimises, and that separate encoders come to share one latent space."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders import aligned, evaluate_aligned, gradients, planted, sparse
from crosscoders.settings import AlignedSettings, Planted


def options(alignment: float, **training) -> AlignedSettings:
    return AlignedSettings.model_validate(
        {
            "latents": 64, "activation": {"kind": "batchtopk", "k": 2}, "alignment": alignment,
            "training": {"steps": 500, "batch_tokens": 256, "learning_rate": 3e-3, "warmup_steps": 20, "decay_share": 0.3,
                         "gradient_clip": 10.0, "decoder_norm": 0.3, "dead_tokens": 5000} | training,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    """Two models of different width that share all 24 concepts."""
    settings = Planted(concepts={"shared": 24}, rate=0.06)
    truth = planted.world(settings, [24, 32], 0)
    return planted.samples(truth, settings, ["small", "large"], {}, {"train": 8000, "validation": 2000, "test": 2000}, 0)[0]  # fmt: skip


def test_codes_of_sources_of_unequal_width_rebuild_each_other(data):
    found = {}
    for strength in (0.0, 0.1):
        coder = aligned.fit(options(strength), data["train"], data["validation"], 0, lambda *_: None)
        sums = aligned.evaluate(coder, data["test"], data["test"].document)
        found[strength] = evaluate_aligned.to_dataset(coder.sources, sums, 50, 0.95, 0)
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
    coder = aligned.fit(options(0.1, steps=60), data["train"], data["validation"], 0, lambda *_: None)
    test = data["test"]
    ones = np.ones(1, np.float32)
    normalisation = xr.Dataset(
        {"scale": ("source", np.ones(2)), "sink_norm": ("source", np.full(2, np.inf)), "mean_small": ("width_small", np.zeros(24)),
         "mean_large": ("width_large", np.zeros(32)), "other": ("x", ones)}, coords={"source": ["small", "large"]},
    )  # fmt: skip
    again = aligned.from_dataset(aligned.to_dataset(coder, normalisation))
    found = evaluate_aligned.to_dataset(again.sources, aligned.evaluate(again, test, test.document), 10, 0.95, 0)
    z = coder.encode(test.x)
    rebuilt, x = coder.decode(z)[0][:, 24:], test.x[:, 24:]
    expected = 1 - (x - rebuilt).square().sum() / (x - x.mean(0)).square().sum()
    assert found["aligned_fraction_variance_explained"][0, 1].item() == pytest.approx(expected.item(), abs=1e-5)
    on = z > 0
    assert found["aligned_overlap"][0, 1].item() == pytest.approx(float((on[0] & on[1]).sum() / (on[0] | on[1]).sum()))


def test_loss_is_the_sum_over_ordered_pairs(data):
    settings = options(0.7)
    coder = aligned.create(settings, ["small", "large"], [24, 32], 0)
    x = data["train"].x[:64]
    value, z = aligned.loss(coder, x, settings, 0.0)
    parts = x.split([24, 32], dim=1)
    decoders = coder.decoder.split([24, 32], dim=1)
    expected = sum(((x_t - z_s @ w_t) ** 2).sum() for z_s in z for x_t, w_t in zip(parts, decoders, strict=True))
    size = decoders[0].norm(dim=1) + decoders[1].norm(dim=1)
    expected = (expected + 0.7 * (((z[0] - z[1]) * size) ** 2).sum()) / 64
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("penalty", ["none", "l1_of_norms", "tanh"])
@pytest.mark.parametrize(
    ("activation", "dense"),
    [("batchtopk", False), ("batchtopk", True), ("topk", False), ("relu", False), ("relu", True)],
)
def test_gradients_equal_autograd_in_float64(way, monkeypatch, activation, dense, penalty):
    """Three sources of unequal width, random decoders and biases; passes over pairs and dense products."""
    monkeypatch.setattr(gradients, "DENSE_ABOVE", dict.fromkeys(gradients.DENSE_ABOVE, 0.0 if dense else 1.0))
    chosen = {"kind": activation} | ({} if activation == "relu" else {"k": 3})
    settings = AlignedSettings.model_validate(
        options(0.3).model_dump() | {"activation": chosen, "penalty": {"kind": penalty, "coefficient": 0.5}}
    )
    generator = torch.Generator().manual_seed(0)
    coder = aligned.create(settings, ["a", "b", "c"], [6, 9, 70], 0)
    for name in ("encoder_bias", "decoder", "decoder_bias"):
        setattr(coder, name, 0.3 * torch.randn(getattr(coder, name).shape, generator=generator))
    coder = dataclasses.replace(coder, encoders=[part.double() for part in coder.encoders], encoder_bias=coder.encoder_bias.double(),
                                decoder=coder.decoder.double(), decoder_bias=coder.decoder_bias.double())  # fmt: skip
    x = torch.randn(40, 85, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        value, found, l0 = aligned.compute(coder, x, settings, 0.4, [sparse.BatchTopK() for _ in range(3)])
    for parameter in coder.parameters:
        parameter.requires_grad_()
    expected, z = aligned.loss(coder, x, settings, 0.4)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-13)
    assert l0 == pytest.approx(float((z > 0).sum()) / 120)
    for parameter, gradient in zip(coder.parameters, found, strict=True):
        assert (gradients.stored(gradient) - parameter.grad).norm() <= 1e-13 * parameter.grad.norm()


def test_rescaling_a_latent_changes_no_loss_and_no_selection(data):
    settings = options(0.7)
    coder = aligned.create(settings, ["small", "large"], [24, 32], 0)
    x = data["train"].x[:64]
    before, codes = aligned.loss(coder, x, settings, 0.0)
    scale = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.5
    coder.encoders = [encoder * scale[:, None] for encoder in coder.encoders]
    coder.decoder = coder.decoder / scale[:, None]
    after, rescaled = aligned.loss(coder, x, settings, 0.0)
    assert after.item() == pytest.approx(before.item(), rel=1e-5)
    assert torch.equal(rescaled > 0, codes > 0)
