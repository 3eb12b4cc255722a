"""Stage collate_trials: the judged trials of one setting as one dataset, over members and seeds."""

from __future__ import annotations

from crosscoders import artifacts, stage
from crosscoders.report.sections import CollateTrialsSection
from crosscoders.report.stacking import stack, stack_seeds


def main(arguments) -> None:
    """Collate one setting."""
    section: CollateTrialsSection = arguments.settings
    keys = [(name, seed) for name in section.crosscoders for seed in section.seeds]
    dataset = stack({key: artifacts.read(path) for key, path in zip(keys, arguments.trials, strict=True)})
    if arguments.circuits:
        circuits = map(artifacts.read, arguments.circuits)
        dataset = dataset.merge(stack_seeds(dict(zip(section.seeds, circuits, strict=True)), "circuit_"), join="exact")
    dataset.attrs = section.provenance() | {
        "title": f"summary of {section.setting_name}",
        "setting": section.setting_name,
        "planted": section.planted.model_dump_json(),
        "confidence": section.confidence,
    }
    artifacts.write(dataset, arguments.output)


if __name__ == "__main__":
    flags = stage.parser(CollateTrialsSection, __doc__, "output", lists=("trials",))
    flags.add_argument("--circuits", type=stage.Path, nargs="*", default=[])
    stage.run(main, flags.parse_args())
