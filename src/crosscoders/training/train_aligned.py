"""Stage train_aligned: one aligned crosscoder, one seed; resumes from its checkpoint after an interruption."""

from __future__ import annotations

from functools import partial

import numpy as np

from crosscoders import artifacts, stage
from crosscoders.crosscoder.files import aligned_to_dataset
from crosscoders.errors import explain_divergence
from crosscoders.kernels.mesh import Alone
from crosscoders.training import processes
from crosscoders.training.job import Files, train
from crosscoders.training.recipes import AlignedRecipe
from crosscoders.training.sections import TrainAlignedSection


def main(arguments) -> None:
    """Train and save."""
    section: TrainAlignedSection = arguments.settings
    processes.run(arguments, section.aligned.training, section, partial(work, arguments, section))


def work(arguments, section: TrainAlignedSection, mesh: Alone) -> None:
    """What every process of the training does; the first one saves."""
    files = Files(arguments.activations, arguments.validation, arguments.normalisation, arguments.output)
    with explain_divergence(f"aligned.{section.aligned_name}"):
        trained = train(section, AlignedRecipe(section.aligned), files, section.device, mesh=mesh)
    if not mesh.first:
        return
    attributes, tokens = section.provenance() | trained.arithmetic, np.int64(section.aligned.training.tokens)
    dataset = aligned_to_dataset(trained.state.crosscoder, trained.normalisation)
    dataset["training_tokens"] = artifacts.variable((), tokens, "tokens seen in training")
    title = f"aligned crosscoder {section.setting_name}, {section.aligned_name}, seed {section.seed}"
    artifacts.write(dataset.assign_attrs(**attributes, title=title), arguments.output)
    files.checkpoint.unlink(missing_ok=True)
    stage.say(f"train_aligned {section.label}: done, L0 {trained.state.mean_l0:.1f} per source")


if __name__ == "__main__":
    lists = ("activations", "validation")
    stage.run(main, stage.parser(TrainAlignedSection, __doc__, "normalisation", "output", lists=lists).parse_args())
