"""Stage train_crosscoder: one crosscoder, one seed; resumes from its checkpoint after an interruption."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, crosscoder, pick, stage, training
from crosscoders.errors import UserError
from crosscoders.feed import Activations
from crosscoders.settings import CrosscoderSettings

FORMAT = 2
"""Of what a checkpoint holds; another is not taken over."""


class Checkpoint:
    """A sealed file that belongs to one training: other settings, inputs or package versions do not match it."""

    def __init__(self, path: Path, identity: dict):
        self.path = path
        content = json.dumps(identity | {"format": FORMAT}, sort_keys=True)
        self.identity = hashlib.sha256(content.encode()).hexdigest()

    def save(self, state: training.State) -> None:
        """Write the state atomically, with its checksum."""
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, **state.to_dict()}, buffer)
        artifacts.write_sealed(buffer.getvalue(), self.path)

    def restore(self, state: training.State) -> bool:
        """Take over the saved state; a file that is absent, damaged or foreign is left aside."""
        if not self.path.exists():
            return False
        try:
            saved = torch.load(io.BytesIO(artifacts.read_sealed(self.path)), weights_only=True, map_location="cpu")
        except UserError as error:
            stage.say(f"checkpoint not used: {error}")
            return False
        if saved.pop("identity") != self.identity:
            stage.say(f"{self.path}: checkpoint not used: it belongs to other settings or inputs")
            return False
        state.restore(saved)
        stage.say(f"resuming at step {state.step}")
        return True


def history_dataset(state: training.State) -> xr.Dataset:
    """Training curves over `step`."""
    v = artifacts.variable
    curves = {name: np.array(values, np.float64) for name, values in state.history.items()}
    errors = [curves.pop(f"squared_error_{name}") for name in state.crosscoder.sources]
    dataset = xr.Dataset({name: v("step", values, name.replace("_", " ")) for name, values in curves.items()})
    relative = np.stack(errors, axis=1) / np.array(state.crosscoder.widths)
    dataset["normalised_error"] = v(("step", "source"), relative, "squared error per squared norm")
    return dataset.assign_coords(source=("source", np.array(state.crosscoder.sources, dtype=object)))


def main(arguments) -> None:
    """Train one crosscoder and save it with its training curves."""
    section = arguments.settings
    settings = CrosscoderSettings.model_validate(section["crosscoder"])
    torch.set_grad_enabled(False)
    device = pick.device(section["device"])
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")  # some CUDA kernels have no such version
    torch.utils.deterministic.fill_uninitialized_memory = False  # every gradient's, at every step
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    normalisation = artifacts.read(arguments.normalisation)
    data = Activations(arguments.activations, normalisation, section["sources"], section.get("null"))
    held_out = Activations(arguments.validation, normalisation, section["sources"], section.get("null"))
    batch_tokens = settings.training.batch_tokens
    if len(data) < batch_tokens:
        raise UserError(f"{len(data)} kept training tokens are fewer than batch_tokens = {batch_tokens}")
    arithmetic = training.arithmetic(device)
    digests = [artifacts.digest(path) for path in (arguments.normalisation, *arguments.activations)]
    identity = {**section, "inputs": digests, "versions": artifacts.versions(), **arithmetic}
    checkpoint = Checkpoint(arguments.output.with_suffix(".checkpoint"), identity)
    name = f"train {section['setting_name']}/{section['crosscoder_name']}/seed-{section['seed']}"
    stage.say(f"{name}: passes by {arithmetic['passes']}, products by {arithmetic['products']}")
    progress = stage.Progress(name, settings.training.steps * batch_tokens)

    def report(state: training.State) -> None:
        last = {key: state.history[key][-1] for key in ("loss", "l0", "dead_fraction")}
        progress.reach(state.step * batch_tokens, step=state.step, **last)

    try:
        state = training.fit(settings, data, held_out, section["seed"], device, checkpoint, report)
    except FloatingPointError as error:
        raise UserError(f"crosscoders.{section['crosscoder_name']}: {error}; expected a lower learning_rate") from None
    save(state, normalisation, section, arithmetic, arguments.output, arguments.history)
    checkpoint.path.unlink(missing_ok=True)
    stage.say(f"{name}: done, L0 {state.mean_l0:.1f}")


def save(
    state: training.State,
    normalisation: xr.Dataset,
    section: dict,
    arithmetic: dict[str, str],
    output: Path,
    history: Path,
) -> None:
    """Write the training curves, then the crosscoder."""
    attributes = artifacts.provenance(section["study"], "train_crosscoder", section, section["seed"])
    attributes |= arithmetic
    label = f"{section['setting_name']}, {section['crosscoder_name']}, seed {section['seed']}"
    curves = history_dataset(state).assign_attrs(**attributes, title=f"training of {label}")
    artifacts.write(curves, history)
    dataset = crosscoder.to_dataset(state.crosscoder, normalisation)
    v = artifacts.variable
    dataset["threshold_training"] = v((), np.float64(state.threshold), "moving average of the smallest score kept")
    dataset["l0_training"] = v((), np.float64(state.mean_l0), "latents per token at the end of training")
    dataset["penalty_coefficient"] = v((), np.float64(state.coefficient), "penalty coefficient at the end of training")
    artifacts.write(dataset.assign_attrs(**attributes, title=f"crosscoder {label}"), output)


if __name__ == "__main__":
    flags = ("normalisation", "output", "history")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations", "validation")).parse_args())
