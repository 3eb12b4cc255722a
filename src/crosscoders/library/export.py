"""Stage export: one crosscoder of a study, or its activations on test documents, in another tool's files."""

from __future__ import annotations

import shutil

from crosscoders import stage, storage
from crosscoders.library import commands
from crosscoders.library.sections import ExportSection


def main(arguments) -> None:
    """Write the files, and beside their folder the list of them with the digest of each."""
    section: ExportSection = arguments.settings
    shutil.rmtree(arguments.folder, ignore_errors=True)
    commands.export(arguments.crosscoder, arguments.folder, section.format_name)
    written = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    digests = {path.relative_to(arguments.folder).as_posix(): storage.sha256(path) for path in written}
    storage.write_sealed_json(section.provenance() | {"files": digests}, arguments.output)
    stage.say(f"export {section.label}: {len(digests)} files for {section.format_name}")


if __name__ == "__main__":
    stage.run(main, stage.parser(ExportSection, __doc__, "crosscoder", "folder", "output").parse_args())
