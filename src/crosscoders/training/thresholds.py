"""The threshold of BatchTopK at inference, fitted on held-out tokens [B24]."""

from __future__ import annotations

import numpy as np
import torch

from crosscoders.kernels.mesh import ALONE, Alone

SPARE = 4
"""Scores kept of every batch, as a multiple of those that are on: batches differ in how many lie above a threshold."""


class ThresholdFit:
    """Finds the score above which, over all batches, k latents per token are on.

    The threshold lies half-way between the last score kept and the first one dropped.

    Parameters
    ----------
    k : int
        Latents per token.
    mesh : Alone or Mesh
        Whose processes add the scores of their latents together.
    """

    def __init__(self, k: int, mesh: Alone = ALONE):
        self.k, self.mesh, self.tokens, self._kept = k, mesh, 0, np.empty(0, np.float32)

    def add(self, scores: torch.Tensor) -> None:
        """Take the scores of a batch, (T, m), into account; only the largest are kept."""
        self.tokens += len(scores)
        kept, most = scores.cpu().numpy().ravel(), SPARE * self.k * len(scores)
        if not self.mesh.alone:
            kept = np.concatenate(self.mesh.of_shards(_largest(kept, most)))
        self._kept = np.concatenate([self._kept, _largest(kept, most)])

    def value(self) -> float:
        """The threshold; 0 where fewer scores than wanted are positive."""
        wanted = self.k * self.tokens
        if len(self._kept) <= wanted:
            return 0.0
        first = len(self._kept) - wanted - 1
        ordered = np.partition(self._kept, [first, first + 1])
        return float(ordered[first : first + 2].mean(dtype=np.float64))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The positive values, and of more than `count` the largest."""
    candidates = values[values > 0]
    dropped = len(candidates) - min(count, len(candidates))
    return np.partition(candidates, dropped)[dropped:]
