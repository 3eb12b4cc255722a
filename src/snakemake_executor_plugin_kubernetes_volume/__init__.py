"""Snakemake's executor for Kubernetes, on a volume that all pods and the machine that starts them mount at the same path.

The executor itself assumes that pods share no files, and wants a storage that holds every file of every job. Stages of this
project keep files beside those that rules declare, as the weights in a model's folder, so they need a file system. This one
lets jobs work in the folder of the run, as those of other clusters do, and changes nothing else.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

try:
    import kubernetes.config
    import snakemake_executor_plugin_kubernetes as pods
except ImportError:  # profiles/kubernetes says what to install; Snakemake imports this module in any case
    pods = None

INHERITED = ("PYTHONPATH", "PYTHONUTF8", "CROSSCODERS_PROJECT", "STUDY_ARGUMENTS")
"""Variables that jobs get from the process that starts them."""


class _Absent(RemoteExecutor):
    """Stands for the executor where its plugin is not installed."""

    def run_job(self, job):
        """Refuse to run."""
        raise NotImplementedError

    check_active_jobs = cancel_jobs = run_job


class Executor(_Absent if pods is None else pods.Executor):
    """Runs each job in a pod, in the folder where Snakemake was started."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            sys.exit(f"error: {problem}")
        super().__post_init__()

    def _problem(self) -> str | None:
        """Why pods could not run the jobs."""
        here, mounted = Path.cwd(), [str(volume.path) for volume in self.workflow.executor_settings.persistent_volumes]
        if not any(here.is_relative_to(path) for path in mounted):
            listed = ", ".join(mounted) or "none"
            return (
                f"CROSSCODERS_VOLUME: pods mount {listed}, not {here}; expected CLAIM:PATH of the volume of this folder"
            )
        if self.workflow.remote_execution_settings.container_image.startswith("snakemake/"):
            return "CROSSCODERS_IMAGE: not set; expected an image that envs/Dockerfile made, as REGISTRY/crosscoders"
        try:
            kubernetes.config.load_config()
        except kubernetes.config.ConfigException as error:
            reason = str(error).splitlines()[0]
            return f"Kubernetes: no cluster is configured ({reason}); expected a config of kubectl, or to run in a pod"
        return None

    def get_job_exec_prefix(self, job) -> str:
        """Go to the folder of the run, with the variables that jobs inherit on one machine."""
        given = [f"{name}={shlex.quote(os.environ[name])}" for name in INHERITED if name in os.environ]
        return f"cd {shlex.quote(str(Path.cwd()))} && export {' '.join(given)}"

    def get_python_executable(self) -> str:
        """The Python of the image."""
        return "python"


if pods is None:
    ExecutorSettings = ExecutorSettingsBase
    common_settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False)
else:
    ExecutorSettings = pods.ExecutorSettings
    common_settings = dataclasses.replace(
        pods.common_settings,
        implies_no_shared_fs=False,
        job_deploy_sources=False,
        auto_deploy_default_storage_provider=False,
    )
