"""Rows of memory-mapped activations, which compiled code gathers into batches."""

from __future__ import annotations

import numpy as np
import torch

from crosscoders.kernels.cpu_library import library


def stored_rows(addresses: np.ndarray, out: torch.Tensor) -> None:
    """Copy stored rows into `out`, (rows, width), bfloat16.

    Parameters
    ----------
    addresses : (rows,), int64
        Where the rows lie in memory.
    """
    addresses = np.ascontiguousarray(addresses)
    library().stored_rows(addresses.ctypes.data, *out.shape, out.data_ptr(), out.stride(0))


def normalised_rows(addresses: np.ndarray, mean: np.ndarray, scale: float, out: torch.Tensor) -> None:
    """Write (row − mean) / scale of stored rows, or of differences of two, into `out`, (rows, width), float32.

    Parameters
    ----------
    addresses : (1 or 2, rows), int64
        Where the rows lie in memory.
    mean : (width,), float32
    scale : float
    """
    first, *other = (np.ascontiguousarray(values) for values in addresses)
    pointers = first.ctypes.data, other[0].ctypes.data if other else None
    library().normalised_rows(*pointers, *out.shape, mean.ctypes.data, scale, out.data_ptr(), out.stride(0))
