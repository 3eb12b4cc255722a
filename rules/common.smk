# Loads and checks the study; helpers that the rules share.
import ast
import sys
from pathlib import Path

from crosscoders import checks, sections
from crosscoders.errors import UserError

STUDY_FILES = list(workflow.configfiles) or ["config.yaml"]
try:
    STUDY = checks.load(*STUDY_FILES)
except UserError as error:
    sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))

GPU = int(STUDY.device == "cuda")
FETCHED = [name for name, model in STUDY.models.items() if model.kind != "fine_tuned"]
FINE_TUNED = [
    name for name, model in STUDY.models.items() if model.kind == "fine_tuned"
]


wildcard_constraints:
    study=STUDY.study,
    setting="|".join(STUDY.settings),
    crosscoder="|".join(STUDY.crosscoders),
    corpus="|".join(STUDY.corpora),
    notebook="|".join(sorted({setting.notebook for setting in STUDY.settings.values()})),
    split="train|validation|test",
    shard=r"\d{3}",
    seed=r"\d+",


def settings_of(stage):
    """The section of the settings that a stage gets, as a function of its wildcards."""

    def section(wildcards):
        names = {name: value for name, value in wildcards.items() if name != "study"}
        return sections.section(STUDY, stage, **names)

    return section


def code(module):
    """Source files of a module and of the first-party modules it imports: editing one reruns what depends on it."""
    folder, found, waiting = Path("src/crosscoders"), set(), {module}
    while waiting:
        path = folder / f"{waiting.pop()}.py"
        found.add(str(path))
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if names == ["crosscoders"]:
                names = [f"crosscoders.{alias.name}" for alias in node.names]
            modules = {
                name.split(".")[1] for name in names if name.startswith("crosscoders.")
            }
            waiting |= {
                name for name in modules if str(folder / f"{name}.py") not in found
            }
    return sorted(found)


def snapshots(wildcards):
    """Models that a setting reads."""
    names = sections.setting_models(STUDY, wildcards.setting)
    return [f"results/{STUDY.study}/models/{name}/provenance.json" for name in names]


def texts(wildcards):
    """Corpora that a setting takes tokens from."""
    names = sections.setting_corpora(STUDY, wildcards.setting)
    return [f"results/{STUDY.study}/text/{name}.nc" for name in names]


def shards(split):
    """Activation files of a split, as a function of the setting."""

    def files(wildcards):
        count = STUDY.settings[wildcards.setting].shards[split]
        folder = f"results/{STUDY.study}/activations/{wildcards.setting}/{split}"
        return [f"{folder}/{shard:03d}.nc" for shard in range(count)]

    return files


def over_trainings(stage, suffix="nc"):
    """One file of a stage per crosscoder and seed of a setting."""

    def files(wildcards):
        names = STUDY.settings[wildcards.setting].crosscoders
        folder = f"results/{STUDY.study}/{stage}/{wildcards.setting}"
        return [
            f"{folder}/{name}/seed-{seed}.{suffix}"
            for name in names
            for seed in STUDY.seeds
        ]

    return files


def behaviours(wildcards):
    """Measured behaviours of the pair that a setting compares, where the study planted them."""
    pair = sections.planted_pair(STUDY, wildcards.setting) if STUDY.behaviours else None
    return [f"results/{STUDY.study}/behaviours/{pair[1]}.nc"] if pair else []


def executed(suffix):
    """The notebooks of all settings."""
    return [
        f"results/{STUDY.study}/notebooks/{setting.notebook}-{name}.{suffix}"
        for name, setting in STUDY.settings.items()
    ]
