"""On which tokens of a split the latents of a crosscoder fire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from crosscoders.activations.dataset import Activations
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import encode_sparse

BATCH = 2048


@dataclass
class ActivePairs:
    """Active pairs of a split, sorted by latent and then by token.

    Attributes
    ----------
    latent, token : (P,) int
        Tokens are numbered as in the split.
    value : (P,) float32
    """

    latent: np.ndarray
    token: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, coder: Crosscoder, data: Activations) -> ActivePairs:
        """What a crosscoder fires on; attention sinks, which no crosscoder sees, have no pair."""
        index, parts = data.metadata["token_index"].values, []
        with torch.no_grad():
            for chosen, x in data.batches(BATCH):
                code = encode_sparse(coder, x)
                parts.append((code.latents.numpy(), index[chosen][code.tokens.numpy()], code.values.numpy()))
        latent, token, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.lexsort((token, latent))
        return cls(latent[order], token[order], value[order])

    def of_latent(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens on which one latent fires, ascending, and how strongly."""
        first, last = np.searchsorted(self.latent, [latent, latent + 1])
        return self.token[first:last], self.value[first:last]
