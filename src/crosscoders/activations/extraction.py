"""The activations of several sites of several models on one shard of a split, for the stages that extract them.

All sites of a model are read in one forward pass, which ends at the deepest of them. Hooks sit on the Hugging Face
model itself, so that the stored activations are those that `output_hidden_states` shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import TOKEN_COLUMNS
from crosscoders.activations.sections import ShardSection
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots
from crosscoders.language_models.anatomy import decoder_layers
from crosscoders.language_models.hooks import Site, forward
from crosscoders.language_models.model_tokens import ModelTokens
from crosscoders.language_models.windows import batches, padded, windows
from crosscoders.study.settings.comparisons import Source


def shard_tokens(document: np.ndarray, shard: int, shards: int) -> slice:
    """The tokens of one shard: whole documents, shards of about equal size."""
    starts = np.flatnonzero(np.r_[True, document[1:] != document[:-1]])
    edges = [starts[np.searchsorted(starts, i * len(document) // shards)] if i else 0 for i in range(shards)]
    edges = [*map(int, edges), len(document)]
    return slice(edges[shard], edges[shard + 1])


def extract(
    model: transformers.PreTrainedModel,
    sites: list[Site],
    tokens: ModelTokens,
    batch_tokens: int,
    progress: stage.Progress,
) -> tuple[dict[Site, np.ndarray], dict[Site, np.ndarray]]:
    """bfloat16 bits (tokens, width) and norms (tokens,) of every site, in the order of the model's tokens.

    Norms are those of the stored, rounded activations.
    """
    ids, spans = tokens.ids, windows(tokens.position)
    bits: dict[Site, np.ndarray] = {}
    norms = {site: np.empty(len(ids), np.float32) for site in sites}
    device = model.device
    for group in batches(spans, batch_tokens):
        activations = forward(model, sites, padded(ids, group, tokens.sink).to(device))
        for site, values in activations.items():
            rounded = values.to(torch.bfloat16)
            norm = torch.linalg.vector_norm(rounded.float(), dim=-1).cpu().numpy()
            stored = rounded.view(torch.uint16).cpu().numpy()
            if site not in bits:
                bits[site] = np.empty((len(ids), stored.shape[-1]), np.uint16)
            for i, span in enumerate(group):
                bits[site][span] = stored[i, 1 : 1 + span.stop - span.start]
                norms[site][span] = norm[i, 1 : 1 + span.stop - span.start]
        progress.update(sum(span.stop - span.start for span in group))
    return bits, norms


def check_finite(norms: dict[str, np.ndarray], where: str) -> None:
    """Refuse NaN and infinite activations.

    Raises
    ------
    UserError
        Names shard, source and token.
    """
    for source, values in norms.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise UserError(
                f"{where}: source {source!r}: activation of token {bad[0]} is not finite ({len(bad)} such tokens)"
            )


def to_dataset(
    bits: dict[str, np.ndarray], norms: dict[str, np.ndarray], tokens: xr.Dataset, sources: dict
) -> xr.Dataset:
    """A variable per source over (`token`, its own width), norms over (`token`, `source`), and metadata of tokens."""
    names = list(sources)
    dataset = tokens[[*TOKEN_COLUMNS, "token_index"]].copy()
    for name in names:
        dataset[name] = artifacts.variable(
            ("token", f"width_{name}"), bits[name], f"activation of {name}", encoding_note=artifacts.BF16
        )
        dataset[name].attrs |= sources[name].model_dump()
    stacked = np.stack([norms[name] for name in names], axis=1)
    dataset["norm"] = artifacts.variable(("token", "source"), stacked, "norm of the activation")
    return dataset.assign_coords(source=("source", np.array(names, dtype=object), {"long_name": "source"}))


def extract_shard(section: ShardSection, tokens_file: Path, models: list[Path], output: Path) -> None:
    """Write the activations of one shard.

    Parameters
    ----------
    section : ShardSection
        The section of an extracting stage, whose name the progress shows.
    tokens_file : Path
        The tokens of the shard's split.
    models : list of Path
        A file in the folder of each model of `section.reading.models`, in that order.
    output : Path
        The shard.

    Raises
    ------
    UserError
        A model has no such layer, or an activation is not finite.
    """
    sources = section.reading.sources
    device = chosen_device(section.reading.device)
    dtype = chosen_dtype(section.reading.dtype, device)
    tokens = artifacts.read(tokens_file)
    document = tokens["document"].values
    chosen = shard_tokens(document, section.shard, section.shards)
    index = np.arange(tokens.sizes["token"], dtype=np.int64)
    tokens["token_index"] = artifacts.variable("token", index, "number of the token within its split")
    shard = tokens.isel(token=chosen)
    stored = np.flatnonzero(shard["in_all_models"].values)
    read = {source.model: ModelTokens.of(tokens, source.model).within(chosen, document) for source in sources.values()}
    where = f"{section.stage} {section.setting_name}/{section.split}/{section.shard:03d}"
    progress = stage.Progress(where, sum(len(own.ids) for own in read.values()))
    bits: dict[str, np.ndarray] = {}
    norms: dict[str, np.ndarray] = {}
    folders = dict(zip(section.reading.models, models, strict=True))
    for name, own in read.items():
        model = snapshots.load_model(folders[name].parent, device, dtype)
        compared = {source: one for source, one in sources.items() if one.model == name}
        of_model = _of_sources(model, compared, own, own.place[stored], section.reading.batch_tokens, progress)
        bits |= of_model[0]
        norms |= of_model[1]
    check_finite(norms, str(output))
    dataset = to_dataset(bits, norms, shard.isel(token=stored), sources)
    dataset.attrs = section.provenance()
    dataset.attrs |= {
        "title": f"activations, {section.split}, shard {section.shard}",
        "model_dtype": str(dtype).removeprefix("torch."),
    }
    artifacts.write(dataset, output, contiguous=sources)
    stage.say(f"{where}: {len(stored):,} tokens")


def _of_sources(
    model: transformers.PreTrainedModel,
    sources: dict[str, Source],
    tokens: ModelTokens,
    rows: np.ndarray,
    batch_tokens: int,
    progress: stage.Progress,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Bits and norms of every source of one model, at the given rows of the model's tokens."""
    check_layers(model, sources)
    sites = list(dict.fromkeys((source.layer, source.hook) for source in sources.values()))
    read = extract(model, sites, tokens, batch_tokens, progress)
    bits, norms = (
        {name: _rows(values[source.layer, source.hook], rows) for name, source in sources.items()} for values in read
    )
    return bits, norms


def _rows(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Some rows of an array; the array itself, which may be large, where that is all of them."""
    return values if len(index) == len(values) else values[index]


def check_layers(model: transformers.PreTrainedModel, sources: dict[str, Source]) -> None:
    """Refuse a layer that the model does not have; the depth of some models is known only once they are loaded."""
    depth = len(decoder_layers(model))
    for name, source in sources.items():
        if source.layer >= depth:
            raise UserError(f"sources.{name}.layer: {source.layer} is not below the depth {depth} of {source.model!r}")
