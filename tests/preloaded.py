"""Snakemake for tests: every run is a fork of a process that has Snakemake's libraries loaded, which halves what it takes to start.

Run as a script, this is that process. It reads a request from each line of its standard input and answers with the status.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

_one_at_a_time = threading.Lock()


def snakemake(folder: Path, arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess:
    """Run `snakemake` to its end, as :func:`subprocess.run` would.

    Parameters
    ----------
    folder : Path
        Where it runs.
    arguments : list of str
    variables : dict
        The environment.

    Returns
    -------
    subprocess.CompletedProcess
        With what was printed, as text.
    """
    with tempfile.TemporaryDirectory() as aside, _one_at_a_time:
        streams = [Path(aside, name) for name in ("stdout", "stderr")]
        request = {"folder": str(folder), "arguments": arguments, "variables": variables}
        server = _server()
        server.stdin.write(json.dumps(request | {"streams": list(map(str, streams))}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        printed = [path.read_text(encoding="utf-8", errors="replace") for path in streams]
    return subprocess.CompletedProcess(["snakemake", *arguments], status, *printed)


@functools.cache
def _server() -> subprocess.Popen:
    """The process that forks, which ends with this one."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__], **pipes)
    atexit.register(server.stdin.close)
    return server


def serve() -> None:
    """Load Snakemake with its plugins, and what the project's rules import of other packages; fork for every request."""
    import numpy  # noqa: F401
    import pydantic  # noqa: F401
    import yaml  # noqa: F401
    from snakemake import cli

    cli.get_argument_parser()
    assert threading.active_count() == 1, "a fork has none of the other threads"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(cli.main, **json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(main, folder: str, arguments: list[str], variables: dict[str, str], streams: list[str]) -> None:
    """Become a process that runs Snakemake in a folder, and end with it."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for stream, path in enumerate([os.devnull, *streams]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    sys.argv = ["snakemake", *arguments]
    given = variables.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(Path(sys.executable).parent), *filter(None, given)]
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
