"""Stage measure_ablations: next-token loss of every source's model, with the source as it is, at zero and at its mean.

These losses depend on no crosscoder and are measured once per setting. They are the two ends of the scale on which the
losses under spliced reconstructions are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.sections import MeasureAblationsSection
from crosscoders.activations.shuffle import consecutive, spread_documents
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.language_models import snapshots, splicing
from crosscoders.language_models.windows import windows

ABLATIONS = ("clean", "zero", "mean")


def main(arguments) -> None:
    """Measure one setting."""
    section: MeasureAblationsSection = arguments.settings
    tokens, normalisation = artifacts.read(arguments.tokens), artifacts.read(arguments.normalisation)
    document = consecutive(tokens["document"].values)
    read = spread_documents(document, section.splice_tokens)[document]
    chosen = read & tokens["in_all_models"].values.astype(bool)
    kept = np.zeros(len(document), bool)
    kept[Activations(arguments.activations, normalisation).metadata["token_index"].values] = True
    folders = dict(zip(section.reading.models, arguments.models, strict=True))
    losses = measure(section, folders, Split(tokens, read, kept), normalisation)
    numbers, places = np.unique(document[chosen], return_inverse=True)
    sums = np.zeros((len(numbers), *losses.shape[1:]))
    np.add.at(sums, places, losses[chosen])
    sources, v = list(section.reading.sources), artifacts.variable
    dataset = xr.Dataset(
        {
            "cross_entropy": v(("document", "source", "ablation"), sums, "sum of next-token losses", units="nats"),
            "tokens": v("document", np.bincount(places), "tokens of the document"),
            "document_index": v("document", numbers, "number of the document within the test split"),
        },
        coords={"source": np.array(sources, dtype=object), "ablation": np.array(ABLATIONS, dtype=object)},
        attrs=section.provenance() | {"title": "ablated losses"},
    )
    artifacts.write(dataset, arguments.output)
    for name, row in zip(sources, sums.sum(0) / chosen.sum(), strict=True):
        means = ", ".join(f"{label} {value:.2f}" for label, value in zip(ABLATIONS, row, strict=True))
        stage.say(f"measure_ablations {name}: {means}")


@dataclass
class Split:
    """The test tokens, which of them are read, and which of them are no attention sinks, (tokens,) bool each."""

    tokens: xr.Dataset
    read: np.ndarray
    kept: np.ndarray


def measure(
    section: MeasureAblationsSection, folders: dict[str, Path], split: Split, normalisation: xr.Dataset
) -> np.ndarray:
    """Next-token losses in nats, (tokens, sources, ablations); NaN where they are not read."""
    reading, tokens = section.reading, split.tokens
    device = chosen_device(reading.device)
    dtype = chosen_dtype(reading.dtype, device)
    ids, sink = tokens["token_id"].values, int(tokens.attrs["sink_token_id"])
    spans = [span for span in windows(tokens["position"].values) if split.read[span.start]]
    losses = np.empty((len(ids), len(reading.sources), len(ABLATIONS)))
    progress = stage.Progress(f"measure_ablations {section.setting_name}", len(folders), "models")
    for model_name, folder in folders.items():
        model = snapshots.load_model(folder.parent, device, dtype)
        own = [(s, name) for s, (name, source) in enumerate(reading.sources.items()) if source.model == model_name]
        changes: list[splicing.Change | None] = [None]
        for _, name in own:
            source, mean = reading.sources[name], normalisation[f"mean_{name}"].values.astype(np.float32)
            values = (np.broadcast_to(v, (len(ids), len(mean))) for v in (np.zeros_like(mean), mean))
            changes += [((source.layer, source.hook), value) for value in values]
        by_change = splicing.token_losses(model, ids, spans, sink, reading.batch_tokens, changes, split.kept)
        for i, (s, _) in enumerate(own):
            losses[:, s] = by_change[[0, 1 + 2 * i, 2 + 2 * i]].T
        progress.update(1)
    return losses


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    flags = ("tokens", "normalisation", "output")
    stage.run(
        main, stage.parser(MeasureAblationsSection, __doc__, *flags, lists=("activations", "models")).parse_args()
    )
