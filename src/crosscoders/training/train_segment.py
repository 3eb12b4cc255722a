"""Stage train_segment: the steps of a training that are taken on one shard of a window; the state goes to the next one.

A training on a window is cut into segments, one for every shard of every pass over the training tokens. Segment i takes the
steps from round(i·steps / segments) to round((i + 1)·steps / segments) on tokens of its shard alone, shuffled by seed and
segment. Every training of a setting reads the same shards in the same order.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from crosscoders import artifacts, stage, storage
from crosscoders.activations.dataset import Activations
from crosscoders.device import chosen_device
from crosscoders.errors import UserError, explain_divergence
from crosscoders.kernels import backends
from crosscoders.kernels.mesh import Alone
from crosscoders.training import loop, processes, trackers
from crosscoders.training.checkpoint import Checkpoint
from crosscoders.training.job import use_exact_arithmetic
from crosscoders.training.recipes import CrosscoderRecipe
from crosscoders.training.sections import TrainSegmentSection
from crosscoders.training.state import State


def main(arguments) -> None:
    """Take the steps of one segment, and save the state and a note that the segment is done."""
    section: TrainSegmentSection = arguments.settings
    processes.run(arguments, section.crosscoder.training, section, partial(work, arguments, section))


def work(arguments, section: TrainSegmentSection, mesh: Alone) -> None:
    """What every process of the training does; the first one saves."""
    recipe, device = CrosscoderRecipe(section.crosscoder), chosen_device(section.device)
    training = section.crosscoder.training
    use_exact_arithmetic(device)
    data = Activations([arguments.activations], artifacts.read(arguments.normalisation), section.sources, section.null)
    if len(data) < training.batch_tokens:
        raise UserError(f"{arguments.activations}: {len(data)} kept tokens; batch_tokens is {training.batch_tokens}")
    part = loop.Part.of(section.segment, section.segments, training.steps, section.seed)
    name = f"train_segment {section.label}, segment {section.segment + 1} of {section.segments}"
    progress = stage.Progress(name, (part.last - part.first) * training.batch_tokens)
    followed = trackers.Trackers({})
    if mesh.first:
        followed = trackers.of_training(section, arguments.output.parents[4], training.steps)

    def report(state: State) -> None:
        last = {key: state.history[key][-1] for key in ("loss", "l0", "dead_fraction")}
        progress.reach((state.step - part.first) * training.batch_tokens, step=state.step, **last)
        followed.follow(state)

    previous = Checkpoint(arguments.previous, section.identity()) if arguments.previous else None
    with explain_divergence(f"crosscoders.{section.crosscoder_name}"), followed:
        reported = report if mesh.first else lambda state: None
        state = loop.fit_part(recipe, data, part, section.seed, device, previous, reported, mesh)
    Checkpoint(arguments.output, section.identity()).save(state)
    if not mesh.first:
        return
    backend = backends.choose(device)
    done = {"segment": section.segment, "segments": section.segments, "steps": state.step, "tokens": len(data)}
    storage.write_sealed_json(
        section.provenance() | done | {"kernels": backend.kernels, "products": backend.products}, arguments.done
    )
    stage.say(f"{name}: step {state.step} of {training.steps}, L0 {state.mean_l0:.1f}")


if __name__ == "__main__":
    parser = stage.parser(TrainSegmentSection, __doc__, "activations", "normalisation", "output", "done")
    parser.add_argument("--previous", type=Path, help="the state after the segment before")
    stage.run(main, parser.parse_args())
