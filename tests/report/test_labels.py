"""Labels of latents in a summary: means by group are those of the latents, and the figure holds what was measured alone."""

from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import excerpts
from crosscoders.analysis.explain_latents import by_group
from crosscoders.report import collate, figures, label_figures
from crosscoders.report.results import Results
from crosscoders.study.settings.analysis import Bootstrap

SETTINGS = Bootstrap(bootstrap_replicates=200, confidence=0.95)


def explained(seed: int, chosen_by: list[int]) -> tuple[xr.Dataset, xr.Dataset]:
    """Scores of some latents, and their means by group, as the stage writes them."""
    generator, count = np.random.default_rng(seed), len(chosen_by)
    scored = xr.Dataset(
        {
            "score": ("explained", generator.uniform(0.6, 1, count)),
            "shuffled_score": ("explained", generator.uniform(0.4, 0.6, count)),
            "shown": ("explained", generator.integers(0, 2, count).astype(np.int8)),
            "shuffled_shown": ("explained", np.zeros(count, np.int8)),
        }
    )
    return scored, by_group(scored, np.array(chosen_by), SETTINGS)


def test_a_summary_holds_scores_of_every_group_and_the_figure_shows_them(tmp_path):
    figures.style()
    paths, scores = [], {}
    for name, seed, chosen_by in (
        ("l1", 0, [0] * 8 + [1] + [3] * 5),
        ("l1", 1, [0] * 8 + [3] * 4),
        ("theirs", 0, [3] * 6),
    ):
        paths.append(tmp_path / name / f"seed-{seed}.nc")
        scores[name, seed], groups = explained(seed, chosen_by)
        artifacts.write(groups, paths[-1])
    summary = collate.of_some(paths, Namespace(crosscoders=["other", "theirs", "l1"], seeds=[0, 1]), "labels_")
    of_all = summary.sel(crosscoder="l1", seed=0, label_group="all")
    assert float(of_all["labels_score"]) == pytest.approx(float(scores["l1", 0]["score"].mean()))
    assert float(of_all["labels_score_low"]) < float(of_all["labels_score"]) < float(of_all["labels_score_high"])
    assert int(of_all["labels_shown"]) == int(scores["l1", 0]["shown"].sum()) and int(of_all["labels_tried"]) == 14
    one_latent = summary.sel(crosscoder="l1", seed=0, label_group="nu")
    assert np.isfinite(one_latent["labels_score"]) and np.isnan(one_latent["labels_score_low"])
    assert summary["label_group"].values.tolist() == [*excerpts.REASONS, "all"] == list(label_figures.GROUPS)
    drawn, lines = label_figures.labels(summary), label_figures.label_sentences(summary).splitlines()
    assert [axis.get_title() for axis in drawn.axes] == ["theirs", "l1"]
    (left, right) = ([text.get_text() for text in axis.texts] for axis in drawn.axes)
    assert left[0] == "0 of 0" and left[-1].endswith("of 6") and right[-1].endswith("of 26")
    assert [line.split("**")[1] for line in lines] == ["theirs, seed 0", "l1, seed 0", "l1, seed 1"]
    assert "of shuffled labels 0 would pass" in lines[0]
    figures.save(drawn, tmp_path, "ours-labels")
    plt.close("all")
    with pytest.raises(figures.NothingToDraw, match="does not ask for it"):
        Results(xr.Dataset()).sentences("ours-labels")
