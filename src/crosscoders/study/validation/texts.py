"""Problems of settings whose sources are extracted from models that read text."""

from __future__ import annotations

from crosscoders.study.blocks import stored_sources
from crosscoders.study.settings.base import SPLITS
from crosscoders.study.settings.comparisons import Setting, Source
from crosscoders.study.settings.crosscoders import CrosscoderSettings
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.comparisons import model_widths, width_problems
from crosscoders.study.validation.interventions import (
    causal_problems,
    circuit_problems,
    equivalence_problems,
    steering_problems,
)
from crosscoders.study.validation.models import model_shape
from crosscoders.study.validation.names import unknown_name


def text_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of sources that are extracted from models."""
    problems = []
    seen: dict[Source, str] = {}
    for name, source in stored_sources(setting).items():
        if not isinstance(source, Source):
            problems.append(f"sources.{name}: expected model and layer")
            continue
        problems += unknown_name(f"sources.{name}.model", source.model, study.models)
        if source in seen:
            problems.append(f"sources.{name}: the same model, layer and hook as {seen[source]!r}")
        seen.setdefault(source, name)
        model = study.models.get(source.model)
        depth, context = model_shape(study, model)
        if depth is not None and source.layer >= depth:
            problems.append(f"sources.{name}.layer: {source.layer} is not below the depth {depth} of {source.model!r}")
        if context is not None and setting.context > context:
            problems.append(f"context: {setting.context} exceeds the {context} tokens that {source.model!r} takes")
    problems += width_problems(study, setting, model_widths(study, setting))
    for name in setting.aligned:
        problems += unknown_name("aligned", name, study.aligned)
    if setting.null_of is not None:
        problems += unknown_name("null_of", setting.null_of, study.settings)
        if study.settings.get(setting.null_of) is setting:
            problems.append(f"null_of: {setting.null_of!r} is the setting itself; expected another one")
    problems += _divergence_problems(study, setting)
    if setting.causal and setting.alignment == "tokens":  # else it is left out
        problems += causal_problems(study, setting)
    if setting.steering:
        problems += steering_problems(study, setting)
    if setting.equivalence:
        problems += equivalence_problems(study, setting)
    if setting.circuits:
        problems += circuit_problems(study, setting)
    if setting.explain and setting.explain.model is not None:
        problems += unknown_name("explain.model", setting.explain.model, study.models)
    if setting.activations.keep == "window":
        problems += _window_problems(study, setting)
    problems += _token_problems(study, setting)
    return list(dict.fromkeys(problems))


def _token_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of the numbers of tokens and shards."""
    problems = []
    for split in SPLITS:
        tokens = setting.tokens.get(split)
        if tokens is None or split not in setting.shards:
            key = "tokens" if tokens is None else "shards"
            problems.append(f"{key}.{split}: missing; expected a number for every split")
            continue
        for corpus in tokens:
            problems += unknown_name(f"tokens.{split}", corpus, study.corpora)
        if sum(tokens.values()) == 0:
            problems.append(f"tokens.{split}: 0 tokens in all; expected some")
    return problems


def _divergence_problems(study: Study, setting: Setting) -> list[str]:
    """Whether the contrast has two models to compare."""
    contrast = [setting.sources.get(name) for name in (setting.contrast[0], setting.contrast[-1])]
    models = [source.model for source in contrast if isinstance(source, Source)]
    if not setting.divergence_tokens or len(models) < 2 or models[0] != models[1]:
        return []
    ends = "both sources" if len(setting.contrast) == 2 else "the first and the last source"
    return [f"divergence_tokens: {ends} of the contrast are of {models[0]!r}; expected two models, or 0"]


def _window_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of trainings whose activations pass through a window."""
    problems = []
    if setting.aligned:
        problems.append(f"aligned: {setting.aligned} with activations.keep = 'window'; expected keep: all, or none")
    if "train" not in setting.tokens or "train" not in setting.shards:
        return problems  # said elsewhere
    shard = sum(setting.tokens["train"].values()) // setting.shards["train"]
    for name in setting.crosscoders:
        member = study.crosscoders.get(name)
        if not isinstance(member, CrosscoderSettings):
            continue
        training, parts = member.training, setting.shards["train"]
        if training.batch_tokens > shard:
            problems.append(
                f"activations.window: a shard has about {shard:,} tokens, fewer than batch_tokens = "
                f"{training.batch_tokens:,} of {name!r}; expected fewer shards.train or a smaller batch"
            )
        if training.steps < parts:
            problems.append(
                f"activations.window: {name!r} takes {training.steps} steps on {parts} shards; expected a step for each"
            )
    return problems
