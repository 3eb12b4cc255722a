"""Stage summarise_power: over the repetitions of a series, which methods detect what was planted, and at which dose.

A method detects a behaviour where its AUC lies above a quantile of its AUC at dose 0, over resamples of documents and all
seeds. What is fine-tuned at dose 0 shows no behaviour, while its test tokens and their labels are those of every dose. Without
labels the AUC must also lie above that quantile for latents of the same dictionaries that are chosen by chance.
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


def quantile(replicates: xr.DataArray, share: float) -> xr.DataArray:
    """A quantile over resamples and all dimensions of repetition; NaN where every replicate is."""
    dims = [*REPEATED, "replicate"]
    known = replicates.notnull().any(dims)
    return replicates.fillna(0).where(replicates.notnull() | ~known).quantile(share, dims, skipna=True).where(known)


def thresholds(null: xr.Dataset, false_alarms: float) -> xr.DataArray:
    """The AUC that both nulls exceed in a share `false_alarms` of cases at most: dose 0, and latents chosen by chance."""
    own, chance = (quantile(null[name], 1 - false_alarms) for name in ("auc_replicate", "auc_random_replicate"))
    chance = chance.fillna(0).where(null["ranking"] != "labels", 0)
    return np.maximum(own, chance).drop_vars("quantile")


def detected(joint: xr.Dataset, false_alarms: float) -> xr.DataArray:
    """Whether each AUC lies above the threshold; NaN where there is no AUC.

    A null is compared with the other seeds' nulls, where there are others.
    """
    null = joint[["auc_replicate", "auc_random_replicate"]].sel(dose=0.0)
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
        of the null, each over `detector`, `ranking` and more.
    """
    hits, null = detected(joint, false_alarms), joint.sel(dose=0.0, drop=True)
    each = with_wilson(
        hits, REPEATED, "power_of_behaviour", "share of seeds in which the behaviour is detected", confidence
    )
    behaviours = hits.sel(behaviour=hits["behaviour"] != ANY)
    together = with_wilson(
        behaviours, [*REPEATED, "behaviour"], "power", "share of seeds and behaviours detected", confidence
    )
    dims = ("detector", "ranking", "behaviour")
    dataset = joint.drop_vars([name for name in joint if name.endswith("_replicate")]).merge(each).merge(together)
    tail = (1 - confidence) / 2
    limits = {"null_low": quantile(null["auc_replicate"], tail), "null_high": quantile(null["auc_replicate"], 1 - tail)}
    limits["null_threshold"] = thresholds(null, false_alarms)
    labels = (
        "lower end of the AUC at dose 0",
        "upper end of the AUC at dose 0",
        "AUC above which a behaviour is detected",
    )
    for (name, values), label in zip(limits.items(), labels, strict=True):
        dataset[name] = artifacts.variable(dims, values.transpose(*dims).values, label)
    return dataset


def rates(behaviours: list[xr.Dataset], doses: list[float]) -> xr.Dataset:
    """How often the fine-tunes show each behaviour, by dose: the last model of each file, for behaviours that were asked for."""
    names = ("rate", "rate_low", "rate_high", "prompts")
    shown = [measured[list(names)].isel(model=-1, drop=True) for measured in behaviours]
    joint = xr.concat(shown, xr.Variable("dose", doses), combine_attrs="drop").sortby("dose")
    return joint.rename(behaviour="measured_behaviour", **{name: f"behaviour_{name}" for name in names})


def main(arguments) -> None:
    """Summarise one series."""
    section: SummarisePowerSection = arguments.settings
    parts = [artifacts.read(path) for path in arguments.detections]
    joint = joined(parts, section.doses, section.fine_tune_seeds, section.seeds)
    dataset = power(joint, section.false_alarms, section.confidence)
    if arguments.behaviours:
        dataset = dataset.merge(rates([artifacts.read(path) for path in arguments.behaviours], section.doses))
    dataset.attrs = section.provenance() | {
        "title": f"power of {section.setting_name}",
        "setting": section.setting_name,
        "best": parts[0].attrs["best"],
        "false_alarms": section.false_alarms,
    }
    artifacts.write(dataset, arguments.output)
    stage.say(f"summarise_power: {dataset.sizes['detector']} methods at {dataset.sizes['dose']} doses")


if __name__ == "__main__":
    flags = stage.parser(SummarisePowerSection, __doc__, "output", lists=("detections",))
    flags.add_argument("--behaviours", type=stage.Path, nargs="*", default=[], help="rates of behaviours, dose by dose")
    stage.run(main, flags.parse_args())
