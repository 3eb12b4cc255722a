"""The state of a training, and the figures that are kept of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import torch

from crosscoders.crosscoder.encode import BatchTopK
from crosscoders.kernels.interface import Backend
from crosscoders.training.adam import Adam
from crosscoders.training.recipes import Recipe, Trainee

HISTORY = ("loss", "l0", "dead_fraction", "learning_rate", "penalty_coefficient", "gradient_norm", "threshold")
PRECISION = {"float32": None, "bfloat16": torch.bfloat16}
"""Precisions by their names in the settings; None is the precision of the weights."""
MOMENTS = ("mean", "square")
"""Tensors of the optimizer, one per parameter."""
STEERED = ("coefficient", "threshold", "mean_l0", "l0_trend", "step")
"""Numbers of the state that a checkpoint holds."""


@dataclass
class State:
    """The state of a training; restoring it and going on gives the same bytes as never stopping.

    Attributes
    ----------
    recipe : Recipe
        How this kind of crosscoder is trained.
    backend : Backend
        What computes; chosen once for the training.
    crosscoder : Trainee
        What is trained; at the end the finished crosscoder.
    optimizer : Adam
    silent_tokens : (m,)
        Tokens since each latent last fired.
    coefficient : float
        Coefficient of the penalty.
    column_weights : (D,)
        Weight of every column's squared error.
    selections : list of BatchTopK
        Thresholds carried from batch to batch.
    threshold : float
        Moving average of the smallest score kept.
    mean_l0, l0_trend : float
        Moving averages of L0, and of the change of its logarithm in one step.
    history : dict
        HISTORY and the squared error of every source, a number per step.
    """

    recipe: Recipe
    backend: Backend
    crosscoder: Trainee
    optimizer: Adam
    silent_tokens: torch.Tensor
    coefficient: float
    column_weights: torch.Tensor
    selections: list[BatchTopK] = field(default_factory=list)
    threshold: float = 0.0
    mean_l0: float = 0.0
    l0_trend: float = 0.0
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The content of a checkpoint, which does not depend on how many processes train.

        All processes of a mesh call this; the first one alone gets the tensors.
        """
        optimizer, parameters = self.optimizer.state_dict(), self.crosscoder.parameters
        if self.backend.mesh.alone:
            parameters = [parameter.clone() for parameter in parameters]
        return {
            "parameters": self._gathered(parameters),
            "optimizer": optimizer | {name: self._gathered(optimizer[name]) for name in MOMENTS},
            "silent_tokens": self.backend.mesh.gather(self.silent_tokens, 0),
            "selections": [asdict(selection) for selection in self.selections],
            "history": self.history,
        } | {name: getattr(self, name) for name in STEERED}

    def restore(self, saved: dict | None) -> None:
        """Take over a checkpoint; all processes of a mesh call this, and the first one has its content."""
        mesh, numbers = self.backend.mesh, None
        saved = (
            saved if mesh.first else {"parameters": (), "optimizer": dict.fromkeys(MOMENTS, ()), "silent_tokens": None}
        )
        self._scatter(saved["parameters"], self.crosscoder.parameters)
        for name in MOMENTS:
            self._scatter(saved["optimizer"][name], getattr(self.optimizer, name))
        mesh.scatter(saved["silent_tokens"], self.silent_tokens, 0)
        if mesh.first:
            numbers = {name: saved[name] for name in (*STEERED, "history", "selections")}
            numbers["steps"] = saved["optimizer"]["steps"]
        numbers = mesh.told(numbers)
        self.history, self.optimizer.steps = numbers["history"], numbers["steps"]
        self.selections = [BatchTopK(**selection) for selection in numbers["selections"]]
        for name in STEERED:
            setattr(self, name, numbers[name])

    def _latents(self) -> list[torch.Tensor | None]:
        """The latents of this process that every parameter is about, numbered through all parts; None for all."""
        own, parts = self.backend.mesh.own, self.crosscoder.parts
        held = [None] * len(parts) if own is None else own.split([part.latents for part in parts])
        return [latents for part, latents in zip(parts, held, strict=True) for _ in part.parameters]

    def _gathered(self, tensors: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """Tensors like the parameters, over all latents."""
        gather, places = (
            self.backend.mesh.gather,
            zip(tensors, self._latents(), self.crosscoder.latent_axes, strict=True),
        )
        return [tensor if axis is None else gather(tensor, axis, latents) for tensor, latents, axis in places]

    def _scatter(self, saved: Sequence[torch.Tensor], own: list[torch.Tensor]) -> None:
        """Fill tensors like the parameters from those over all latents, which the first process has."""
        places = zip(own, self._latents(), self.crosscoder.latent_axes, strict=True)
        for (tensor, latents, axis), whole in zip_longest(places, saved):
            self.backend.mesh.scatter(whole, tensor, axis, latents)


def start(trainee: Trainee, recipe: Recipe, backend: Backend) -> State:
    """The state before the first step."""
    options = recipe.settings.training
    moments = PRECISION[options.adam_moments]
    return State(
        recipe=recipe,
        backend=backend,
        crosscoder=trainee,
        optimizer=Adam(trainee.parameters, (0.9, options.adam_beta2), backend, moments),
        silent_tokens=torch.zeros(trainee.latents, dtype=torch.int64, device=trainee.parameters[0].device),
        coefficient=recipe.settings.penalty.coefficient,
        column_weights=recipe.column_weights(trainee),
        selections=recipe.selections(trainee),
    )
