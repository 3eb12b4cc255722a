"""Snakemake's terminal output, and a first look at the study file before Snakemake reads it.

Snakemake reads the file of `--configfile` before it reads the Snakefile, with a loader of its own that a damaged or hostile
file can stop for hours or fill with a traceback. A logger is there before; the profiles name this one. Importing it is also
the only way to be there before Snakemake opens its cache of sources, so where nothing can be written at home, that cache is
sent elsewhere here.
"""

from __future__ import annotations

import argparse
import copy
import locale
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from snakemake.logging import ColorizingTextHandler
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from crosscoders.errors import UserError, shortened
from crosscoders.home import ensure_home, show_all_letters
from crosscoders.study import loading
from crosscoders.workflow import progress

ensure_home()
show_all_letters()
if locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"):
    logging.raiseExceptions = (
        False  # a line that Snakemake's log file cannot hold is left out there, and shown here all the same
    )


FAILED_STAGE = re.compile(r"Command '.*python -m crosscoders (\S+) .*returned non-zero exit status", re.DOTALL)
"""What Snakemake prints of a job that failed: hundreds of characters of its command, after the stage's own line."""

REFUSED = re.compile(r"SLURM sbatch failed. The error message was '(?:sbatch: error: )?(.*?)'\.\n", re.DOTALL)
"""What the Slurm executor prints of a job that Slurm does not take: all of its command, after the reason."""

PROTECTED = re.compile(r"^ProtectedOutputException.*affected files:\s*(.+)", re.DOTALL)
"""What Snakemake prints of files that a job would make again and that it may not write."""

GUESSED = re.compile(r"No SLURM account given|No account was given, not able|Unable to guess SLURM account")
"""What the Slurm executor warns of where a cluster has no accounts; profiles/slurm names one where there are some."""

SAID = re.compile(r"^(?:slurmstepd\S*: )?error: (.*)$", re.MULTILINE)
"""What a stage, or Slurm, says in the log of a job that failed."""


CHATTER = (LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED)
"""What Snakemake says of every job; the bar says it."""


class LogHandler(LogHandlerBase):
    """Reads the study files, draws the bar of the whole, and hands all other records to Snakemake's own terminal handler."""

    writes_to_stream, writes_to_file = True, False
    has_filter, has_formatter, needs_rulegraph = False, False, False

    def __post_init__(self) -> None:
        common = self.common_settings
        _read_study_files(sys.argv[1:])
        self.run: progress.Run | None = None
        self.jobs: dict[int, tuple[str, str]] = {}  # rule and name of every job that was started
        self.terminal = ColorizingTextHandler(common.nocolor, sys.stdout if common.stdout else sys.stderr)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        """Format as Snakemake asks for."""
        super().setFormatter(fmt)
        self.terminal.setFormatter(fmt)

    def handle(self, record: logging.LogRecord) -> bool:
        """Note what the bar has to know, also of records that the profile keeps quiet about."""
        event = getattr(record, "event", None)
        if event is LogEvent.RUN_INFO and not self.common_settings.dryrun:
            self.run = progress.run(
                {rule: count for rule, count in record.stats.items() if rule not in ("all", "total")}
            )
        elif event is LogEvent.JOB_INFO:
            values = [value for name, value in (record.wildcards or {}).items() if name != "study"]
            self.jobs[record.jobid] = record.rule_name, " ".join([record.rule_name, "/".join(values)]).strip()
        elif event is LogEvent.JOB_FINISHED and self.run and record.job_id in self.jobs:
            self.run.finish(*self.jobs.pop(record.job_id))
        return super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; an interruption is followed by what to do next, and a failed stage is named without its command."""
        event = getattr(record, "event", None)
        if GUESSED.match(str(record.msg)) or event in CHATTER or record.msg == "Select jobs to execute...":
            return
        if event is LogEvent.PROGRESS and self.run:
            record = copy.copy(record)
            record.event, record.msg = None, self.run.line(record.done, record.total)
        failed, protected = FAILED_STAGE.search(str(record.msg)), PROTECTED.search(str(record.msg))
        if str(record.msg).startswith("Terminating processes on user request"):
            record.msg = "Interrupted: jobs are ended now. The same command continues where this run stopped."
        elif failed:
            record.msg, record.args = f"{failed[1]} failed; the reason stands above.", ()
        elif protected:
            record.msg, record.args = may_not_be_written(protected[1].split("\n")), ()
        elif event is LogEvent.JOB_ERROR and record.rule_msg:
            record = copy.copy(record)  # Snakemake's log file gets all of it
            record.event, record.msg = None, "\n".join(failed_elsewhere(record.rule_name, record.rule_msg, record.log))
        self.terminal.emit(record)


def may_not_be_written(files: Sequence[str]) -> str:
    """The line about files that a job would make again, and that lie on a read-only disk or belong to somebody else."""
    first, *others = [file.strip() for file in files if file.strip()]
    more = f", and {len(others)} more" if others else ""
    why = "read-only or no permission; what it is made from has changed"
    return shortened(f"error: {first}{more}: cannot be made again ({why})")


def failed_elsewhere(rule: str, message: str, logs: Sequence[str]) -> list[str]:
    """What to say of a job that failed where an executor sent it.

    Parameters
    ----------
    rule : str
    message : str
        What the executor says.
    logs : sequence of str
        The files in which the job and its machine may have said more; they may be missing.

    Returns
    -------
    list of str
        The rule and the reason, then the lines that the logs hold, or where they are.
    """
    refused = REFUSED.search(message)
    short = re.split(r"\. (?:Detailed|Consider)|For further error details|\n", message)[0].rstrip(".")
    if refused:
        return [shortened(f"error: rule {rule}: Slurm does not take the job: {' '.join(refused[1].split())}")]
    texts = [Path(file).read_text(encoding="utf-8", errors="replace") for file in logs if Path(file).is_file()]
    said = list(dict.fromkeys(line for text in texts for line in SAID.findall(text)))
    more = [f"  {shortened(line)}" for line in said[:3]] or [f"  its logs: {', '.join(logs)}"] * bool(logs)
    return [shortened(f"error: rule {rule}: {short}"), *more]


def _read_study_files(arguments: list[str]) -> None:
    """End with a line for each study file of the command line that cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", action="extend", default=[], type=Path)
    try:
        files = parser.parse_known_args(arguments)[0].configfile
    except argparse.ArgumentError:
        return  # Snakemake says what is wrong with its arguments
    problems = []
    for file in files:
        try:
            loading.read(file)
        except UserError as error:
            problems.append(f"error: {error}")
    if problems:
        sys.exit("\n".join(problems))
