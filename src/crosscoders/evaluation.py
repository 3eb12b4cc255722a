"""Stage evaluate: reconstruction and sparsity of one crosscoder on the test documents."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, bootstrap, crosscoder, stage
from crosscoders.crosscoder import Crosscoder
from crosscoders.feed import Activations
from crosscoders.order import consecutive
from crosscoders.reconstruction import reconstruction


def to_dataset(
    coder: Crosscoder, sums: dict[str, np.ndarray], replicates: int, confidence: float, seed: int
) -> xr.Dataset:
    """Fraction of variance explained, L0 and dead share, with intervals over documents."""
    weights = bootstrap.resamples(len(sums["tokens"]), replicates, seed)
    ratio = lambda a, b: bootstrap.ratio_interval(a, b, weights, confidence)  # noqa: E731
    unexplained, low, high = ratio(sums["error"], sums["variance"])
    l0, l0_low, l0_high = ratio(sums["active"], sums["tokens"])
    v = artifacts.variable
    return xr.Dataset(
        {
            "fraction_variance_explained": v("source", 1 - unexplained, "fraction of variance explained"),
            "fraction_variance_explained_low": v("source", 1 - high, "lower end of its interval over documents"),
            "fraction_variance_explained_high": v("source", 1 - low, "upper end of its interval over documents"),
            "l0": v((), np.float64(l0), "active latents per token at inference"),
            "l0_low": v((), np.float64(l0_low), "lower end of its interval over documents"),
            "l0_high": v((), np.float64(l0_high), "upper end of its interval over documents"),
            "dead_fraction": v((), np.mean(sums["fired"] == 0), "share of latents that fire on no test token"),
            "tokens": v((), np.int64(sums["tokens"].sum()), "test tokens, sinks left out"),
        },
        coords={"source": ("source", np.array(coder.sources, dtype=object), {"long_name": "source"})},
    )


def main(arguments) -> None:
    """Evaluate one crosscoder."""
    section = arguments.settings
    torch.set_grad_enabled(False)
    trained = artifacts.read(arguments.crosscoder)
    coder = crosscoder.from_dataset(trained)
    data = Activations(
        arguments.activations, artifacts.read(arguments.normalisation), coder.sources, section.get("null")
    )
    sums = reconstruction(coder, data, consecutive(data.metadata["document"].values))
    chosen = section["bootstrap"]
    dataset = to_dataset(coder, sums, chosen["bootstrap_replicates"], chosen["confidence"], chosen["seed"])
    for name in ("l0_training", "penalty_coefficient", "threshold", "threshold_training"):
        dataset[name] = trained[name].mean(keep_attrs=True)  # of thresholds per latent, where they are learned
    attributes = artifacts.provenance(section["study"], "evaluate", section, section["seed"])
    artifacts.write(dataset.assign_attrs(**attributes, title="evaluation on test documents"), arguments.output)
    explained = ", ".join(f"{name} {value:.3f}" for name, value in zip(coder.sources, dataset["fraction_variance_explained"].values, strict=True))  # fmt: skip
    stage.say(f"evaluate: FVE {explained}; L0 {float(dataset['l0']):.1f}; dead {float(dataset['dead_fraction']):.3f}")


if __name__ == "__main__":
    flags = ("crosscoder", "normalisation", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations",)).parse_args())
