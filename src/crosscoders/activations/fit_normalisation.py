"""Stage fit_normalisation: mean, scale and sink norm of every source, from the training split alone, in float64."""

from __future__ import annotations

import numpy as np
import xarray as xr

from crosscoders import artifacts, provenance, stage, storage
from crosscoders.activations.sections import FitNormalisationSection
from crosscoders.activations.stored import parts_of, raw_values
from crosscoders.errors import UserError

CHUNK = 8192


def fit(norms: np.ndarray, activations: list[list[list[np.ndarray]]], sink_threshold: float) -> dict[str, object]:
    """Statistics of each source over the tokens that are no attention sinks.

    Parameters
    ----------
    norms : (tokens, stored sources)
        Norm of every activation; the sources that are stored come before those that are differences.
    activations : per shard, per source, one or two of (tokens of the shard, width)
        bfloat16 bit patterns; two where a source is their difference.
    sink_threshold : float
        A token is a sink where its norm exceeds this multiple of the source's median norm, in any source.

    Returns
    -------
    dict
        `mean` (list of (width,) float64), `scale` (sources,), so that E‖(a − mean)/scale‖² = width, `median_norm` and
        `sink_norm` (NaN and infinite for differences) and the number of tokens `kept`.
    """
    median = np.median(norms.astype(np.float64), axis=0)
    sink_norm = sink_threshold * median
    keep = (norms <= sink_norm).all(axis=1)
    means, scales = [], []
    for source, parts in enumerate(activations[0]):
        width = parts[0].shape[1]
        total, squares, first = np.zeros(width), np.zeros(width), 0
        for shard in activations:
            tokens = len(shard[source][0])
            for start in range(0, tokens, CHUNK):
                rows = start + np.flatnonzero(keep[first + start : first + min(start + CHUNK, tokens)])
                values = raw_values(shard[source], rows).astype(np.float64)
                total += values.sum(axis=0)
                squares += (values**2).sum(axis=0)
            first += tokens
        mean = total / keep.sum()
        variance = (squares / keep.sum() - mean**2).sum()
        means.append(mean)
        scales.append(np.sqrt(variance / width))
    derived = len(activations[0]) - norms.shape[1]
    return {
        "mean": means,
        "scale": np.array(scales),
        "median_norm": np.r_[median, np.full(derived, np.nan)],
        "sink_norm": np.r_[sink_norm, np.full(derived, np.inf)],
        "kept": int(keep.sum()),
    }


def main(arguments) -> None:
    """Fit and save the statistics of one setting."""
    section: FitNormalisationSection = arguments.settings
    stored, differences, norms, activations = section.sources, section.differences, [], []
    names = [*stored, *differences]
    for path in arguments.activations:
        storage.verify(path)
        with xr.open_dataset(path, mask_and_scale=False) as opened:
            norms.append(opened["norm"].sel(source=stored).values)
        activations.append(
            [[artifacts.memory_map(path, part) for part in parts_of(name, differences)] for name in names]
        )
    for name, parts in zip(names, activations[0], strict=True):
        if len({part.shape[1] for part in parts}) > 1:
            raise UserError(f"sources.{name}.of: widths {[part.shape[1] for part in parts]}; expected equal widths")
    norms = np.concatenate(norms)
    statistics = fit(norms, activations, section.sink_threshold)
    kept = statistics["kept"]
    if kept == 0 or not np.all(statistics["scale"] > 0):
        raise UserError(f"{arguments.output}: a source does not vary over the {kept} kept training tokens")
    v = artifacts.variable
    dataset = xr.Dataset(
        {
            "scale": v("source", statistics["scale"], "scale of the source"),
            "median_norm": v("source", statistics["median_norm"], "median norm of the source"),
            "sink_norm": v("source", statistics["sink_norm"], "norm above which a token counts as an attention sink"),
            "kept_tokens": v((), np.int64(kept), "training tokens that are no sinks"),
            "sink_share": v((), 1 - kept / len(norms), "share of training tokens left out as sinks"),
        },
        coords={"source": ("source", np.array(names, dtype=object), {"long_name": "source"})},
        attrs=section.provenance() | {"title": "normalisation", "differences": provenance.json_text(differences)},
    )
    for name, mean in zip(names, statistics["mean"], strict=True):
        dataset[f"mean_{name}"] = v(f"width_{name}", mean, f"mean activation of {name}")
    artifacts.write(dataset, arguments.output)
    stage.say(f"fit_normalisation: {kept:,} tokens kept, {len(norms) - kept:,} sinks left out")


if __name__ == "__main__":
    stage.run(main, stage.parser(FitNormalisationSection, __doc__, "output", lists=("activations",)).parse_args())
