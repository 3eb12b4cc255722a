"""Test documents as a latent cache of delphi: for every active pair its place, its latent and its activation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy

from crosscoders import storage
from crosscoders.library.documents import Documents

LATENTS_PER_FILE = 1 << 16
"""Latents whose numbers within a file fit 16 bits."""
ROW_TOKENS = 256
"""Length of a row. delphi cuts rows into examples, by default of 32 tokens, whose length must divide that of a row."""


def packed(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """All windows, each after a sink, one after the other in rows; the last row ends with sinks.

    Rows without padding between windows keep examples in which a latent does not fire, which delphi draws at random, real text.

    Returns
    -------
    rows : (rows, ROW_TOKENS) int64
    place : (tokens, 2) int
        Row and column of every token of the split.
    """
    ids, sink = documents.tokens["token_id"].values, documents.tokens.attrs["sink_token_id"]
    at = np.arange(len(ids)) + documents.window + 1
    rows = np.full(-(-(at[-1] + 1) // ROW_TOKENS) * ROW_TOKENS, sink, np.int64)
    rows[at] = ids
    return rows.reshape(-1, ROW_TOKENS), np.stack(np.divmod(at, ROW_TOKENS), axis=1)


def write(documents: Documents, folder: Path) -> None:
    """Write the cache of one crosscoder, which delphi knows as one module.

    Parameters
    ----------
    documents : Documents
    folder : Path
        Gets a folder named after the crosscoder, with a file per range of latents, named by the first and the last one.

    Raises
    ------
    UserError
        A file of the study is damaged, or the folder cannot be written.
    """
    pairs, module = documents.pairs, folder / documents.label
    rows, place = packed(documents)
    for first in range(0, documents.coder.latents, LATENTS_PER_FILE):
        last = min(first + LATENTS_PER_FILE, documents.coder.latents) - 1
        inside = slice(*np.searchsorted(pairs.latent, [first, last + 1]))
        locations = np.column_stack([place[pairs.token[inside]], pairs.latent[inside] - first])
        small = locations.size == 0 or locations.max() < 1 << 16
        content = safetensors.numpy.save(
            {
                "locations": locations.astype(np.uint16 if small else np.uint32),
                "activations": pairs.value[inside].astype(np.float32),
                "tokens": rows,
            }
        )
        path = module / f"{first}_{last}.safetensors"
        storage.atomic(path, lambda temporary, content=content: temporary.write_bytes(content), len(content))
    config = {
        "batch_size": 32,
        "cache_ctx_len": rows.shape[1],
        "ctx_len": rows.shape[1],
        "dataset_column": "text",
        "dataset_name": documents.setting,
        "dataset_repo": documents.results.name,
        "dataset_split": "test",
        "model_name": str(documents.results / "models" / documents.reference),
        "n_splits": -(-documents.coder.latents // LATENTS_PER_FILE),
        "n_tokens": rows.size,
    }
    storage.write_json(config, module / "config.json")
