"""What a job of each rule costs, and what it asks a cluster for."""

from __future__ import annotations

import math
from collections.abc import Callable

from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs.activations import (
    extract_activations,
    extract_window,
    fit_normalisation,
    measure_ablations,
    measure_divergence,
    measure_similarity,
)
from crosscoders.workflow.costs.crosscoders import (
    evaluate,
    evaluate_aligned,
    finish_training,
    import_crosscoder,
    train_aligned,
    train_crosscoder,
    train_segment,
)
from crosscoders.workflow.costs.data import (
    fetch_model,
    fetch_text,
    fine_tune,
    measure_behaviours,
    perturb,
    pretrain,
    take_snapshot,
    tokenize,
)
from crosscoders.workflow.costs.interventions import causal, circuits, compare_effects, generate_responses, steer
from crosscoders.workflow.costs.latents import (
    classify_latents,
    detect_planted,
    explain_latents,
    export,
    latent_page,
    match_seeds,
    trace_latents,
)
from crosscoders.workflow.costs.report import (
    circuit_trial,
    collate,
    collate_trials,
    html,
    index,
    manifest,
    notebook,
    report,
    summarise_power,
    trial,
)
from crosscoders.workflow.costs.terms import MB, Cost

TRIES = 3
"""A job that fails gets more memory and time at its next try, up to this many times as much."""
RULES: dict[str, Callable[..., Cost]] = {
    function.__name__: function
    for function in (
        fetch_model,
        fetch_text,
        pretrain,
        take_snapshot,
        fine_tune,
        perturb,
        measure_behaviours,
        tokenize,
        extract_activations,
        extract_window,
        fit_normalisation,
        measure_similarity,
        measure_ablations,
        measure_divergence,
        train_crosscoder,
        train_segment,
        finish_training,
        train_aligned,
        import_crosscoder,
        evaluate,
        evaluate_aligned,
        classify_latents,
        match_seeds,
        trace_latents,
        detect_planted,
        generate_responses,
        causal,
        steer,
        compare_effects,
        circuits,
        latent_page,
        explain_latents,
        export,
        trial,
        circuit_trial,
        collate,
        collate_trials,
        summarise_power,
        notebook,
        html,
        report,
        index,
        manifest,
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
