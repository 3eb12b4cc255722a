"""The training loop: schedules, optimizer, dead latents, steering of sparsity, and a state that can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from crosscoders import sparse
from crosscoders.crosscoder import Crosscoder
from crosscoders.gradients import Objective, Result, compute
from crosscoders.settings import CrosscoderSettings

HISTORY = ("loss", "l0", "dead_fraction", "learning_rate", "penalty_coefficient", "gradient_norm", "threshold")
STEERING = 0.01
"""Largest relative change of the penalty coefficient in one step."""
THRESHOLD_DECAY = 0.999


@dataclass
class Schedule:
    """Learning rate, penalty ramp and k as functions of the step."""

    settings: CrosscoderSettings

    @property
    def decay_start(self) -> int:
        """First step at which the learning rate falls."""
        training = self.settings.training
        return training.steps - round(training.decay_share * training.steps)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, constant, linear decay to 0."""
        training = self.settings.training
        rate = training.learning_rate * min(1.0, (step + 1) / max(training.warmup_steps, 1))
        if step >= self.decay_start:
            rate *= (training.steps - step) / (training.steps - self.decay_start)
        return rate

    def ramp(self, step: int) -> float:
        """Share of the penalty coefficient in force during its ramp."""
        length = self.settings.penalty.ramp_share * self.settings.training.steps
        return min(1.0, (step + 1) / max(length, 1))

    def k(self, step: int) -> int | None:
        """Latents per token, annealed linearly where asked."""
        activation = self.settings.activation
        if activation.k is None or activation.initial_k is None:
            return activation.k
        length = activation.anneal_share * self.settings.training.steps
        done = min(1.0, step / max(length, 1))
        return round(activation.initial_k + done * (activation.k - activation.initial_k))


@dataclass
class State:
    """All that changes while training; restoring it and going on gives the same bytes as never stopping."""

    crosscoder: Crosscoder
    optimizer: torch.optim.Adam
    silent_tokens: torch.Tensor
    """Tokens since each latent last fired, (m,)."""
    coefficient: float
    selection: sparse.BatchTopK = field(default_factory=sparse.BatchTopK)
    threshold: float = 0.0
    """Moving average of the smallest score kept."""
    mean_l0: float = 0.0
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """What a checkpoint holds."""
        return {
            "parameters": [parameter.clone() for parameter in self.crosscoder.parameters],
            "optimizer": self.optimizer.state_dict(),
            "silent_tokens": self.silent_tokens,
            "carried": self.selection.carried,
            "history": self.history,
        } | {name: getattr(self, name) for name in ("coefficient", "threshold", "mean_l0", "step")}

    def restore(self, saved: dict) -> None:
        """Take over a checkpoint."""
        for parameter, value in zip(self.crosscoder.parameters, saved["parameters"], strict=True):
            parameter.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.silent_tokens.copy_(saved["silent_tokens"])
        self.history = saved["history"]
        self.selection.carried = saved["carried"]
        for name in ("coefficient", "threshold", "mean_l0", "step"):
            setattr(self, name, saved[name])


def start(crosscoder: Crosscoder, settings: CrosscoderSettings) -> State:
    """The state before the first step."""
    options = settings.training
    betas = (0.9, options.adam_beta2)
    optimizer = torch.optim.Adam(crosscoder.parameters, lr=options.learning_rate, betas=betas, fused=True)
    silent = torch.zeros(crosscoder.latents, dtype=torch.int64, device=crosscoder.encoder.device)
    return State(crosscoder, optimizer, silent, settings.penalty.coefficient)


def source_weights(crosscoder: Crosscoder, settings: CrosscoderSettings) -> torch.Tensor:
    """w_s of every column, (D,)."""
    weights = torch.ones_like(crosscoder.decoder_bias)
    for name, columns in zip(crosscoder.sources, crosscoder.columns, strict=True):
        weights[columns] = settings.source_weights.get(name, 1.0)
    return weights


def step(state: State, x: torch.Tensor, settings: CrosscoderSettings, weights: torch.Tensor) -> Result:
    """One step on normalised activations x, (T, D): gradients, clipping, Adam, bookkeeping."""
    schedule, training = Schedule(settings), settings.training
    x = x.to(weights.device)
    objective = Objective(
        weights=weights,
        penalty=settings.penalty.kind,
        coefficient=state.coefficient * schedule.ramp(state.step),
        k=schedule.k(state.step),
        auxiliary_coefficient=training.auxiliary_coefficient,
        dead=state.silent_tokens >= training.dead_tokens,
    )
    result = compute(state.crosscoder, x, objective, state.selection)
    norm = math.hypot(*(float(torch.linalg.vector_norm(gradient)) for gradient in result.gradients))
    for parameter, gradient in zip(state.crosscoder.parameters, result.gradients, strict=True):
        parameter.grad = gradient
    # The fused kernel divides gradients by `grad_scale` as it reads them: clipping costs no pass of its own.
    state.optimizer.grad_scale = torch.tensor(max(1.0, norm / training.gradient_clip), device=x.device)
    state.optimizer.found_inf = torch.tensor(0.0, device=x.device)
    state.optimizer.param_groups[0]["lr"] = rate = schedule.learning_rate(state.step)
    state.optimizer.step()
    for parameter in state.crosscoder.parameters:
        parameter.grad = None
    _keep_books(state, result, settings, schedule, len(x))
    l0 = float(result.counts.sum()) / len(x)
    figures = (
        result.loss,
        l0,
        float(objective.dead.float().mean()),
        rate,
        objective.coefficient,
        norm,
        result.threshold,
    )
    for name, value in zip(HISTORY, figures, strict=True):
        state.history.setdefault(name, []).append(value)
    for name, value in zip(state.crosscoder.sources, result.squared_error.tolist(), strict=True):
        state.history.setdefault(f"squared_error_{name}", []).append(value)
    state.step += 1
    return result


def _keep_books(state: State, result: Result, settings: CrosscoderSettings, schedule: Schedule, tokens: int) -> None:
    """Dead counters, threshold average, and steering of the penalty towards the wanted L0."""
    state.silent_tokens += tokens
    state.silent_tokens[result.counts > 0] = 0
    if result.threshold > 0:
        previous = state.threshold or result.threshold
        state.threshold = THRESHOLD_DECAY * previous + (1 - THRESHOLD_DECAY) * result.threshold
    l0 = float(result.counts.sum()) / tokens
    state.mean_l0 = 0.9 * (state.mean_l0 or l0) + 0.1 * l0
    target = settings.penalty.target_l0
    if target and schedule.ramp(state.step) >= 1 and state.step < schedule.decay_start:
        pull = math.log(max(state.mean_l0, 1e-6) / target)
        state.coefficient *= math.exp(min(STEERING, max(-STEERING, STEERING * pull)))


def run(
    state: State, settings: CrosscoderSettings, batch: Callable[[int], torch.Tensor],
    after_step: Callable[[State], None],
) -> None:  # fmt: skip
    """Train to the end; `batch(step)` gives the tokens of a step, `after_step` reports and saves.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    weights = source_weights(state.crosscoder, settings)
    while state.step < settings.training.steps:
        result = step(state, batch(state.step), settings, weights)
        if not math.isfinite(result.loss):
            raise FloatingPointError(f"loss is {result.loss} at step {state.step}")
        after_step(state)


def fit_threshold(crosscoder: Crosscoder, batches, k: int) -> float:
    """The score above which, over held-out batches, k latents per token are active.

    It lies half-way between the last score kept and the first one dropped.
    """
    norms = crosscoder.decoder_norms().sum(1)
    kept, tokens = np.empty(0, np.float32), 0
    for _, x in batches:
        scores = (crosscoder.preactivations(x).relu() * norms).cpu().numpy().ravel()
        tokens += len(x)
        candidates = scores[scores > 0]
        wanted = min(4 * k * len(x), len(candidates))
        kept = np.concatenate([kept, np.partition(candidates, len(candidates) - wanted)[len(candidates) - wanted :]])
    if len(kept) <= k * tokens:
        return 0.0
    ordered = np.partition(kept, [len(kept) - k * tokens - 1, len(kept) - k * tokens])
    return float(ordered[len(kept) - k * tokens - 1 : len(kept) - k * tokens + 1].mean(dtype=np.float64))
