"""How shards hold activations: a file variable per stored source, in bfloat16; differences are taken on reading."""

from __future__ import annotations

import numpy as np

from crosscoders import artifacts


def raw_values(mapped: list[np.ndarray], rows: np.ndarray | slice) -> np.ndarray:
    """Activations of some rows of a source, (rows, width), float32: of one file variable, or the difference of two."""
    first, *other = (artifacts.from_bits(bits[rows]) for bits in mapped)
    return first - other[0] if other else first


def parts_of(source: str, differences: dict[str, list[str]]) -> list[str]:
    """File variables of which a source is made: itself, or [minuend, subtrahend]."""
    return differences.get(source, [source])
