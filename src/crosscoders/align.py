"""Stage train_aligned: one aligned crosscoder, one seed."""

from __future__ import annotations

import torch

from crosscoders import aligned, artifacts, stage, training
from crosscoders.errors import UserError
from crosscoders.feed import Activations
from crosscoders.settings import AlignedSettings


def main(arguments) -> None:
    """Train and save."""
    section = arguments.settings
    settings = AlignedSettings.model_validate(section["aligned"])
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # as in training
    normalisation = artifacts.read(arguments.normalisation)
    train, held_out = (Activations(paths, normalisation) for paths in (arguments.activations, arguments.validation))
    name = f"align {section['setting_name']}/{section['aligned_name']}/seed-{section['seed']}"
    progress = stage.Progress(name, settings.training.steps, "steps")
    try:
        coder = aligned.fit(settings, train, held_out, section["seed"], lambda step, loss, l0: progress.reach(step, loss=loss, l0=l0))  # fmt: skip
    except FloatingPointError as error:
        raise UserError(f"aligned.{section['aligned_name']}: {error}; expected a lower learning_rate") from None
    attributes = artifacts.provenance(section["study"], "train_aligned", section, section["seed"])
    attributes |= training.arithmetic("cpu")
    dataset = aligned.to_dataset(coder, normalisation).assign_attrs(**attributes, title=name)
    artifacts.write(dataset, arguments.output)
    stage.say(f"{name}: done")


if __name__ == "__main__":
    flags = ("normalisation", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations", "validation")).parse_args())
