"""Latents of two seeds are matched whatever their order and scale."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import match_seeds, subspaces
from crosscoders.analysis.classification import CALLS, NORM_CLASSES
from crosscoders.report import null_figures, weight_figures
from crosscoders.report.figures import NothingToDraw


def test_permuted_and_rescaled_latents_are_found_again_and_dead_ones_left_out():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(200, 40, generator=generator)
    order = torch.randperm(200, generator=generator)
    other = decoder[order] * (0.5 + torch.rand(200, 1, generator=generator))
    alive, other_alive = np.arange(200) % 10 > 0, np.ones(200, bool)
    other_alive[0] = False
    cosine, latent = match_seeds.match(decoder, other, alive, other_alive)
    assert np.isnan(cosine[~alive]).all()
    assert (latent[~alive] == -1).all()
    found = alive & (np.arange(200) != int(order[0]))
    assert np.array_equal(order.numpy()[latent[found]], np.flatnonzero(found))
    np.testing.assert_allclose(cosine[found], 1, atol=1e-5)
    if alive[int(order[0])]:
        assert cosine[int(order[0])] < 0.8, "its partner is dead"


def written(top: torch.Tensor, others: int, seed: int) -> subspaces.Written:
    """A training that writes `top`, (n, d), with the highest Δ, and random directions with others."""
    rest = torch.randn(others, top.shape[1], generator=torch.Generator().manual_seed(seed))
    decoder = torch.cat([rest, 3 * top, torch.zeros(1, top.shape[1])])
    delta = np.concatenate([np.linspace(0.1, 0.6, others), np.full(len(top), 0.95), [0.99]])
    density = np.full(len(decoder), 0.01)
    density[-1] = 0  # a dead latent, which would rank first
    latents = xr.Dataset({"density": ("latent", density), "relative_norm": ("latent", delta)})
    return subspaces.Written.of(decoder, latents)


def test_a_rotated_basis_spans_the_same_though_no_latent_has_a_partner_and_random_ones_overlap_by_chance():
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(256, 32, generator=generator))[0].T
    turned = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0] @ plane
    cosine, _ = match_seeds.match(plane, turned, np.ones(32, bool), np.ones(32, bool))
    assert cosine.max() < null_figures.MATCHED_ABOVE
    overlaps, nulls = subspaces.compare(written(plane, 600, 1), written(turned, 600, 2), 0)
    chat, shared = (subspaces.LEANINGS.index(leaning) for leaning in ("chat", "shared"))
    place = subspaces.SIZES.index(32)
    value, low, _ = overlaps[chat, place]
    assert value == pytest.approx(1, abs=1e-5) and low > 0.85
    low, high = overlaps[shared, place, 1:]
    assert low < 32 / 256 < high
    assert overlaps[chat, subspaces.SIZES.index(8), 0] < 0.5, "of a part of a rotated basis the span is another one"
    for kind in (0, 1):
        mean, low, high = nulls[kind, place]
        assert mean == pytest.approx(32 / 256, abs=0.03) and low < mean < high
    narrow = subspaces.compare(written(plane[:, :32], 600, 1), written(turned[:, :32], 600, 2), 0)
    assert np.isnan(narrow[0][:, place]).all(), "32 latents fill a source of width 32, whatever they are"


@pytest.fixture
def summary():
    """Two seeds of 60 latents: seed 1 holds those of seed 0 backwards; 6 of them are chat-only in both."""
    kind = np.full((1, 2, 60), NORM_CLASSES.index("shared"))
    kind[0, 0, :6] = kind[0, 1, -6:] = NORM_CLASSES.index("chat-only")
    called = np.zeros((1, 2, len(CALLS)), int)
    for call, counts in {
        "alive": (60, 60),
        "shared": (54, 54),
        "chat-only": (6, 6),
        "chat-specific": (3, 0),
        "chat-only and chat-specific": (3, 0),
    }.items():
        called[0, :, CALLS.index(call)] = counts
    replicates = np.repeat(called[:, :, None], 50, axis=2)
    replicates[:, :, ::2, CALLS.index("chat-only")] = 2
    cosine, latent = np.full((1, 2, 2, 60), np.nan), np.full((1, 2, 2, 60), -1)
    for seed in (0, 1):
        cosine[0, seed, 1 - seed], latent[0, seed, 1 - seed] = 0.9, np.arange(60)[::-1]
    dims = ("crosscoder", "seed")
    return xr.Dataset(
        {
            "norm_class": artifacts.flags((*dims, "latent"), kind, NORM_CLASSES, "class"),
            "called": ((*dims, "call"), called),
            "called_replicate": ((*dims, "replicate", "call"), replicates),
            "l0": (dims, np.full((1, 2), 8.0)),
            "density": ((*dims, "latent"), np.ones((1, 2, 60))),
            "relative_norm": ((*dims, "latent"), np.where(kind == 2, 0.95, 0.5)),
            "matched_cosine": ((*dims, "other_seed", "latent"), cosine),
            "matched_latent": ((*dims, "other_seed", "latent"), latent),
        },
        coords={
            "call": list(CALLS),
            "crosscoder": np.array(["l1"], dtype=object),
            "seed": [0, 1],
            "other_seed": [0, 1],
        },
    )


def test_rates_are_counted_over_seeds_and_matched_latents_keep_their_class(summary):
    found = null_figures.rates(summary, "l1")
    rate, low, high, seeds = found["chat-only"]
    assert (rate, seeds) == (0.1, [0.1, 0.1])
    assert low == pytest.approx(2 / 60), "half the resamples of documents hold two of them"
    assert rate < high < 0.17
    assert found["chat-only and chat-specific"][3] == [0.05, 0]
    nothing = null_figures.rates(
        summary.assign(
            called=summary["called"].where(summary["call"] == "alive", 0),
            called_replicate=summary["called_replicate"].where(summary["call"] == "alive", 0),
        ),
        "l1",
    )
    assert nothing["chat-only"][0] == 0
    assert nothing["chat-only"][2] > 0.02, "no latent of 120 is no rate of 0"
    cosines, agreement = null_figures._matched(summary, "l1")
    assert len(cosines) == 120
    assert {label: len(values) for label, values in agreement.items()} == {
        "base-only": 0,
        "shared": 108,
        "chat-only": 12,
        "other": 0,
    }
    assert all(values.all() for values in agreement.values())
    assert "100% of alive latents have one of cosine above 0.7" in null_figures.stability_sentences(summary)
    assert "chat-only by norm: real pair 10.00%" in null_figures.null_sentences(summary, {})


@pytest.fixture
def changed(summary):
    """Summaries of a pair and of nulls: the pair's latents of highest Δ are enriched, and weights are changed by some."""

    def one(lift, change=None, kl=0.1, bits=np.nan):
        values = {"lift": lift, "lift_low": lift - 0.5, "lift_high": lift + 0.5, "null_low": 0.5, "null_high": 1.5}
        dims = ("crosscoder", "seed", "group", "category")
        made = summary.assign({f"enrichment_{name}": (dims, np.full((1, 2, 3, 1), v)) for name, v in values.items()})
        made = made.assign_coords(category=["planted_or_template"])
        if change is None:
            return made
        measured = {"model_kl_divergence": kl, "model_loss_difference": -kl / 2}
        ends = {
            f"{name}{end}": v * s
            for name, v in measured.items()
            for end, s in {"": 1, "_low": 0.9, "_high": 1.1}.items()
        }
        return made.assign(weight_change=change, weight_bits=bits, **ends)

    controls = {f"null-rounded-{bits}": one(1.0, 2.0**-bits, 4.0**-bits, float(bits)) for bits in (4, 8)}
    return one(3.0, 0.009), {"null-same-model": one(1.0), "null-noised": one(1.1, 0.009, 0.02), **controls}


def test_nulls_of_any_number_show_calls_and_enrichment(changed):
    summary, controls = changed
    assert null_figures.enrichment(summary, "l1") == (3.0, 2.5, 3.5, 0.5, 1.5)
    figure = null_figures.nulls(summary, controls)
    assert len(figure.axes) == 2
    names = ["real pair", "same model", "noised", "rounded 4", "rounded 8"]
    assert all([label.get_text() for label in axis.get_xticklabels()] == names for axis in figure.axes)
    last = null_figures.null_sentences(summary, controls).splitlines()[-1]
    assert "highest Δ: real pair 3.0 (2.5 to 3.5; latents permuted 0.5 to 1.5); null-same-model 1.0" in last
    plt.close("all")


def test_rounding_is_shown_from_many_bits_to_few_beside_the_fine_tune_and_the_other_nulls(changed):
    summary, controls = changed
    figure = weight_figures.rounding(summary, controls)
    calls, weights, _, divergence, lifts, _ = figure.axes
    assert {line.get_label() for line in calls.lines} >= {"fine-tune", "same-model", "noised"}
    assert "fine-tune" in {line.get_label() for line in lifts.lines} and lifts.get_ylabel().startswith("lift")
    (rounded,) = [one for one in divergence.containers if one.get_label() == "rounded"]
    np.testing.assert_allclose(rounded.lines[0].get_xydata(), [[8, 4.0**-8], [4, 4.0**-4]])
    assert "same-model" not in {line.get_label() for line in weights.lines}, "its weights are those of the first model"
    lines = weight_figures.sentences(summary, controls).splitlines()
    assert [line.split("**")[1] for line in lines] == ["fine-tune", "noised", "rounded-8", "rounded-4"]
    assert (
        "the weights change by 0.9% of their norm, the loss by -0.05 nats (-0.045 to -0.055), KL is 0.1 nats"
        in lines[0]
    )
    with pytest.raises(NothingToDraw, match="no null whose weights are rounded"):
        weight_figures.rounding(summary, {"null-noised": controls["null-noised"]})
    plt.close("all")


def test_the_figures_show_every_group(summary):
    figure = null_figures.stability(summary)
    assert len(figure.axes) == 3
    sizes, dims = len(subspaces.SIZES), ("crosscoder", "seed", "other_seed")
    pair = np.where(np.eye(2, dtype=bool), np.nan, 1.0)[None, ..., None, None]
    overlaps = pair[..., None, None] * np.broadcast_to([0.6, 0.5, 0.7], (1, 2, 2, 2, 3, sizes, 3))
    nulls = pair[..., None, None] * np.broadcast_to([0.2, 0.1, 0.3], (1, 2, 2, 2, 2, sizes, 3))
    spanned = subspaces.to_dataset(overlaps[0, 0], nulls[0, 0], ["base", "chat"]).expand_dims(crosscoder=["l1"])
    spanned = xr.concat(
        [spanned, subspaces.to_dataset(overlaps[0, 1], nulls[0, 1], ["base", "chat"]).expand_dims(crosscoder=["l1"])],
        dim=xr.DataArray([0, 1], dims="seed", name="seed"),
    ).transpose(*dims, ...)
    whole = summary.merge(spanned.assign_coords(other_seed=[0, 1])).assign_attrs(base="base", chat="chat")
    assert len(null_figures.stability(whole, {"null-permuted-tokens": whole}).axes) == 6
    words = null_figures.stability_sentences(whole)
    assert (
        "span overlaps between seeds by 0.60 [0.50, 0.70] for 8 latents (random latents 0.20, random directions"
        in words
    )
    controls = null_figures.nulls(summary, {"null-permuted-tokens": summary.isel(seed=[1])})
    assert [label.get_text() for label in controls.axes[0].get_xticklabels()] == ["real pair", "permuted tokens"]
    plt.close("all")
