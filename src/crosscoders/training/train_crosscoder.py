"""Stage train_crosscoder: one crosscoder, one seed; resumes from its checkpoint after an interruption."""

from __future__ import annotations

from functools import partial

from crosscoders import stage
from crosscoders.errors import explain_divergence
from crosscoders.kernels.mesh import Alone
from crosscoders.training import processes
from crosscoders.training.job import Files, train
from crosscoders.training.outputs import save
from crosscoders.training.recipes import CrosscoderRecipe
from crosscoders.training.sections import TrainCrosscoderSection


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
    save(trained, section, section.crosscoder, arguments.output, arguments.history)
    files.checkpoint.unlink(missing_ok=True)
    stage.say(f"train_crosscoder {section.label}: done, L0 {trained.state.mean_l0:.1f}")


if __name__ == "__main__":
    flags = ("normalisation", "output", "history")
    lists = ("activations", "validation")
    stage.run(main, stage.parser(TrainCrosscoderSection, __doc__, *flags, lists=lists).parse_args())
