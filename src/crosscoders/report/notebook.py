"""Stage notebook: one notebook executed by papermill; it reads a summary and draws figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

from crosscoders import stage, storage
from crosscoders.errors import UserError
from crosscoders.report.sections import NotebookSection

TIMEOUT_SECONDS = 1200
"""Longest run of one cell, so that a kernel that hangs does not hold up a study."""
QUIET = ["--IPKernelApp.log_level=ERROR"]
"""A kernel warns that it is reached over TCP; it listens on this machine alone, and answers who knows its key."""


def main(arguments) -> None:
    """Execute one notebook; the executed copy appears only when every cell has run."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    section: NotebookSection = arguments.settings
    for path in (arguments.summary, *arguments.nulls, *arguments.transfers):
        storage.verify(path)
    parameters = {
        "summary_file": str(arguments.summary),
        "figure_folder": str(arguments.figures),
        "figure_names": section.figures,
        "null_files": dict(zip(section.nulls, map(str, arguments.nulls), strict=True)),
        "transfer_files": dict(zip(section.transfers, map(str, arguments.transfers), strict=True)),
    }

    def execute(path: Path) -> None:
        papermill.execute_notebook(
            str(arguments.notebook),
            str(path),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=TIMEOUT_SECONDS,
            extra_arguments=QUIET,
        )

    output = arguments.output
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        execute(partial)
    except PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", error.evalue)
        raise UserError(
            f"{arguments.notebook}: cell {error.exec_count} failed: {error.ename}: {plain}; "
            f"the partly executed copy is {partial}"
        ) from None
    storage.write_sealed_json(json.loads(partial.read_text(encoding="utf-8")), output)
    partial.unlink()
    stage.say(f"notebook {output.stem}: {len(section.figures)} figures")


if __name__ == "__main__":
    parser = stage.parser(NotebookSection, __doc__, "summary", "notebook", "figures", "output")
    parser.add_argument("--nulls", type=Path, nargs="*", default=[], help="summaries of the setting's nulls")
    parser.add_argument("--transfers", type=Path, nargs="*", default=[], help="summaries of its crosscoders elsewhere")
    stage.run(main, parser.parse_args())
