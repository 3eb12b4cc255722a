# Loads and checks the study, and defines what the rules share.
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.settings import DeploymentMethod

from crosscoders.errors import UserError
from crosscoders.report import registry
from crosscoders.study import loading, places, sizes, surroundings
from crosscoders.study.queries import comparisons, lineage, measurements, trainings
from crosscoders.workflow import dependencies, jobs, progress, scheduling, sections, slurm
from crosscoders.workflow.costs import estimates

PROJECT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
# Another Snakefile may use this one as a `module`; the study is then what that one gives as `config`.
MODULE = not workflow.modifier.is_main_snakefile()


def of_project(path):
    """A file of this project, wherever Snakemake was started."""
    return str(places.from_here(PROJECT / path))


def code(*modules):
    """The source files of modules, as inputs of a rule."""
    return dependencies.code(*modules, folder=of_project("src/crosscoders"))


try:
    if MODULE:
        jobs.check_module(PROJECT, workflow.modifier.path_modifier.prefix)
        STUDY_FILES, CHANGES, CHANGED = [jobs.study_file(config) or of_project("config.yaml")], [], {}
    else:
        STUDY_FILES = [str(places.from_here(file)) for file in workflow.configfiles] or [of_project("config.yaml")]
        CHANGES, CHANGED = workflow.config_settings.config_args, workflow.config_settings.config
    STUDY = loading.load(*STUDY_FILES, overrides=CHANGED)
    if workflow.is_main_process and not workflow.output_settings.dryrun:
        jobs.respect_claim(f"results/{STUDY.study}", sys.argv)
    IMAGE = jobs.image(PROJECT, DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method)
except UserError as error:
    sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))

RESULTS = f"results/{STUDY.study}"
ENDPOINT_VARIABLES = surroundings.endpoint_variables(STUDY)
jobs.prepare(PROJECT, PROJECT / "Snakefile" if MODULE else workflow.main_snakefile, STUDY_FILES, CHANGES)
jobs.name_trackers(trainings.trackers(STUDY))
progress.begin(STUDY)
scheduling.look_once_per_timespan()
# Large buffers lie on huge pages, which makes training and fine-tuning steps about a tenth shorter (docs/decisions.md).
shell.prefix("export GLIBC_TUNABLES=glibc.malloc.hugetlb=1; ")
PLANTED = comparisons.planted_settings(STUDY)
SERIES = comparisons.series_settings(STUDY)
REPEATED = list(comparisons.series_of(STUDY))
PUBLISHED = trainings.published(STUDY)
OF_THIS_STUDY = "|".join(name for name in STUDY.crosscoders if name not in PUBLISHED) or "none"
PUBLISHED_SUFFIXES = (".json", ".safetensors", ".pt", ".nc")
IN_PARTS = sizes.paged_in_parts(STUDY)
GPU = int(STUDY.device == "cuda")
WINDOWED = [name for name in STUDY.settings if name not in PLANTED and trainings.windowed(STUDY, name)]
WHOLE = sorted(set(STUDY.settings) - {*WINDOWED, *PLANTED})
FINE_TUNED = [name for name, model in STUDY.models.items() if model.kind == "fine_tuned"]
PERTURBED = [name for name, model in STUDY.models.items() if model.kind in ("noised", "rounded")]
TRAINED = [name for name, model in STUDY.models.items() if model.kind == "trained"]
SNAPSHOTS = [name for name, model in STUDY.models.items() if model.kind == "snapshot"]
FETCHED = sorted(set(STUDY.models) - {*FINE_TUNED, *PERTURBED, *TRAINED, *SNAPSHOTS})
# A model with random weights is too small to be shared among threads.
MODEL_THREADS = 1 if any(model.kind == "random" for model in STUDY.models.values()) else 2


def processes_of(members):
    """Processes that train one of some crosscoders together, as a function of its wildcards."""
    return of_training(members, lambda training: training.processes)


def threads_of(members):
    """Threads of the processes that train one of some crosscoders together, as a function of its wildcards."""
    return of_training(members, lambda training: training.processes * training.threads)


def of_training(members, number):
    """A number that the training of one of some crosscoders says, as a function of its wildcards."""
    chosen = {name: number(member.training) for name, member in members.items() if name not in PUBLISHED}
    return lambda wildcards: chosen[wildcards.get("crosscoder") or wildcards.aligned]


def settings_of(stage):
    """The section of the settings that a stage gets, as a function of its wildcards."""

    return lambda wildcards: sections.section(
        STUDY,
        stage,
        **{name: value for name, value in wildcards.items() if name != "study"},
    )


def asks(rule, **fixed):
    """Memory, time and disk of a rule's jobs, computed from the study; every further try asks for more."""

    def named(wildcards):
        return fixed or {name: value for name, value in wildcards.items() if name != "study"}

    return {
        "mem": lambda wildcards, attempt: f"{estimates.megabytes(STUDY, rule, attempt, **named(wildcards))}MB",
        "runtime": lambda wildcards, attempt: f"{estimates.minutes(STUDY, rule, attempt, **named(wildcards))}m",
        "disk": lambda wildcards: f"{estimates.disk_megabytes(STUDY, rule, **named(wildcards))}MB",
    }
