"""Sparse codes as pairs of token and latent, and the same pairs sorted by latent.

T tokens, m latents. A code holds only the active pairs, so that what is computed from it costs the number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag


@dataclass
class Code:
    """Active (token, latent) pairs, sorted by token: `offsets` (T + 1,), `latents` and `values` (pairs,)."""

    offsets: torch.Tensor
    latents: torch.Tensor
    values: torch.Tensor
    size: tuple[int, int]

    @property
    def tokens(self) -> torch.Tensor:
        """Token of every pair, (pairs,)."""
        rows = torch.arange(self.size[0], device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff())

    def split(self, sizes: list[int]) -> list[Code]:
        """Codes, (T, size) each, of consecutive groups of latents."""
        codes, first, tokens = [], 0, self.tokens
        for size in sizes:
            inside = (self.latents >= first) & (self.latents < first + size)
            counts = torch.bincount(tokens[inside], minlength=self.size[0])
            offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            codes.append(Code(offsets, self.latents[inside] - first, self.values[inside], (self.size[0], size)))
            first += size
        return codes

    def dense(self) -> torch.Tensor:
        """The code as a (T, m) tensor."""
        out = torch.zeros(self.size, dtype=self.values.dtype, device=self.values.device)
        out[self.tokens, self.latents] = self.values
        return out


def flatnonzero(mask: torch.Tensor) -> torch.Tensor:
    """Indices of the true entries; on a CPU, NumPy finds them several times as fast as torch.

    Parameters
    ----------
    mask : bool tensor of any shape

    Returns
    -------
    (entries,) int64
        Ascending indices into the flattened mask.
    """
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def from_flat(index: torch.Tensor, values: torch.Tensor, size: tuple[int, int]) -> Code:
    """A code from flat indices of its pairs.

    Parameters
    ----------
    index : (pairs,) int64
        token · m + latent, ascending.
    values : (pairs,)
    size : (T, m)

    Returns
    -------
    Code
    """
    tokens = torch.div(index, size[1], rounding_mode="floor")
    counts = torch.bincount(tokens, minlength=size[0])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Code(offsets, index - tokens * size[1], values, size)


def beside(codes: list[Code]) -> Code:
    """Codes of the same tokens as one, the latents of one code after those of the other: the inverse of `Code.split`.

    Parameters
    ----------
    codes : list of Code
        Of (T, m_i) each.

    Returns
    -------
    Code
        Of (T, sum of m_i).
    """
    size, first, places = (codes[0].size[0], sum(code.size[1] for code in codes)), 0, []
    for code in codes:
        places.append(code.tokens * size[1] + code.latents + first)
        first += code.size[1]
    place, order = torch.cat(places).sort()
    return from_flat(place, torch.cat([code.values for code in codes])[order], size)


def joined(codes: list[Code]) -> Code:
    """Codes over the same latents as one, the tokens of one code after those of the other.

    Parameters
    ----------
    codes : list of Code
        Of (T, m) each.

    Returns
    -------
    Code
        Of (sum of T, m).
    """
    counts = torch.cat([code.offsets.diff() for code in codes])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    latents, values = (torch.cat([getattr(code, name) for code in codes]) for name in ("latents", "values"))
    return Code(offsets, latents, values, (len(counts), codes[0].size[1]))


def parted(code: Code, count: int) -> list[Code]:
    """A code cut into `count` codes of equally many tokens: the inverse of :func:`joined`.

    Parameters
    ----------
    code : Code
        Of (count · T, m).
    count : int

    Returns
    -------
    list of Code
        Of (T, m) each.
    """
    tokens, codes = code.size[0] // count, []
    for first in range(0, code.size[0], tokens):
        offsets = code.offsets[first : first + tokens + 1]
        inside = slice(int(offsets[0]), int(offsets[-1]))
        codes.append(Code(offsets - offsets[0], code.latents[inside], code.values[inside], (tokens, code.size[1])))
    return codes


def of_dense(f: torch.Tensor) -> Code:
    """The active pairs of a dense code.

    Parameters
    ----------
    f : (T, m)

    Returns
    -------
    Code
    """
    index = flatnonzero(f > 0)
    return from_flat(index, f.reshape(-1)[index], tuple(f.shape))


class ByLatent:
    """The pairs of a code sorted by latent, and by token within a latent.

    Attributes
    ----------
    order : (pairs,)
        Where each pair stands in the code.
    tokens, latents : (pairs,)
    counts : (m,)
        Pairs of each latent.
    offsets : (m + 1,)
        Where each latent's pairs begin.
    """

    def __init__(self, code: Code):
        self.all_tokens = code.size[0]
        self.order = _stable_order(code.latents, code.size[1])
        self.tokens = code.tokens[self.order]
        self.latents = code.latents[self.order]
        self.counts = torch.bincount(code.latents, minlength=code.size[1])
        self.offsets = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Σ_t value_tj, (m,), of values, (pairs,), in the order of the code."""
        return values.new_zeros(len(self.counts)).index_add_(0, self.latents, values[self.order])


def _stable_order(latents: torch.Tensor, m: int) -> torch.Tensor:
    """Order that sorts pairs by latent and keeps the order of tokens; NumPy's radix sort is the fastest on a CPU."""
    if latents.device.type == "cpu" and m <= 1 << 16:
        return torch.from_numpy(np.argsort(latents.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(latents, stable=True)


def weighted_rows(index: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Weighted sums of gathered rows, one for every stretch between `offsets`."""
    return embedding_bag(index, rows, offsets, per_sample_weights=values, mode="sum", include_last_offset=True)
