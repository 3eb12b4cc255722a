"""Stage train_crosscoder: one crosscoder, one seed; resumes from its checkpoint after an interruption."""

from __future__ import annotations

from crosscoders import stage
from crosscoders.errors import explain_divergence
from crosscoders.training.job import Files, train
from crosscoders.training.outputs import save
from crosscoders.training.recipes import CrosscoderRecipe
from crosscoders.training.sections import TrainCrosscoderSection


def main(arguments) -> None:
    """Train one crosscoder and save it with its training curves."""
    section: TrainCrosscoderSection = arguments.settings
    files = Files(arguments.activations, arguments.validation, arguments.normalisation, arguments.output)
    recipe = CrosscoderRecipe(section.crosscoder)
    with explain_divergence(f"crosscoders.{section.crosscoder_name}"):
        trained = train(section, recipe, files, section.device, section.sources, section.null)
    save(trained, section, section.crosscoder, arguments.output, arguments.history)
    files.checkpoint.unlink(missing_ok=True)
    stage.say(f"train_crosscoder {section.label}: done, L0 {trained.state.mean_l0:.1f}")


if __name__ == "__main__":
    flags = ("normalisation", "output", "history")
    lists = ("activations", "validation")
    stage.run(main, stage.parser(TrainCrosscoderSection, __doc__, *flags, lists=lists).parse_args())
