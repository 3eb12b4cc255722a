"""Stage fit_normalisation: mean, scale and sink norm of every source, from the training split alone, in float64."""

from __future__ import annotations

import numpy as np
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.errors import UserError

CHUNK = 8192


def fit(norms: np.ndarray, activations: list[list[np.ndarray]], sink_threshold: float) -> dict[str, object]:
    """Statistics of each source over the tokens that are no attention sinks.

    Parameters
    ----------
    norms : (tokens, sources)
        Norm of every activation.
    activations : per shard, per source, (tokens of the shard, width)
        bfloat16 bit patterns.
    sink_threshold : float
        A token is a sink where its norm exceeds this multiple of the source's median norm, in any source.

    Returns
    -------
    dict
        `mean` (list of (width,) float64), `scale` (sources,), so that E‖(a − mean)/scale‖² = width, `median_norm`,
        `sink_norm` and the number of tokens `kept`.
    """
    median = np.median(norms.astype(np.float64), axis=0)
    sink_norm = sink_threshold * median
    keep = (norms <= sink_norm).all(axis=1)
    means, scales = [], []
    for source in range(norms.shape[1]):
        width = activations[0][source].shape[1]
        total, squares, first = np.zeros(width), np.zeros(width), 0
        for shard in activations:
            for start in range(0, len(shard[source]), CHUNK):
                bits = shard[source][start : start + CHUNK]
                values = artifacts.from_bits(bits[keep[first : first + len(bits)]]).astype(np.float64)
                total += values.sum(axis=0)
                squares += (values**2).sum(axis=0)
                first += len(bits)
        mean = total / keep.sum()
        variance = (squares / keep.sum() - mean**2).sum()
        means.append(mean)
        scales.append(np.sqrt(variance / width))
    return {
        "mean": means, "scale": np.array(scales), "median_norm": median, "sink_norm": sink_norm, "kept": int(keep.sum())
    }  # fmt: skip


def main(arguments) -> None:
    """Fit and save the statistics of one setting."""
    section = arguments.settings
    names, norms, activations = section["sources"], [], []
    for path in arguments.activations:
        artifacts.verify(path)
        with xr.open_dataset(path, mask_and_scale=False) as opened:
            norms.append(opened["norm"].values)
        activations.append([artifacts.memory_map(path, name) for name in names])
    norms = np.concatenate(norms)
    found = fit(norms, activations, section["sink_threshold"])
    if found["kept"] == 0 or not np.all(found["scale"] > 0):
        raise UserError(f"{arguments.output}: a source does not vary over the {found['kept']} kept training tokens")
    v = artifacts.variable
    dataset = xr.Dataset(
        {
            "scale": v("source", found["scale"], "scale of the source"),
            "median_norm": v("source", found["median_norm"], "median norm of the source"),
            "sink_norm": v("source", found["sink_norm"], "norm above which a token counts as an attention sink"),
            "kept_tokens": v((), np.int64(found["kept"]), "training tokens that are no sinks"),
            "sink_share": v((), 1 - found["kept"] / len(norms), "share of training tokens left out as sinks"),
        },
        coords={"source": ("source", np.array(names, dtype=object), {"long_name": "source"})},
        attrs=artifacts.provenance(section["study"], "fit_normalisation", section) | {"title": "normalisation"},
    )
    for name, mean in zip(names, found["mean"], strict=True):
        dataset[f"mean_{name}"] = v(f"width_{name}", mean, f"mean activation of {name}")
    artifacts.write(dataset, arguments.output)
    stage.say(f"fit_normalisation: {found['kept']:,} tokens kept, {len(norms) - found['kept']:,} sinks left out")


if __name__ == "__main__":
    stage.run(main, stage.parser(__doc__, "output", lists=("activations",)).parse_args())
