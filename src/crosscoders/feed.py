"""Activations of a split as normalised batches, read from memory-mapped shards in an order that is a pure function.

The order depends on (seed, position in the stream) alone: blocks of consecutive tokens are shuffled, and rows are
shuffled again within pools of many blocks. A resumed training needs no record of what it has read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts

BLOCK_ROWS = 128
POOL_BLOCKS = 512


class Order:
    """An endless, seeded sequence of row numbers in [0, rows): each epoch visits every row once.

    Parameters
    ----------
    rows : int
        Number of rows.
    seed : int
        Seed of the shuffles.
    """

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed = rows, seed
        self._pool_rows = BLOCK_ROWS * POOL_BLOCKS
        self._cached: tuple[tuple[int, int], np.ndarray] | None = None

    def take(self, start: int, count: int) -> np.ndarray:
        """Rows at positions `start` … `start + count` of the sequence."""
        parts = []
        while count > 0:
            epoch, inside = divmod(start, self.rows)
            pool, offset = divmod(inside, self._pool_rows)
            part = self._pool(epoch, pool)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _pool(self, epoch: int, pool: int) -> np.ndarray:
        """Shuffled rows of one pool of blocks."""
        if self._cached is None or self._cached[0] != (epoch, pool):
            blocks = np.random.default_rng([self.seed, epoch]).permutation(-(-self.rows // BLOCK_ROWS))
            last = np.flatnonzero(blocks == len(blocks) - 1)[0]
            blocks[[last, -1]] = blocks[[-1, last]]  # the one block that may be short comes last
            chosen = blocks[pool * POOL_BLOCKS : (pool + 1) * POOL_BLOCKS]
            rows = (chosen[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
            rows = np.random.default_rng([self.seed, epoch, pool]).permutation(rows[rows < self.rows])
            self._cached = ((epoch, pool), rows)
        return self._cached[1]


class Activations:
    """The kept tokens of a split, normalised.

    Left out are tokens whose norm in any source exceeds that source's sink norm.

    Parameters
    ----------
    shards : list of paths
        Activation files of one split, in order; each is verified.
    normalisation : xarray.Dataset
        Means, scales and sink norms, fitted on the training split.
    """

    def __init__(self, shards: list[Path], normalisation: xr.Dataset):
        self.sources = [str(name) for name in normalisation["source"].values]
        sink_norm = normalisation["sink_norm"].values
        self._maps, self._kept, self._shard, metadata = [], [], [], []
        for number, path in enumerate(shards):
            artifacts.verify(path)
            with xr.open_dataset(path, mask_and_scale=False) as opened:
                small = opened[["token_id", "document", "position", "role", "planted_behaviour", "norm"]].load()
                first = int(opened.attrs["first_token"])
            kept = np.flatnonzero((small["norm"].sel(source=self.sources).values <= sink_norm).all(axis=1))
            self._maps.append([artifacts.memory_map(path, name) for name in self.sources])
            self._kept.append(kept)
            self._shard.append(np.full(len(kept), number, np.int32))
            small = small.assign(token_index=("token", first + np.arange(small.sizes["token"])))
            metadata.append(small.isel(token=kept))
        self.metadata = xr.concat(metadata, dim="token", data_vars="minimal", coords="minimal", compat="override")
        self._kept, self._shard = np.concatenate(self._kept), np.concatenate(self._shard)
        self.widths = [mapped.shape[1] for mapped in self._maps[0]]
        self._mean = [normalisation[f"mean_{name}"].values.astype(np.float32) for name in self.sources]
        self._scale = normalisation["scale"].values.astype(np.float32)

    def __len__(self) -> int:
        return len(self._kept)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """Normalised activations of kept tokens, sources side by side, (len(index), sum of widths), float32."""
        out = np.empty((len(index), sum(self.widths)), np.float32)
        shard = self._shard[index]
        column = 0
        for source, width in enumerate(self.widths):
            part = out[:, column : column + width]
            for number in np.unique(shard):
                inside = np.flatnonzero(shard == number)
                bits = self._maps[number][source][self._kept[index[inside]]]
                part[inside] = artifacts.from_bits(bits)
            part -= self._mean[source]
            part /= self._scale[source]
            column += width
        return torch.from_numpy(out)

    def batches(self, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """All kept tokens in order, `count` at a time, with their positions."""
        for start in range(0, len(self), count):
            chosen = slice(start, min(start + count, len(self)))
            yield chosen, self.rows(np.arange(chosen.start, chosen.stop))


def consecutive(document: np.ndarray) -> np.ndarray:
    """Document numbers renumbered from 0 without gaps, in order of appearance."""
    return np.r_[0, np.cumsum(document[1:] != document[:-1])]
