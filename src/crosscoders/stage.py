"""What every stage's command line shares: arguments, one-line errors, threads, live progress, a readable log."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, ValidationError

from crosscoders import storage
from crosscoders.errors import UserError
from crosscoders.home import ensure_home, show_all_letters

_log: list[TextIO] = []


def parser(
    section: type[BaseModel], description: str | None, *flags: str, lists: tuple[str, ...] = ()
) -> argparse.ArgumentParser:
    """Argument parser of a stage.

    Parameters
    ----------
    section : class
        What `--settings`, JSON, is read as: the stage's section of the study.
    description : str
        The stage's docstring; its first line is shown.
    flags : str
        Required flags with one path each.
    lists : tuple of str
        Required flags with several paths each.

    Returns
    -------
    argparse.ArgumentParser
        Its result also has `log`, a path or None, and `threads`.

    Raises
    ------
    argparse.ArgumentTypeError
        By `--settings`, where its text does not fit `section`; argparse then ends the process with that line.
    """

    def settings(text: str) -> BaseModel:
        try:
            return section.model_validate_json(text)
        except ValidationError as error:
            lines = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise argparse.ArgumentTypeError(f"no {section.__name__}: {'; '.join(lines)}") from None

    arguments = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    arguments.add_argument(
        "--settings", type=settings, required=True, help="this stage's section of the settings, JSON"
    )
    arguments.add_argument("--log", type=Path, help="file that gets a copy of every line printed")
    arguments.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the library's choice")
    for flag in flags:
        arguments.add_argument(f"--{flag}", type=Path, required=True)
    for flag in lists:
        arguments.add_argument(f"--{flag}", type=Path, nargs="+", required=True)
    return arguments


def run(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Run a stage: bad input ends it with one line and exit status 1, not with a traceback.

    Parameters
    ----------
    main : function
        The stage; gets `arguments`.
    arguments : argparse.Namespace
        What a parser made by :func:`parser` returned.

    Raises
    ------
    SystemExit
        The stage was interrupted (status 130) or met an error that the user can mend (status 1).
    Exception
        Any other error of the stage, unchanged.
    """
    try:
        _start(arguments)
        main(arguments)
    except KeyboardInterrupt:
        say("interrupted; the same command continues")
        sys.exit(130)
    except Exception as error:
        named = getattr(error, "filename", None)  # the log may lie on a disk that is full while the output's is not
        target = named or getattr(arguments, "output", None) or arguments.log or "results/x"
        explained = error if isinstance(error, UserError) else storage.storage_error(Path(target), error)
        if not isinstance(explained, UserError):
            raise
        for line in str(explained).splitlines():
            say(f"error: {line}")
        sys.exit(1)


def _start(arguments: argparse.Namespace) -> None:
    """Open the log, limit the threads, silence warnings that no user can act on; collect garbage from here on.

    An interruption, which ends the process while it imports, raises from here on, so that what was begun is cleaned up.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    gc.freeze()
    gc.enable()
    ensure_home()
    show_all_letters()
    first = os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ
    if arguments.log and first:  # of the processes that torchrun starts
        arguments.log.parent.mkdir(parents=True, exist_ok=True)
        _log.append(arguments.log.open("w", encoding="utf-8"))
    if arguments.threads:
        limit_threads(arguments.threads)
    reuse_memory()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def limit_threads(threads: int) -> None:
    """Use `threads` CPU threads; idle ones sleep, so that jobs sharing a machine do not fight."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def reuse_memory() -> None:
    """Let glibc keep large freed buffers: giving them back costs a page fault per 4 KB at every step."""
    if platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def say(line: str) -> None:
    """Print a line to the terminal and to the stage's log.

    Parameters
    ----------
    line : str
        Without a line break at its end.
    """
    print(line, file=sys.stderr, flush=True)
    for file in _log:
        try:
            print(line, file=file, flush=True)
        except OSError:  # a full disk; what could not be written must not fail again when the file is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class Progress:
    """Progress in whole lines, a few seconds apart: readable in a terminal, between other jobs, and in a log.

    Parameters
    ----------
    name : str
        What runs, for instance `train base-vs-chat/l1/seed-0`.
    total : int
        Number of units of work.
    unit : str
        What a unit is, shown as a rate.
    seconds : float
        Time between lines.
    """

    def __init__(self, name: str, total: int, unit: str = "tokens", seconds: float = 5.0):
        self.name, self.total, self.unit, self.seconds = name, max(total, 1), unit, seconds
        self.done = self.start = 0
        self.began = self.shown = time.monotonic()

    def update(self, amount: int, **fields: float) -> None:
        """Count `amount` more units; print a line when one is due, with the given figures."""
        self.done += amount
        now = time.monotonic()
        if now - self.shown >= self.seconds or (self.done >= self.total and now - self.began > self.seconds):
            self.shown = now
            self._print(now - self.began, fields)

    def reach(self, done: int, **fields: float) -> None:
        """Count up to `done` units; what was done before a stage was resumed does not count towards the rate."""
        if self.done == 0:
            self.start = self.done = done
            return
        self.update(done - self.done, **fields)

    def _print(self, elapsed: float, fields: dict[str, float]) -> None:
        rate = (self.done - self.start) / max(elapsed, 1e-9)
        left = int((self.total - self.done) / max(rate, 1e-9))
        figures = "".join(f"  {key.replace('_', ' ')} {value:.4g}" for key, value in fields.items())
        share = 100 * self.done / self.total
        say(f"{self.name}  {share:3.0f}%{figures}  {rate:,.0f} {self.unit}/s  {left // 60}:{left % 60:02d} left")
