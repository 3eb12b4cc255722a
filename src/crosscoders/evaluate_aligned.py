"""Stage evaluate_aligned: what an aligned crosscoder's code of each source says of every source, on test documents."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import aligned, artifacts, bootstrap, stage
from crosscoders.feed import Activations
from crosscoders.order import consecutive

MEASURES = {
    "aligned_fraction_variance_explained": "fraction of the variance of the other source explained from the source's code",
    "aligned_overlap": "Jaccard overlap of the active latents of two sources",
    "aligned_l0": "active latents per token of the source's code",
}


def to_dataset(
    sources: list[str], sums: dict[str, np.ndarray], replicates: int, confidence: float, seed: int
) -> xr.Dataset:
    """The measures with intervals over documents."""
    weights = bootstrap.resamples(len(sums["tokens"]), replicates, seed)
    ratio = lambda a, b: bootstrap.ratio_interval(sums[a], sums[b], weights, confidence)  # noqa: E731
    unexplained, low, high = ratio("error", "variance")
    found = [(1 - unexplained, 1 - high, 1 - low), ratio("both", "either"), ratio("active", "tokens")]
    v, dataset = artifacts.variable, xr.Dataset()
    for (name, label), values in zip(MEASURES.items(), found, strict=True):
        dims = ("source", "other_source")[: values[0].ndim]
        dataset[name] = v(dims, values[0], label)
        dataset[f"{name}_low"] = v(dims, values[1], "lower end of its interval over documents")
        dataset[f"{name}_high"] = v(dims, values[2], "upper end of its interval over documents")
    names = np.array(sources, dtype=object)
    return dataset.assign_coords(source=names, other_source=names)


def main(arguments) -> None:
    """Evaluate one aligned crosscoder."""
    section = arguments.settings
    torch.set_grad_enabled(False)
    coder = aligned.from_dataset(artifacts.read(arguments.aligned))
    data = Activations(arguments.activations, artifacts.read(arguments.normalisation), coder.sources)
    sums = aligned.evaluate(coder, data, consecutive(data.metadata["document"].values))
    chosen = section["bootstrap"]
    dataset = to_dataset(coder.sources, sums, chosen["bootstrap_replicates"], chosen["confidence"], chosen["seed"])
    dataset.attrs = artifacts.provenance(section["study"], "evaluate_aligned", section, section["seed"])
    artifacts.write(dataset.assign_attrs(title="aligned crosscoder on test documents"), arguments.output)
    matrix = dataset["aligned_fraction_variance_explained"].values
    across = matrix[~np.eye(len(matrix), dtype=bool)].mean()
    stage.say(f"evaluate_aligned: FVE own {np.diag(matrix).mean():.3f}, across {across:.3f}")


if __name__ == "__main__":
    flags = ("aligned", "normalisation", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations",)).parse_args())
