"""Stage train_crosscoder: one crosscoder, one seed; resumes from its checkpoint after an interruption."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.crosscoder.files import to_dataset
from crosscoders.errors import explain_divergence
from crosscoders.kernels.mesh import Alone
from crosscoders.training import processes
from crosscoders.training.job import Files, Trained, train
from crosscoders.training.recipes import CrosscoderRecipe
from crosscoders.training.sections import TrainCrosscoderSection
from crosscoders.training.state import State


def history_dataset(state: State) -> xr.Dataset:
    """Training curves over `step`, and the squared error of every source relative to its squared norm."""
    v = artifacts.variable
    curves = {name: np.array(values, np.float64) for name, values in state.history.items()}
    errors = [curves.pop(f"squared_error_{name}") for name in state.crosscoder.sources]
    dataset = xr.Dataset({name: v("step", values, name.replace("_", " ")) for name, values in curves.items()})
    relative = np.stack(errors, axis=1) / np.array(state.crosscoder.widths)
    dataset["normalised_error"] = v(("step", "source"), relative, "squared error per squared norm")
    return dataset.assign_coords(source=("source", np.array(state.crosscoder.sources, dtype=object)))


def main(arguments) -> None:
    """Train one crosscoder and save it with its training curves."""
    section: TrainCrosscoderSection = arguments.settings
    processes.run(arguments, section.crosscoder.training, section, partial(work, arguments, section))


def work(arguments, section: TrainCrosscoderSection, mesh: Alone) -> None:
    """What every process of the training does; the first one saves."""
    files = Files(arguments.activations, arguments.validation, arguments.normalisation, arguments.output)
    recipe = CrosscoderRecipe(section.crosscoder)
    with explain_divergence(f"crosscoders.{section.crosscoder_name}"):
        trained = train(section, recipe, files, section.device, section.sources, section.null, mesh)
    if not mesh.first:
        return
    save(trained, section, arguments.output, arguments.history)
    files.checkpoint.unlink(missing_ok=True)
    stage.say(f"train_crosscoder {section.label}: done, L0 {trained.state.mean_l0:.1f}")


def save(trained: Trained, section: TrainCrosscoderSection, output: Path, history: Path) -> None:
    """Write the training curves, then the crosscoder."""
    attributes, state = section.provenance() | trained.arithmetic, trained.state
    label = f"{section.setting_name}, {section.crosscoder_name}, seed {section.seed}"
    artifacts.write(history_dataset(state).assign_attrs(**attributes, title=f"training of {label}"), history)
    dataset, v = to_dataset(state.crosscoder, trained.normalisation), artifacts.variable
    dataset["threshold_training"] = v((), np.float64(state.threshold), "moving average of the smallest score kept")
    dataset["l0_training"] = v((), np.float64(state.mean_l0), "latents per token at the end of training")
    dataset["penalty_coefficient"] = v((), np.float64(state.coefficient), "penalty coefficient at the end of training")
    artifacts.write(dataset.assign_attrs(**attributes, title=f"crosscoder {label}"), output)


if __name__ == "__main__":
    flags = ("normalisation", "output", "history")
    lists = ("activations", "validation")
    stage.run(main, stage.parser(TrainCrosscoderSection, __doc__, *flags, lists=lists).parse_args())
