"""What a study needs of the machine that runs it, beyond its files: packages that are optional, and an endpoint's address."""

from __future__ import annotations

import importlib.util
import os

from crosscoders.study.queries import measurements, trainings
from crosscoders.study.settings.study import Study

ENDPOINTS = (("CROSSCODERS_ENDPOINT", "CROSSCODERS_ENDPOINT_KEY"), ("OPENAI_BASE_URL", "OPENAI_API_KEY"))
"""Variables that hold the address of an endpoint, and its key. The key of one pair is never sent to the address of the other."""


def endpoint_variables(study: Study) -> list[str]:
    """Variables of this environment that hold an endpoint's address and key, where a study asks an endpoint.

    Snakemake passes them to jobs that run elsewhere, as Kubernetes secrets to pods.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
        Names of those that are set; none where no setting asks an endpoint.
    """
    asked = any(study.settings[name].explain.endpoint is not None for name in measurements.explained(study))
    return [name for pair in ENDPOINTS for name in pair if asked and name in os.environ]


def missing(study: Study) -> list[str]:
    """What a study asks for and this machine lacks.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
        A line each.
    """
    lines = []
    for place, names in trainings.trackers(study).items():
        for name in names:
            if importlib.util.find_spec(name) is None:
                lines.append(
                    f"{place}.training.trackers: {name} is not installed, so it follows no training; "
                    f"`pip install {name}` installs it"
                )
    if not any(os.environ.get(address) for address, _ in ENDPOINTS):
        lines += [
            f"settings.{name}.explain.endpoint: {ENDPOINTS[0][0]} is not set; expected an address as https://api.example.org/v1"
            for name in measurements.explained(study)
            if study.settings[name].explain.endpoint is not None
        ]
    return lines
