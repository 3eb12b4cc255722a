"""Sparse codes and the passes over them: encode at inference, decode, gradients. Exact, on CPU and GPU alike.

A code holds only the active (token, latent) pairs, sorted by token. Decoding and both weight gradients gather rows of
(m, D) matrices, so their cost is the number of pairs times D, whatever m is. On a GPU :mod:`crosscoders.kernels` makes
the same passes; on a CPU :mod:`crosscoders.native` does, where it compiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from crosscoders import native, products
from crosscoders.crosscoder import Crosscoder

MARGIN = (0.02, 0.1)
"""By which share a threshold is lowered to pick the candidates of the next batch, at least and at most."""


@dataclass
class Code:
    """Active (token, latent) pairs, sorted by token: `offsets` (T + 1,), `latents` and `values` (pairs,)."""

    offsets: torch.Tensor
    latents: torch.Tensor
    values: torch.Tensor
    size: tuple[int, int]

    @property
    def tokens(self) -> torch.Tensor:
        """Token of every pair."""
        rows = torch.arange(self.size[0], device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff())

    def split(self, sizes: list[int]) -> list[Code]:
        """Codes of consecutive groups of latents."""
        found, first, tokens = [], 0, self.tokens
        for size in sizes:
            inside = (self.latents >= first) & (self.latents < first + size)
            counts = torch.bincount(tokens[inside], minlength=self.size[0])
            offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            found.append(Code(offsets, self.latents[inside] - first, self.values[inside], (self.size[0], size)))
            first += size
        return found

    def dense(self) -> torch.Tensor:
        """The code as a (T, m) tensor."""
        out = torch.zeros(self.size, dtype=self.values.dtype, device=self.values.device)
        out[self.tokens, self.latents] = self.values
        return out


def flatnonzero(mask: torch.Tensor) -> torch.Tensor:
    """Ascending flat indices of the true entries; on a CPU, NumPy finds them several times as fast as torch."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def from_flat(index: torch.Tensor, values: torch.Tensor, size: tuple[int, int]) -> Code:
    """A code from ascending flat indices token·m + latent."""
    tokens = torch.div(index, size[1], rounding_mode="floor")
    counts = torch.bincount(tokens, minlength=size[0])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Code(offsets, index - tokens * size[1], values, size)


def joined(codes: list[Code]) -> Code:
    """Codes over the same latents, the tokens of one after those of the other."""
    counts = torch.cat([code.offsets.diff() for code in codes])
    return Code(
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]), torch.cat([code.latents for code in codes]),
        torch.cat([code.values for code in codes]), (len(counts), codes[0].size[1]),
    )  # fmt: skip


def parted(code: Code, count: int) -> list[Code]:
    """A code in so many of as many tokens each: what `joined` joined."""
    tokens, found = code.size[0] // count, []
    for first in range(0, code.size[0], tokens):
        offsets = code.offsets[first : first + tokens + 1]
        inside = slice(int(offsets[0]), int(offsets[-1]))
        found.append(Code(offsets - offsets[0], code.latents[inside], code.values[inside], (tokens, code.size[1])))
    return found


def largest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """Mask of the `count` largest scores, ties broken by the lower index, and the smallest score kept."""
    if count >= len(scores):
        return torch.ones_like(scores, dtype=torch.bool), float(scores.min()) if len(scores) else 0.0
    threshold = scores.kthvalue(len(scores) - count + 1).values
    keep = scores > threshold
    keep[flatnonzero(scores == threshold)[: count - int(keep.sum())]] = True
    return keep, float(threshold)


class Whole:
    """Pre-activations P, (T, m), all of them computed."""

    def __init__(self, values: torch.Tensor):
        self.whole = values
        self.size = tuple(values.shape)

    def above(self, floor: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """Ascending flat indices token·m + latent of those above a floor, a number or (m,), and their values."""
        return self.at(self.whole > floor)

    def at(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat indices and values where a mask, (T, m), is true."""
        index = flatnonzero(wanted)
        return index, self.whole.reshape(-1)[index]


class Preactivations(Whole):
    """P = x W_encᵀ + b, of which no more is computed than is asked for."""

    def __init__(self, crosscoder: Crosscoder, x: torch.Tensor, precision: torch.dtype | None = None):
        self.crosscoder, self.x, self.precision = crosscoder, x, precision
        self.size = (len(x), crosscoder.latents)

    @cached_property
    def whole(self) -> torch.Tensor:
        """All of them, (T, m)."""
        if self.precision is None:
            return self.crosscoder.preactivations(self.x)
        return product(self.x, self.crosscoder.encoder.T, self.precision).add_(self.crosscoder.encoder_bias)

    def few_above(self, floor: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As `above`; None where all have been computed or should be."""
        if "whole" in vars(self):
            return None
        floors = torch.as_tensor(floor, dtype=self.x.dtype, device=self.x.device).expand(self.size[1])
        inputs = self.x, self.crosscoder.encoder, self.crosscoder.encoder_bias, floors
        if not on_gpu(self.x):
            return native.above(*inputs)
        from crosscoders import kernels

        return kernels.above(*inputs) if native.rare(*inputs) else None

    def above(self, floor: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """As of all of them, in 8 or 16 bits first where that costs less."""
        found = self.few_above(floor)
        return super().above(floor) if found is None else found

    def some(self, tokens: slice, latents: torch.Tensor) -> torch.Tensor:
        """Those of some tokens and latents."""
        if "whole" in vars(self):
            return self.whole[tokens][:, latents]
        coder = self.crosscoder
        return torch.addmm(coder.encoder_bias[latents], self.x[tokens], coder.encoder[latents].T)


@dataclass
class BatchTopK:
    """Keeps the T·k largest scores f_j Σ_s n_{j,s} of a batch [B24].

    The last batch's threshold, lowered by a margin, picks a few candidates among which the selection is exact; where
    they turn out too few, all positive pre-activations are candidates. The margin is three times the threshold's last
    change, or nine tenths of what it was before.
    """

    carried: float = 0.0
    margin: float = MARGIN[1]
    fallbacks: int = 0

    def __call__(self, preactivations: Whole, norms: torch.Tensor, k: int) -> tuple[Code, float]:
        """Code of (T, m) pre-activations and the smallest score kept."""
        tokens, m = preactivations.size
        index, values = preactivations.above((1 - self.margin) * self.carried / norms.clamp_min(1e-30))
        if len(index) < k * tokens and self.carried > 0:
            self.fallbacks += 1
            index, values = preactivations.above(0.0)
        keep, threshold = largest(values * norms[index % m], k * tokens)
        if self.carried > 0:
            change = abs(threshold / self.carried - 1)
            self.margin = min(max(MARGIN[0], 3 * change, 0.9 * self.margin), MARGIN[1])
        self.carried = threshold
        return from_flat(index[keep], values[keep], (tokens, m)), threshold


def encode(crosscoder: Crosscoder, x: torch.Tensor) -> Code:
    """The code of :meth:`Crosscoder.encode`, sparse."""
    if crosscoder.selection.ranked_over == "token":
        return of_dense(crosscoder.encode(x))
    norms, limit = crosscoder.decoder_norms().sum(1), crosscoder.on_above
    floor = limit / norms.clamp_min(1e-30)
    index, values = Preactivations(crosscoder, x).above((floor - 1e-6 * floor.abs()).clamp_min(0.0))
    latents = index % crosscoder.latents
    keep = values * norms[latents] > (limit[latents] if isinstance(limit, torch.Tensor) else limit)
    return from_flat(index[keep], values[keep], (len(x), crosscoder.latents))


def of_dense(f: torch.Tensor) -> Code:
    """The active pairs of a dense code, (T, m)."""
    index = flatnonzero(f > 0)
    return from_flat(index, f.reshape(-1)[index], tuple(f.shape))


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether passes over a tensor are those of :mod:`crosscoders.kernels`."""
    return tensor.is_cuda


def compiled(tensor: torch.Tensor) -> bool:
    """Whether passes over a tensor are those of :mod:`crosscoders.native`."""
    return not on_gpu(tensor) and native.usable(tensor)


def product(a: torch.Tensor, b: torch.Tensor, precision: torch.dtype | None) -> torch.Tensor:
    """Product a b, of factors rounded to a precision where one is given."""
    return products.linear(a, b.T) if precision is None else (a.to(precision) @ b.to(precision)).to(a.dtype)


def decode(code: Code, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Σ_j f_j W_j + b, (T, D)."""
    if on_gpu(weights):
        from crosscoders import kernels

        return kernels.decode(code, weights, bias)
    return _bags(code.latents, code.offsets, code.values, weights).add_(bias)


def value_gradients(code: Code, gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """⟨gradient_t, W_j⟩ at every active pair, (pairs,)."""
    if on_gpu(weights):
        from crosscoders import kernels

        return kernels.value_gradients(code, gradient, weights)
    pattern = torch.sparse_csr_tensor(
        code.offsets, code.latents, torch.zeros_like(code.values), code.size, check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, gradient, weights.T, beta=0.0).values()


class ByLatent:
    """The pairs of a code sorted by latent: sums over the tokens of each latent."""

    def __init__(self, code: Code):
        self.all_tokens = code.size[0]
        self.order = _stable_order(code.latents, code.size[1])
        self.tokens = code.tokens[self.order]
        self.latents = code.latents[self.order]
        self.counts = torch.bincount(code.latents, minlength=code.size[1])
        self.offsets = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Σ_t value_tj rows_t, (m, D)."""
        return _bags(self.tokens, self.offsets, values[self.order], rows)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Σ_t value_tj, (m,)."""
        return values.new_zeros(len(self.counts)).index_add_(0, self.latents, values[self.order])


def _stable_order(latents: torch.Tensor, m: int) -> torch.Tensor:
    """Order that sorts pairs by latent and keeps that of tokens; NumPy's radix sort is the fastest on a CPU."""
    if latents.device.type == "cpu" and m <= 1 << 16:
        return torch.from_numpy(np.argsort(latents.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(latents, stable=True)


def _bags(index: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Weighted sums of gathered rows, one per bag."""
    return embedding_bag(index, rows, offsets, per_sample_weights=values, mode="sum", include_last_offset=True)
