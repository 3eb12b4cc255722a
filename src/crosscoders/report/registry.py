"""The figures, each declared once: what it shows, who draws it, where it belongs, and when a study has it.

Notebooks, the files that Snakemake expects, and docs/figures.md all read this list. Functions that draw are named, not
imported, so that Snakemake reads the list without loading a plotting library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crosscoders.study.contrasts import SEVERAL
from crosscoders.study.queries.comparisons import drawn_settings, nulls_of, transfers_of
from crosscoders.study.queries.lineage import planted_pair
from crosscoders.study.queries.measurements import (
    circuits_of,
    compared,
    explained,
    patched,
    rounded_nulls,
    steered,
    traced,
)
from crosscoders.study.queries.trainings import aligned_of, members_of, repeated
from crosscoders.study.settings.study import Study

NOTEBOOKS = (
    "cross_layer",
    "model_diffing",
    "through_training",
    "layers",
    "pre_post_mlp",
    "compare",
    "planted",
    "planted_layers",
    "dose",
)
BOTH = ("cross_layer", "model_diffing", "through_training", "pre_post_mlp", "compare")
"""Notebooks of settings that train on activations of models."""


def _always(study: Study, setting: str) -> bool:
    return True


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes
    ----------
    id : str
        Name of its files, and of its place in a notebook.
    caption : str
        What it shows.
    draw : str
        `module.function` of this room.
    notebooks : tuple of str
        Notebooks that draw it.
    reads : tuple of str
        What the function gets: attributes of :class:`crosscoders.report.results.Results`.
    words : str
        `module.function` of this room that describes the figure in sentences, from the same attributes; empty where
        none does.
    needs : tuple of str
        Variables of the summary, or `nulls` or `transfers`, without which there is nothing to draw.
    absent : str
        The sentence that a reader finds where there is nothing to draw.
    expected : (study, setting) → bool
        Whether a setting's notebook has it.
    paper : str
        Papers whose figure it is.
    studies : tuple of str
        Studies that show it best; the picture in docs/figures.md is the first one's.
    finding : str
        What the picture in docs/figures.md shows.
    leads : int
        How many lines of its words stand on the front page of a study; none where 0.
    """

    id: str
    caption: str
    draw: str
    notebooks: tuple[str, ...]
    reads: tuple[str, ...] = ("summary",)
    words: str = ""
    needs: tuple[str, ...] = ()
    absent: str = ""
    expected: Callable[[Study, str], object] = _always
    paper: str = ""
    studies: tuple[str, ...] = ("embedded",)
    finding: str = ""
    leads: int = 0


MODEL_DIFFING, CROSS_LAYER, LAYERS = ("model_diffing",), ("cross_layer",), ("layers",)
THROUGH = ("through_training",)
PAIR = ("pair",)
NO_ORDER = (
    "The sources of this setting stand in no order of training; `through` in `studies/through-training.yaml` gives one."
)
SCRATCH_FIRST = ("from-scratch-pair", "embedded")

FIGURES = (
    Figure(
        "training",
        "Error, sparsity and dead latents over training",
        "figures.training_curves",
        BOTH,
        needs=("training_l0",),
        absent="All crosscoders of this setting were trained elsewhere; their training curves are not known.",
    ),
    Figure(
        "evaluation",
        "Variance explained and loss recovered on test documents",
        "figures.evaluation",
        BOTH,
        words="prose.evaluation",
        leads=4,
    ),
    Figure(
        "l24-loss-vs-features",
        "Loss against total features, crosscoder and an SAE per layer",
        "layer_figures.loss_against_features",
        LAYERS,
        paper="[L24]",
        studies=("layers",),
        finding="SAEs per source need about five times as many latents for one loss.",
    ),
    Figure(
        "l24-loss-vs-flops",
        "Loss against training FLOPs",
        "layer_figures.loss_against_flops",
        LAYERS,
        words="prose.sizes",
        paper="[L24]",
        studies=("layers",),
        finding="At equal FLOPs both reach the same loss.",
        leads=3,
    ),
    Figure(
        "l24-mse-vs-l0",
        "Normalised error against latents per token, FLOP-matched pairs joined",
        "layer_figures.error_against_l0",
        LAYERS,
        words="prose.sparsities",
        paper="[L24]",
        studies=("layers",),
        finding="For one error SAEs per source need 6 to 8 times as many active latents.",
        leads=3,
    ),
    Figure(
        "l24-norms-by-layer",
        "Decoder norm by layer",
        "layer_figures.norms_by_layer",
        CROSS_LAYER,
        ("spanning",),
        words="prose.layers",
        paper="[L24]",
        leads=3,
    ),
    Figure(
        "l24-drift",
        "Direction against norm, and mean cosine between layers",
        "layer_figures.drift",
        CROSS_LAYER,
        ("spanning",),
        paper="[L24]",
    ),
    Figure(
        "l24-mlp-trimodal",
        "Relative norm of a crosscoder from before an MLP to after it",
        "diffing_figures.relative_norm",
        ("pre_post_mlp",),
        words="prose.relative_norms",
        paper="[L24]",
        studies=("layers",),
        finding="Not trimodal at this size and budget: few latents of L1, none of BatchTopK, are written to one source "
        "alone.",
        leads=2,
    ),
    Figure(
        "l24-relative-norm",
        "Relative decoder norm of two models",
        "diffing_figures.relative_norm",
        MODEL_DIFFING,
        PAIR,
        paper="[L24, K24]",
    ),
    Figure(
        "l24-shared-cosine",
        "Cosine of shared latents' decoder vectors",
        "diffing_figures.shared_cosine",
        MODEL_DIFFING,
        PAIR,
        paper="[L24, K24]",
    ),
    Figure(
        "ours-simplex",
        "Relative norms of three sources or more, and latents by the subset of sources that they are written to",
        "simplex_figures.simplex",
        ("cross_layer", "model_diffing"),
        ("pair", "nulls"),
        words="simplex_figures.sentences",
        needs=("subset_count",),
        absent="The contrast of this setting names two sources, of which Δ says all; `studies/three-models.yaml` has three.",
        expected=lambda study, setting: len(study.settings[setting].contrast) >= SEVERAL,
        studies=("three-models",),
        leads=3,
    ),
    Figure(
        "m25-penalty-field",
        "Gradient field of the L1 penalties (analytic)",
        "diffing_figures.penalty_field",
        MODEL_DIFFING,
        (),
        paper="[M25]",
    ),
    Figure(
        "m25-delta-histogram",
        "Relative norm by class, chat-specific latents outlined",
        "diffing_figures.delta_histogram",
        MODEL_DIFFING,
        PAIR,
        words="prose.classes",
        paper="[M25]",
        studies=SCRATCH_FIRST,
        finding="L1 calls 210 latents chat-only, BatchTopK none. On the embedded pair hardly any latent reaches Δ of "
        "0.9, as the notebook says there.",
        leads=3,
    ),
    Figure(
        "m25-nu-scatter",
        "ν of error against ν of reconstruction",
        "diffing_figures.nu_scatter",
        MODEL_DIFFING,
        PAIR,
        words="prose.scaling",
        paper="[M25]",
        studies=SCRATCH_FIRST,
        finding="Most chat-leaning latents of L1 fail latent scaling.",
    ),
    Figure(
        "m25-nu-threshold-counts",
        "Latents with both ν below a threshold, at equal counts",
        "diffing_figures.nu_threshold_counts",
        MODEL_DIFFING,
        PAIR,
        paper="[M25]",
        studies=SCRATCH_FIRST,
    ),
    Figure(
        "m25-delta-vs-rank",
        "Relative norm against rank by ν",
        "diffing_figures.delta_vs_rank",
        MODEL_DIFFING,
        PAIR,
        paper="[M25]",
        studies=("embedded", "from-scratch-pair"),
    ),
    Figure(
        "m25-cosine-by-class",
        "Decoder cosine by class",
        "diffing_figures.cosine_by_class",
        MODEL_DIFFING,
        PAIR,
        paper="[M25]",
        studies=SCRATCH_FIRST,
    ),
    Figure(
        "m25-twin-divergence",
        "Divergence of twins, chat-only and base-only latents of one direction",
        "diffing_figures.twin_divergence",
        MODEL_DIFFING,
        PAIR,
        paper="[M25]",
        studies=SCRATCH_FIRST,
        finding="30 twins of L1 over three seeds, none of BatchTopK.",
    ),
    Figure(
        "m25-template",
        "ν and template tokens",
        "diffing_figures.template",
        MODEL_DIFFING,
        PAIR,
        paper="[M25]",
        studies=("embedded", "from-scratch-pair"),
    ),
    Figure(
        "m25-kl-bars",
        "KL by patch and segment of the response, with controls",
        "diffing_figures.divergence",
        MODEL_DIFFING,
        words="prose.causal",
        needs=("gap_closed",),
        absent="This setting patches nothing: it does not ask for it, or its models have different tokenizers.",
        expected=patched,
        paper="[M25]",
        finding="All latents together bring base's lower half back to the chat model, but so do eight principal "
        "components of the difference; random sets as frequent and as large close at most 5%.",
        leads=3,
    ),
    Figure(
        "ours-steering",
        "Planted behaviours with sets of latents added to base and ablated from chat",
        "causal_figures.steering",
        MODEL_DIFFING,
        words="causal_figures.steering_sentences",
        needs=("steering_rate",),
        absent="This setting steers nothing: it does not ask for it.",
        expected=steered,
        leads=4,
    ),
    Figure(
        "ours-cosine-vs-causal",
        "Effects of shared latents in both models against the cosine of their decoder vectors",
        "causal_figures.cosine_against_causal",
        MODEL_DIFFING,
        words="causal_figures.equivalence_sentences",
        needs=("effect_correlation",),
        absent="This setting compares no effects of latents: it does not ask for it.",
        expected=compared,
        leads=4,
    ),
    Figure(
        "ours-labels",
        "How well labels tell where latents fire, beside shuffled labels, by what latents were chosen by",
        "label_figures.labels",
        (*BOTH, *LAYERS),
        words="label_figures.label_sentences",
        needs=("labels_score",),
        absent="This setting labels no latents: it does not ask for it; `studies/labels.yaml` does.",
        expected=lambda study, setting: setting in explained(study),
        studies=("labels",),
        finding="A model of 135 million parameters does not label: one label of 173 passes.",
        leads=4,
    ),
    Figure(
        "d26-planted",
        "Recall and false positives by member and size",
        "planted_figures.recall_and_false_positives",
        ("planted", "planted_layers"),
        words="planted_figures.sentences",
        paper="[D26]",
        studies=("planted",),
        leads=6,
    ),
    Figure(
        "ours-confusion",
        "What every member calls planted concepts",
        "planted_figures.confusion",
        ("planted",),
        studies=("planted",),
    ),
    Figure(
        "ours-onset",
        "Where latents of planted concepts begin",
        "planted_figures.onset",
        ("planted_layers",),
        studies=("planted",),
    ),
    Figure(
        "ours-planted-enrichment",
        "Lift of planted behaviours by quantile of Δ",
        "diffing_figures.planted_enrichment",
        MODEL_DIFFING,
        PAIR,
        words="prose.enrichment",
        finding="The highest Δ fall on what the fine-tune introduced.",
        leads=4,
    ),
    Figure(
        "ours-behaviour-rates",
        "Planted behaviours before and after the fine-tune",
        "diffing_figures.behaviour_rates",
        MODEL_DIFFING,
        words="prose.behaviours",
        needs=("behaviour_rate",),
        absent="No behaviour was planted in these models.",
        expected=lambda study, setting: study.behaviours and planted_pair(study, setting),
        leads=6,
    ),
    Figure(
        "ours-nulls",
        "Rates of chat-only and chat-specific latents, and enrichment at the highest Δ, beside the nulls",
        "null_figures.nulls",
        MODEL_DIFFING,
        ("pair", "nulls"),
        words="null_figures.null_sentences",
        needs=("nulls",),
        absent="This study has no null controls; `studies/nulls.yaml` has.",
        expected=nulls_of,
        studies=("nulls", "nulls-weights"),
        finding="Counts on the real pair are those of a neutral fine-tune.",
        leads=6,
    ),
    Figure(
        "ours-rounding",
        "What rounding the weights changes, against bits, beside the fine-tune and other nulls",
        "weight_figures.rounding",
        MODEL_DIFFING,
        ("pair", "nulls"),
        words="weight_figures.sentences",
        needs=("nulls",),
        absent="This study has no null whose weights are rounded; `studies/nulls-weights.yaml` has.",
        expected=rounded_nulls,
        studies=("nulls-weights",),
    ),
    Figure(
        "ours-stability",
        "Class counts, matched latents and spanned spaces over seeds",
        "null_figures.stability",
        ("model_diffing", "compare"),
        ("pair", "nulls"),
        words="null_figures.stability_sentences",
        needs=("matched_cosine",),
        absent="This setting trains no crosscoder with more than one seed.",
        expected=repeated,
    ),
    Figure(
        "ours-transfer",
        "A pair's crosscoders on another fine-tune",
        "null_figures.transfer",
        MODEL_DIFFING,
        ("pair", "transfers"),
        words="null_figures.transfer_sentences",
        needs=("transfers",),
        absent="This setting's crosscoders are measured nowhere else; `studies/nulls.yaml` has an example.",
        expected=transfers_of,
        studies=("nulls", "transfer"),
        finding="The pair's crosscoders explain less of another fine-tune's chat model than of base.",
    ),
    Figure(
        "ours-circuits",
        "Nodes, edges and identity share of SAE graphs, before and after collapse",
        "layer_figures.circuits",
        ("cross_layer", "planted_layers"),
        words="prose.circuits",
        needs=("circuit_nodes_per_token",),
        absent="This setting measures no circuits.",
        expected=circuits_of,
        studies=("embedded", "planted"),
        leads=4,
    ),
    Figure(
        "ours-similarity",
        "CKA and SVCCA of sources, beside the crosscoders' cosines",
        "layer_figures.similarity",
        (*CROSS_LAYER, "through_training"),
        ("spanning",),
        words="prose.similarity",
    ),
    Figure(
        "ours-emergence",
        "When latents emerge and vanish in training, beside chance",
        "through_figures.emergence",
        THROUGH,
        ("summary", "nulls"),
        words="through_figures.emergence_sentences",
        needs=("trace_emerged",),
        absent=NO_ORDER,
        expected=traced,
        studies=("through-training",),
        leads=4,
    ),
    Figure(
        "ours-rotation",
        "Cosine of latents' decoder vectors between snapshots of a training, beside chance",
        "through_figures.rotation",
        THROUGH,
        ("summary", "nulls"),
        words="through_figures.rotation_sentences",
        needs=("trace_before",),
        absent=NO_ORDER,
        expected=traced,
        studies=("through-training",),
        leads=4,
    ),
    Figure(
        "ours-aligned",
        "Source to source variance explained by the aligned crosscoder",
        "null_figures.aligned",
        ("cross_layer", "model_diffing", "compare"),
        needs=("aligned_overlap",),
        absent="This setting trains no aligned crosscoder.",
        expected=aligned_of,
        studies=("compare", "transfer"),
        finding="A code of one model rebuilds the other nearly as well as its own.",
    ),
    Figure(
        "ours-compare",
        "Members at matched L0",
        "comparison.compare",
        ("compare",),
        words="comparison.as_markdown",
        studies=("compare",),
    ),
    Figure(
        "ours-budgets",
        "Members against the tokens that they saw in training",
        "budget_figures.budgets",
        ("compare",),
        words="budget_figures.sentences",
        needs=("member",),
        absent="The members of this setting are trained for one number of tokens; `studies/budgets.yaml` has several.",
        expected=lambda study, setting: (
            len(set(members_of(study, setting).values())) < len(study.settings[setting].crosscoders)
        ),
        studies=("budgets",),
        finding="The order of the members stays over four times the tokens, and the gap between L1 and the others grows; "
        "the lift of the highest Δ is lower for each at the end.",
        leads=2,
    ),
    Figure(
        "ours-power",
        "AUC and power of every method against the dose of what was planted",
        "power_figures.power",
        ("dose",),
        words="power_figures.sentences",
        needs=("power",),
        absent="This setting is no series over doses; `studies/dose.yaml` has one.",
        studies=("dose-small", "dose"),
        finding="The norm of the difference and the mean difference detect six of eight pairs of behaviour and seed at a dose "
        "at which the asked model shows none; the strongest latents of crosscoders stay near chance.",
        leads=3,
    ),
)

BY_ID = {figure.id: figure for figure in FIGURES}


def figures_of(notebook: str) -> list[Figure]:
    """The figures that a notebook draws, in the order of the list."""
    return [figure for figure in FIGURES if notebook in figure.notebooks]


def expected_figures(study: Study, setting: str) -> dict[str, str]:
    """Id of every figure that a setting's notebook draws, and the name of its files without suffix.

    Where two settings draw the same figure, the setting's name is appended.

    Parameters
    ----------
    study : Study
    setting : str

    Returns
    -------
    {id: name}
    """
    notebooks = {name: study.settings[name].notebook for name in drawn_settings(study)}
    drawn = [figure for figure in figures_of(notebooks[setting]) if figure.expected(study, setting)]

    def shared(figure: Figure) -> bool:
        return sum(notebook in figure.notebooks for notebook in notebooks.values()) > 1

    return {figure.id: f"{figure.id}-{setting}" if shared(figure) else figure.id for figure in drawn}


def leading(study: Study, setting: str) -> dict[str, int]:
    """The figures of a setting that stand on the front page, and how many lines of their words: {id: lines}."""
    return {name: BY_ID[name].leads for name in expected_figures(study, setting) if BY_ID[name].leads}


def modules() -> list[str]:
    """Modules of this room that draw figures or put them into sentences."""
    named = (name for figure in FIGURES for name in (figure.draw, figure.words) if name)
    return sorted({f"report.{name.split('.')[0]}" for name in named})
