"""One step of Adam: the numbers it takes, and how moments are rounded to 16 bits.

A second moment changes by less than a bfloat16 number resolves. It is therefore rounded up or down by chance, in
proportion to its distance, which is right on average (Zamirai et al. 2020, "Revisiting BFloat16 Training"). The chance
is a function of the weight's place and of the step, so that a training gives the same bytes again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

EPSILON = 1e-8
WORD = 0xFFFFFFFF
FIRST_HASH, SECOND_HASH = (0x9E3779B1, 15), (0x85EBCA77, 13)


class AdamNumbers(NamedTuple):
    """The numbers of one step, in the order in which `AdamNumbers` of cpu.cpp and the Triton kernel read them.

    The root of the second moment is not corrected for the start at 0; the learning rate and ε are, which is the same:
    rate · m / (√v / c + ε) = c · rate · m / (√v + c · ε).
    """

    rate: float
    """Learning rate, corrected for both moments' start at 0."""
    epsilon: float
    """ε, corrected for the second moment's start at 0."""
    beta1: float
    rest1: float
    """1 − β₁."""
    beta2: float
    rest2: float
    """1 − β₂."""
    inverse_clip: float
    """What gradients are multiplied with: one over the clip factor."""


def adam_numbers(rate: float, clip_factor: float, step: int, betas: tuple[float, float]) -> AdamNumbers:
    """The numbers of a step of Adam on clipped gradients.

    Parameters
    ----------
    rate : float
        Learning rate.
    clip_factor : float
        By which gradients are divided.
    step : int
        Number of the step, counted from 1.
    betas : (float, float)
        Decay rates of the first and of the second moment.

    Returns
    -------
    AdamNumbers
    """
    first, second = betas
    root = (1 - second**step) ** 0.5
    corrected = root * rate / (1 - first**step)
    return AdamNumbers(corrected, root * EPSILON, first, 1 - first, second, 1 - second, 1 / clip_factor)


def seed(place: int, step: int) -> int:
    """A seed that differs between tensors and between steps, for rounding moments by chance.

    Parameters
    ----------
    place : int
        Number of the tensor among the parameters.
    step : int
        Number of the step.

    Returns
    -------
    int
        Of 32 bits.
    """
    return (step * 0x9E3779B9 + place * 0x85EBCA6B) & WORD


def chances(count: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """32 random bits for every weight of a tensor, (count,): a hash of the weight's place and of the seed."""
    word = (torch.arange(count, device=device) + seed) & WORD
    for factor, shift in (FIRST_HASH, SECOND_HASH):
        word = (word * factor) & WORD
        word ^= word >> shift
    return word


def narrowed(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Values in bfloat16, rounded up with a probability equal to the part cut off; `noise` has 16 random bits each."""
    bits = values.float().view(torch.int32) + noise.to(torch.int32)
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)
