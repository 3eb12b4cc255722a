"""Whether Snakemake finds what runs jobs elsewhere; profiles ask it while they are read."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = {
    "slurm": ("snakemake-executor-plugin-slurm", "envs/requirements.txt"),
    "kubernetes-volume": ("snakemake-executor-plugin-kubernetes", "envs/kubernetes.txt"),
}
"""Executor to the package that it needs and to the file of requirements that holds it."""


def installed(executor: str) -> str:
    """The name of an executor, where the package that it needs is installed.

    Parameters
    ----------
    executor : str
        A key of `NEEDED`.

    Returns
    -------
    str

    Raises
    ------
    SystemExit
        It is not installed. The line says what to do. Snakemake would turn any other exception into a traceback.
    """
    package, requirements = NEEDED[executor]
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        command = f"python -m pip install --no-deps -r {requirements}"
        sys.exit(f"error: executor: {executor!r} needs {package}, which is not installed; expected `{command}`")
    return executor
