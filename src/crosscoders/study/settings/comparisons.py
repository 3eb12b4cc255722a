"""Settings of a comparison: which sources see which tokens, and which crosscoders are trained on them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from crosscoders.study.settings.base import (
    LARGEST,
    Coefficient,
    Count,
    Name,
    Names,
    Positive,
    Rule,
    Section,
    Seed,
    Share,
    Text,
    distinct,
)

Hook = Literal["resid_pre", "resid_post", "mlp_out"]


class Source(Section):
    """One model at one site."""

    kind: Literal["model"] = "model"
    model: Name
    layer: Annotated[int, Field(ge=0)]
    """Decoder layer, counted from 0."""
    hook: Hook = "resid_post"


class SyntheticSource(Section):
    """A source that is drawn, not extracted."""

    kind: Literal["synthetic"] = "synthetic"
    width: Count


class Difference(Section):
    """A derived source: what the first source has and the second lacks, token by token."""

    kind: Literal["difference"] = "difference"
    of: list[Name] = Field(min_length=2, max_length=2)
    """[minuend, subtrahend], two sources of the setting of equal width."""


def _kind_or(default: str) -> Callable[[object], str]:
    """The `kind` of a section, or what it is where it says nothing."""

    def kind(value: object) -> str:
        if isinstance(value, dict):
            return value.get("kind", default)
        return value.kind if isinstance(value, Section) else default

    return kind


AnySource = Annotated[
    Annotated[Source, Tag("model")]
    | Annotated[Difference, Tag("difference")]
    | Annotated[SyntheticSource, Tag("synthetic")],
    Discriminator(_kind_or("model")),
]


class Causal(Section):
    """Causal patching: the chat model's answers to prompts from test documents, and what is patched into it."""

    prompts: Count
    """Conversations."""
    new_tokens: Count
    """Longest answer."""
    temperature: Coefficient = 0.0
    """Greedy answers where 0, sampled ones else."""
    seed: Seed = 0
    """Of sampled answers and random sets of latents."""
    candidates: Annotated[int, Field(gt=1)] = 64
    """Most chat-leaning latents that are split into halves, where fewer are chat-only."""
    random_sets: Count = 5
    """Control sets matched in frequency and decoder norm."""
    components: Annotated[list[Count], AfterValidator(distinct)] = Field([1, 8], min_length=1)
    """Numbers of principal components of the models' difference that are patched as controls."""


class Steering(Section):
    """Steering: sets of latents are added to base and ablated from chat while both answer held-out prompts greedily.

    Sets are chosen on validation documents. The prompts are those by which planted behaviours are measured.
    """

    crosscoders: Names | None = None
    """Crosscoders of the setting whose latents are used; all where absent."""
    prompts_per_behaviour: Count = 8
    """Prompts on the refused topic, as many on other topics, and as many on the model itself."""
    new_tokens: Count = 40
    """Longest answer."""
    latents: Count = 8
    """Latents of every set."""
    minimum_tokens: Count = 20
    """Validation tokens on which a latent must be active to be chosen."""
    strengths: Annotated[list[Positive], AfterValidator(distinct)] = Field([0.15, 0.3], min_length=1)
    """Sizes of what is added, as multiples of the unit: the median over the chosen sets of the norm of their latents'
    decoder vectors, each times the latent's 95th-percentile activation where it is active, added up. On the embedded pair no answer is fluent at 1."""
    random_sets: Count = 5
    """Control sets matched in frequency and decoder norm."""
    batch_answers: Count = 96
    """Answers that are written side by side."""
    seed: Seed = 0
    """Of the random sets."""


class Equivalence(Section):
    """Causal equivalence: whether a shared latent does the same in both models, whatever its two decoder vectors say."""

    crosscoders: Names | None = None
    """Crosscoders of the setting whose latents are compared; all that read both sources of the contrast where absent."""
    latents: Count = 64
    """Most shared latents that are compared, evenly spaced by the cosine of their decoder vectors."""
    tokens_per_latent: Count = 8
    """Test tokens, each of another document, on which a latent is ablated."""
    minimum_density: Share = 0.001
    """Share of test tokens on which a latent must be active to be compared."""
    ablated_before: Count = 48
    """Last position in a window at which a latent is ablated."""
    same_direction_above: Annotated[float, Field(gt=-1, lt=1)] = 0.9
    """Cosine from which two decoder vectors are called one direction."""
    seed: Seed = 0
    """Of the tokens, and of the latents of the null."""


class Circuits(Section):
    """What a crosscoder makes of the graph of SAEs that are trained on the same sources of one model."""

    crosscoder: Name
    saes: Name
    """SAEs per source (`reads: each`, `writes: each`)."""
    tokens: Count = 1500
    """About so many test tokens, of whole documents spread over the split."""
    least_cosine: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Of the decoder directions of latents that stand for one feature …"""
    least_correlation: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """… and of their activations."""
    interventions: Count = 128
    """Nodes ablated in the model, each on another token."""
    ablated_before: Count = 48
    """Last position in a window at which a node is ablated."""
    batch_tokens: Count = 1024
    """Tokens per forward pass of the interventions."""
    seed: Seed = 0


class Endpoint(Section):
    """A language model behind an OpenAI-compatible address, which stands in the environment with its key.

    The address is in CROSSCODERS_ENDPOINT and the key in CROSSCODERS_ENDPOINT_KEY, or both in OPENAI_BASE_URL and
    OPENAI_API_KEY.
    """

    model: Text
    """Its name at the endpoint."""


Number = Annotated[int, Field(ge=0, le=LARGEST)]


class ExplainedLatents(Section):
    """How many latents are labelled, by what they are chosen by; a latent that is chosen twice counts once."""

    relative_norm: Number = 8
    """Of the largest relative norm Δ."""
    nu: Number = 8
    """Of those that lean to the last source (Δ above 0.5), the ones whose larger ν, of error and reconstruction, is lowest."""
    planted_share: Number = 8
    """Of the largest share of activation on one planted behaviour."""
    random: Number = 8
    """Drawn at random from all others."""


class Explain(Section):
    """Short labels of latents, written by a language model and scored on excerpts that it has not seen.

    Excerpts of test documents are sent to the endpoint, where one is named.
    """

    model: Name | None = None
    """A model of the study, which may be a local folder, that writes and scores the labels."""
    endpoint: Endpoint | None = None
    """A model behind an address, in place of `model`."""
    latents: ExplainedLatents = ExplainedLatents()
    examples: Count = 8
    """Strongest excerpts from which a label is written, each of another document."""
    held_out: Annotated[int, Field(ge=4, le=200, multiple_of=2)] = 20
    """Excerpts of other documents on which a label is scored; the latent fires in half of them."""
    label_tokens: Count = 24
    """Longest label that `model` writes, in tokens."""
    seed: Seed = 0
    RULES = (
        Rule(
            "model",
            lambda one: (one.model is None) != (one.endpoint is None),
            "either a model of the study, or endpoint",
        ),
    )


class Storage(Section):
    """Which activations of the training split lie on disk at once."""

    keep: Literal["all", "window"] = "all"
    """`all` of them, or a `window` of shards that are extracted ahead of the trainings, read by all, and deleted."""
    window: Count | None = None
    """Shards that lie on disk at most (`keep: window`)."""
    RULES = (
        Rule("window", lambda storage: storage.keep == "all" or storage.window is not None, "a number of shards"),
        Rule("window", lambda storage: storage.keep == "window" or storage.window is None, "none with keep: all"),
    )


class Setting(Section):
    """Sources that see the same tokens, the tokens, and the crosscoders trained on them."""

    kind: Literal["text"] = "text"
    sources: dict[Name, AnySource]
    contrast: list[Name] = Field(min_length=2, max_length=6)
    """The sources that relative norm, cosine and latent scaling compare: [base, chat] or [first, last].

    With three or more, latents are classed by the subset of these sources that they are written to as well, and ν is
    measured between every pair. Δ and all that follows from it compare the first, as base, with the last, as chat.
    """
    through: Annotated[Names, Field(min_length=3)] | None = None
    """Sources in the order of training, as snapshots of one model at one layer: when each latent emerges, how it rotates and
    when it vanishes is then measured; none where absent."""
    tokens: dict[Literal["train", "validation", "test"], dict[Name, Annotated[int, Field(ge=0)]]]
    """Tokens of each corpus, by split."""
    shards: dict[Literal["train", "validation", "test"], Annotated[int, Field(gt=0, le=1000)]]
    """Activation files per split; shards are extracted in parallel."""
    activations: Storage = Storage()
    """Which activations of the training split lie on disk at once; all where absent."""
    context: Annotated[int, Field(gt=1)]
    """Longest window, sink included."""
    alignment: Literal["tokens", "characters"] = "tokens"
    """What the models of a setting have in common: the `tokens` that they read, or, where their tokenizers differ, the
    `characters` at which a token of each ends."""
    control_tokens: Literal["text", "tokens"] = "text"
    """What control tokens such as `<|im_end|>` are where they stand in a document: text, or the tokens that they name."""
    batch_tokens: Count = 2048
    """Tokens per forward pass."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the models; `auto` takes bfloat16 where the device is faster with it."""
    splice_tokens: Annotated[int, Field(ge=0)] = 0
    """Test tokens on which reconstructions are spliced into their models to measure the loss; none where 0."""
    divergence_tokens: Annotated[int, Field(ge=0)] = 0
    """Test tokens on which the contrast's first and last model are compared: loss, KL divergence, weights; not where 0."""
    sink_threshold: Positive = 6.0
    """Tokens whose norm exceeds this multiple of a source's median norm are left out."""
    causal: Causal | None = None
    """Causal patching of the contrast's second model; none where absent."""
    steering: Steering | None = None
    """Steering of base with latents, and ablation of latents in chat; none where absent."""
    equivalence: Equivalence | None = None
    """Comparison of what shared latents do in the two models of the contrast; none where absent."""
    circuits: Circuits | None = None
    """Simplification of circuits by a crosscoder; none where absent."""
    explain: Explain | None = None
    """Labels of latents, written and scored by a language model; none where absent."""
    crosscoders: Names = Field(min_length=1)
    aligned: Names = []
    """Aligned crosscoders trained on the same sources."""
    notebook: Name
    null_of: Name | None = None
    """A setting beside whose results these are shown: what it reports where no behaviour was introduced."""


class NullSetting(Section):
    """A setting's activations, changed so that nothing can be specific to either source; the same pipeline runs on them."""

    kind: Literal["null_control"] = "null_control"
    null_of: Name
    change: Literal["same_model", "permuted_tokens"]
    """`same_model`: the contrast's first source stands for all others, also for those of `through`. `permuted_tokens`: the
    tokens of all others are shuffled."""
    crosscoders: Names = Field(min_length=1)


class TransferSetting(Section):
    """Crosscoders of one setting, measured on the activations of another whose sources have the same names.

    What was learned on one pair is tried on another fine-tune of the same base; nothing is trained.
    """

    kind: Literal["transfer"] = "transfer"
    trained_on: Name
    measured_on: Name
    crosscoders: Names = Field(min_length=1)
    aligned: Names = []


class Planted(Section):
    """Concepts of known classes in synthetic sources."""

    concepts: dict[Literal["shared", "base-only", "chat-only", "shrunk", "rotated", "decoupled", "spanning"], Count] = (
        Field(min_length=1)
    )
    """Concepts of each class; `spanning` ones live from one layer to another."""
    subsets: Annotated[dict[str, Count], Field(exclude_if=operator.not_)] = {}
    """Concepts that live in some of three or more sources: names of sources joined by `+`, as `base+chat`."""
    rate: Annotated[float, Field(gt=0, lt=1)]
    """Share of tokens on which a concept fires."""
    topics: Count = 8
    """Groups of concepts that tend to fire in the same documents."""
    topic_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the variance behind firing that a topic's concepts have in common within a document."""
    document_tokens: Count = 50
    drift: Coefficient = 0.3
    """Angle (radians) by which directions turn from one source to the next."""
    shrink: Share = 0.3
    """Strength in base of a `shrunk` concept."""
    overlap: Share = 0.7
    """Share of the occurrences of a `decoupled` concept that show in both sources."""
    noise: Coefficient = 0.01
    recovered_above: Annotated[float, Field(gt=0, lt=1)] = 0.83
    """Absolute cosine above which a latent stands for a concept."""


class PlantedSetting(Section):
    """Synthetic sources with known concepts, and the crosscoders judged on them."""

    kind: Literal["planted"] = "planted"
    planted: Planted
    sources: dict[Name, AnySource]
    contrast: list[Name] = Field(min_length=2, max_length=6)
    tokens: dict[Literal["train", "validation", "test"], Count]
    circuits: Circuits | None = None
    """Whether a crosscoder joins what SAEs per source have of one concept; none where absent."""
    crosscoders: Names = Field(min_length=1)
    notebook: Name


class DoseSeries(Section):
    """A setting repeated with its fine-tune made anew at every dose and with every seed: how small a change is seen?

    The setting and the model that it names are patterns, which are not run themselves. At dose 0 nothing is planted, which is
    the null of every method.
    """

    kind: Literal["dose_series"]
    setting: Name
    """The setting that is repeated; it compares `model` with the model that this was fine-tuned from."""
    model: Name
    """The fine-tuned model that is made anew; its `dose` and `seed` are those of each repetition."""
    doses: Annotated[list[Share], AfterValidator(distinct)] = Field(min_length=2)
    """Shares of the fine-tuning chats that show what is planted; 0 is among them."""
    seeds: Annotated[list[Seed], AfterValidator(distinct)] = Field(min_length=1)
    """Seeds of the fine-tunes."""
    best: Count = 5
    """Latents or directions whose sum is a method's score of a token."""
    components: Count = 8
    """Principal components of the models' difference among which those are chosen."""
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the null's distribution above the threshold at which a method detects a behaviour."""
    notebook: Name
    RULES = (
        Rule("doses", lambda series: 0 in series.doses, "0 among them: it is the null"),
        Rule("doses", lambda series: max(series.doses) > 0, "one above 0"),
    )

    @property
    def crosscoders(self) -> list[str]:
        """None of its own: those of the setting are trained in every repetition."""
        return []


AnySetting = Annotated[
    Annotated[Setting, Tag("text")]
    | Annotated[PlantedSetting, Tag("planted")]
    | Annotated[NullSetting, Tag("null_control")]
    | Annotated[TransferSetting, Tag("transfer")]
    | Annotated[DoseSeries, Tag("dose_series")],
    Discriminator(_kind_or("text")),
]
