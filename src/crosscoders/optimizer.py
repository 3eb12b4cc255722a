"""Adam of a crosscoder: gradients divided as they are read, stored or not, moments in 32 or in 16 bits.

Moments in bfloat16 halve what Adam keeps and reads. A second moment changes by less than such a number resolves, so it is
rounded up or down by chance, in proportion to its distance: right on average (Zamirai et al. 2020, "Revisiting BFloat16
Training"). The chance is a function of place and step, so that a training gives the same bytes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.optim import adam

from crosscoders import native, sparse

if TYPE_CHECKING:
    from crosscoders.kernels import RowGradient

    Gradient = torch.Tensor | native.Gradient | RowGradient

EPSILON = 1e-8
WORD = 0xFFFFFFFF


class Adam:
    """Adam (Kingma & Ba 2015), in place."""

    def __init__(self, parameters: list[torch.Tensor], betas: tuple[float, float], moments: torch.dtype | None = None):
        """Begin; moments of matrices are kept in the precision given, or in that of the weights."""
        self.betas, self.steps = betas, 0
        types = [moments if parameter.ndim == 2 else None for parameter in parameters]
        self.mean, self.square = (
            [torch.zeros_like(p, dtype=kind) for p, kind in zip(parameters, types, strict=True)] for _ in range(2)
        )

    def state_dict(self) -> dict:
        """What a checkpoint holds."""
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def load_state_dict(self, saved: dict) -> None:
        """Take over what a checkpoint holds."""
        self.steps = saved["steps"]
        for own, values in zip(self.mean + self.square, saved["mean"] + saved["square"], strict=True):
            own.copy_(values)

    def step(self, parameters: list[torch.Tensor], gradients: list[Gradient], rate: float, shrink: float) -> None:
        """One step on gradients divided by `shrink`."""
        self.steps += 1
        shrink, together = float(np.float32(shrink)), []  # as torch's kernel takes it
        for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            moments = self.mean[place], self.square[place]
            own = native.adam_usable(parameter) and not sparse.on_gpu(parameter)
            if isinstance(gradient, native.Gradient) and not own:
                gradient = gradient.dense()
            if isinstance(gradient, torch.Tensor) and moments[0].dtype == parameter.dtype:
                together.append((parameter, gradient, *moments, self._count(parameter)))
                continue
            if sparse.on_gpu(parameter):
                from crosscoders.kernels import adam_step
            else:
                adam_step = native.adam_step if own else plain_step
            adam_step(parameter, *moments, gradient, seed(place, self.steps), self.options(rate, shrink))
        self._fused(together, rate, shrink)

    def options(self, rate: float, shrink: float) -> list[float]:
        """Numbers of this step: rate and ε after corrections, both memories and what they leave, 1 / shrink.

        The corrected root of the second moment, √v / c, needs no division: rate · m / (√v / c + ε) is c · rate · m / (√v + c · ε).
        """
        first, second = self.betas
        root = (1 - second**self.steps) ** 0.5
        return [root * rate / (1 - first**self.steps), root * EPSILON, first, 1 - first, second, 1 - second, 1 / shrink]

    def _count(self, parameter: torch.Tensor) -> torch.Tensor:
        """The steps before this one, as torch's kernel takes them."""
        return torch.tensor(float(self.steps - 1), device=parameter.device)

    def _fused(self, together: list[tuple], rate: float, shrink: float) -> None:
        """Torch's own Adam for what it can: it divides gradients as it reads them."""
        if not together:
            return
        parameters, gradients, mean, square, steps = (list(column) for column in zip(*together, strict=True))
        device = parameters[0].device
        adam.adam(
            parameters, gradients, mean, square, [], steps, fused=True, amsgrad=False, beta1=self.betas[0],
            beta2=self.betas[1], lr=rate, weight_decay=0.0, eps=EPSILON, maximize=False,
            grad_scale=torch.tensor(shrink, device=device), found_inf=torch.tensor(0.0, device=device),
        )  # fmt: skip


def plain_step(
    weights: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, gradient: torch.Tensor, seed: int,
    options: list[float],
) -> None:  # fmt: skip
    """One step of Adam in place, its moments in any precision: what the fast ones are tested against."""
    rate, epsilon, first, rest1, second, rest2, grow = options
    gradient = gradient * grow
    m = mean.to(weights.dtype).mul_(first).add_(gradient, alpha=rest1)
    v = square.to(weights.dtype).mul_(second).addcmul_(gradient, gradient, value=rest2)
    weights.addcdiv_(m, v.sqrt().add_(epsilon), value=-rate)
    if mean.dtype == torch.bfloat16:
        noise = chances(weights.numel(), seed, weights.device).view_as(weights)
        m, v = narrowed(m, noise & 0xFFFF), narrowed(v, noise >> 16)
    mean.copy_(m)
    square.copy_(v)


def seed(place: int, step: int) -> int:
    """What sets the chances of one tensor at one step apart, 32 bits."""
    return (step * 0x9E3779B9 + place * 0x85EBCA6B) & WORD


def chances(count: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """32 random bits for every weight of a tensor: a hash of where it is and of the seed."""
    word = (torch.arange(count, device=device) + seed) & WORD
    for factor, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13)):
        word = (word * factor) & WORD
        word ^= word >> shift
    return word


def narrowed(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Values in bfloat16, rounded up with a probability equal to the part cut off; `noise` has 16 random bits for each."""
    bits = values.float().view(torch.int32) + noise.to(torch.int32)
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)
