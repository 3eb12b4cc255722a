"""Stage measure_ablations: next-token loss of every source's model, as it is and with the source put to zero or its mean.

What no crosscoder changes, measured once per setting: the two ends of the scale on which spliced losses are read.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, models, pick, splicing, stage
from crosscoders.feed import Activations
from crosscoders.order import consecutive
from crosscoders.settings import Source
from crosscoders.windows import windows

ABLATIONS = ("clean", "zero", "mean")


def main(arguments) -> None:
    """Measure one setting."""
    section = arguments.settings
    sources = {name: Source.model_validate(source) for name, source in section["sources"].items()}
    device = pick.device(section["device"])
    dtype = pick.dtype(section["dtype"], device)
    tokens, normalisation = artifacts.read(arguments.tokens), artifacts.read(arguments.normalisation)
    document = consecutive(tokens["document"].values)
    chosen = splicing.choose(document, section["splice_tokens"])[document]
    kept = np.zeros(len(document), bool)
    kept[Activations(arguments.activations, normalisation).metadata["token_index"].values] = True
    ids, sink = tokens["token_id"].values, int(tokens.attrs["sink_token_id"])
    spans = [span for span in windows(tokens["position"].values) if chosen[span.start]]
    folders = dict(zip(section["models"], arguments.models, strict=True))
    losses = np.empty((len(document), len(sources), len(ABLATIONS)))
    progress = stage.Progress(f"measure_ablations {section['setting_name']}", len(folders), "models")
    for model_name, folder in folders.items():
        model = models.load_model(folder.parent, device, dtype)
        own = {s: (name, source) for s, (name, source) in enumerate(sources.items()) if source.model == model_name}
        changes: list[splicing.Change | None] = [None]
        for name, source in own.values():
            mean = normalisation[f"mean_{name}"].values.astype(np.float32)
            whole = (len(ids), len(mean))
            changes += [((source.layer, source.hook), np.broadcast_to(v, whole)) for v in (np.zeros_like(mean), mean)]
        found = splicing.token_losses(model, ids, spans, sink, section["batch_tokens"], changes, kept)
        for i, s in enumerate(own):
            losses[:, s] = found[[0, 1 + 2 * i, 2 + 2 * i]].T
        progress.update(1)
    numbers, places = np.unique(document[chosen], return_inverse=True)
    sums = np.zeros((len(numbers), *losses.shape[1:]))
    np.add.at(sums, places, losses[chosen])
    v = artifacts.variable
    dataset = xr.Dataset(
        {
            "cross_entropy": v(("document", "source", "ablation"), sums, "sum of next-token losses", units="nats"),
            "tokens": v("document", np.bincount(places), "tokens of the document"),
            "document_index": v("document", numbers, "number of the document within the test split"),
        },
        coords={"source": np.array(list(sources), dtype=object), "ablation": np.array(ABLATIONS, dtype=object)},
        attrs=artifacts.provenance(section["study"], "measure_ablations", section) | {"title": "ablated losses"},
    )
    artifacts.write(dataset, arguments.output)
    mean = sums.sum(0) / chosen.sum()
    stage.say("measure_ablations: " + "; ".join(f"{name}: " + ", ".join(f"{label} {value:.2f}" for label, value in zip(ABLATIONS, row, strict=True)) for name, row in zip(sources, mean, strict=True)))  # fmt: skip


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    flags = ("tokens", "normalisation", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations", "models")).parse_args())
