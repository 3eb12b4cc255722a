"""What the processes of a mesh exchange at a step besides the reconstruction and the selection of latents.

Gradients of weights are summed over data replicas; figures that the loop steers by are summed over all processes.
"""

from __future__ import annotations

import math

import torch

from crosscoders.kernels.mesh import Alone
from crosscoders.kernels.ranking import DIGIT
from crosscoders.training.gradients import Objective, Result, stored
from crosscoders.training.state import State


def complete_gradients(result: Result, state: State) -> None:
    """Sum gradients over the tokens of all replicas, in place; a latent fired where it did on any of them."""
    mesh = state.backend.mesh
    if mesh.replicas == 1:
        return
    result.gradients = [mesh.add_tokens(stored(gradient), "gradients") for gradient in result.gradients]
    result.counts = mesh.add_tokens((result.counts > 0).to(torch.uint8), "fired")


def complete_figures(result: Result, norms: list[float], objective: Objective, state: State) -> tuple[float, float]:
    """Sum loss, L0 and squared errors over all processes, in place.

    Parameters
    ----------
    result : Result
        Its gradients are summed over replicas.
    norms : list of float
        Of the gradients of this process.
    objective : Objective
    state : State

    Returns
    -------
    norm : float
        Of the gradients of all latents together.
    dead : float
        Share of all latents that count as dead.
    """
    mesh = state.backend.mesh
    if mesh.alone:
        return math.hypot(*norms), float(objective.dead.float().mean())
    # What all replicas know is counted by the first one; what all processes know, by the first process.
    counted = [
        float(mesh.first if axis is None else mesh.replica == 0) * norm**2
        for norm, axis in zip(norms, state.crosscoder.latent_axes, strict=True)
    ]
    dead = float(objective.dead.sum()) * (mesh.replica == 0)
    own = [result.loss, result.l0, dead, *counted, *result.squared_error.tolist()]
    figures = torch.tensor(own, dtype=torch.float64, device=objective.dead.device)
    result.loss, result.l0, dead, *rest = mesh.add_all(figures, "figures").tolist()
    result.squared_error = torch.tensor(rest[len(counted) :], dtype=torch.float64)
    share = torch.tensor(dead, dtype=torch.float32) / mesh.latents
    return math.sqrt(math.fsum(rest[: len(counted)])), float(share)


def bytes_per_step(state: State) -> dict[str, int]:
    """Bytes that a process hands to collectives in an ordinary step, by purpose (docs/sharding.md has the formula).

    A step that revives dead latents, or whose carried threshold was too high, or that meets equal scores, sends more.

    Parameters
    ----------
    state : State

    Returns
    -------
    dict of int
    """
    mesh, trainee, training = state.backend.mesh, state.crosscoder, state.recipe.settings.training
    many_ranks, many_replicas = mesh.ranks > 1, mesh.replicas > 1
    number, codes = trainee.parameters[0].element_size(), len(state.selections)
    rebuilt = state.recipe.reconstructions(trainee)
    tokens, k = training.batch_tokens // mesh.replicas, state.recipe.settings.activation.k
    selection = {"batch": number * (8 << DIGIT) + 8, "token": many_ranks * number * tokens * ((k or 0) + 1)}
    sizes = {
        "reconstruction": many_ranks * number * rebuilt * tokens * len(state.column_weights),
        "selection": codes * selection.get(trainee.parts[0].selection.ranked_over, 0),
        "gradients": many_replicas * sum(parameter.nbytes for parameter in trainee.parameters),
        "fired": many_replicas * len(state.silent_tokens),
        "figures": 8 * (3 + len(trainee.parameters) + len(trainee.sources)),
    }
    if many_ranks and training.auxiliary_coefficient > 0 and state.recipe.revives:
        sizes["figures"] += 8 * len(trainee.parts)
    return {purpose: size for purpose, size in sizes.items() if size}


def sent_line(mesh: Alone, steps: int, expected: int) -> str:
    """What a process has handed to collectives in so many steps, on average, beside what the formula says."""
    counted = round(sum(mesh.sent.values()) / steps)
    return (
        f"{mesh.ranks} ranks × {mesh.replicas} replicas, {counted:,} bytes per process and step handed to collectives"
        f" ({expected:,} by the formula of docs/sharding.md)"
    )
