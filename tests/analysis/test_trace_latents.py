"""Latents through training: what is planted is found again, chance is told from order, and figures show both."""

from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import trace_latents, traces
from crosscoders.analysis.sections import TraceLatentsSection
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.planted import concepts, trial
from crosscoders.report import collate, figures, through_figures
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.comparisons import Planted
from crosscoders.training import loop
from crosscoders.training.recipes import CrosscoderRecipe

SOURCES, WIDTH = [f"t{i}" for i in range(5)], 32
OPTIONS = Planted(concepts={"spanning": 30, "rotated": 6}, rate=0.04, drift=0.3)


@pytest.fixture(scope="module")
def truth():
    return concepts.world(OPTIONS, dict.fromkeys(SOURCES, WIDTH), 0)


@pytest.fixture(scope="module")
def perfect(truth):
    """A crosscoder whose latents are the planted concepts, and after them one that may not write the last source."""
    decoder = torch.from_numpy(
        np.concatenate([u * g[:, None] for u, g in zip(truth.directions, truth.gain.T, strict=True)], 1)
    )
    decoder = torch.cat([decoder, decoder[:1]])
    writes = torch.ones(len(decoder), len(SOURCES), dtype=torch.bool)
    writes[-1, -1] = False
    return Crosscoder(
        encoder=decoder.clone(),
        encoder_bias=torch.zeros(len(decoder), dtype=torch.float64),
        decoder=decoder,
        decoder_bias=torch.zeros(decoder.shape[1], dtype=torch.float64),
        sources=SOURCES,
        widths=[WIDTH] * len(SOURCES),
        reads=torch.ones_like(writes),
        writes=writes,
        tied=torch.zeros(len(decoder), dtype=torch.bool),
        penalty=torch.ones(len(decoder)),
        activation="relu",
        k=None,
    )


def section(**changes) -> TraceLatentsSection:
    options = {"setting_name": "s", "crosscoder_name": "c", "seed": 0, "through": SOURCES, "steps": [0, 1, 2, 4, 8]}
    bootstrap = Bootstrap(bootstrap_replicates=10, confidence=0.95)
    return TraceLatentsSection(**{"study": "x", "permutations": 200, "bootstrap": bootstrap} | options | changes)


@pytest.fixture(scope="module")
def traced(perfect):
    density = np.linspace(0.01, 0.2, perfect.latents)
    density[3] = 0
    return trace_latents.traced(perfect, density, section())


def test_what_is_planted_is_found_to_the_snapshot_and_the_angle(truth, traced):
    followed = np.setdiff1d(np.arange(36), [3])
    assert traced["followed"].values.nonzero()[0].tolist() == followed.tolist(), (
        "alive, and free to write all snapshots"
    )
    found = traced.isel(latent=followed)
    assert (found["emerges_at"] == truth.first[followed]).all()
    assert (found["vanishes_after"] == np.where(truth.last < 4, truth.last, -1)[followed]).all()
    for s in range(1, 5):
        both = (truth.gain[:, s - 1] > 0) & (truth.gain[:, s] > 0)
        cosine = (truth.directions[s - 1] * truth.directions[s]).sum(1)
        np.testing.assert_allclose(
            found["cosine_before"].values[both[followed], s], cosine[followed][both[followed]], atol=1e-9
        )
    turned = truth.is_class("rotated")[followed]
    assert (
        np.median(found["cosine_before"].values[turned, 3])
        > 0.9
        > 0.5
        > np.abs(found["cosine_before"].values[turned, 4]).max()
    )
    assert set(traced["emerges_at"].values[[3, 36]]) == {-1}


def test_shares_add_up_and_stand_beside_chance(truth, traced):
    emerged, vanished, present = (traced[f"trace_{name}"] for name in ("emerged", "vanished", "present"))
    assert float(emerged.sum()) == pytest.approx(1)
    assert float(vanished.sum() + present[-1]) == pytest.approx(1)
    for name in ("emerged", "vanished", "present", "contiguous"):
        low, high = traced[f"trace_{name}_low"], traced[f"trace_{name}_high"]
        assert ((low <= traced[f"trace_{name}"] + 1e-9) & (traced[f"trace_{name}"] <= high + 1e-9)).all()
    assert float(traced["trace_contiguous"]) == 1 > float(traced["trace_contiguous_null_high"]) - 1e-9
    assert float(traced["trace_contiguous_null"]) < 0.95, "random order breaks spans"
    assert float(traced["trace_emerged_null"][0]) == pytest.approx(float(present.mean()), abs=0.1)
    median = traced.sel(quantile=0.5)
    assert (median["trace_before"][1:4] > 0.9).all()
    assert (abs(median["trace_before_null"][1:]) < 0.3).all()
    sizes = traced["trace_group_latents"]
    assert int(sizes.sum()) == int(traced["trace_latents"]) == 35
    dense = float((traced["trace_dense"] * sizes).sum()) / 35
    assert dense == pytest.approx(float(traced["trace_dense_all"]))


def test_intervals_of_quantiles_hold_the_truth():
    covered = np.zeros(3)
    for draw in range(300):
        _, low, high = traces.quantiles(np.random.default_rng(draw).exponential(size=60), 0.95)
        truth = scipy.stats.expon.ppf(traces.QUANTILES)
        covered += (low <= truth) & (truth <= high)
    assert (covered >= 0.93 * 300).all()


def test_a_trained_crosscoder_finds_when_concepts_live_and_how_they_turn(truth, member):
    tokens = {"train": 12_000, "validation": 2_000, "test": 2_000}
    drawn, _ = concepts.samples(truth, OPTIONS, SOURCES, {}, tokens, 0)
    training = {"steps": 500, "batch_tokens": 256, "dead_tokens": 5_000, "auxiliary_coefficient": 0.03125}
    settings = member("batchtopk", k=2, latents=64, **training)
    with torch.no_grad():
        coder = loop.fit(CrosscoderRecipe(settings), drawn["train"], drawn["validation"], 0).crosscoder
        decoders = [coder.decoder[:, columns].numpy() for columns in coder.columns]
        cosine, _ = concepts.match(truth, decoders, list(range(5)), 0.83)
        found = trial.course(truth, decoders, list(range(5)), cosine, np.ones(64, bool), 0.83)
    assert (cosine.max(1) > 0.83).mean() > 0.7
    assert found["onset_accuracy"] > 0.8
    assert found["ending_accuracy"] > 0.8
    assert found["rotation_error"] < 0.1


def test_figures_and_sentences_say_what_was_found_and_what_was_not(traced, tmp_path):
    figures.style()
    paths = [tmp_path / "c" / f"seed-{seed}.nc" for seed in (0, 1)]
    for path in paths:
        artifacts.write(traced, path)
    summary = collate.of_some(paths, Namespace(crosscoders=["other", "c"], seeds=[0, 1]), "trace_")
    assert "latent" not in summary.sizes, "dictionaries of other crosscoders may be larger"
    assert through_figures.followed(summary) == ["c"]
    for draw in (through_figures.emergence, through_figures.rotation):
        drawn = draw(summary, {"null": summary, "other": xr.Dataset()})
        assert drawn.get_figwidth() <= figures.PAGE_WIDTH
        plt.close(drawn)
    said = through_figures.emergence_sentences(summary, {})
    assert "**c** follows 35 latents" in said
    assert "100% are present in every snapshot between their first and last" in said
    assert "0 to 1 0.9" in through_figures.rotation_sentences(summary, {})
    empty = summary.assign(trace_latents=summary["trace_latents"] * 0)
    with pytest.raises(figures.NothingToDraw, match="No latent"):
        through_figures.emergence(empty, {})


def test_a_crosscoder_without_a_latent_that_fires_ends_no_study(perfect):
    found = trace_latents.traced(perfect, np.zeros(perfect.latents), section(steps=[]))
    assert int(found["trace_latents"]) == 0
    assert found["trace_emerged"].isnull().all()
    assert (found["trace_step"] == -1).all()
