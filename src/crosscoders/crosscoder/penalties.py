"""Sparsity penalties λ Σ_j π_j g(f_j N_j), each defined by how it joins decoder norms and by its function g.

N_j joins the norms n_{j,s} of a latent's decoder vectors; g is the identity or saturates; π_j is the block's factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Penalty:
    """One row of the table below.

    Attributes
    ----------
    join : (m, S) norms → (m,)
        N_j.
    share : (m, S) norms → (m, S)
        ∂N_j / ∂n_{j,s}.
    value, slope : (contribution f_j N_j, scale) → same shape
        g and its derivative.
    penalises_code : bool
        False where f counts as a constant, so that the penalty moves the decoder alone.
    """

    join: Callable[[torch.Tensor], torch.Tensor]
    share: Callable[[torch.Tensor], torch.Tensor]
    value: Callable[[torch.Tensor, float], torch.Tensor]
    slope: Callable[[torch.Tensor, float], torch.Tensor]
    penalises_code: bool = True


def _sum(norms: torch.Tensor) -> torch.Tensor:
    return norms.sum(1)


def _length(norms: torch.Tensor) -> torch.Tensor:
    return norms.pow(2).sum(1).sqrt()


def _direction(norms: torch.Tensor) -> torch.Tensor:
    return norms / _length(norms).clamp_min(1e-30)[:, None]


def _identity(v: torch.Tensor, scale: float) -> torch.Tensor:
    return v


def _one(v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.ones((), dtype=v.dtype, device=v.device).expand_as(v)


def _tanh(v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.tanh(scale * v)


def _tanh_slope(v: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * (1 - torch.tanh(scale * v).square())


PENALTIES = {
    "l1_of_norms": Penalty(_sum, torch.ones_like, _identity, _one),  # [L24]: source-specific latents may appear
    "l2_of_norms": Penalty(_length, _direction, _identity, _one),  # [L24]: a stacked SAE's; none appear
    "tanh": Penalty(_sum, torch.ones_like, _tanh, _tanh_slope),
    "decoder_sparsity": Penalty(_sum, torch.ones_like, _identity, _one, penalises_code=False),
}
