"""Adam of a crosscoder: it clips gradients as it reads them, stored or not, and keeps moments in 32 or in 16 bits."""

from __future__ import annotations

import numpy as np
import torch
from torch.optim import adam

from crosscoders.kernels.adam_step import EPSILON, adam_numbers, seed
from crosscoders.kernels.interface import Backend, Gradient


class Adam:
    """Adam (Kingma & Ba 2015), in place.

    Parameters
    ----------
    parameters : list of tensors
        The tensors that are trained.
    betas : (float, float)
        Decay rates of both moments.
    backend : Backend
        Makes the steps that torch's own kernel cannot: on gradients that are not stored, and with moments in 16 bits.
    moments : torch.dtype, optional
        Precision of the moments of matrices; that of the weights where absent.
    """

    def __init__(
        self,
        parameters: list[torch.Tensor],
        betas: tuple[float, float],
        backend: Backend,
        moments: torch.dtype | None = None,
    ):
        self.betas, self.backend, self.steps = betas, backend, 0
        types = [moments if parameter.ndim == 2 else None for parameter in parameters]
        self.mean, self.square = (
            [torch.zeros_like(p, dtype=kind) for p, kind in zip(parameters, types, strict=True)] for _ in range(2)
        )

    def state_dict(self) -> dict:
        """The number of steps and both moments, for a checkpoint."""
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def step(self, parameters: list[torch.Tensor], gradients: list[Gradient], rate: float, clip_factor: float) -> None:
        """One step in place, on gradients divided by `clip_factor`; `rate` is the learning rate."""
        self.steps += 1
        clip_factor, together = float(np.float32(clip_factor)), []  # the precision in which torch's kernel takes it
        numbers = adam_numbers(rate, clip_factor, self.steps, self.betas)
        for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            moments = self.mean[place], self.square[place]
            if isinstance(gradient, torch.Tensor) and moments[0].dtype == parameter.dtype:
                together.append((parameter, gradient, *moments, self._steps_before(parameter)))
            else:
                self.backend.adam_step(parameter, moments, gradient, seed(place, self.steps), numbers)
        self._fused(together, rate, clip_factor)

    def _steps_before(self, parameter: torch.Tensor) -> torch.Tensor:
        """The number of steps before this one, as the tensor that torch's kernel takes."""
        return torch.tensor(float(self.steps - 1), device=parameter.device)

    def _fused(self, together: list[tuple], rate: float, clip_factor: float) -> None:
        """Torch's own Adam, which divides gradients as it reads them, for the tensors that it can step on."""
        if not together:
            return
        parameters, gradients, mean, square, steps = (list(column) for column in zip(*together, strict=True))
        device = parameters[0].device
        scale, overflow = torch.tensor(clip_factor, device=device), torch.tensor(0.0, device=device)
        options = {"lr": rate, "beta1": self.betas[0], "beta2": self.betas[1], "eps": EPSILON, "weight_decay": 0.0}
        options |= {"fused": True, "amsgrad": False, "maximize": False, "grad_scale": scale, "found_inf": overflow}
        adam.adam(parameters, gradients, mean, square, [], steps, **options)
