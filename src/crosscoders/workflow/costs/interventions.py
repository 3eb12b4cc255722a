"""What it costs to patch, steer and ablate, and to simplify circuits."""

from __future__ import annotations

from crosscoders.study import sizes
from crosscoders.study.queries.lineage import setting_corpora, setting_models
from crosscoders.study.settings.comparisons import PlantedSetting
from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs.report import circuit_trial
from crosscoders.workflow.costs.terms import (
    FLOAT32,
    GENERATION,
    MB,
    MODELS,
    START,
    Cost,
    applied_size,
    hidden_bytes,
    largest_model,
    logit_bytes,
    mapped_bytes,
    pass_flops,
    weight_bytes,
)

INTERVENED = 2
"""A forward pass with an intervention in it takes so many times as long, with its hooks and its small batches."""
STEERED_SETS = 5
"""Sets of latents that steering chooses: by Δ, by ν, and one for each of three behaviours."""


def generate_responses(study: Study, setting: str) -> Cost:
    """A job of the rule `generate_responses`."""
    chosen = study.settings[setting]
    model = setting_models(study, setting)[-1]
    tokens = chosen.causal.prompts * (chosen.causal.new_tokens + 20)
    work = GENERATION * tokens * sizes.model_size(study, model).flops()
    held = 1.2 * weight_bytes(study, model) + hidden_bytes(study, model, 24 * 64)
    corpora = sum(sizes.corpus_bytes(study, name) for name in setting_corpora(study, setting))
    return Cost(MODELS + held + corpora, START[MODELS], forward=work, disk=MB, tokens=tokens, device=held)


def causal(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `causal`."""
    chosen, coder = study.settings[setting], applied_size(study, setting, crosscoder)
    conditions = 10 + 2 * (chosen.causal.random_sets + 4) + len(chosen.causal.components)
    models = list(setting_models(study, setting))
    tokens = chosen.causal.prompts * (chosen.causal.new_tokens + 20)
    work = tokens * conditions * sum(sizes.model_size(study, name).flops() for name in models) / 2
    held = sum(weight_bytes(study, name) for name in models) + 4 * coder.stored
    held += largest_model(study, setting, lambda study, name: 2 * logit_bytes(study, name, chosen.batch_tokens / 4))
    memory = MODELS + held + mapped_bytes(study, setting, "validation")
    return Cost(memory, START[MODELS], forward=work, disk=MB, tokens=tokens * conditions, device=held)


def steer(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `steer`."""
    chosen, coder = study.settings[setting], applied_size(study, setting, crosscoder)
    options, models = chosen.steering, list(setting_models(study, setting))
    directions = STEERED_SETS + options.random_sets + 1
    answers = 3 * options.prompts_per_behaviour * (2 + directions * (1 + len(options.strengths)))
    tokens = answers * (options.new_tokens + 20)
    each = sum(sizes.model_size(study, name).flops() for name in models) / len(models)
    # Base reads along while chat answers, and both models measure the losses of all answers.
    work = INTERVENED * tokens * each * (GENERATION + 2)
    held = sum(weight_bytes(study, name) for name in models) + 4 * coder.stored
    held += largest_model(study, setting, lambda study, name: logit_bytes(study, name, max(options.batch_answers, 256)))
    held += largest_model(study, setting, lambda study, name: hidden_bytes(study, name, options.batch_answers * 64))
    encoded = tokens / 2 * 2.0 * coder.latents * coder.width + pass_flops(
        coder, sizes.split_tokens(study, setting, "validation")
    )
    memory = MODELS + held + mapped_bytes(study, setting, "validation")
    return Cost(memory, START[MODELS], forward=work, products=encoded, disk=2 * MB, tokens=tokens, device=held)


def compare_effects(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `compare_effects`."""
    chosen, coder = study.settings[setting], applied_size(study, setting, crosscoder)
    options, models = chosen.equivalence, list(setting_models(study, setting))
    windows = options.latents * options.tokens_per_latent
    tokens = windows * min(0.6 * options.ablated_before, chosen.context)
    # Both models run once to the site and from there twice; chat a third time, with another latent ablated.
    work = (
        INTERVENED
        * FLOAT32
        * tokens
        * 3.5
        * largest_model(study, setting, lambda study, name: sizes.model_size(study, name).flops())
    )
    held = sum(weight_bytes(study, name) for name in models) * (2 if study.device == "cuda" else 1) + 4 * coder.stored
    batch = chosen.batch_tokens / 4
    held += largest_model(
        study, setting, lambda study, name: hidden_bytes(study, name, batch) + 4 * logit_bytes(study, name, batch / 16)
    )
    encoded = pass_flops(coder, sizes.split_tokens(study, setting, "test"))
    pairs = 24.0 * coder.active * sizes.split_tokens(study, setting, "test")
    memory = MODELS + held + pairs + mapped_bytes(study, setting, "test")
    return Cost(memory, START[MODELS], forward=work, products=encoded, disk=MB, tokens=tokens, device=held)


def circuits(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `circuits`."""
    chosen = study.settings[setting]
    options, coder = chosen.circuits, applied_size(study, setting, crosscoder)
    saes = applied_size(study, setting, options.saes)
    if isinstance(chosen, PlantedSetting):
        return circuit_trial(study, setting, crosscoder, seed)
    model = setting_models(study, setting)[0]
    work = 3.0 * options.interventions * chosen.context * sizes.model_size(study, model).flops()
    held = weight_bytes(study, model) + 8 * (coder.stored + saes.stored)
    held += logit_bytes(study, model, options.batch_tokens) + options.tokens * saes.active * 400
    memory = MODELS + held + mapped_bytes(study, setting, "test")
    return Cost(memory, START[MODELS] + 3, forward=work, disk=MB, tokens=options.tokens, device=held)
