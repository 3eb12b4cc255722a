"""Trackers show the figures of a training while it runs, in TensorBoard or Weights & Biases; they change no result.

Which trackers follow a training stands in the environment, where the workflow puts it, and not in the settings of a job. No
training is run again because of them, and an error of theirs ends none.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

from crosscoders import stage
from crosscoders.study.stage_section import AlignedSection, TrainingSection
from crosscoders.training.state import State

VARIABLE = "CROSSCODERS_TRACKERS"
"""The variable that says which trackers follow which section of a study, as JSON."""
POINTS = 1000
"""About how many steps of a training are shown."""


class Tracker(Protocol):
    """What shows figures."""

    def log(self, figures: dict[str, float], step: int) -> None:
        """Show the figures of one step."""

    def close(self) -> None:
        """Write what is not written yet."""


class _TensorBoard:
    """Event files, of which those of steps that are taken again are passed over."""

    def __init__(self, folder: Path, name: str, first: int):
        written = importlib.import_module("torch.utils.tensorboard")
        self.writer = written.SummaryWriter(str(folder), purge_step=first)

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases. It stays in its folder, unless `WANDB_MODE` says that it is sent."""

    def __init__(self, folder: Path, name: str, first: int):
        wandb = importlib.import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        options = {"silent": True, "console": "off", "disable_git": True, "save_code": False, "x_disable_stats": True}
        self.run = wandb.init(
            dir=str(folder),
            project=name.split("/")[0],
            id=name.replace("/", "-"),
            name=name,
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            settings=wandb.Settings(**options),
        )

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.run.finish(quiet=True)


KINDS = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}


class Trackers:
    """The trackers of one training; a context that closes them.

    Parameters
    ----------
    folders : {name: Path}
        A folder for each of `KINDS` that is wanted.
    name : str
        What the training is called: its study, what it is in it, and a digest of its settings.
    steps : int
        Of the whole training.
    """

    def __init__(self, folders: dict[str, Path], name: str = "", steps: int = 0):
        self.folders, self.name, self.steps = folders, name, steps
        self.every = max(1, steps // POINTS)
        self.opened: dict[str, Tracker] = {}

    def follow(self, state: State) -> None:
        """Show the figures of the step that a training has taken last."""
        if not self.folders or (state.step % self.every and state.step < self.steps):
            return
        shown = figures(state)
        for kind, folder in list(self.folders.items()):
            try:
                if kind not in self.opened:
                    self.opened[kind] = KINDS[kind](folder, self.name, state.step)
                self.opened[kind].log(shown, state.step)
            except Exception as error:  # of a package that we do not know; a training goes on without it
                del self.folders[kind]
                stage.say(f"{kind}: {self.name} is no longer followed ({_reason(error)})")

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name, tracker in self.opened.items():
            try:
                tracker.close()
            except Exception as problem:
                stage.say(f"{name}: what it has of {self.name} may be incomplete ({_reason(problem)})")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def figures(state: State) -> dict[str, float]:
    """Loss, fraction of variance explained (FVE), L0, share of dead latents and learning rate of the last step.

    Activations are normalised, so a source of width d has a mean squared norm of about d, and 1 − squared error / d is about
    the FVE of the step's tokens.
    """
    last = {name: values[-1] for name, values in state.history.items()}
    shown = {"loss": last["loss"], "l0": last["l0"], "dead_share": last["dead_fraction"]}
    shown["learning_rate"] = last["learning_rate"]
    sources, widths = state.crosscoder.sources, state.crosscoder.widths
    for source, width in zip(sources, widths, strict=True):
        shown[f"fve/{source}"] = 1 - last[f"squared_error_{source}"] / width
    shown["fve"] = sum(shown[f"fve/{source}"] for source in sources) / len(sources)
    return {name: float(value) for name, value in shown.items()}


def of_training(section: TrainingSection | AlignedSection, results: Path, steps: int) -> Trackers:
    """The trackers that follow a training, by the environment.

    Parameters
    ----------
    section : TrainingSection or AlignedSection
    results : Path
        `results/STUDY`; the trackers write in `trackers/` there.
    steps : int
        Of the whole training.

    Returns
    -------
    Trackers
        Without those whose package is not installed, of which a line tells.
    """
    aligned = isinstance(section, AlignedSection)
    place = f"aligned.{section.aligned_name}" if aligned else f"crosscoders.{section.crosscoder_name}"
    wanted, folders = json.loads(os.environ.get(VARIABLE, "{}")).get(place, []), {}
    for kind in wanted:
        if importlib.util.find_spec(kind) is None:
            stage.say(
                f"{kind}: is not installed, so it does not follow {section.label}; `pip install {kind}` installs it"
            )
        else:
            folders[kind] = results / "trackers" / kind / place.split(".")[0] / section.label
    content = section.model_dump(mode="json", exclude={"segment"})
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return Trackers(folders, f"{section.study}/{section.label}/{digest}", steps)
