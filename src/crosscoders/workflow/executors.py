"""Whether Snakemake finds what runs jobs elsewhere; profiles ask it while they are read."""

from __future__ import annotations

import importlib.util
import sys

REQUIREMENTS = {"slurm": "envs/requirements.txt", "kubernetes": "envs/kubernetes.txt"}
"""The file of requirements that holds the plugins of an executor."""


def installed(executor: str, *storage: str) -> str:
    """The name of an executor, where its plugin and those of the storage it needs are installed.

    Parameters
    ----------
    executor : str
        A key of `REQUIREMENTS`.
    *storage : str
        Storage providers, as `s3`.

    Returns
    -------
    str

    Raises
    ------
    SystemExit
        A plugin is missing. The line says what to install. Snakemake would turn any other exception into a traceback.
    """
    plugins = [f"snakemake-executor-plugin-{executor}", *(f"snakemake-storage-plugin-{name}" for name in storage)]
    missing = [name for name in plugins if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        command = f"python -m pip install -r {REQUIREMENTS[executor]}"
        sys.exit(f"error: executor: {executor!r} needs {' and '.join(missing)}, not installed; expected `{command}`")
    return executor
