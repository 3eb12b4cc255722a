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
from crosscoders.language_models.model_tokens import ChosenDocuments, ModelTokens

ABLATIONS = ("clean", "zero", "mean")


def main(arguments) -> None:
    """Measure one setting."""
    section: MeasureAblationsSection = arguments.settings
    tokens, normalisation = artifacts.read(arguments.tokens), artifacts.read(arguments.normalisation)
    document = consecutive(tokens["document"].values)
    read = spread_documents(document, section.splice_tokens)[document]
    numbers = np.unique(document[read & tokens["in_all_models"].values.astype(bool)])
    kept = np.zeros(len(document), bool)
    kept[Activations(arguments.activations, normalisation).metadata["token_index"].values] = True
    folders = dict(zip(section.reading.models, arguments.models, strict=True))
    sums, counts = measure(section, folders, Split(tokens, numbers, kept), normalisation)
    dataset = to_dataset(sums, counts, numbers, list(section.reading.sources))
    artifacts.write(dataset.assign_attrs(**section.provenance(), title="ablated losses"), arguments.output)
    for name, row in zip(dataset["source"].values, sums.sum(0) / counts.sum(0)[:, None], strict=True):
        means = ", ".join(f"{label} {value:.2f}" for label, value in zip(ABLATIONS, row, strict=True))
        stage.say(f"measure_ablations {name}: {means}")


def to_dataset(sums: np.ndarray, counts: np.ndarray, numbers: np.ndarray, sources: list[str]) -> xr.Dataset:
    """Losses by document; the counts of tokens differ between sources where models have different tokenizers.

    Parameters
    ----------
    sums : (documents, sources, ablations)
        Sums of next-token losses, nats.
    counts : (documents, sources)
        Tokens.
    numbers : (documents,)
    sources : list of str
    """
    v, same = artifacts.variable, (counts == counts[:, :1]).all()
    tokens = v("document", counts[:, 0], "tokens of the document")
    if not same:
        tokens = v(("document", "source"), counts, "tokens of the document for the source's model")
    return xr.Dataset(
        {
            "cross_entropy": v(("document", "source", "ablation"), sums, "sum of next-token losses", units="nats"),
            "tokens": tokens,
            "document_index": v("document", numbers, "number of the document within the test split"),
        },
        coords={"source": np.array(sources, dtype=object), "ablation": np.array(ABLATIONS, dtype=object)},
    )


@dataclass
class Split:
    """The test tokens, the documents on which losses are measured, and the tokens whose activations are replaced.

    Attributes
    ----------
    tokens : xarray.Dataset
    numbers : (documents,)
        Numbers of documents, counted without gaps.
    kept : (tokens,) bool
        Tokens that are compared and no attention sinks.
    """

    tokens: xr.Dataset
    numbers: np.ndarray
    kept: np.ndarray


def measure(
    section: MeasureAblationsSection, folders: dict[str, Path], split: Split, normalisation: xr.Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of next-token losses in nats, (documents, sources, ablations), and tokens, (documents, sources)."""
    reading = section.reading
    device = chosen_device(reading.device)
    dtype = chosen_dtype(reading.dtype, device)
    sums = np.zeros((len(split.numbers), len(reading.sources), len(ABLATIONS)))
    counts = np.zeros(sums.shape[:2], np.int64)
    progress = stage.Progress(f"measure_ablations {section.setting_name}", len(folders), "models")
    for model_name, folder in folders.items():
        model = snapshots.load_model(folder.parent, device, dtype)
        read = ModelTokens.of(split.tokens, model_name)
        chosen = ChosenDocuments.of(read, split.tokens["document"].values, split.numbers)
        own = [(s, name) for s, (name, source) in enumerate(reading.sources.items()) if source.model == model_name]
        changes: list[splicing.Change | None] = [None]
        for _, name in own:
            source, mean = reading.sources[name], normalisation[f"mean_{name}"].values.astype(np.float32)
            values = (np.broadcast_to(v, (len(read.ids), len(mean))) for v in (np.zeros_like(mean), mean))
            changes += [((source.layer, source.hook), value) for value in values]
        losses = splicing.token_losses(
            model, read.ids, chosen.spans, read.sink, reading.batch_tokens, changes, read.marked(split.kept)
        )
        for i, (s, _) in enumerate(own):
            sums[:, s] = chosen.sums(losses[[0, 1 + 2 * i, 2 + 2 * i]]).T
            counts[:, s] = chosen.counts
        progress.update(1)
    return sums, counts


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    flags = ("tokens", "normalisation", "output")
    stage.run(
        main, stage.parser(MeasureAblationsSection, __doc__, *flags, lists=("activations", "models")).parse_args()
    )
