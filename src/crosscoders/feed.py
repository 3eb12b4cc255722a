"""Activations of a split as normalised batches, read from memory-mapped shards in an order that is a pure function.

The order depends on (seed, position in the stream) alone: blocks of consecutive tokens are shuffled, and rows are
shuffled again within pools of many blocks. A resumed training needs no record of what it has read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from crosscoders import artifacts

if TYPE_CHECKING:
    import torch


def raw_values(mapped: list[np.ndarray], rows: np.ndarray | slice) -> np.ndarray:
    """Activations of some rows of a source, float32: of one file variable, or the difference of two."""
    first, *other = (artifacts.from_bits(bits[rows]) for bits in mapped)
    return first - other[0] if other else first


def parts_of(source: str, differences: dict[str, list[str]]) -> list[str]:
    """File variables that a source is made of: itself, or [minuend, subtrahend]."""
    return differences.get(source, [source])


class Activations:
    """The kept tokens of a split, normalised.

    Left out are tokens whose norm in any source exceeds that source's sink norm.

    Parameters
    ----------
    shards : list of paths
        Activation files of one split, in order; each is verified.
    normalisation : xarray.Dataset
        Means, scales and sink norms, fitted on the training split.
    sources : list of str, optional
        The sources wanted, all that are no differences where absent; tokens are left out by all of them in any case.
    null : dict, optional
        `kind`, `base` and `chat`: with `same_model` base's activations stand for chat's as well; with
        `permuted_tokens` chat's are those of another token of the split.
    """

    def __init__(
        self, shards: list[Path], normalisation: xr.Dataset, sources: list[str] | None = None, null: dict | None = None
    ):
        differences = json.loads(normalisation.attrs.get("differences", "{}"))
        stored = [str(name) for name in normalisation["source"].values if str(name) not in differences]
        self.sources = list(sources or stored)
        sink_norm = normalisation["sink_norm"].sel(source=stored).values
        same = null is not None and null["kind"] == "same_model"
        read = [null["base"] if same and name == null["chat"] else name for name in self.sources]
        normalisation = normalisation.sel(source=read)
        self._maps, self._kept, self._shard, metadata = [], [], [], []
        for number, path in enumerate(shards):
            artifacts.verify(path)
            with xr.open_dataset(path, mask_and_scale=False) as opened:
                small = opened[["token_id", "document", "position", "role", "planted_behaviour", "norm"]].load()
                first = int(opened.attrs["first_token"])
            kept = np.flatnonzero((small["norm"].sel(source=stored).values <= sink_norm).all(axis=1))
            self._maps.append(
                [[artifacts.memory_map(path, part) for part in parts_of(name, differences)] for name in read]
            )
            self._kept.append(kept)
            self._shard.append(np.full(len(kept), number, np.int32))
            small = small.assign(token_index=("token", first + np.arange(small.sizes["token"])))
            metadata.append(small.isel(token=kept))
        self.metadata = xr.concat(metadata, dim="token", data_vars="minimal", coords="minimal", compat="override")
        self._kept, self._shard = np.concatenate(self._kept), np.concatenate(self._shard)
        self.widths = [parts[0].shape[1] for parts in self._maps[0]]
        self._mean = [normalisation[f"mean_{name}"].values.astype(np.float32) for name in read]
        self._scale = normalisation["scale"].values.astype(np.float32)
        self._places: dict[int, np.ndarray] = {}
        self._on_device: dict[torch.device, tuple] = {}
        if null is not None and null["kind"] == "permuted_tokens":
            self._places[self.sources.index(null["chat"])] = np.random.default_rng(0).permutation(len(self._kept))

    def __len__(self) -> int:
        return len(self._kept)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """Normalised activations of kept tokens, sources side by side, (len(index), sum of widths), float32."""
        import torch  # late: statistics of activations read this module too, and need no two seconds of torch

        from crosscoders import native

        if native.library() is None:
            return self.normalise(self.stored(index, torch.empty(len(index), self.stored_width, dtype=torch.bfloat16)))
        out = torch.empty(len(index), sum(self.widths))
        for source, part in enumerate(out.split(self.widths, dim=1)):
            addresses = self._addresses(source, self._place(source, index))
            native.normalised_rows(addresses, self._mean[source], self._scale[source], part)
        return out

    def stored(self, index: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """`out`, (len(index), stored_width), bfloat16, filled with stored activations of kept tokens.

        File variables stand side by side, two of them for a source that is a difference.
        """
        import torch

        from crosscoders import native

        compiled = native.library() is not None
        rows_of = self._addresses if compiled else self._bits
        parts = [part for source in self._by_source(out) for part in source]
        found = [rows for source in range(len(self.widths)) for rows in rows_of(source, self._place(source, index))]
        if compiled and len(set(self.widths)) == 1:  # one place after the other is a tenth faster
            parts, found = [out.view(-1, self.widths[0])], [np.stack(found, axis=1).ravel()]
        for part, rows in zip(parts, found, strict=True):
            if compiled:
                native.stored_rows(rows, part)
            else:
                part.copy_(torch.from_numpy(rows).view(torch.bfloat16))
        return out

    def normalise(self, stored: torch.Tensor) -> torch.Tensor:
        """What :meth:`rows` gives, to the bit, of what :meth:`stored` gave, on the device where that lies."""
        import torch

        found = torch.empty(len(stored), sum(self.widths), device=stored.device)
        sources = zip(
            self._by_source(stored), found.split(self.widths, dim=1), *self._statistics(stored.device), strict=True
        )
        for (first, *other), out, mean, scale in sources:
            torch.sub(first.float() - other[0].float() if other else first, mean, out=out)
            out /= scale  # no number: a GPU would multiply with its inverse, which rounds otherwise
        return found

    @property
    def stored_width(self) -> int:
        """Columns of stored activations."""
        return sum(width * len(files) for width, files in zip(self.widths, self._maps[0], strict=True))

    def _by_source(self, stored: torch.Tensor) -> list[list[torch.Tensor]]:
        """Columns of stored activations: for every source, those of each file variable that it is made of."""
        sizes = [mapped.shape[1] for files in self._maps[0] for mapped in files]
        blocks = iter(stored.split(sizes, dim=1))
        return [[next(blocks) for _ in files] for files in self._maps[0]]

    def _statistics(self, device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Mean and scale of every source, on a device."""
        import torch

        if device not in self._on_device:
            self._on_device[device] = (
                [torch.from_numpy(mean).to(device) for mean in self._mean],
                [torch.tensor(scale, device=device) for scale in self._scale],
            )
        return self._on_device[device]

    def _place(self, source: int, index: np.ndarray) -> np.ndarray:
        """Kept tokens that a source reads for some kept tokens: others where tokens are permuted."""
        return self._places[source][index] if source in self._places else index

    @cached_property
    def _starts(self) -> list[np.ndarray]:
        """Addresses of the stored variables: for every source (shards, file variables)."""
        return [
            np.array([[mapped.ctypes.data for mapped in shard[source]] for shard in self._maps])
            for source in range(len(self.widths))
        ]

    def _addresses(self, source: int, place: np.ndarray) -> list[np.ndarray]:
        """Where the stored rows of some kept tokens lie in memory, one array per file variable of the source."""
        offset = self._kept[place] * (2 * self.widths[source])
        return [column[self._shard[place]] + offset for column in self._starts[source].T]

    def _bits(self, source: int, place: np.ndarray) -> list[np.ndarray]:
        """Stored bit patterns of some kept tokens, (tokens, width) for each file variable that the source is made of."""
        shard, kept = self._shard[place], self._kept[place]
        found = [np.empty((len(place), self.widths[source]), np.uint16) for _ in self._maps[0][source]]
        for number in np.unique(shard):
            inside = np.flatnonzero(shard == number)
            for whole, mapped in zip(found, self._maps[number][source], strict=True):
                whole[inside] = mapped[kept[inside]]
        return found

    def batches(self, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """All kept tokens in order, `count` at a time, with their positions."""
        for start in range(0, len(self), count):
            chosen = slice(start, min(start + count, len(self)))
            yield chosen, self.rows(np.arange(chosen.start, chosen.stop))
