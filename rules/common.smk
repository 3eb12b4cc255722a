# Loads and checks the study, and defines what the rules share.
import sys
from pathlib import Path

from crosscoders.errors import UserError
from crosscoders.report import registry
from crosscoders.study import loading, places, queries
from crosscoders.workflow import dependencies, jobs, sections

PROJECT = Path(workflow.basedir)


def of_project(path):
    """A file of this project, wherever Snakemake was started."""
    return str(places.from_here(PROJECT / path))


def code(*modules):
    """The source files of modules, as inputs of a rule."""
    return dependencies.code(*modules, folder=of_project("src/crosscoders"))


STUDY_FILES = [str(places.from_here(file)) for file in workflow.configfiles] or [of_project("config.yaml")]
try:
    STUDY = loading.load(*STUDY_FILES, overrides=workflow.config_settings.config)
except UserError as error:
    sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))

RESULTS = f"results/{STUDY.study}"
jobs.prepare(PROJECT, workflow.main_snakefile, STUDY_FILES, workflow.config_settings.config_args)
# Large buffers lie on huge pages, which makes training and fine-tuning steps about a tenth shorter (docs/decisions.md).
shell.prefix("export GLIBC_TUNABLES=glibc.malloc.hugetlb=1; ")
PLANTED = queries.planted_settings(STUDY)
GPU = int(STUDY.device == "cuda")
FINE_TUNED = [name for name, model in STUDY.models.items() if model.kind == "fine_tuned"]
TRAINED = [name for name, model in STUDY.models.items() if model.kind == "trained"]
FETCHED = sorted(set(STUDY.models) - {*FINE_TUNED, *TRAINED})
# A model with random weights is too small to be shared among threads.
MODEL_THREADS = 1 if any(model.kind == "random" for model in STUDY.models.values()) else 2


def processes_of(members):
    """Processes that train one of some crosscoders together, as a function of its wildcards."""
    chosen = {name: member.training.processes for name, member in members.items()}
    return lambda wildcards: chosen[wildcards.get("crosscoder") or wildcards.aligned]


def settings_of(stage):
    """The section of the settings that a stage gets, as a function of its wildcards."""

    return lambda wildcards: sections.section(
        STUDY,
        stage,
        **{name: value for name, value in wildcards.items() if name != "study"},
    )
