"""Stage evaluate_aligned: how well the code of each source in an aligned crosscoder rebuilds every source."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis import bootstrap
from crosscoders.analysis.sections import EvaluateAlignedSection
from crosscoders.crosscoder.aligned import Aligned
from crosscoders.crosscoder.files import aligned_from_dataset
from crosscoders.study.settings.analysis import Bootstrap

MEASURES = {
    "aligned_fraction_variance_explained": "fraction of the variance of the other source explained "
    "from the source's code",
    "aligned_overlap": "Jaccard overlap of the active latents of two sources",
    "aligned_l0": "active latents per token of the source's code",
}


@torch.no_grad()
def evaluate(coder: Aligned, data, document: np.ndarray, batch: int = 2048) -> dict[str, np.ndarray]:
    """Sums within documents of how well every source's code rebuilds every source, and of how the codes overlap.

    Parameters
    ----------
    document : (tokens,)
        Consecutive document numbers from 0.

    Returns
    -------
    dict
        `error` (documents, from source, to source) and `variance` about the split's mean (documents, 1, to source);
        `both` and `either` (documents, S, S), latents active in two sources' codes of a token, and in one of them;
        `active` (documents, S) and `tokens` (documents, 1).
    """
    documents, sources = int(document[-1]) + 1, len(coder.sources)
    mean = sum(x.double().sum(0) for _, x in data.batches(batch)) / len(data)
    sums = {name: np.zeros((documents, sources, sources)) for name in ("error", "both", "either")}
    sums |= {"variance": np.zeros((documents, 1, sources)), "active": np.zeros((documents, sources))}

    def add(name: str, place: tuple[int, ...], inside: np.ndarray, values: torch.Tensor) -> None:
        sums[name][(slice(None), *place)] += np.bincount(inside, values.double().numpy(), documents)

    for chosen, x in data.batches(batch):
        z, inside = coder.encode(x), document[chosen]
        squares = (x - coder.decode(z)).double().square()
        spread, on = (x.double() - mean).square().split(coder.widths, dim=1), z > 0
        for s in range(sources):
            add("variance", (0, s), inside, spread[s].sum(1))
            add("active", (s,), inside, on[s].sum(1))
            for t, part in enumerate(squares[s].split(coder.widths, dim=1)):
                add("error", (s, t), inside, part.sum(1))
                add("both", (s, t), inside, (on[s] & on[t]).sum(1))
                add("either", (s, t), inside, (on[s] | on[t]).sum(1))
    return {**sums, "tokens": np.bincount(document, minlength=documents).astype(float)[:, None]}


def to_dataset(sources: list[str], sums: dict[str, np.ndarray], options: Bootstrap) -> xr.Dataset:
    """The measures with intervals over documents."""
    weights = bootstrap.resamples(len(sums["tokens"]), options.bootstrap_replicates, options.seed)
    ratio = lambda a, b: bootstrap.ratio_interval(sums[a], sums[b], weights, options.confidence)  # noqa: E731
    unexplained, low, high = ratio("error", "variance")
    estimates = [(1 - unexplained, 1 - high, 1 - low), ratio("both", "either"), ratio("active", "tokens")]
    v, dataset = artifacts.variable, xr.Dataset()
    for (name, label), values in zip(MEASURES.items(), estimates, strict=True):
        dims = ("source", "other_source")[: values[0].ndim]
        dataset[name] = v(dims, values[0], label)
        dataset[f"{name}_low"] = v(dims, values[1], "lower end of its interval over documents")
        dataset[f"{name}_high"] = v(dims, values[2], "upper end of its interval over documents")
    names = np.array(sources, dtype=object)
    return dataset.assign_coords(source=names, other_source=names)


def main(arguments) -> None:
    """Evaluate one aligned crosscoder."""
    section: EvaluateAlignedSection = arguments.settings
    torch.set_grad_enabled(False)
    trained = artifacts.read(arguments.aligned)
    coder = aligned_from_dataset(trained)
    data = Activations(arguments.activations, artifacts.read(arguments.normalisation), coder.sources)
    sums = evaluate(coder, data, consecutive(data.metadata["document"].values))
    dataset = to_dataset(coder.sources, sums, section.bootstrap)
    dataset["aligned_training_tokens"] = trained["training_tokens"]
    dataset.attrs = section.provenance()
    artifacts.write(dataset.assign_attrs(title="aligned crosscoder on test documents"), arguments.output)
    matrix = dataset["aligned_fraction_variance_explained"].values
    across = matrix[~np.eye(len(matrix), dtype=bool)].mean()
    stage.say(f"evaluate_aligned: FVE own {np.diag(matrix).mean():.3f}, across {across:.3f}")


if __name__ == "__main__":
    flags = ("aligned", "normalisation", "output")
    stage.run(main, stage.parser(EvaluateAlignedSection, __doc__, *flags, lists=("activations",)).parse_args())
