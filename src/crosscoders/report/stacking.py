"""Datasets of single trainings, over crosscoders and seeds, as one."""

from __future__ import annotations

import numpy as np
import xarray as xr

PADDING = {"f": np.nan, "i": -1, "O": ""}


def stack(datasets: dict[tuple[str, int], xr.Dataset], all_seeds: list[int] | None = None) -> xr.Dataset:
    """Datasets of single trainings along the dimensions `crosscoder` and `seed`.

    Parameters
    ----------
    datasets : {(crosscoder, seed): xarray.Dataset}
    all_seeds : list of int, optional
        Seeds of the stacked dataset, where others than these trainings' are wanted too.

    Returns
    -------
    xarray.Dataset

    Labelled dimensions hold every label that any training has. Dictionaries and trainings of unequal length are padded,
    and so is what some trainings lack: floats with NaN, flags and counts with −1, text with "".
    """
    names = list(dict.fromkeys(name for name, _ in datasets))
    seeds = sorted({seed for _, seed in datasets} | set(all_seeds or []))
    dims: dict[str, int] = {}
    labels: dict[str, list] = {}
    variables: dict[str, xr.DataArray] = {}
    for dataset in datasets.values():
        variables = dict(dataset.data_vars) | variables
        for dim, size in dataset.sizes.items():
            if dim in dataset.coords:
                labels[dim] = list(dict.fromkeys([*labels.get(dim, []), *dataset[dim].values.tolist()]))
            dims[dim] = len(labels[dim]) if dim in labels else max(size, dims.get(dim, 0))
    stacked = xr.Dataset(coords={"crosscoder": np.array(names, dtype=object), "seed": seeds})
    for name, variable in variables.items():
        shape = (len(names), len(seeds), *(dims[dim] for dim in variable.dims))
        dtype = np.dtype(object) if variable.dtype.kind in "UTO" else variable.dtype
        values = np.full(shape, PADDING[dtype.kind], dtype=dtype)
        for (crosscoder, seed), dataset in datasets.items():
            if name not in dataset:
                continue
            part = dataset[name]
            inside = [
                [labels[dim].index(label) for label in dataset[dim].values.tolist()] if dim in labels else range(size)
                for dim, size in part.sizes.items()
            ]
            block = values[names.index(crosscoder), seeds.index(seed)]
            if part.ndim:
                block[np.ix_(*inside)] = part.values
            else:
                values[names.index(crosscoder), seeds.index(seed)] = part.values
        stacked[name] = (("crosscoder", "seed", *variable.dims), values, variable.attrs)
    for dim, values in labels.items():
        like = next(dataset[dim] for dataset in datasets.values() if dim in dataset.coords)
        stacked = stacked.assign_coords({dim: (dim, np.array(values, dtype=like.dtype), like.attrs)})
    return stacked


def stack_seeds(datasets: dict[int, xr.Dataset], prefix: str) -> xr.Dataset:
    """Datasets of one training each along the dimension `seed`, their variables named with a prefix."""
    stacked = stack({("", seed): dataset for seed, dataset in datasets.items()}).isel(crosscoder=0, drop=True)
    return stacked.rename({name: f"{prefix}{name}" for name in stacked.data_vars})
