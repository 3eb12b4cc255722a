"""Stage finish_training: from the state after the last segment to a crosscoder with its thresholds."""

from __future__ import annotations

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.device import chosen_device
from crosscoders.kernels import backends
from crosscoders.training import loop
from crosscoders.training.checkpoint import Checkpoint
from crosscoders.training.job import Trained, use_exact_arithmetic
from crosscoders.training.outputs import save
from crosscoders.training.recipes import CrosscoderRecipe
from crosscoders.training.sections import FinishTrainingSection


def main(arguments) -> None:
    """Fit the thresholds on validation tokens, and save the crosscoder with its training curves."""
    section: FinishTrainingSection = arguments.settings
    device, normalisation = chosen_device(section.device), artifacts.read(arguments.normalisation)
    use_exact_arithmetic(device)
    held_out = Activations(arguments.validation, normalisation, section.sources, section.null)
    last = Checkpoint(arguments.state, section.identity())
    state = loop.finish_parts(CrosscoderRecipe(section.crosscoder), held_out, section.seed, device, last)
    backend = backends.choose(device)
    trained = Trained(state, normalisation, {"kernels": backend.kernels, "products": backend.products})
    save(trained, section, section.crosscoder, arguments.output, arguments.history)
    stage.say(f"finish_training {section.label}: done, L0 {state.mean_l0:.1f}")


if __name__ == "__main__":
    flags = ("state", "normalisation", "output", "history")
    stage.run(main, stage.parser(FinishTrainingSection, __doc__, *flags, lists=("validation",)).parse_args())
