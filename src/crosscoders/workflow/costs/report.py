"""What trials with planted truth, summaries, notebooks and the report cost."""

from __future__ import annotations

from crosscoders.study import sizes
from crosscoders.study.queries.comparisons import cells_of
from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs.terms import MB, PLAIN, START, TORCH, Cost, applied_size


def trial(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `trial`."""
    chosen, coder = study.settings[setting], sizes.crosscoder_size(study, setting, crosscoder)
    member = study.crosscoders[crosscoder]
    drawn = sum(chosen.tokens.values()) * sum(sizes.source_widths(study, setting).values()) * 4
    concepts = sum(chosen.planted.concepts.values()) * sum(chosen.tokens.values()) * 8
    weights = 16 * coder.stored + member.training.batch_tokens * (3 * coder.latents + 8 * coder.width) * 4
    work = 5 * member.training.tokens * coder.training_flops  # small products are slow
    fixed = START[TORCH] + 1e-8 * concepts + 0.0015 * member.training.steps
    memory = TORCH + 3 * drawn + 2 * concepts + weights
    return Cost(memory, fixed, products=work, disk=MB, tokens=member.training.tokens)


def circuit_trial(study: Study, setting: str, crosscoder: str, seed: str) -> Cost:
    """A job of the rule `circuit_trial`."""
    own, saes = (trial(study, setting, name, seed) for name in (crosscoder, study.settings[setting].circuits.saes))
    memory, fixed = own.memory + saes.memory - TORCH, own.fixed + saes.fixed
    return Cost(memory, fixed, products=own.products + saes.products, disk=MB, tokens=own.tokens)


def collate(study: Study, setting: str) -> Cost:
    """A job of the rule `collate`."""
    chosen = study.settings[setting]
    names, seeds = chosen.crosscoders, len(study.seeds)
    latents = max(applied_size(study, setting, name).latents for name in names)
    size = len(names) * seeds * latents * (200 + 8 * 3) + 2 * MB
    return Cost(PLAIN + 6 * size, START[PLAIN] + 0.1 * len(names) * seeds, disk=size)


def collate_trials(study: Study, setting: str) -> Cost:
    """A job of the rule `collate_trials`."""
    files = len(study.settings[setting].crosscoders) * len(study.seeds)
    return Cost(PLAIN + MB * files / 4, START[PLAIN] + 0.03 * files, disk=MB)


def summarise_power(study: Study, setting: str) -> Cost:
    """A job of the rule `summarise_power`."""
    files = len(cells_of(study, setting)) * len(study.seeds)
    return Cost(PLAIN + 12 * MB * files, START[PLAIN] + 0.1 * files, disk=2 * MB)


def notebook(study: Study, setting: str) -> Cost:
    """A job of the rule `notebook`."""
    return Cost(PLAIN + 350 * MB, 8.0, disk=5 * MB)


def html(study: Study, **wildcards: str) -> Cost:
    """A job of the rule `html`."""
    return Cost(PLAIN, START[PLAIN] + 0.5, disk=3 * MB)


def report(study: Study) -> Cost:
    """A job of the rule `report`."""
    return Cost(PLAIN + 250 * MB, 4.0, disk=20 * MB)


def index(study: Study) -> Cost:
    """A job of the rule `index`."""
    return Cost(PLAIN + 250 * MB, START[PLAIN] + 1, disk=MB)


def manifest(study: Study) -> Cost:
    """A job of the rule `manifest`."""
    return Cost(PLAIN / 2, START[PLAIN] + 2, disk=MB)
