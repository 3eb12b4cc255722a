"""All problems of a study that no section of it shows by itself."""

from __future__ import annotations

from pathlib import Path

from crosscoders.study.settings.comparisons import DoseSeries, NullSetting, PlantedSetting, Setting, TransferSetting
from crosscoders.study.settings.crosscoders import PublishedSettings
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.comparisons import (
    notebook_problem,
    null_problems,
    planted_problems,
    series_problems,
    source_problems,
    through_problems,
    transfer_problems,
)
from crosscoders.study.validation.corpora import corpus_problems, split_problems, template_problems
from crosscoders.study.validation.crosscoders import aligned_problems, crosscoder_problems, published_problems
from crosscoders.study.validation.models import model_problems
from crosscoders.study.validation.texts import text_problems


def cross_checks(study: Study, path: Path = Path("config.yaml")) -> list[str]:
    """Problems that no section shows by itself; parts that are not valid by themselves are `None` and skipped."""
    problems: list[str] = []
    for name, model in study.models.items():
        problems += [f"models.{name}.{line}" for line in model_problems(study, model)]
    for name, corpus in study.corpora.items():
        problems += [f"corpora.{name}.{line}" for line in corpus_problems(study, corpus)]
    reads_text = any(isinstance(setting, Setting) for setting in study.settings.values())
    if reads_text:
        problems += split_problems(study.splits)
        if study.chat_template is None:
            problems.append("chat_template: missing; settings that read text need it")
    problems += template_problems(study)
    for name, crosscoder in study.crosscoders.items():
        if isinstance(crosscoder, PublishedSettings):
            problems += [f"crosscoders.{name}.{line}" for line in published_problems(study, crosscoder)]
        elif crosscoder is not None:
            problems += [f"crosscoders.{name}.{line}" for line in crosscoder_problems(crosscoder)]
    for name, member in study.aligned.items():
        if member is not None:
            problems += [f"aligned.{name}.{line}" for line in aligned_problems(member)]
    for name, setting in study.settings.items():
        if isinstance(setting, NullSetting):
            problems += [f"settings.{name}.{line}" for line in null_problems(study, setting)]
        elif isinstance(setting, TransferSetting):
            problems += [f"settings.{name}.{line}" for line in transfer_problems(study, setting)]
        elif isinstance(setting, DoseSeries):
            problems += [f"settings.{name}.{line}" for line in series_problems(study, setting)]
            problems += [f"settings.{name}.{line}" for line in notebook_problem(setting.notebook)]
        elif setting is not None:
            problems += [f"settings.{name}.{line}" for line in source_problems(study, setting)]
            problems += [f"settings.{name}.{line}" for line in notebook_problem(setting.notebook)]
        if isinstance(setting, Setting):
            problems += [f"settings.{name}.{line}" for line in text_problems(study, setting)]
            if setting.through is not None:
                problems += [f"settings.{name}.{line}" for line in through_problems(study, setting)]
        if isinstance(setting, PlantedSetting):
            problems += [f"settings.{name}.{line}" for line in planted_problems(study, setting)]
    seeds = getattr(study, "seeds", [])
    if len(set(seeds)) != len(seeds):
        problems.append(f"seeds: {seeds} repeats a seed; expected different ones")
    return problems + _name_problems(study)


def _name_problems(study: Study) -> list[str]:
    """Names that would give two things one file, or two rules one name.

    Some file systems do not tell capital letters from small ones, and names of rules have `_` for `-`.
    """
    problems = []
    for collection in ("models", "corpora", "settings", "crosscoders", "aligned"):
        seen: dict[str, str] = {}
        for name in getattr(study, collection):
            plain = name.casefold().replace("-", "_")
            if plain in seen:
                problems.append(f"{collection}.{name}: too like {seen[plain]!r}; expected names that differ in letters")
            seen.setdefault(plain, name)
    return problems
