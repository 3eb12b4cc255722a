"""Stage take_snapshot: a trained model as it was after some steps of its training, as a model of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from crosscoders import stage, storage
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots
from crosscoders.language_models.sections import TakeSnapshotSection

WEIGHTS = "model.safetensors"


def main(arguments) -> None:
    """Copy the weights of one step, and all that the training wrote beside them."""
    section: TakeSnapshotSection = arguments.settings
    source, target = arguments.trained.parent, arguments.output.parent
    trained = storage.verify_folder(source)
    kept = snapshots.step_file(section.model.step)
    if kept not in trained["files"]:
        raise UserError(f"{source}: no {kept}; delete the folder and run again")
    with snapshots.working_folder(target) as name:
        folder = Path(name) / "snapshot"
        folder.mkdir()
        for file in trained["files"]:
            if not file.endswith(".safetensors"):
                shutil.copyfile(source / file, folder / file)
        shutil.copyfile(source / kept, folder / WEIGHTS)
        provenance = {**section.provenance(), "licence": trained["licence"], "checks": {"step": section.model.step}}
        snapshots.publish(folder, target, provenance)
    stage.say(f"take_snapshot {section.name}: step {section.model.step} of {section.model.of}")


if __name__ == "__main__":
    stage.run(main, stage.parser(TakeSnapshotSection, __doc__, "trained", "output").parse_args())
