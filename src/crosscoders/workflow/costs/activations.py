"""What it costs to extract activations, and to measure models where they are read."""

from __future__ import annotations

from crosscoders.study import sizes
from crosscoders.study.blocks import stored_sources
from crosscoders.study.queries.lineage import contrast_models
from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs.terms import (
    MB,
    MODELS,
    PLAIN,
    START,
    TORCH,
    Cost,
    hidden_bytes,
    largest_model,
    logit_bytes,
    mapped_bytes,
    weight_bytes,
)


def extract_activations(study: Study, setting: str, split: str, shard: str) -> Cost:
    """A job of the rule `extract_activations`."""
    chosen = study.settings[setting]
    tokens = sizes.split_tokens(study, setting, split) / chosen.shards[split]
    stored = tokens * sizes.stored_bytes(study, setting)
    deepest = sizes.deepest_layers(study, setting)
    work = tokens * sum(sizes.model_size(study, name).flops(layers) for name, layers in deepest.items())
    loaded = sum(weight_bytes(study, name) for name in deepest)
    hidden = largest_model(study, setting, lambda study, name: hidden_bytes(study, name, chosen.batch_tokens))
    memory = MODELS + loaded + 1.2 * stored + hidden
    return Cost(memory, START[MODELS], forward=work, disk=stored, tokens=tokens, device=loaded + hidden)


def extract_window(study: Study, setting: str, segment: str) -> Cost:
    """A job of the rule `extract_window`."""
    return extract_activations(study, setting, "train", "0")


def fit_normalisation(study: Study, setting: str) -> Cost:
    """A job of the rule `fit_normalisation`."""
    tokens = sizes.split_tokens(study, setting, "train")
    widths = sum(sizes.source_widths(study, setting).values())
    memory = PLAIN + mapped_bytes(study, setting, "train") + 8 * 16384 * widths
    return Cost(memory, START[PLAIN] + 2e-9 * tokens * widths, disk=20 * widths, tokens=tokens)


def measure_similarity(study: Study, setting: str) -> Cost:
    """A job of the rule `measure_similarity`."""
    tokens, widths = sizes.split_tokens(study, setting, "test"), sum(sizes.source_widths(study, setting).values())
    memory, work = (
        TORCH + mapped_bytes(study, setting, "test") + 8 * 8 * widths**2,
        2 * tokens * widths**2 + 60 * widths**3,
    )
    return Cost(memory, START[TORCH], products=work, disk=MB, tokens=tokens)


def spliced_tokens(study: Study, setting: str) -> float:
    """Test tokens on which reconstructions are spliced into the models."""
    return min(study.settings[setting].splice_tokens, sizes.split_tokens(study, setting, "test"))


def measure_ablations(study: Study, setting: str) -> Cost:
    """A job of the rule `measure_ablations`."""
    chosen, tokens = study.settings[setting], spliced_tokens(study, setting)
    passes = 1 + 2 * len(stored_sources(chosen))
    work = tokens * passes * largest_model(study, setting, lambda study, name: sizes.model_size(study, name).flops())
    held = largest_model(study, setting, weight_bytes) + largest_model(
        study, setting, lambda study, name: logit_bytes(study, name, chosen.batch_tokens / 4)
    )
    memory = MODELS + held + mapped_bytes(study, setting, "test")
    return Cost(memory, START[MODELS], forward=work, disk=MB, tokens=tokens * passes, device=held)


def measure_divergence(study: Study, setting: str) -> Cost:
    """A job of the rule `measure_divergence`."""
    chosen, models = study.settings[setting], contrast_models(study.settings[setting])
    tokens = min(chosen.divergence_tokens, sizes.split_tokens(study, setting, "test"))
    work = tokens * sum(sizes.model_size(study, name).flops() for name in models)
    logits = max(logit_bytes(study, name, chosen.batch_tokens / 4) for name in models)
    held = sum(weight_bytes(study, name) for name in models) + 6 * logits
    loaded = sum(4 * sizes.model_size(study, name).parameters for name in models)  # once more, for the weights' change
    memory, fixed = MODELS + max(held, loaded) + logits, START[MODELS] + 2e-9 * loaded
    return Cost(memory, fixed, forward=work, disk=MB, tokens=tokens, device=held)
