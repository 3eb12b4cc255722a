"""The training loop: one step, the figures kept of it, steering of sparsity, and a whole training up to thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from crosscoders.activations.prefetch import Prefetch, Rows
from crosscoders.activations.shuffle import Order
from crosscoders.crosscoder.aligned import Aligned
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.errors import UserError, check_divergence
from crosscoders.kernels import backends
from crosscoders.kernels.interface import Gradient
from crosscoders.kernels.mesh import ALONE, Alone
from crosscoders.kernels.sharded import over_mesh
from crosscoders.training import exchange
from crosscoders.training.gradients import Objective, Result
from crosscoders.training.recipes import Recipe
from crosscoders.training.schedule import Schedule
from crosscoders.training.state import HISTORY, PRECISION, State, start

STEERING, STEERING_LIMIT = 0.04, 0.01
"""Relative change of the penalty coefficient in one step, per unit of log(L0 expected / L0 wanted); and the largest."""
HORIZON = 120
"""Steps over which the trend of L0 is extrapolated: L0 follows the coefficient with about this delay."""
THRESHOLD_DECAY = 0.999
RATE_TOKENS = 4096
"""Tokens on which firing rates are equalised at the start."""


class Saved(Protocol):
    """Where a training keeps its checkpoint."""

    path: Path

    def restore(self, state: State) -> bool:
        """Take over the saved state, and return whether there was one."""

    def save(self, state: State) -> None:
        """Keep the state."""


def step(state: State, x: torch.Tensor) -> Result:
    """One step on normalised activations x, (T, D): gradients, clipping, Adam, bookkeeping.

    Of several processes each gets the tokens of its replica.

    Raises
    ------
    FloatingPointError
        The loss or the norm of the gradients is not finite; the state is as before the step.
    """
    settings, schedule = state.recipe.settings, Schedule(state.recipe.settings)
    x = x.to(state.column_weights.device)
    objective = _objective(state, schedule)
    result = state.recipe.compute(state.crosscoder, x, objective, state.selections, state.backend)
    exchange.complete_gradients(result, state)
    norms = [_norm(gradient) for gradient in result.gradients]
    length, dead = exchange.complete_figures(result, norms, objective, state)
    rate = schedule.learning_rate(state.step)
    # Before the update, so that no checkpoint holds what diverged.
    check_divergence(state.step, loss=result.loss, gradient_norm=length)
    clip_factor = max(1.0, length / settings.training.gradient_clip)
    state.optimizer.step(state.crosscoder.parameters, result.gradients, rate, clip_factor)
    _keep_books(state, result, schedule, len(x) * state.backend.mesh.replicas)
    figures = result.loss, result.l0, dead, rate, objective.coefficient, length, result.threshold
    for name, value in zip(HISTORY, figures, strict=True):
        state.history.setdefault(name, []).append(value)
    for name, value in zip(state.crosscoder.sources, result.squared_error.tolist(), strict=True):
        state.history.setdefault(f"squared_error_{name}", []).append(value)
    state.step += 1
    return result


def _objective(state: State, schedule: Schedule) -> Objective:
    """The loss that is minimised at the next step."""
    settings = state.recipe.settings
    return Objective(
        weights=state.column_weights,
        penalty=settings.penalty.kind,
        coefficient=state.coefficient * schedule.ramp(state.step),
        scale=settings.penalty.scale,
        k=schedule.k(state.step),
        bandwidth=settings.activation.bandwidth,
        auxiliary_coefficient=settings.training.auxiliary_coefficient,
        dead=state.silent_tokens >= settings.training.dead_tokens,
        alignment=state.recipe.alignment,
        precision=PRECISION[settings.training.precision],
    )


def _norm(gradient: Gradient) -> float:
    if isinstance(gradient, torch.Tensor):
        return float(torch.linalg.vector_norm(gradient))
    return float(gradient.squared_norm()) ** 0.5


def _keep_books(state: State, result: Result, schedule: Schedule, tokens: int) -> None:
    """Update counters of dead latents and the average threshold, and steer the penalty towards the wanted L0."""
    state.silent_tokens += tokens
    state.silent_tokens[result.counts > 0] = 0
    if result.threshold > 0:
        previous = state.threshold or result.threshold
        state.threshold = THRESHOLD_DECAY * previous + (1 - THRESHOLD_DECAY) * result.threshold
    l0 = max(result.l0, 1e-6)
    previous = state.mean_l0 or l0
    state.mean_l0 = 0.9 * previous + 0.1 * l0
    state.l0_trend = 0.95 * state.l0_trend + 0.05 * math.log(state.mean_l0 / previous)
    if state.recipe.settings.penalty.target_l0 and schedule.ramp(state.step) >= 1:
        state.coefficient *= math.exp(_steering(state))


def _steering(state: State) -> float:
    """Change of the coefficient's logarithm towards the wanted L0.

    It does not slow down while the learning rate decays: L0 falls then, and follows the coefficient less and less.
    """
    expected = math.log(state.mean_l0 / state.recipe.settings.penalty.target_l0) + HORIZON * state.l0_trend
    return min(STEERING_LIMIT, max(-STEERING_LIMIT, STEERING * expected))


def run(
    state: State, batch: Callable[[int], torch.Tensor], after_step: Callable[[State], None], last: int | None = None
) -> None:
    """Train to the end, or to the step `last`.

    Parameters
    ----------
    state : State
    batch : step → (T, D)
        The activations of a step.
    after_step : function of the state
        Reports and saves.
    last : int, optional

    Raises
    ------
    FloatingPointError
        The loss or the norm of the gradients is not finite.
    """
    last = state.recipe.settings.training.steps if last is None else last
    while state.step < last:
        step(state, batch(state.step))
        after_step(state)


def _after_step(state: State, checkpoint: Saved | None, report: Callable[[State], None]) -> None:
    """Report, and save where it is time to."""
    training = state.recipe.settings.training
    report(state)
    if checkpoint and state.step % training.checkpoint_steps == 0 and state.step < training.steps:
        checkpoint.save(state)


def fit(
    recipe: Recipe,
    data: Rows,
    held_out: Rows,
    seed: int,
    device: str = "cpu",
    checkpoint: Saved | None = None,
    report: Callable[[State], None] = lambda state: None,
    mesh: Alone = ALONE,
) -> State:
    """Train one crosscoder on `data` and fit its thresholds, where it has any, on `held_out`.

    Parameters
    ----------
    recipe : Recipe
    data, held_out : Activations or alike
        Have `sources`, `widths`, a length, `rows` and `batches`; for a GPU `data` has `stored` and `normalise`.
    seed : int
        Of the shuffle of tokens, and of the weights at the start unless `training.initial_seed` gives another.
    device : {"cpu", "cuda"}
    checkpoint, report : optional
        Where the state is saved and restored from, and what is called after every step.
    mesh : Alone or Mesh
        The processes that train it together; all of them call this function.

    Returns
    -------
    State
        `crosscoder` is the finished one, on the CPU; of several processes the first has it.

    Raises
    ------
    FloatingPointError
        The loss or the norm of the gradients is not finite.
    """
    order, mesh = Order(len(data), seed), mesh.owning(recipe.groups(data.sources))
    coder, state = _begin(recipe, data, seed, device, order, mesh)
    if checkpoint is not None:
        checkpoint.restore(state)
    whole = Part(0, recipe.settings.training.steps, seed)
    _take_steps(state, data, order, whole, device, lambda state: _after_step(state, checkpoint, report))
    return _finish(coder, state, held_out, device)


def _begin(
    recipe: Recipe, data: Rows, seed: int, device: str, order: Order, mesh: Alone
) -> tuple[Crosscoder | Aligned, State]:
    """The crosscoder before training, and the state before the first step; of several processes each has its latents."""
    given = recipe.settings.training.initial_seed
    coder = recipe.create(data.sources, data.widths, seed if given is None else given, mesh.own).to(device)
    trainee = recipe.begin(coder, lambda: data.rows(order.take(0, RATE_TOKENS)).to(device))
    backends.say_what_lacks(device)
    return coder, start(trainee, recipe, over_mesh(backends.choose(device), mesh))


def _finish(coder: Crosscoder | Aligned, state: State, held_out: Rows, device: str) -> State:
    """Put what was trained into the crosscoder, and fit its thresholds."""
    tokens, mesh = state.recipe.settings.training.batch_tokens, state.backend.mesh
    state.recipe.finish(coder, state.crosscoder, (x.to(device) for _, x in held_out.batches(tokens)), mesh)
    state.crosscoder = coder.to("cpu") if mesh.alone else coder.over_latents(mesh.gather)
    return state


@dataclass(frozen=True)
class Part:
    """Steps of a training that are taken on one shard of a window, [first, last), and the seed of their shuffle."""

    first: int
    last: int
    seed: int

    @classmethod
    def of(cls, segment: int, segments: int, steps: int, seed: int) -> Part:
        """The steps of one segment, of about equal number in all segments."""
        first, last = (round(i * steps / segments) for i in (segment, segment + 1))
        return cls(first, last, int(np.random.SeedSequence([seed, segment]).generate_state(1)[0]))


def fit_part(
    recipe: Recipe,
    data: Rows,
    part: Part,
    seed: int,
    device: str = "cpu",
    previous: Saved | None = None,
    report: Callable[[State], None] = lambda state: None,
    mesh: Alone = ALONE,
) -> State:
    """Take the steps of one part on `data`.

    Parameters
    ----------
    recipe : Recipe
    data : Activations or alike
        The shard of the part.
    part : Part
    seed : int
        Of the weights at the start.
    device : {"cpu", "cuda"}
    previous : Saved, optional
        The state after the part before; None for the first part.
    report : optional
        Called after every step.
    mesh : Alone or Mesh
        The processes that train it together.

    Returns
    -------
    State
        `crosscoder` is what is trained, on the device.

    Raises
    ------
    UserError
        The saved state belongs to another training, or to another step.
    FloatingPointError
        The loss or the norm of the gradients is not finite.
    """
    order, mesh = Order(len(data), part.seed), mesh.owning(recipe.groups(data.sources))
    _, state = _begin(recipe, data, seed, device, order, mesh)
    if previous is not None:
        _take_over(state, previous, part.first)
    _take_steps(state, data, order, part, device, report)
    return state


def _take_steps(
    state: State, data: Rows, order: Order, part: Part, device: str, after_step: Callable[[State], None]
) -> None:
    """Take the steps of a part that are not taken yet; every replica reads its own tokens of a batch."""
    mesh, batch_tokens = state.backend.mesh, state.recipe.settings.training.batch_tokens
    tokens = batch_tokens // mesh.replicas
    before = mesh.tokens_before(tokens)
    index = lambda step: order.take((step - part.first) * batch_tokens + before, tokens)  # noqa: E731
    with Prefetch(data, index, part.last, tokens, device) as batch:
        run(state, batch, after_step, part.last)


def finish_parts(recipe: Recipe, held_out: Rows, seed: int, device: str, last: Saved) -> State:
    """The finished crosscoder from the state after the last part; thresholds are fitted on `held_out`.

    Parameters
    ----------
    recipe : Recipe
    held_out : Activations or alike
    seed : int
    device : {"cpu", "cuda"}
    last : Saved

    Returns
    -------
    State
        `crosscoder` is the finished one, on the CPU.

    Raises
    ------
    UserError
        The saved state belongs to another training, or is not the last one.
    """
    mesh = ALONE.owning(recipe.groups(held_out.sources))
    coder, state = _begin(recipe, held_out, seed, device, Order(len(held_out), seed), mesh)
    _take_over(state, last, recipe.settings.training.steps)
    return _finish(coder, state, held_out, device)


def _take_over(state: State, saved: Saved, step: int) -> None:
    """Take over a saved state of a given step."""
    if not saved.restore(state) or state.step != step:
        raise UserError(f"{saved.path}: no state of this training at step {step}; delete it, so that it is made again")
