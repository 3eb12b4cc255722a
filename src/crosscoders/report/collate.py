"""Stage collate: everything the notebooks read about one setting, over crosscoders and seeds, in one dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from crosscoders import artifacts, provenance, stage
from crosscoders.report.sections import CollateSection
from crosscoders.report.stacking import PADDING, stack, stack_seeds
from crosscoders.study.contrasts import contrast_attributes


def main(arguments) -> None:
    """Collate one setting."""
    section: CollateSection = arguments.settings
    parts = [stacked(paths, section.seeds) for paths in (arguments.latents, arguments.evaluations)]
    if arguments.histories:
        parts.append(training_curves(arguments.histories, section))
    for paths, prefix in (
        (arguments.stability, ""),
        (arguments.causal, ""),
        (arguments.steering, "steering_"),
        (arguments.effects, "effect_"),
        (arguments.traces, "trace_"),
        (arguments.explanations, "labels_"),
    ):
        if paths:
            parts.append(of_some(paths, section, prefix))
    if arguments.circuits:
        circuits = map(artifacts.read, arguments.circuits)
        parts.append(stack_seeds(dict(zip(section.seeds, circuits, strict=True)), "circuit_"))
    normalisation = artifacts.read(arguments.normalisation)
    if arguments.aligned:
        aligned = stacked(arguments.aligned, section.seeds)
        names = [name for name in aligned.data_vars if name.startswith("aligned_")]
        labels = {dim: parts[0][dim].values for dim in ("source", "other_source")}
        parts.append(aligned[names].reindex(labels).rename(crosscoder="aligned"))
    statistics, sources = normalisation[["scale", "median_norm", "sink_norm", "sink_share"]], parts[0]["source"].values
    parts.append(statistics.sel(source=sources))
    parts += of_models(arguments, sources)
    parts.append(compared_shares(artifacts.read(arguments.tokens)))
    dataset = xr.merge(parts, combine_attrs="override", compat="no_conflicts", join="exact")
    names = np.array([section.members[name] for name in dataset["crosscoder"].values.tolist()], dtype=object)
    dataset["member"] = artifacts.variable("crosscoder", names, "member of the family: all its settings but its steps")
    dataset.attrs = section.provenance()
    dataset.attrs |= {
        "title": f"summary of {section.setting_name}",
        "setting": section.setting_name,
        **contrast_attributes(section.contrast),
        "classification": section.classification.model_dump_json(),
        "sources": provenance.json_text({name: source.model_dump() for name, source in section.sources.items()}),
    }
    artifacts.write(dataset, arguments.output)


def of_models(arguments, sources: np.ndarray) -> list[xr.Dataset]:
    """What was measured of the models themselves: how alike they are, how far they lie apart, what they do."""
    parts = []
    if arguments.similarity:
        similarity = artifacts.read(arguments.similarity)
        names = [name for name in sources if name in similarity["source"].values]
        parts.append(similarity.sel(source=names).reindex(source=sources).rename(other_source="compared_source"))
    if arguments.divergence:
        parts.append(artifacts.read(arguments.divergence).drop_dims("tensor"))
    if arguments.behaviours:
        measured = artifacts.read(arguments.behaviours).rename(behaviour="measured_behaviour")
        parts.append(
            measured.rename({name: f"behaviour_{name}" for name in ("rate", "rate_low", "rate_high", "prompts")})
        )
    return parts


def stacked(paths: list[Path], seeds: list[int], prefix: str = "") -> xr.Dataset:
    """Files `{crosscoder}/seed-{seed}.nc` of a stage as one dataset of the variables whose names begin with a prefix."""
    keys = [(path.parent.name, int(path.name.split(".")[0].removeprefix("seed-"))) for path in paths]
    read = [artifacts.read(path) for path in paths]
    kept = [one[[name for name in one.data_vars if name.startswith(prefix)]] for one in read]
    return stack(dict(zip(keys, kept, strict=True)), seeds)


def training_curves(histories: list[Path], section: CollateSection) -> xr.Dataset:
    """The curves of all trainings; NaN where a crosscoder was not trained here and has none."""
    curves = of_some(histories, section)
    return curves.rename({name: f"training_{name}" for name in curves.data_vars})


def of_some(paths: list[Path], section: CollateSection, prefix: str = "") -> xr.Dataset:
    """What a stage measured of some crosscoders, over all of the setting, in variables whose names begin with a prefix.

    Where a crosscoder was not measured, floats are NaN, whole numbers −1 and texts empty.
    """
    found = stacked(paths, section.seeds, prefix)
    if list(found["crosscoder"].values) != section.crosscoders:
        padding = {name: PADDING[one.dtype.kind] for name, one in found.data_vars.items() if one.dtype.kind in PADDING}
        found = found.reindex(crosscoder=np.array(section.crosscoders, dtype=object), fill_value=padding)
    return found


def compared_shares(tokens: xr.Dataset) -> xr.Dataset:
    """Which share of the test tokens is compared, where it is not all of them; else nothing."""
    shares = xr.Dataset()
    if tokens.attrs["lacked_share"] > 0:
        label = "share of the test tokens that a model lacks"
        shares["lacked_share"] = artifacts.variable((), np.float64(tokens.attrs["lacked_share"]), label)
    return shares.merge(tokens[["covered_share"]]) if "covered_share" in tokens else shares


if __name__ == "__main__":
    flags = stage.parser(CollateSection, __doc__, "normalisation", "tokens", "output", lists=("latents", "evaluations"))
    for flag in ("--behaviours", "--similarity", "--divergence"):
        flags.add_argument(flag, type=stage.Path)
    for flag in (
        "--histories",
        "--stability",
        "--aligned",
        "--causal",
        "--steering",
        "--effects",
        "--traces",
        "--circuits",
        "--explanations",
    ):
        flags.add_argument(flag, type=stage.Path, nargs="*", default=[])
    stage.run(main, flags.parse_args())
