"""The results of a study as one tree of data, read where they are looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from crosscoders import storage
from crosscoders.errors import UserError
from crosscoders.report.stacking import PADDING

TRAINING = re.compile(r"(?P<stage>\w+)/(?P<setting>[\w-]+)/(?P<name>[\w-]+)/seed-(?P<seed>\d+)(?P<kind>\.\w+)?\.nc")
SPLIT = re.compile(r"tokens/(?P<setting>[\w-]+)/(?P<split>\w+)\.nc")
SETTING = re.compile(r"(?P<stage>\w+)/(?P<setting>[\w-]+)\.nc")
OF_NO_SETTING = ("behaviours", "text")
"""Stages whose files belong to a model or a corpus."""


def open_study(folder: Path | str) -> xr.DataTree:
    """The results of a study as a tree: a node per setting, and in it a node per stage.

    Files of single trainings stand along the dimensions `crosscoder` (or `aligned`) and `seed`; dictionaries of unequal size
    are padded, floats with NaN, flags and counts with −1. Nothing but names and shapes is read before a value is asked for;
    a file is verified when it is first read. Shards of activations are left out.

    Parameters
    ----------
    folder : path
        `results/STUDY`.

    Returns
    -------
    xarray.DataTree

    Raises
    ------
    UserError
        There is no such folder, or no results in it. Reading values raises it for a damaged file.

    Examples
    --------
    >>> study = crosscoders.open_study("results/embedded")  # doctest: +SKIP
    >>> study["base-vs-chat/latents"].nu_error.sel(crosscoder="l1", seed=0)  # doctest: +SKIP
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the results of a study, as results/embedded")
    nodes: dict[str, dict[tuple, Path]] = {}
    for path in sorted(folder.glob("**/*.nc")):
        place = _place(path.relative_to(folder).as_posix())
        if place:
            nodes.setdefault(place[0], {})[place[1]] = path
    if not nodes:
        raise UserError(f"{folder}: holds no results; expected those of a study, as results/embedded")
    tree = xr.DataTree.from_dict({name: _dataset(name, files) for name, files in sorted(nodes.items())})
    first = _Header.of(next(iter(nodes[min(nodes)].values())))
    known = ("study", "commit", "versions")
    tree.attrs = {name: first.attributes[name] for name in known if name in first.attributes}
    return tree


def _place(name: str) -> tuple[str, tuple] | None:
    """The node that a file belongs to, and its labels there: (crosscoder, seed), or nothing."""
    if match := TRAINING.fullmatch(name):
        if match["kind"] == ".normalisation":  # of a published crosscoder, whose own file says the same
            return None
        stage = match["stage"] if match["kind"] is None else match["kind"][1:]
        return f"{match['setting']}/{stage}", (match["name"], int(match["seed"]))
    if match := SPLIT.fullmatch(name):
        return f"{match['setting']}/tokens/{match['split']}", ()
    if match := re.fullmatch(r"activations/([\w-]+)/normalisation\.nc", name):
        return f"{match[1]}/normalisation", ()
    if match := SETTING.fullmatch(name):
        parts = (match["stage"], match["setting"])
        return "/".join(parts if parts[0] in OF_NO_SETTING else parts[::-1]), ()
    return None


@dataclass
class _Header:
    """Names and shapes of a file, and the labels of its dimensions."""

    path: Path
    sizes: dict[str, int]
    variables: dict[str, tuple[tuple[str, ...], np.dtype, dict]]
    labels: dict[str, np.ndarray]
    attributes: dict
    verified: bool = False
    """Whether the file's seal was compared with its content."""

    @classmethod
    def of(cls, path: Path) -> _Header:
        """Read the header of a file."""
        try:
            with netCDF4.Dataset(path) as file:
                file.set_auto_maskandscale(False)
                variables = {
                    name: (one.dimensions, np.dtype(object) if one.dtype is str else one.dtype, one.__dict__)
                    for name, one in file.variables.items()
                }
                labels = {name: file[name][...] for name, (dims, _, _) in variables.items() if dims == (name,)}
                sizes = {name: len(dimension) for name, dimension in file.dimensions.items()}
                return cls(path, sizes, variables, labels, file.__dict__)
        except (OSError, RuntimeError):
            storage.verify(path)
            raise UserError(f"{path}: cannot be read as netCDF; delete it and run again") from None


class _Stacked(BackendArray):
    """A variable of one file, or of several along leading dimensions, read from the files that an index touches.

    Parameters
    ----------
    name : str
        Name of the variable.
    headers : array of _Header or None
        Over the leading dimensions; empty places are padded.
    shape : tuple
        Of the whole variable.
    dtype : numpy.dtype
    labels : {dim: list}
        Labels that the files have together.
    """

    def __init__(self, name: str, headers: np.ndarray, shape: tuple, dtype: np.dtype, labels: dict[str, list]):
        self.name, self.headers, self.shape, self.dtype, self.labels = name, headers, shape, dtype, labels

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        """The values at an outer index."""
        leading = self.headers.ndim
        chosen = self.headers
        for axis, one in reversed(list(enumerate(key[:leading]))):
            chosen = np.take(chosen, np.atleast_1d(np.arange(self.headers.shape[axis])[one]), axis)
        inside = self.shape[leading:]
        values = np.full((*chosen.shape, *inside), PADDING.get(self.dtype.kind, 0), self.dtype)
        for place in np.ndindex(chosen.shape):
            if chosen[place] is not None and self.name in chosen[place].variables:
                self._fill(values[place] if inside or leading else values, chosen[place], values, place)
        rest = [slice(None)] * leading + list(key[leading:])
        for axis in reversed(range(len(self.shape))):
            one = rest[axis] if axis >= leading else (0 if isinstance(key[axis], (int, np.integer)) else slice(None))
            values = values[(slice(None),) * axis + (one,)]
        return values

    def _fill(self, block: np.ndarray, header: _Header, values: np.ndarray, place: tuple) -> None:
        """Put one file's variable into its place."""
        if not header.verified:
            storage.verify(header.path)
            header.verified = True
        with netCDF4.Dataset(header.path) as file:
            file.set_auto_maskandscale(False)
            read = np.asarray(file[self.name][...], self.dtype)
        if read.ndim == 0:
            values[place] = read
            return
        where = [
            [self.labels[dim].index(label) for label in header.labels[dim].tolist()]
            if dim in self.labels
            else range(size)
            for dim, size in zip(header.variables[self.name][0], read.shape, strict=True)
        ]
        block[np.ix_(*where)] = read


def _dataset(node: str, files: dict[tuple, Path]) -> xr.Dataset:
    """The files of a node as one dataset whose values are not read yet."""
    headers = {labels: _Header.of(path) for labels, path in files.items()}
    leading: dict[str, list] = {}
    if () not in headers:
        name = "aligned" if "/aligned" in node else "crosscoder"
        leading = {name: sorted({one for one, _ in headers}), "seed": sorted({seed for _, seed in headers})}
    grid = np.full([len(values) for values in leading.values()], None, dtype=object)
    for place in np.ndindex(grid.shape):
        grid[place] = headers.get(tuple(values[i] for values, i in zip(leading.values(), place, strict=True)))
    labels: dict[str, list] = {}
    sizes: dict[str, int] = {}
    for header in headers.values():
        for dim, values in header.labels.items():
            labels[dim] = list(dict.fromkeys([*labels.get(dim, []), *values.tolist()]))
        for dim, size in header.sizes.items():
            sizes[dim] = len(labels[dim]) if dim in labels else max(size, sizes.get(dim, 0))
    variables, described = {}, {name: one for header in headers.values() for name, one in header.variables.items()}
    for name, (dims, dtype, attributes) in described.items():
        if name not in labels:
            shape = (*grid.shape, *(sizes[dim] for dim in dims))
            lazy = indexing.LazilyIndexedArray(_Stacked(name, grid, shape, dtype, labels))
            variables[name] = xr.Variable((*leading, *dims), lazy, attributes)
    coordinates = {dim: (dim, np.array(values, described[dim][1]), described[dim][2]) for dim, values in labels.items()}
    coordinates |= {
        dim: np.array(values, object if isinstance(values[0], str) else int) for dim, values in leading.items()
    }
    attributes = next(iter(headers.values())).attributes
    kept = {name: value for name, value in attributes.items() if () in headers or name in ("study", "stage")}
    return xr.Dataset(variables, coordinates, kept)
