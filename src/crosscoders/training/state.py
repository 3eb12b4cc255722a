"""The state of a training, and the figures that are kept of every step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from crosscoders.crosscoder.encode import BatchTopK
from crosscoders.kernels.interface import Backend
from crosscoders.training.adam import Adam
from crosscoders.training.recipes import Recipe, Trainee

HISTORY = ("loss", "l0", "dead_fraction", "learning_rate", "penalty_coefficient", "gradient_norm", "threshold")
PRECISION = {"float32": None, "bfloat16": torch.bfloat16}
"""Precisions by their names in the settings; None is the precision of the weights."""
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
        """The content of a checkpoint."""
        return {
            "parameters": [parameter.clone() for parameter in self.crosscoder.parameters],
            "optimizer": self.optimizer.state_dict(),
            "silent_tokens": self.silent_tokens,
            "selections": [asdict(selection) for selection in self.selections],
            "history": self.history,
        } | {name: getattr(self, name) for name in STEERED}

    def restore(self, saved: dict) -> None:
        """Take over a checkpoint."""
        for parameter, value in zip(self.crosscoder.parameters, saved["parameters"], strict=True):
            parameter.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.silent_tokens.copy_(saved["silent_tokens"])
        self.history = saved["history"]
        self.selections = [BatchTopK(**selection) for selection in saved["selections"]]
        for name in STEERED:
            setattr(self, name, saved[name])


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
