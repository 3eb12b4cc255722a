"""Stage report: Snakemake's report on the finished workflow, one page that holds all pictures and pages."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from crosscoders import stage, storage
from crosscoders.errors import UserError
from crosscoders.report.sections import ReportSection
from crosscoders.report.verification import verify_documents

PLACE = "<p>The findings of the study stand in its front page.</p>"
"""Of `report/workflow.rst`: where the findings go that the stage `index` wrote."""
LINES = 20
"""Lines of Snakemake's output that are shown where it fails."""


def with_findings(page: bytes, findings: bytes) -> bytes:
    """The report with findings, HTML, in its description, which lies in the page as JSON within a script.

    A report whose description is another's, as that of a workflow which uses this one as a module, stays as it is.
    """
    text = json.dumps(findings.decode())[1:-1].replace("</", "<\\/")
    return page.replace(PLACE.encode(), text.encode())


def main(arguments) -> None:
    """Let Snakemake write its report, which takes no lock and runs no job.

    The arguments that name the study come from the environment, since another spelling of them changes no result.
    """
    verify_documents(arguments.output.parent)
    study = shlex.split(os.environ["STUDY_ARGUMENTS"])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "snakemake", *study, "--nolock", "--cores", "1", "--report", str(page)]
        done = subprocess.run([*command, *map(str, arguments.pages)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = done.stdout.decode(errors="replace").splitlines()
        if done.returncode or not page.is_file():
            raise UserError("\n".join([f"{arguments.output}: Snakemake could not write its report", *lines[-LINES:]]))
        findings = storage.read_sealed(arguments.findings)
        storage.write_sealed(with_findings(page.read_bytes(), findings), arguments.output)
    stage.say(f"report: {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    stage.run(main, stage.parser(ReportSection, __doc__, "findings", "output", lists=("pages",)).parse_args())
