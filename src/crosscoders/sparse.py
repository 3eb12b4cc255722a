"""Sparse codes and the passes over them: encode at inference, decode, gradients. Exact; no (T, m) array is kept.

A code holds only the active (token, latent) pairs, sorted by token. Decoding and both weight gradients gather rows of
(m, D) matrices, so their cost is the number of pairs times D, whatever m is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from crosscoders.crosscoder import Crosscoder

CANDIDATE_MARGIN = 0.9
"""Share of the last threshold above which pre-activations are candidates for the next selection."""


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
        return torch.repeat_interleave(torch.arange(self.size[0]), self.offsets.diff())

    def dense(self) -> torch.Tensor:
        """The code as a (T, m) tensor."""
        out = torch.zeros(self.size, dtype=self.values.dtype)
        out[self.tokens, self.latents] = self.values
        return out


def from_flat(index: np.ndarray, values: torch.Tensor, size: tuple[int, int]) -> Code:
    """A code from ascending flat indices token·m + latent."""
    tokens, latents = np.divmod(index, size[1])
    offsets = np.zeros(size[0] + 1, np.int64)
    np.cumsum(np.bincount(tokens, minlength=size[0]), out=offsets[1:])
    return Code(torch.from_numpy(offsets), torch.from_numpy(latents), values, size)


def above(preactivations: torch.Tensor, thresholds: torch.Tensor) -> np.ndarray:
    """Ascending flat indices of the pre-activations above a threshold per latent."""
    return np.flatnonzero(torch.gt(preactivations, thresholds).numpy())


def largest(scores: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Mask of the `count` largest scores, ties broken by the lower index, and the smallest score kept."""
    if count >= len(scores):
        return np.ones(len(scores), bool), float(scores.min(initial=np.inf))
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    keep = scores > threshold
    keep[np.flatnonzero(scores == threshold)[: count - keep.sum()]] = True
    return keep, float(threshold)


class BatchTopK:
    """Keeps the T·k largest scores f_j Σ_s n_{j,s} of a batch [B24].

    The last batch's threshold, lowered by a margin, picks a few candidates among which the selection is exact; where
    they turn out too few, all positive pre-activations are candidates.
    """

    def __init__(self) -> None:
        self.carried = 0.0
        self.fallbacks = 0

    def __call__(self, preactivations: torch.Tensor, norms: torch.Tensor, k: int) -> tuple[Code, float]:
        """Code of (T, m) pre-activations and the smallest score kept."""
        wanted = k * len(preactivations)
        index = above(preactivations, CANDIDATE_MARGIN * self.carried / norms.clamp_min(1e-30))
        if len(index) < wanted and self.carried > 0:
            self.fallbacks += 1
            index = above(preactivations, torch.zeros_like(norms))
        values = preactivations.reshape(-1)[torch.from_numpy(index)]
        scores = (values * norms[torch.from_numpy(index % preactivations.shape[1])]).numpy()
        keep, threshold = largest(scores, wanted)
        self.carried = threshold if np.isfinite(threshold) else 0.0
        return from_flat(index[keep], values[torch.from_numpy(keep)], tuple(preactivations.shape)), self.carried


def encode(crosscoder: Crosscoder, x: torch.Tensor) -> Code:
    """The code of :meth:`Crosscoder.encode`, sparse."""
    preactivations = crosscoder.preactivations(x)
    if crosscoder.activation == "topk":
        dense = crosscoder.encode(x)
        index = np.flatnonzero(dense.numpy())
        return from_flat(index, dense.reshape(-1)[torch.from_numpy(index)], tuple(dense.shape))
    norms = crosscoder.decoder_norms().sum(1)
    index = above(preactivations, torch.zeros_like(norms))
    values = preactivations.reshape(-1)[torch.from_numpy(index)]
    if crosscoder.activation == "batchtopk":
        scores = values * norms[torch.from_numpy(index % crosscoder.latents)]
        keep = scores > crosscoder.threshold
        index, values = index[keep.numpy()], values[keep]
    return from_flat(index, values, tuple(preactivations.shape))


def decode(code: Code, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Σ_j f_j W_j + b, (T, D)."""
    return _bags(code.latents, code.offsets, code.values, weights).add_(bias)


def value_gradients(code: Code, gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """⟨gradient_t, W_j⟩ at every active pair, (pairs,)."""
    pattern = torch.sparse_csr_tensor(
        code.offsets, code.latents, torch.zeros_like(code.values), code.size, check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, gradient, weights.T, beta=0.0).values()


class ByLatent:
    """The pairs of a code sorted by latent: sums over the tokens of each latent."""

    def __init__(self, code: Code):
        latents = code.latents.numpy()
        narrow = latents.astype(np.uint16) if code.size[1] <= 1 << 16 else latents  # radix sort below 2^16
        self.order = torch.from_numpy(np.argsort(narrow, kind="stable"))
        self.tokens = code.tokens[self.order]
        self.latents = code.latents[self.order]
        self.counts = torch.bincount(code.latents, minlength=code.size[1])
        self.offsets = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Σ_t value_tj rows_t, (m, D)."""
        return _bags(self.tokens, self.offsets, values[self.order], rows)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Σ_t value_tj, (m,)."""
        return torch.zeros(len(self.counts), dtype=values.dtype).index_add_(0, self.latents, values[self.order])


def _bags(index: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Weighted sums of gathered rows, one per bag."""
    return embedding_bag(index, rows, offsets, per_sample_weights=values, mode="sum", include_last_offset=True)
