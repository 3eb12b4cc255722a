"""The threshold of BatchTopK at inference, fitted on held-out tokens [B24]."""

from __future__ import annotations

import numpy as np
import torch

SPARE = 4
"""Scores kept of every batch, as a multiple of those that are on: batches differ in how many lie above a threshold."""


class ThresholdFit:
    """Finds the score above which, over all batches, k latents per token are on.

    The threshold lies half-way between the last score kept and the first one dropped.

    Parameters
    ----------
    k : int
        Latents per token.
    """

    def __init__(self, k: int):
        self.k, self.tokens, self._kept = k, 0, np.empty(0, np.float32)

    def add(self, scores: torch.Tensor) -> None:
        """Take the scores of a batch, (T, m), into account; only the largest are kept."""
        values = scores.cpu().numpy().ravel()
        self.tokens += len(scores)
        candidates = values[values > 0]
        dropped = len(candidates) - min(SPARE * self.k * len(scores), len(candidates))
        self._kept = np.concatenate([self._kept, np.partition(candidates, dropped)[dropped:]])

    def value(self) -> float:
        """The threshold; 0 where fewer scores than wanted are positive."""
        wanted = self.k * self.tokens
        if len(self._kept) <= wanted:
            return 0.0
        first = len(self._kept) - wanted - 1
        ordered = np.partition(self._kept, [first, first + 1])
        return float(ordered[first : first + 2].mean(dtype=np.float64))
