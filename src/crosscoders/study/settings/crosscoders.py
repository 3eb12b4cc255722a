"""Settings of a crosscoder: latent blocks, activation, penalty, training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from crosscoders.study.settings.base import (
    Coefficient,
    Count,
    Name,
    Names,
    Positive,
    Repository,
    Revision,
    Rule,
    Section,
    Seed,
    Share,
    Text,
    distinct,
)


def _is_absent(value: object) -> bool:
    """Whether stages get a section without a part, as those of studies that do not know it do."""
    return value is None


class Block(Section):
    """A group of latents: what its encoder reads and its decoder writes."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the dictionary; the shares of all blocks sum to 1."""
    reads: Literal["all", "each"] | Names = "all"
    """Sources that the encoder sees; `each`: one group of latents per source, in the order of the sources."""
    writes: Literal["all", "each", "onward"] | Names = "all"
    """Sources that the decoder serves; with `reads: each`, `each` is the group's own source, `onward` that and all
    later ones."""
    window: Annotated[int, Field(ge=0)] | None = None
    """Later sources that `onward` reaches at most."""
    tied: bool = False
    """One decoder direction for all written sources."""
    penalty: Coefficient = 1.0
    """Factor on the sparsity penalty of these latents."""
    k: Count | None = Field(None, exclude_if=_is_absent)
    """Latents per token of this block, ranked apart from the others (batchtopk); those of all blocks sum to
    `activation.k`."""


class Activation(Section):
    """How pre-activations become a sparse code."""

    kind: Literal["relu", "topk", "batchtopk", "jumprelu"]
    k: Annotated[int, Field(gt=0)] | None = None
    """Latents per token (topk, batchtopk)."""
    initial_k: Annotated[int, Field(gt=0)] | None = None
    """k at the start, annealed linearly to `k`."""
    anneal_share: Share = 0.0
    """Share of training over which k is annealed."""
    initial_threshold: Positive = 0.1
    """Score above which latents are on at the start (jumprelu)."""
    bandwidth: Positive = 2.0
    """Width, in units of the score, of the step's gradient (jumprelu)."""


class Penalty(Section):
    """Sparsity penalty; its coefficient ramps up linearly, then follows `target_l0` where one is given."""

    kind: Literal["none", "l1_of_norms", "l2_of_norms", "tanh", "decoder_sparsity"] = "none"
    coefficient: Coefficient = 0.0
    scale: Positive = 1.0
    """c of `tanh`: λ Σ tanh(c f Σ n)."""
    ramp_share: Share = 0.0
    target_l0: Positive | None = None
    """Latents per token to steer the coefficient to."""


class Delta(Section):
    """A loss on the difference of two sources a and b: λ ‖(x_a − x_b) − (x̂_a − x̂_b)‖², mean over tokens.

    It makes the crosscoder explain what changes between the sources, which is small beside what they share (compare the
    Delta crosscoder, arXiv 2603.04426). Activations are normalised.
    """

    of: Annotated[Names, Field(min_length=2, max_length=2)]
    """[a, b], two sources of the crosscoder of equal width."""
    coefficient: Positive = 1.0
    """λ, beside the weight 1 of the error of a source."""


def _is_one(number: int) -> bool:
    return number == 1


Processes = Annotated[Count, Field(exclude_if=_is_one)]
"""A number of processes; results name it where there are several."""


class Training(Section):
    """Optimisation of one crosscoder."""

    steps: Count
    batch_tokens: Count
    learning_rate: Positive
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Memory of Adam's second moment; shorter trainings want a shorter one."""
    adam_moments: Literal["float32", "bfloat16"] = "float32"
    """Precision in which Adam keeps its moments; in bfloat16 they take half the memory and half the time to read."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the factors of a step's products, where the device multiplies bfloat16 faster. Weights and sums stay in float32."""
    warmup_steps: Annotated[int, Field(ge=0)]
    decay_share: Share
    """Final share of the steps over which the learning rate falls linearly to 0."""
    gradient_clip: Positive
    decoder_norm: Positive
    """Norm of every decoder vector at the start."""
    initial_l0: Positive | None = None
    """Latents per token at the start, reached by equal firing rates; where absent, encoder biases start at 0."""
    initial_seed: Seed | None = Field(None, exclude_if=_is_absent)
    """Seed of the weights at the start; the training's own where absent. Where given, the seeds of a study differ in the order
    of the tokens alone, so that their latents begin alike."""
    auxiliary_coefficient: Coefficient = 0.03125
    dead_tokens: Count
    """A latent silent for this many tokens counts as dead."""
    checkpoint_steps: Count = 200
    trackers: Annotated[list[Literal["tensorboard", "wandb"]], AfterValidator(distinct)] = Field([], exclude=True)
    """What shows the training while it runs; the packages are optional. Left out of what stages get: it changes no result."""
    threads: Count = 1
    """Threads of each process; several trainings with one thread each, side by side, use cores better than one with all."""
    ranks: Processes = 1
    """Processes that share the latents; on GPUs each has one of its own. A dictionary then need not fit on one device."""
    replicas: Processes = 1
    """Groups of so many ranks that share the tokens of a batch; in all there are ranks · replicas processes."""
    RULES = (
        Rule(
            "replicas",
            lambda training: training.batch_tokens % training.replicas == 0,
            "a divisor of batch_tokens = {batch_tokens}",
        ),
    )

    @property
    def processes(self) -> int:
        """Processes that train together."""
        return self.ranks * self.replicas

    @property
    def tokens(self) -> int:
        """Tokens seen in training; a token that is seen twice counts twice."""
        return self.steps * self.batch_tokens


_START = Rule(
    "training.initial_l0",
    lambda member: member.training.initial_l0 is None or member.training.initial_l0 <= member.latents,
    "at most latents = {latents}",
)
_RANKS = Rule(
    "training.ranks", lambda member: member.latents % member.training.ranks == 0, "a divisor of latents = {latents}"
)


ExportFormat = Literal["crosscoder_learning", "sae-lens", "sparsify", "netcdf", "delphi", "neuronpedia"]
"""Formats of docs/formats.md that are written."""
Exports = Annotated[list[ExportFormat], AfterValidator(distinct), Field(exclude=True)]
"""Left out of what other stages get, so that nothing else is made again."""


class CrosscoderSettings(Section):
    """One member of the family: latent blocks, activation, penalty, training."""

    kind: Literal["trained"] = Field("trained", exclude=True)
    """Left out of what stages get, so that those of studies that do not say it see no change."""
    latents: Count
    sources: Names | None = None
    """Sources it is trained on; where absent, all of a setting that are no differences."""
    blocks: dict[Name, Block]
    activation: Activation
    penalty: Penalty = Penalty()
    nested: Names | None = Field(None, exclude_if=_is_absent)
    """All blocks, in the order in which they are nested: every prefix of this list reconstructs on its own, and the loss is
    the mean over prefixes (Matryoshka, arXiv 2503.17547)."""
    delta: Delta | None = Field(None, exclude_if=_is_absent)
    """A loss on the difference of two sources; none where absent."""
    source_weights: dict[Name, Positive] = {}
    """Weights of the sources' reconstruction errors, 1 where absent."""
    training: Training
    exports: Exports = []
    """Formats of docs/formats.md in which every training of it is written for other tools; none where absent."""
    RULES = (_START, _RANKS)

    @model_validator(mode="before")
    @classmethod
    def _order_blocks(cls, content: Any) -> Any:
        """Nested blocks in the order of `nested`; keys may come in any order, as stages get them sorted."""
        blocks, nested = (content.get(key) if isinstance(content, dict) else None for key in ("blocks", "nested"))
        if not isinstance(blocks, dict) or not isinstance(nested, list):
            return content
        if all(isinstance(name, str) for name in (*blocks, *nested)) and sorted(blocks) == sorted(nested):
            return content | {"blocks": {name: blocks[name] for name in nested}}
        return content


class PublishedSettings(Section):
    """A crosscoder that was trained elsewhere, read from a folder or from the hub in any format of docs/formats.md."""

    kind: Literal["published"]
    path: Text | None = None
    """A folder, or a netCDF file of another study."""
    repo: Repository | None = None
    """A repository of the hub, in place of `path`."""
    revision: Revision | None = None
    """Commit hash of `repo`; branches and tags move and are refused."""
    folder: Text | None = None
    """The folder within `repo`, where it is not the repository itself."""
    sources: Names | None = None
    """Names of its sources in the order of its files; where absent, those in the files, or all stored ones of a setting."""
    input_scale: dict[Name, Positive] = {}
    """What the activations of each source were multiplied by in its training, where its files do not say."""
    exports: Exports = []
    """Formats of docs/formats.md in which it is written for other tools; none where absent."""
    RULES = (
        Rule("path", lambda one: (one.path is None) != (one.repo is None), "either path, or repo and revision"),
        Rule("revision", lambda one: (one.repo is None) == (one.revision is None), "a commit hash where repo is given"),
        Rule("folder", lambda one: one.folder is None or one.repo is not None, "a repo where folder is given"),
    )

    @property
    def source_weights(self) -> dict[str, float]:
        """All errors count alike."""
        return {}

    @property
    def penalty(self) -> Penalty:
        """None: what its training penalised is not known."""
        return Penalty()


def _kind(value: object) -> str:
    """Whether a section trains a crosscoder or names one; sections that say nothing train one."""
    return value.get("kind", "trained") if isinstance(value, dict) else getattr(value, "kind", "trained")


AnyCrosscoder = Annotated[
    Annotated[CrosscoderSettings, Tag("trained")] | Annotated[PublishedSettings, Tag("published")], Discriminator(_kind)
]


def _is_each(support: str) -> bool:
    return support == "each"


class AlignedSettings(Section):
    """The aligned crosscoder: an encoder per source, codes drawn towards each other."""

    latents: Count
    activation: Activation
    penalty: Penalty = Penalty()
    support: Literal["each", "global"] = Field("each", exclude_if=_is_each)
    """`each`: every source chooses its own active latents; `global`: all have the same, those of the largest scores summed
    over sources (Global TopK, arXiv 2507.06265)."""
    alignment: Coefficient
    """Coefficient of the squared distance between two sources' codes."""
    training: Training
    RULES = (_START, _RANKS)
