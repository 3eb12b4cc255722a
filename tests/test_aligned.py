"""The aligned crosscoder: what it minimises, and that separate encoders come to share one latent space."""

import pytest
import torch

from crosscoders import aligned, planted
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
        found[strength] = aligned.evaluate(coder, data["test"])
    explained = found[0.1]["fraction_variance_explained"]
    assert explained.min() > 0.8, explained
    assert explained[0, 1] > 0.9 * explained[1, 1], "the small model's code rebuilds the large one nearly as well"
    assert found[0.1]["overlap"][0, 1] > 0.6
    assert found[0.1]["overlap"][0, 1] > found[0.0]["overlap"][0, 1]
    assert found[0.1]["l0"] == pytest.approx([2, 2], rel=0.1)


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
