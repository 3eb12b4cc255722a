"""What both training stages share: a training from files to a finished state, with progress and a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr

from crosscoders import artifacts, provenance, stage, storage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.sections import NullChange
from crosscoders.device import chosen_device
from crosscoders.errors import UserError
from crosscoders.kernels import backends
from crosscoders.kernels.mesh import ALONE, Alone
from crosscoders.study.stage_section import AlignedSection, TrainingSection
from crosscoders.training import exchange, loop, trackers
from crosscoders.training.checkpoint import Checkpoint
from crosscoders.training.recipes import Recipe
from crosscoders.training.state import State


@dataclass
class Files:
    """The files that a training reads, and the one that its stage writes."""

    activations: list[Path]
    validation: list[Path]
    normalisation: Path
    output: Path

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted training keeps its state."""
        return self.output.with_suffix(".checkpoint")


@dataclass
class Trained:
    """A finished training: its state, the normalisation of its sources, and the kernels and libraries that computed."""

    state: State
    normalisation: xr.Dataset
    arithmetic: dict[str, str]


def train(
    section: TrainingSection | AlignedSection,
    recipe: Recipe,
    files: Files,
    device: str,
    sources: list[str] | None = None,
    null: NullChange | None = None,
    mesh: Alone = ALONE,
) -> Trained:
    """Train as a section says; an interrupted training goes on from its checkpoint.

    Parameters
    ----------
    section : TrainingSection or AlignedSection
    recipe : Recipe
    files : Files
        A checkpoint belongs to the section and to the content of these files.
    device : str
        `auto`, `cpu` or `cuda`.
    sources : list of str, optional
        All stored ones where absent.
    null : NullChange, optional
        How activations are changed for a null.
    mesh : Alone or Mesh
        The processes that train it together. The first of them reports, and has the finished crosscoder.

    Raises
    ------
    UserError
        There are fewer tokens than a batch has.
    FloatingPointError
        The loss or the norm of the gradients is not finite.
    """
    device, batch_tokens = chosen_device(device), recipe.settings.training.batch_tokens
    use_exact_arithmetic(device)
    normalisation = artifacts.read(files.normalisation)
    splits = [Activations(paths, normalisation, sources, null) for paths in (files.activations, files.validation)]
    if len(splits[0]) < batch_tokens:
        raise UserError(f"{len(splits[0])} kept training tokens are fewer than batch_tokens = {batch_tokens}")
    backend = backends.choose(device)
    arithmetic = {"kernels": backend.kernels, "products": backend.products}
    checkpoint = Checkpoint(files.checkpoint, _identity(section, files) | arithmetic)
    name = f"{section.stage} {section.label}"
    say = stage.say if mesh.first else lambda line: None
    say(f"{name}: kernels by {arithmetic['kernels']}, products by {arithmetic['products']}")
    steps = recipe.settings.training.steps
    followed = trackers.of_training(section, files.output.parents[3], steps) if mesh.first else trackers.Trackers({})
    report = _Report(stage.Progress(name, steps * batch_tokens), batch_tokens, followed)
    with followed:
        state = loop.fit(
            recipe, *splits, section.seed, device, checkpoint, report if mesh.first else lambda state: None, mesh
        )
    if not mesh.alone and report.steps:
        say(f"{name}: {exchange.sent_line(mesh, report.steps, report.sent_per_step)}")
    return Trained(state, normalisation, arithmetic)


@dataclass
class _Report:
    """Shows how far a training is, and the figures of its last step; counts the steps of this run."""

    progress: stage.Progress
    batch_tokens: int
    trackers: trackers.Trackers
    steps: int = 0
    sent_per_step: int = 0

    def __call__(self, state: State) -> None:
        self.steps += 1
        if self.steps == 1 and not state.backend.mesh.alone:
            self.sent_per_step = sum(exchange.bytes_per_step(state).values())
        last = {key: state.history[key][-1] for key in ("loss", "l0", "dead_fraction")}
        self.progress.reach(state.step * self.batch_tokens, step=state.step, **last)
        self.trackers.follow(state)


def _identity(section: TrainingSection | AlignedSection, files: Files) -> dict[str, object]:
    """All that decides the bytes of a training, but for the order of sums: its settings, inputs and packages.

    Any number of processes goes on from a checkpoint.
    """
    digests = [storage.digest(path) for path in (files.normalisation, *files.activations)]
    processes = {"training": {"ranks", "replicas"}}
    content = section.model_dump(mode="json", exclude={"crosscoder": processes, "aligned": processes})
    return {**content, "inputs": digests, "versions": provenance.versions()}


def use_exact_arithmetic(device: str) -> None:
    """Set torch up so that a training gives the same bytes again."""
    torch.set_grad_enabled(False)
    # Some CUDA kernels have no deterministic version: torch warns of them and goes on.
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would fill every gradient at every step
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
