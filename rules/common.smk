# Loads and checks the study; helpers that the rules share.
import sys

from crosscoders import checks, sections
from crosscoders.dependencies import code
from crosscoders.errors import UserError

STUDY_FILES = list(workflow.configfiles) or ["config.yaml"]
try:
    STUDY = checks.load(*STUDY_FILES, overrides=workflow.config_settings.config)
except UserError as error:
    sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))

RESULTS = f"results/{STUDY.study}"
# Large buffers on huge pages: a tenth off every training step and fine-tuning step, and no change of any number.
shell.prefix("export GLIBC_TUNABLES=glibc.malloc.hugetlb=1; ")
PLANTED = sections.planted_settings(STUDY)
GPU = int(STUDY.device == "cuda")
FETCHED = [name for name, model in STUDY.models.items() if model.kind != "fine_tuned"]
FINE_TUNED = [name for name, model in STUDY.models.items() if model.kind == "fine_tuned"]


def settings_of(stage):
    """The section of the settings that a stage gets, as a function of its wildcards."""

    return lambda wildcards: sections.section(
        STUDY,
        stage,
        **{name: value for name, value in wildcards.items() if name != "study"},
    )


def snapshots(wildcards):
    """Models that a setting reads."""
    return [f"{RESULTS}/models/{name}/provenance.json" for name in sections.setting_models(STUDY, wildcards.setting)]


def texts(wildcards):
    """Corpora that a setting takes tokens from."""
    return [f"{RESULTS}/text/{name}.nc" for name in sections.setting_corpora(STUDY, wildcards.setting)]


def shards(split):
    """Activation files of a split, as a function of the setting."""

    def files(wildcards):
        count = range(STUDY.settings[wildcards.setting].shards[split])
        return [f"{RESULTS}/activations/{wildcards.setting}/{split}/{shard:03d}.nc" for shard in count]

    return files


def over_trainings(stage, suffix="nc"):
    """One file of a stage per crosscoder and seed of a setting."""

    def files(wildcards):
        names = STUDY.settings[wildcards.setting].crosscoders
        folder = f"{RESULTS}/{stage}/{wildcards.setting}"
        return [f"{folder}/{name}/seed-{seed}.{suffix}" for name in names for seed in STUDY.seeds]

    return files


def behaviours(wildcards):
    """Measured behaviours of the pair that a setting compares, where the study planted them."""
    pair = sections.planted_pair(STUDY, wildcards.setting) if STUDY.behaviours else None
    return [f"{RESULTS}/behaviours/{pair[1]}.nc"] if pair else []


def executed(suffix):
    """The notebooks of all settings."""
    return [f"{RESULTS}/notebooks/{item.notebook}-{name}.{suffix}" for name, item in STUDY.settings.items()]
