"""Snakemake's terminal output, with one line instead of a traceback where the study file cannot be opened.

Snakemake opens the file of `--configfile` before it reads the Snakefile, so only a logger can say that in a line; the
profiles name this one. Importing it is also the only way to be there before Snakemake opens its cache of sources, so where
nothing can be written at home, that cache is sent elsewhere here.
"""

from __future__ import annotations

import locale
import logging
import re
import sys

from snakemake.logging import ColorizingTextHandler
from snakemake_interface_logger_plugins.base import LogHandlerBase

from crosscoders.home import ensure_home, show_all_letters

ensure_home()
show_all_letters()
if locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"):
    logging.raiseExceptions = (
        False  # a line that Snakemake's log file cannot hold is left out there, and shown here all the same
    )

OPENING = "in _load_configfile"
REASON = re.compile(r"^\w+Error: (?:\[Errno \d+\] )?(.+)$", re.MULTILINE)


class LogHandler(LogHandlerBase):
    """Hands every record to Snakemake's own terminal handler."""

    writes_to_stream, writes_to_file = True, False
    has_filter, has_formatter, needs_rulegraph = False, False, False

    def __post_init__(self) -> None:
        common = self.common_settings
        self.terminal = ColorizingTextHandler(common.nocolor, sys.stdout if common.stdout else sys.stderr)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        """Format as Snakemake asks for."""
        super().setFormatter(fmt)
        self.terminal.setFormatter(fmt)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        text = str(record.msg)
        if OPENING in text and (reasons := REASON.findall(text)):
            record.msg = f"--configfile: {reasons[-1]}; expected a study file, such as config.yaml"
            record.args = None
        self.terminal.emit(record)
