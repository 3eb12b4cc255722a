"""What it costs to train and to evaluate crosscoders."""

from __future__ import annotations

from dataclasses import replace

from crosscoders.study import sizes
from crosscoders.study.blocks import stored_sources
from crosscoders.study.queries.comparisons import data_setting
from crosscoders.study.queries.measurements import spliced
from crosscoders.study.queries.trainings import segments
from crosscoders.study.settings.crosscoders import CrosscoderSettings
from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs.activations import spliced_tokens
from crosscoders.workflow.costs.terms import (
    LARGEST_MAPPED,
    MB,
    MODELS,
    SPARSE,
    START,
    TORCH,
    Cost,
    applied_bytes,
    applied_size,
    largest_model,
    logit_bytes,
    mapped_bytes,
    pass_flops,
    weight_bytes,
)

ADAM_BYTES = 16
"""Bytes per weight that the optimizer moves, gradients fused in."""


def _training(study: Study, setting: str, name: str) -> Cost:
    """A training of a crosscoder, plain or aligned."""
    coder = applied_size(study, setting, name)
    member = study.crosscoders.get(name) or study.aligned[name]
    training = member.training
    moments = 8 if training.adam_moments == "float32" else 4
    weights = (8 + moments) * coder.stored  # weights, gradients and both moments
    prefixes = len(member.blocks) if isinstance(member, CrosscoderSettings) and member.nested else 1
    batch = training.batch_tokens * (3 * coder.latents + 8 * coder.width * prefixes) * 4
    # The encoder's product is dense and all others are sparse; a latent has `reads` columns on average.
    reads = coder.used / (2 * coder.latents)
    dense = 2.0 * training.tokens * coder.latents * reads
    return Cost(
        MODELS * training.processes + weights * training.replicas + batch + mapped_bytes(study, setting, "train"),
        START[MODELS] * training.processes,
        products=dense + SPARSE * 6.0 * training.tokens * coder.active * reads,
        moved=ADAM_BYTES * training.steps * coder.used,
        disk=4.2 * coder.stored,
        tokens=training.tokens,
        device=weights / training.ranks + batch / training.replicas,
    )


def train_crosscoder(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `train_crosscoder`."""
    return _training(study, setting, crosscoder)


def train_segment(study: Study, setting: str, crosscoder: str, seed: str, segment: str) -> Cost:
    """A part of a training; the state that it reads and writes holds weights and moments."""
    whole, data = _training(study, setting, crosscoder), data_setting(study, setting)
    share = 1 / segments(study, data)
    shard = sizes.split_tokens(study, setting, "train") / study.settings[data].shards["train"]
    mapped = min(shard * sizes.stored_bytes(study, setting), LARGEST_MAPPED) - mapped_bytes(study, setting, "train")
    state = 12.0 * applied_size(study, setting, crosscoder).stored
    return replace(
        whole,
        memory=whole.memory + mapped + 2 * state,
        products=whole.products * share,
        moved=whole.moved * share,
        tokens=whole.tokens * share,
        disk=state,
    )


def finish_training(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `finish_training`."""
    coder, tokens = applied_size(study, setting, crosscoder), sizes.split_tokens(study, setting, "validation")
    memory = MODELS + 40 * coder.stored + mapped_bytes(study, setting, "validation") + 8192 * coder.latents * 8
    disk = 4.2 * coder.stored
    return Cost(
        memory, START[MODELS], products=pass_flops(coder, tokens), disk=disk, tokens=tokens, device=16 * coder.stored
    )


def train_aligned(study: Study, setting: str, aligned: str, seed: str) -> Cost:
    """A job of the rule `train_aligned`."""
    return _training(study, setting, aligned)


def import_crosscoder(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `import_crosscoder`."""
    coder, tokens = applied_size(study, setting, crosscoder), sizes.split_tokens(study, setting, "validation")
    memory = TORCH + 20 * coder.stored + mapped_bytes(study, setting, "validation") + 2048 * (2 * coder.latents) * 4
    return Cost(memory, START[TORCH], products=pass_flops(coder, tokens), disk=4 * coder.stored, tokens=tokens)


def evaluate(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `evaluate`."""
    coder, tokens = applied_size(study, setting, crosscoder), sizes.split_tokens(study, setting, "test")
    products, forward, fixed = 2 * pass_flops(coder, tokens), 0.0, START[TORCH]
    held = applied_bytes(coder)
    memory = TORCH + held
    if spliced(study, setting):
        chosen, read = study.settings[setting], spliced_tokens(study, setting)
        passes = 1 + len(stored_sources(chosen))
        forward = (
            passes * read * largest_model(study, setting, lambda study, name: sizes.model_size(study, name).flops())
        )
        rebuilt = 2 * tokens * coder.width * 4
        memory += MODELS - TORCH + largest_model(study, setting, weight_bytes) + rebuilt
        memory += largest_model(study, setting, lambda study, name: logit_bytes(study, name, chosen.batch_tokens / 4))
        fixed = START[MODELS]
    memory += mapped_bytes(study, setting, "test")
    return Cost(memory, fixed, forward=forward, products=products, disk=MB, tokens=tokens, device=held)


def evaluate_aligned(study: Study, setting: str, aligned: str, seed: str) -> Cost:
    """A job of the rule `evaluate_aligned`."""
    coder, tokens = applied_size(study, setting, aligned), sizes.split_tokens(study, setting, "test")
    sources = len(sizes.source_widths(study, setting))
    work = 2.0 * tokens * coder.latents * coder.width * (1 + sources)
    memory = TORCH + 4 * coder.stored + 2048 * sources * 4 * (2 * coder.latents + 6 * coder.width)
    return Cost(memory + mapped_bytes(study, setting, "test"), START[TORCH], products=work, disk=MB, tokens=tokens)
