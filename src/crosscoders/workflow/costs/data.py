"""What it costs to fetch models and text, to train models, and to tokenize."""

from __future__ import annotations

from crosscoders.study import sizes
from crosscoders.study.queries.lineage import behaving_models, setting_corpora
from crosscoders.study.settings.models import NoisedModel, WheelModel
from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs.terms import (
    GENERATION,
    MB,
    MODELS,
    PLAIN,
    START,
    TORCH,
    Cost,
    hidden_bytes,
    logit_bytes,
    weight_bytes,
)


def fetch_model(study: Study, model: str) -> Cost:
    """A job of the rule `fetch_model`."""
    size = sizes.model_size(study, model)
    if isinstance(study.models[model], WheelModel):  # the GGUF file in float32, and its check
        return Cost(TORCH + 4 * size.parameters, START[MODELS] + 2e-8 * size.parameters, disk=2 * size.parameters)
    return Cost(MODELS, START[MODELS], disk=2 * size.parameters)


def fetch_text(study: Study, corpus: str) -> Cost:
    """A job of the rule `fetch_text`."""
    size = sizes.corpus_bytes(study, corpus)
    return Cost(PLAIN + 6 * size, START[PLAIN] + 2e-8 * size, disk=size)


def pretrain(study: Study, model: str) -> Cost:
    """A job of the rule `pretrain`."""
    chosen, size = study.models[model], sizes.model_size(study, model)
    tokens, corpora = (
        chosen.steps * chosen.batch_tokens,
        sum(sizes.corpus_bytes(study, name) for name in chosen.corpora),
    )
    layers = chosen.batch_tokens * size.depth * size.width * 108 + 2 * logit_bytes(study, model, chosen.batch_tokens)
    held, work = 16 * size.parameters + layers, 3 * size.flops() * tokens  # in steps that small, products are slow
    memory, disk = MODELS + held + 6 * corpora, 4 * size.parameters * (1 + len(chosen.snapshots or ()))
    return Cost(memory, START[MODELS], products=work, disk=disk, tokens=tokens, device=held)


def take_snapshot(study: Study, model: str) -> Cost:
    """A job of the rule `take_snapshot`."""
    written = 4 * sizes.model_size(study, model).parameters
    files = 1 + len(study.models[study.models[model].of].snapshots)  # whose checksums are compared
    return Cost(MODELS, START[MODELS], moved=files * written, disk=written)


def fine_tune(study: Study, model: str) -> Cost:
    """A job of the rule `fine_tune`."""
    chosen, size = study.models[model], sizes.model_size(study, model)
    tokens = chosen.steps * chosen.batch_tokens
    layers = chosen.batch_tokens * size.depth * size.width * 108 + 1.5 * logit_bytes(study, model, chosen.batch_tokens)
    held, work = 4 * size.parameters + layers, 3 * size.flops() * tokens
    return Cost(MODELS + held, START[MODELS], products=work, disk=4 * size.parameters, tokens=tokens, device=held)


def perturb(study: Study, model: str) -> Cost:
    """A job of the rule `perturb`."""
    size = sizes.model_size(study, model)
    models = 3 if isinstance(study.models[model], NoisedModel) else 2
    largest = 24 * size.vocabulary * size.width  # a tensor's noise, its change, and their norms in float64
    memory, disk = MODELS + 4 * models * size.parameters + largest, 4 * (size.parameters + size.vocabulary * size.width)
    return Cost(memory, START[MODELS] + 1.2e-8 * models * size.parameters, disk=disk)


def measure_behaviours(study: Study, model: str) -> Cost:
    """A job of the rule `measure_behaviours`."""
    prompts = 5 * study.behaviours.prompts_per_behaviour
    tokens = len(behaving_models(study, model)) * prompts * (study.behaviours.new_tokens + 20)
    work = GENERATION * tokens * sizes.model_size(study, model).flops()
    held = 1.5 * weight_bytes(study, model) + hidden_bytes(study, model, 24 * 64)
    return Cost(MODELS + held, START[MODELS], forward=work, disk=MB, tokens=tokens, device=held)


def tokenize(study: Study, setting: str) -> Cost:
    """A job of the rule `tokenize`."""
    tokens = sum(sizes.split_tokens(study, setting, split) for split in study.settings[setting].tokens)
    corpora = sum(sizes.corpus_bytes(study, name) for name in setting_corpora(study, setting))
    memory, fixed = PLAIN + 2 * corpora + 200 * tokens, START[PLAIN] + 2e-6 * tokens
    return Cost(memory, fixed, disk=40 * tokens, tokens=tokens)
