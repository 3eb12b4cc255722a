"""What a finished training writes: the crosscoder, and its training curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from crosscoders import artifacts
from crosscoders.crosscoder.files import to_dataset
from crosscoders.study.settings.crosscoders import CrosscoderSettings
from crosscoders.study.stage_section import TrainingSection
from crosscoders.training.job import Trained
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


def save(trained: Trained, section: TrainingSection, settings: CrosscoderSettings, output: Path, history: Path) -> None:
    """Write the training curves, then the crosscoder.

    Parameters
    ----------
    trained : Trained
    section : TrainingSection
        Of the stage that writes.
    settings : CrosscoderSettings
    output, history : Path
    """
    attributes, state = section.provenance() | trained.arithmetic, trained.state
    label = f"{section.setting_name}, {section.crosscoder_name}, seed {section.seed}"
    artifacts.write(history_dataset(state).assign_attrs(**attributes, title=f"training of {label}"), history)
    dataset, v = to_dataset(state.crosscoder, trained.normalisation), artifacts.variable
    dataset["threshold_training"] = v((), np.float64(state.threshold), "moving average of the smallest score kept")
    dataset["l0_training"] = v((), np.float64(state.mean_l0), "latents per token at the end of training")
    dataset["penalty_coefficient"] = v((), np.float64(state.coefficient), "penalty coefficient at the end of training")
    dataset["training_tokens"] = v((), np.int64(settings.training.tokens), "tokens seen in training")
    artifacts.write(dataset.assign_attrs(**attributes, title=f"crosscoder {label}"), output)
