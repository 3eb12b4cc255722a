"""The training loop: schedules, optimizer, dead latents, steering of sparsity, and a state that can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from crosscoders import native, products, sparse
from crosscoders.ahead import Ahead
from crosscoders.crosscoder import Crosscoder, create, equalise_rates
from crosscoders.gradients import Objective, Result, compute
from crosscoders.optimizer import Adam
from crosscoders.order import Order
from crosscoders.separate import Separate, separate
from crosscoders.settings import CrosscoderSettings

if TYPE_CHECKING:
    from crosscoders.kernels import RowGradient

HISTORY = ("loss", "l0", "dead_fraction", "learning_rate", "penalty_coefficient", "gradient_norm", "threshold")
STEERING, STEERING_LIMIT = 0.02, 0.01
"""Relative change of the penalty coefficient in one step, per unit of log(L0 expected / L0 wanted); and the largest."""
HORIZON = 120
"""Steps ahead for which L0 is expected: it follows the coefficient with about this delay."""
PRECISION = {"float32": None, "bfloat16": torch.bfloat16}
"""By its name in the settings; None is that of the weights."""
THRESHOLD_DECAY = 0.999
RATE_TOKENS = 4096
"""Tokens on which firing rates are equalised at the start."""
STEERED = ("coefficient", "threshold", "mean_l0", "l0_trend", "step")
"""Numbers of the state that a checkpoint holds."""


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

    crosscoder: Crosscoder | Separate
    optimizer: Adam
    silent_tokens: torch.Tensor
    """Tokens since each latent last fired, (m,)."""
    coefficient: float
    selection: sparse.BatchTopK = field(default_factory=sparse.BatchTopK)
    threshold: float = 0.0
    """Moving average of the smallest score kept."""
    mean_l0: float = 0.0
    """Moving average of L0 …"""
    l0_trend: float = 0.0
    """… and of the change of its logarithm in one step."""
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """What a checkpoint holds."""
        return {
            "parameters": [parameter.clone() for parameter in self.crosscoder.parameters],
            "optimizer": self.optimizer.state_dict(),
            "silent_tokens": self.silent_tokens,
            "selection": asdict(self.selection),
            "history": self.history,
        } | {name: getattr(self, name) for name in STEERED}

    def restore(self, saved: dict) -> None:
        """Take over a checkpoint."""
        for parameter, value in zip(self.crosscoder.parameters, saved["parameters"], strict=True):
            parameter.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.silent_tokens.copy_(saved["silent_tokens"])
        self.history = saved["history"]
        self.selection = sparse.BatchTopK(**saved["selection"])
        for name in STEERED:
            setattr(self, name, saved[name])


def start(crosscoder: Crosscoder | Separate, settings: CrosscoderSettings) -> State:
    """The state before the first step."""
    options = settings.training
    optimizer = Adam(crosscoder.parameters, (0.9, options.adam_beta2), PRECISION[options.adam_moments])
    silent = torch.zeros(crosscoder.latents, dtype=torch.int64, device=crosscoder.parameters[0].device)
    return State(crosscoder, optimizer, silent, settings.penalty.coefficient)


def source_weights(crosscoder: Crosscoder | Separate, settings: CrosscoderSettings) -> torch.Tensor:
    """w_s of every column, (D,)."""
    found = []
    for part in crosscoder.parts:
        for name, columns in zip(part.sources, part.columns, strict=True):
            found.append(torch.full_like(part.decoder_bias[columns], settings.source_weights.get(name, 1.0)))
    return torch.cat(found)


def step(state: State, x: torch.Tensor, settings: CrosscoderSettings, weights: torch.Tensor) -> Result:
    """One step on normalised activations x, (T, D): gradients, clipping, Adam, bookkeeping."""
    schedule, training = Schedule(settings), settings.training
    x = x.to(weights.device)
    objective = Objective(
        weights=weights,
        penalty=settings.penalty.kind,
        coefficient=state.coefficient * schedule.ramp(state.step),
        scale=settings.penalty.scale,
        k=schedule.k(state.step),
        bandwidth=settings.activation.bandwidth,
        auxiliary_coefficient=training.auxiliary_coefficient,
        dead=state.silent_tokens >= training.dead_tokens,
        precision=PRECISION[training.precision],
    )
    result = compute(state.crosscoder, x, objective, state.selection)
    length = norm(result.gradients)
    rate = schedule.learning_rate(state.step)
    shrink = max(1.0, length / training.gradient_clip)
    state.optimizer.step(state.crosscoder.parameters, result.gradients, rate, shrink)
    _keep_books(state, result, settings, schedule, len(x))
    l0 = float(result.counts.sum()) / len(x)
    figures = (
        result.loss,
        l0,
        float(objective.dead.float().mean()),
        rate,
        objective.coefficient,
        length,
        result.threshold,
    )
    for name, value in zip(HISTORY, figures, strict=True):
        state.history.setdefault(name, []).append(value)
    for name, value in zip(state.crosscoder.sources, result.squared_error.tolist(), strict=True):
        state.history.setdefault(f"squared_error_{name}", []).append(value)
    state.step += 1
    return result


def arithmetic(device: str) -> dict[str, str]:
    """Whose passes and products train: results agree in all but the last digits."""
    if device == "cuda":
        return {"passes": "Triton", "products": "cuBLAS"}
    return {"passes": native.name(), "products": products.name()}


def norm(gradients: list[torch.Tensor | native.Gradient | RowGradient]) -> float:
    """Norm of all gradients together."""
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(gradient))
            if isinstance(gradient, torch.Tensor)
            else float(gradient.squared_norm()) ** 0.5
            for gradient in gradients
        )
    )


def _keep_books(state: State, result: Result, settings: CrosscoderSettings, schedule: Schedule, tokens: int) -> None:
    """Dead counters, threshold average, and steering of the penalty towards the wanted L0."""
    state.silent_tokens += tokens
    state.silent_tokens[result.counts > 0] = 0
    if result.threshold > 0:
        previous = state.threshold or result.threshold
        state.threshold = THRESHOLD_DECAY * previous + (1 - THRESHOLD_DECAY) * result.threshold
    l0 = max(float(result.counts.sum()) / tokens, 1e-6)
    previous = state.mean_l0 or l0
    state.mean_l0 = 0.9 * previous + 0.1 * l0
    state.l0_trend = 0.95 * state.l0_trend + 0.05 * math.log(state.mean_l0 / previous)
    if settings.penalty.target_l0 and schedule.ramp(state.step) >= 1:
        state.coefficient *= math.exp(_steering(state, settings, schedule))


def _steering(state: State, settings: CrosscoderSettings, schedule: Schedule) -> float:
    """Change of the coefficient's logarithm: towards the wanted L0, as fast as the learning rate lets L0 follow."""
    expected = math.log(state.mean_l0 / settings.penalty.target_l0) + HORIZON * state.l0_trend
    speed = schedule.learning_rate(state.step) / settings.training.learning_rate
    return speed * min(STEERING_LIMIT, max(-STEERING_LIMIT, STEERING * expected))


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


def fit(
    settings: CrosscoderSettings, data, held_out, seed: int, device: str = "cpu",
    checkpoint=None, report: Callable[[State], None] = lambda state: None,
) -> State:  # fmt: skip
    """Train one crosscoder on `data` and fit its threshold, where it has one, on `held_out`.

    Parameters
    ----------
    data, held_out : feed.Activations or alike
        Have `sources`, `widths`, a length, `rows(index)` and `batches(count)`; for a GPU `data` has `stored` and `normalise`.
    checkpoint : optional
        Has `restore(state)`, true where a state was taken over, and `save(state)`.
    report : called after every step

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    order, batch_tokens = Order(len(data), seed), settings.training.batch_tokens
    coder = create(settings, data.sources, data.widths, seed).to(device)
    if settings.training.initial_l0:
        equalise_rates(coder, data.rows(order.take(0, RATE_TOKENS)).to(device), settings.training.initial_l0)
    apart = separate(coder)
    state = start(apart or coder, settings)
    if checkpoint is not None:
        checkpoint.restore(state)

    def after_step(state: State) -> None:
        report(state)
        if checkpoint and state.step % settings.training.checkpoint_steps == 0 and state.step < settings.training.steps:
            checkpoint.save(state)

    def index(step: int) -> np.ndarray:
        return order.take(step * batch_tokens, batch_tokens)

    with Ahead(data, index, settings.training.steps, batch_tokens, device) as batch:
        run(state, settings, batch, after_step)
    if apart:
        apart.join(coder)
    if coder.selection.ranked_over == "batch":
        batches = ((chosen, x.to(device)) for chosen, x in held_out.batches(batch_tokens))
        coder.threshold = fit_threshold(coder, batches, coder.k)
    state.crosscoder = coder.to("cpu")
    return state
