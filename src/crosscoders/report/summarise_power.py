"""Stage summarise_power: over the repetitions of a series, which methods detect what was planted, and at which dose.

A method detects a behaviour where its AUC lies above a quantile of its AUC at dose 0, over resamples of documents and all
seeds. What is fine-tuned at dose 0 shows no behaviour, while its test tokens and their labels are those of every dose.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.report.sections import SummarisePowerSection

ANY = "any"
REPEATED = ["fine_tune_seed", "seed"]
"""Dimensions over which a dose is repeated."""


def joined(parts: list[xr.Dataset], doses: list[float], fine_tune_seeds: list[int], seeds: list[int]) -> xr.Dataset:
    """Detections of all repetitions as one dataset over `dose`, `fine_tune_seed` and `seed`, in the order of the parts."""
    index = [(dose, fine, seed) for dose in doses for fine in fine_tune_seeds for seed in seeds]
    labelled = [
        part.expand_dims(dose=[dose], fine_tune_seed=[fine], seed=[seed])
        for part, (dose, fine, seed) in zip(parts, index, strict=True)
    ]
    return xr.combine_by_coords(labelled, combine_attrs="drop_conflicts", join="exact").sortby("dose")


def thresholds(null: xr.DataArray, false_alarms: float) -> xr.DataArray:
    """The AUC that resamples of the null exceed in a share `false_alarms` of cases, over all dimensions of repetition."""
    with np.errstate(invalid="ignore"):
        return null.quantile(1 - false_alarms, [*REPEATED, "replicate"], skipna=True).drop_vars("quantile")


def detected(joint: xr.Dataset, false_alarms: float) -> xr.DataArray:
    """Whether each AUC lies above the threshold; NaN where there is no AUC.

    A null is compared with the other seeds' nulls, where there are others.
    """
    null = joint["auc_replicate"].sel(dose=0.0)
    auc, limits = joint["auc"], thresholds(null, false_alarms)
    hits = (auc > limits).where(auc.notnull() & limits.notnull())
    if joint.sizes["fine_tune_seed"] == 1:
        return hits.where(hits["dose"] > 0)
    for seed in joint["fine_tune_seed"].values:
        own = {"dose": 0.0, "fine_tune_seed": seed}
        limit = thresholds(null.drop_sel(fine_tune_seed=seed), false_alarms)
        hits.loc[own] = (auc.loc[own] > limit).where(auc.loc[own].notnull() & limit.notnull())
    return hits


def with_wilson(hits: xr.DataArray, dims: list[str], name: str, label: str, confidence: float) -> xr.Dataset:
    """The share of hits over some dimensions with its Wilson interval, and how many there were."""
    trials, found = hits.count(dims), hits.sum(dims)
    ends = np.full((2, *trials.shape), np.nan)
    for at in np.ndindex(trials.shape):
        if trials.values[at]:
            test = scipy.stats.binomtest(int(found.values[at]), int(trials.values[at]))
            ends[(slice(None), *at)] = test.proportion_ci(confidence, "wilson")
    v, over = artifacts.variable, trials.dims
    return xr.Dataset(
        {
            name: v(over, (found / trials.where(trials > 0)).values, label),
            f"{name}_low": v(over, ends[0], f"lower end of the Wilson interval of the {label}"),
            f"{name}_high": v(over, ends[1], f"upper end of the Wilson interval of the {label}"),
            f"{name}_trials": v(over, trials.values, f"trials of the {label}"),
        }
    )


def power(joint: xr.Dataset, false_alarms: float, confidence: float) -> xr.Dataset:
    """Power by dose, method and ranking, over behaviours and seeds and by behaviour, with the null's distribution.

    Parameters
    ----------
    joint : xarray.Dataset
        What :func:`joined` made.
    false_alarms, confidence : float

    Returns
    -------
    xarray.Dataset
        The measures of `joint` without their resamples, `power`, `power_of_behaviour`, `null_threshold`, and the interval
        of the null, each over `method`, `ranking` and more.
    """
    hits, null = detected(joint, false_alarms), joint["auc_replicate"].sel(dose=0.0, drop=True)
    each = with_wilson(
        hits, REPEATED, "power_of_behaviour", "share of seeds in which the behaviour is detected", confidence
    )
    behaviours = hits.sel(behaviour=hits["behaviour"] != ANY)
    together = with_wilson(
        behaviours, [*REPEATED, "behaviour"], "power", "share of seeds and behaviours detected", confidence
    )
    dims = ("method", "ranking", "behaviour")
    dataset = joint.drop_vars([name for name in joint if name.endswith("_replicate")]).merge(each).merge(together)
    limits = {"null_threshold": false_alarms, "null_low": 1 - (1 - confidence) / 2, "null_high": (1 - confidence) / 2}
    for name, share in limits.items():
        values = thresholds(null, share).transpose(*dims).values
        dataset[name] = artifacts.variable(
            dims, values, f"quantile {1 - share:.3g} of the AUC at dose 0 over resamples and seeds"
        )
    return dataset


def main(arguments) -> None:
    """Summarise one series."""
    section: SummarisePowerSection = arguments.settings
    parts = [artifacts.read(path) for path in arguments.detections]
    joint = joined(parts, section.doses, section.fine_tune_seeds, section.seeds)
    dataset = power(joint, section.false_alarms, section.confidence)
    dataset.attrs = section.provenance() | {
        "title": f"power of {section.setting_name}",
        "setting": section.setting_name,
        "best": parts[0].attrs["best"],
        "false_alarms": section.false_alarms,
    }
    artifacts.write(dataset, arguments.output)
    stage.say(f"summarise_power: {dataset.sizes['method']} methods at {dataset.sizes['dose']} doses")


if __name__ == "__main__":
    stage.run(main, stage.parser(SummarisePowerSection, __doc__, "output", lists=("detections",)).parse_args())
