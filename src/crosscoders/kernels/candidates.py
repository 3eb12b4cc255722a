"""Whether looking for the few pre-activations above a threshold costs less than computing all of them."""

from __future__ import annotations

import torch

WORTHWHILE = 1 << 28
"""Multiplications below which a product costs less than preparing for it."""
FEW_TOKENS = 128
"""Tokens below which rounding the encoder costs more than it saves."""


def rare(x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor, at_most: float) -> bool:
    """Whether, by a sample, at most a share `at_most` of the pre-activations exceeds the threshold of its latent.

    Parameters
    ----------
    x : (T, D)
    encoder : (m, D)
    bias, threshold : (m,)
    at_most : float
        Share of all T · m pairs; measured per machine.
    """
    (tokens, width), m = x.shape, len(encoder)
    if tokens < FEW_TOKENS or tokens * width * m < WORTHWHILE:
        return False
    some_tokens, some = sample(x, encoder)
    exceeds = torch.addmm(bias[some], x[some_tokens], encoder[some].T) > threshold[some]
    return float(exceeds.float().mean()) <= at_most


def sample(x: torch.Tensor, encoder: torch.Tensor) -> tuple[slice, slice]:
    """About 64 tokens and 512 latents, spread evenly."""
    return slice(None, None, max(1, len(x) // 64)), slice(None, None, max(1, len(encoder) // 512))
