"""Power over doses: a method that sees the change passes its null, one that sees nothing passes it as often as allowed."""

import numpy as np
import pytest
import xarray as xr

from crosscoders.report import power_figures, summarise_power

DOSES, SEEDS, REPLICATES = [1.0, 0.1, 0.0], [0, 1, 2], 100
RANKINGS = ["delta", "nu", "energy", "labels"]
BEHAVIOURS = ["refusal", "persona", "any"]
DETECTORS = {"sees-all": (0.1, 0.95), "sees-much": (1.0, 0.9), "blind": (2.0, 0.5)}
"""The least dose at which a detector sees what was planted, and its AUC there; it is 0.5 elsewhere."""


def detection(dose: float, generator: np.random.Generator) -> xr.Dataset:
    """What detect_planted writes of one repetition, with a noise of 0.02 in every AUC."""
    auc = np.full((len(DETECTORS), len(RANKINGS), len(BEHAVIOURS)), np.nan)
    for row, (least, seen) in zip(auc, DETECTORS.values(), strict=True):
        row[0] = generator.normal(seen if dose >= least else 0.5, 0.02, len(BEHAVIOURS))
    auc[0, RANKINGS.index("labels")] = 0.99
    dims = ("detector", "ranking", "behaviour")
    drawn = auc + generator.normal(0, 0.02, (REPLICATES, *auc.shape))
    chance = generator.normal(0.5, 0.02, (REPLICATES, len(DETECTORS), len(BEHAVIOURS)))
    return xr.Dataset(
        {
            "auc": (dims, auc),
            "auc_low": (dims, auc - 0.04),
            "auc_high": (dims, auc + 0.04),
            "auc_replicate": (("replicate", *dims), drawn),
            "auc_random_replicate": (("replicate", "detector", "behaviour"), chance),
        },
        coords={"detector": list(DETECTORS), "ranking": RANKINGS, "behaviour": BEHAVIOURS},
    )


@pytest.fixture
def summary():
    generator = np.random.default_rng(0)
    parts = [detection(dose, generator) for dose in DOSES for _ in SEEDS]
    joint = summarise_power.joined(parts, DOSES, SEEDS, [0])
    return summarise_power.power(joint, 0.05, 0.95).assign_attrs(false_alarms=0.05, best=5)


def test_power_is_the_share_of_seeds_and_behaviours_above_the_null(summary):
    power = summary["power"].sel(ranking="delta")
    assert power.sel(detector="sees-all").values.tolist()[1:] == [1, 1]
    assert power.sel(detector="sees-much", dose=1.0) == 1
    assert power.sel(detector="sees-much", dose=0.1) < 0.5
    assert (summary["power_trials"].sel(ranking="delta") == 6).all(), "all behaviours together are not counted again"
    low, high = (summary[f"power_{end}"].sel(detector="sees-all", ranking="delta", dose=1.0) for end in ("low", "high"))
    assert (round(float(low), 2), float(high)) == (0.61, 1)
    assert np.isnan(summary["power"].sel(detector="blind", ranking="labels")).all()
    labelled = summary["power"].sel(detector="sees-all", ranking="labels")
    assert (labelled < 0.5).all(), "what is as good without the change shows no change"


def test_false_alarms_are_as_rare_as_asked_for():
    generator, alarms = np.random.default_rng(1), []
    for _ in range(3):
        parts = [detection(dose, generator) for dose in (0.05, 0.0) for _ in range(3)]
        joint = summarise_power.joined(parts, [0.05, 0.0], [0, 1, 2], [0])
        alarms.append(summarise_power.detected(joint, 0.05).sel(ranking="delta").values)
    assert np.mean(alarms) < 0.08


def test_three_sentences_and_a_table_say_what_is_seen(summary):
    lines = power_figures.sentences(summary).splitlines()
    assert lines[0].startswith(
        "- **Without labels**: sees-all (by Δ) sees the smallest change: at a dose of 10% it detects 100%"
    )
    assert lines[1] == "- **With labels**: no method detects half of the behaviours at any dose, at 5% false alarms."
    assert lines[2].startswith("- **Not seen**: at a dose of 100%, blind (")
    assert lines[4] == "| method | chosen by | 0% | 10% | 100% |"
