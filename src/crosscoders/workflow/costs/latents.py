"""What it costs to classify latents, to match them, to show, label and export them."""

from __future__ import annotations

from crosscoders.study import sizes
from crosscoders.study.queries.comparisons import data_setting
from crosscoders.study.queries.lineage import setting_models
from crosscoders.study.queries.trainings import comparable, seeds_of
from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs.terms import (
    GENERATION,
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

EXAMPLE_TOKENS = 23
"""Tokens of an example on a page of latents."""
EXAMPLE_BYTES = 230
"""Of an example on a page of latents, measured on the pair of the embedded study."""
COMPARED_BYTES = 100
"""Of the latents of another crosscoder that are nearest to one, on its page."""
EXPLAINED_TOKENS = 200
"""About how many tokens a question about a label has."""
SPAN, SPANNED = 128, 10**7
"""Most latents whose span is compared over seeds, and about the operations of doing so per column and pair of seeds."""
CHOOSING = 3
"""The methods without a dictionary that stand beside the crosscoders of a series take as long to score as so many of them."""
DOCUMENT_TOKENS = 60
"""About how many tokens a document has, where sums are kept per document."""


def classify_latents(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `classify_latents`."""
    coder, replicates = applied_size(study, setting, crosscoder), study.classification.bootstrap_replicates
    tokens = sizes.split_tokens(study, setting, "test") + sizes.split_tokens(study, setting, "validation")
    pairs = tokens * coder.active
    sources = len(study.settings[data_setting(study, setting)].contrast)
    kept = 2 * sources**2 + 1  # sums of latent scaling: of two targets for every two sources, and of squares
    sums = kept * replicates * coder.latents * 8  # under every resample
    resampling = kept * 2.0 * replicates * coder.latents * tokens / DOCUMENT_TOKENS
    work = 2 * pass_flops(coder, tokens) + SPARSE * 4.0 * sources * pairs * coder.width + resampling
    memory = (
        TORCH
        + 4 * coder.stored
        + 3 * sums
        + 60 * pairs
        + 2048 * 8 * coder.latents
        + mapped_bytes(study, setting, "test")
    )
    return Cost(memory, START[TORCH], products=work, disk=sums / 4 + 2 * MB, tokens=tokens, device=applied_bytes(coder))


def detect_planted(study: Study, setting: str, seed: str) -> Cost:
    """A job of the rule `detect_planted`."""
    chosen, replicates = study.settings[setting], study.classification.bootstrap_replicates
    validation, test = (sizes.split_tokens(study, setting, split) for split in ("validation", "test"))
    coders = [applied_size(study, setting, name) for name in chosen.crosscoders]
    models = setting_models(study, setting)
    held = sum(weight_bytes(study, name) for name in models)
    held += largest_model(study, setting, lambda study, name: 3 * logit_bytes(study, name, chosen.batch_tokens / 4))
    read = mapped_bytes(study, setting, "test") + mapped_bytes(study, setting, "validation")
    scored = replicates * test * (len(coders) + CHOOSING)
    return Cost(
        MODELS + held + read + max(applied_bytes(coder) + 8 * validation * coder.latents for coder in coders),
        START[MODELS] + 5e-7 * scored,
        forward=test * sum(sizes.model_size(study, name).flops() for name in models),
        products=sum(4 * pass_flops(coder, validation + test) for coder in coders),
        moved=sum(6 * logit_bytes(study, name, test) for name in models),
        disk=4e3 * replicates + MB,
        tokens=test,
        device=held,
    )


def match_seeds(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `match_seeds`."""
    coder, seeds = applied_size(study, setting, crosscoder), len(seeds_of(study, crosscoder))
    work = (2.0 * coder.latents**2 + SPANNED + 300.0 * SPAN * coder.latents) * coder.width * (seeds - 1)
    memory = TORCH + 4 * coder.stored + 2 * seeds * coder.stored + 8 * coder.latents * min(coder.latents, 4096)
    return Cost(memory, START[TORCH], products=work, disk=MB)


def trace_latents(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `trace_latents`."""
    coder, drawn = applied_size(study, setting, crosscoder), study.classification.null_permutations
    moments = len(study.settings[data_setting(study, setting)].through)
    work = 40.0 * drawn * coder.latents * moments + 20.0 * coder.latents * coder.width
    memory = TORCH + 6 * coder.stored + 8 * drawn * coder.latents
    return Cost(memory, START[TORCH], products=work, disk=40 * coder.latents * moments + MB)


def latent_page(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `latent_page`."""
    coder = applied_size(study, setting, crosscoder)
    tokens = sizes.split_tokens(study, setting, "test")
    vocabulary = max(sizes.model_size(study, name).vocabulary for name in setting_models(study, setting))
    shown = coder.latents * study.page.shown if study.page else 0
    work = 2.0 * coder.latents * vocabulary * coder.width + 2 * pass_flops(coder, tokens)
    others = [applied_size(study, setting, name) for name, _ in comparable(study, setting, crosscoder, int(seed))]
    compared = coder.latents + sum(other.latents for other in others)
    work += 2.0 * coder.latents * compared * coder.width + EXAMPLE_TOKENS * shown * 2.0 * coder.width
    memory = MODELS + 1.5 * largest_model(study, setting, weight_bytes) + 4 * coder.stored + 80 * tokens * coder.active
    memory += max((8 * other.stored for other in others), default=0)
    disk = shown * EXAMPLE_BYTES + coder.latents * (study.page.promoted * 50 + 300) if study.page else 0.0
    disk += coder.latents * COMPARED_BYTES * len(others)
    return Cost(memory + mapped_bytes(study, setting, "test"), START[MODELS], products=work, disk=disk, tokens=tokens)


def explain_latents(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `explain_latents`."""
    chosen, coder = study.settings[setting].explain, applied_size(study, setting, crosscoder)
    tokens = sizes.split_tokens(study, setting, "test")
    pairs = 80 * tokens * coder.active
    memory = TORCH + applied_bytes(coder) + pairs + mapped_bytes(study, setting, "test")
    latents = sum(dict(chosen.latents).values())
    if chosen.endpoint is not None:  # an answer takes about a second, and some are waited for at a time
        return Cost(memory, START[TORCH] + 0.2 * latents, products=pass_flops(coder, tokens), disk=MB, tokens=tokens)
    read = latents * (EXPLAINED_TOKENS + chosen.examples * 30 + GENERATION * chosen.label_tokens)
    read += latents * 4 * chosen.held_out * EXPLAINED_TOKENS
    work = read * sizes.model_size(study, chosen.model).flops()
    held = weight_bytes(study, chosen.model) + logit_bytes(study, chosen.model, 8 * EXPLAINED_TOKENS)
    memory += MODELS - TORCH + held
    return Cost(memory, START[MODELS], work, products=pass_flops(coder, tokens), disk=MB, tokens=read, device=held)


def export(study: Study, setting: str, crosscoder: str, seed: str, format_name: str) -> Cost:
    """A job of the rule `export`."""
    coder, tokens = applied_size(study, setting, crosscoder), sizes.split_tokens(study, setting, "test")
    if format_name not in ("delphi", "neuronpedia"):
        return Cost(TORCH + 16 * coder.stored, START[TORCH], disk=4.2 * coder.stored)
    pairs = tokens * coder.active
    memory = MODELS + applied_bytes(coder) + 200 * pairs + mapped_bytes(study, setting, "test")
    work, disk = pass_flops(coder, tokens), 30 * pairs + 8 * tokens
    if format_name == "neuronpedia":
        vocabulary = largest_model(study, setting, lambda study, name: sizes.model_size(study, name).vocabulary)
        work += 2.0 * coder.latents * vocabulary * coder.width
        memory += 1.5 * largest_model(study, setting, weight_bytes)
        disk = coder.latents * 40_000
    return Cost(memory, START[MODELS], products=work, disk=disk, tokens=tokens)
