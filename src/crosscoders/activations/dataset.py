"""Activations of a split as normalised batches, read from memory-mapped shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, storage
from crosscoders.activations.sections import NullChange
from crosscoders.activations.stored import parts_of
from crosscoders.kernels import rows as compiled_rows
from crosscoders.kernels.cpu_library import library

TOKEN_COLUMNS = ("token_id", "document", "position", "role", "planted_behaviour")


class Activations:
    """The kept tokens of a split, normalised; attention sinks are left out.

    A token is a sink where its norm in any source exceeds that source's sink norm.

    Parameters
    ----------
    shards : list of paths
        Activation files of one split, in order; each is verified.
    normalisation : xarray.Dataset
        Means, scales and sink norms, fitted on the training split.
    sources : list of str, optional
        The sources wanted, all that are no differences where absent. Sinks are judged by all stored sources in any
        case.
    null : NullChange, optional
        With `same_model` the activations of `base` stand for those of all other sources of the contrast, or of `through`; with
        `permuted_tokens` those of every other source of the contrast are those of other tokens of the split.
    """

    def __init__(
        self,
        shards: list[Path],
        normalisation: xr.Dataset,
        sources: list[str] | None = None,
        null: NullChange | None = None,
    ):
        differences = json.loads(normalisation.attrs.get("differences", "{}"))
        stored = [str(name) for name in normalisation["source"].values if str(name) not in differences]
        self.sources = list(sources or stored)
        sink_norm = normalisation["sink_norm"].sel(source=stored).values
        stands_for = null.stands_for if null is not None else {}
        read = [stands_for.get(name, name) for name in self.sources]
        normalisation = normalisation.sel(source=read)
        files = [(number, part) for number, name in enumerate(read) for part in parts_of(name, differences)]
        self._source_of = [number for number, _ in files]  # of every file variable
        self._maps, self._kept, self._shard, metadata = [], [], [], []
        for number, path in enumerate(shards):
            storage.verify(path)
            with xr.open_dataset(path, mask_and_scale=False) as opened:
                small = opened[[*TOKEN_COLUMNS, "token_index", "norm"]].load()
            kept = np.flatnonzero((small["norm"].sel(source=stored).values <= sink_norm).all(axis=1))
            self._maps.append([artifacts.memory_map(path, part) for _, part in files])
            self._kept.append(kept)
            self._shard.append(np.full(len(kept), number, np.int32))
            metadata.append(small.isel(token=kept))
        self.metadata = xr.concat(metadata, dim="token", data_vars="minimal", coords="minimal", compat="override")
        self._kept, self._shard = np.concatenate(self._kept), np.concatenate(self._shard)
        self._file_widths = [mapped.shape[1] for mapped in self._maps[0]]
        self.widths = list(dict(zip(self._source_of, self._file_widths, strict=True)).values())
        self._mean = [normalisation[f"mean_{name}"].values.astype(np.float32) for name in read]
        self._scale = normalisation["scale"].values.astype(np.float32)
        self._places: dict[int, np.ndarray] = {}  # per permuted source, the kept token read in place of each
        self._on_device: dict[torch.device, tuple] = {}
        if null is not None and null.kind == "permuted_tokens":
            changed = [name for name in null.changed if name in self.sources]
            for seed, name in enumerate(changed):
                order = np.random.default_rng(seed).permutation(len(self._kept))
                self._places[self.sources.index(name)] = order

    def __len__(self) -> int:
        return len(self._kept)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """Normalised activations of kept tokens, sources side by side, (len(index), sum of widths), float32."""
        if library() is None:
            return self.normalise(self.stored(index, torch.empty(len(index), self.stored_width, dtype=torch.bfloat16)))
        out = torch.empty(len(index), sum(self.widths))
        addresses = self._addresses(index)
        for source, part in enumerate(out.split(self.widths, dim=1)):
            files = addresses[:, np.equal(self._source_of, source)].T
            compiled_rows.normalised_rows(files, self._mean[source], self._scale[source], part)
        return out

    def stored(self, index: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """`out`, (len(index), stored_width), bfloat16, filled with stored activations of kept tokens.

        File variables stand side by side, two of them for a source that is a difference.
        """
        if library() is None:
            for part, bits in zip(out.split(self._file_widths, dim=1), self._bits(index), strict=True):
                part.copy_(torch.from_numpy(bits).view(torch.bfloat16))
            return out
        addresses = self._addresses(index)
        if len(set(self._file_widths)) == 1:  # writing one place after the other is a tenth faster
            compiled_rows.stored_rows(addresses.reshape(-1), out.view(-1, self._file_widths[0]))
            return out
        for part, rows in zip(out.split(self._file_widths, dim=1), addresses.T, strict=True):
            compiled_rows.stored_rows(rows, part)
        return out

    def normalise(self, stored: torch.Tensor) -> torch.Tensor:
        """What :meth:`rows` gives, to the bit, (T, D), from what :meth:`stored` gave, on the same device."""
        normalised = torch.empty(len(stored), sum(self.widths), device=stored.device)
        sources = zip(
            self._by_source(stored), normalised.split(self.widths, dim=1), *self._statistics(stored.device), strict=True
        )
        for (first, *other), out, mean, scale in sources:
            torch.sub(first.float() - other[0].float() if other else first, mean, out=out)
            out /= scale  # a tensor: by a Python number a GPU would multiply with the inverse, which rounds differently
        return normalised

    @property
    def stored_width(self) -> int:
        """Columns of stored activations."""
        return sum(self._file_widths)

    def _by_source(self, stored: torch.Tensor) -> list[list[torch.Tensor]]:
        """Columns of stored activations: for every source, those of each file variable that it is made of."""
        blocks: list[list[torch.Tensor]] = [[] for _ in self.widths]
        for source, block in zip(self._source_of, stored.split(self._file_widths, dim=1), strict=True):
            blocks[source].append(block)
        return blocks

    def _statistics(self, device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Mean and scale of every source, on a device."""
        if device not in self._on_device:
            self._on_device[device] = (
                [torch.from_numpy(mean).to(device) for mean in self._mean],
                [torch.tensor(scale, device=device) for scale in self._scale],
            )
        return self._on_device[device]

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where the file variables lie in memory, (files, shards)."""
        return np.array([[mapped.ctypes.data for mapped in shard] for shard in self._maps]).T.copy()

    def _where(self, index: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For every file variable its number, and the shards and rows from which some kept tokens are read."""
        together = self._shard[index], self._kept[index]
        for file, source in enumerate(self._source_of):
            if source in self._places:
                place = self._places[source][index]
                yield file, self._shard[place], self._kept[place]
            else:
                yield file, *together

    def _addresses(self, index: np.ndarray) -> np.ndarray:
        """Where the stored rows of some kept tokens lie in memory, (tokens, files)."""
        addresses = np.empty((len(index), len(self._source_of)), np.int64)
        for file, shard, kept in self._where(index):
            np.add(self._starts[file][shard], kept * (2 * self._file_widths[file]), out=addresses[:, file])
        return addresses

    def _bits(self, index: np.ndarray) -> Iterator[np.ndarray]:
        """Stored bit patterns of some kept tokens, (tokens, width), of one file variable after the other."""
        for file, shard, kept in self._where(index):
            bits = np.empty((len(index), self._file_widths[file]), np.uint16)
            for number in np.unique(shard):
                inside = np.flatnonzero(shard == number)
                bits[inside] = self._maps[number][file][kept[inside]]
            yield bits

    def batches(self, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """All kept tokens in order, (T, D) with T ≤ `count` at a time, each batch with the slice of its tokens."""
        for start in range(0, len(self), count):
            chosen = slice(start, min(start + count, len(self)))
            yield chosen, self.rows(np.arange(chosen.start, chosen.stop))
