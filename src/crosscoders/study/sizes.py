"""Sizes that follow from a study before anything is computed: of its models, its activations and its crosscoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crosscoders.study import model_folder
from crosscoders.study.blocks import crosscoder_sources, differences, group_sizes, groups, stored_sources
from crosscoders.study.queries.comparisons import data_setting, paged
from crosscoders.study.settings.comparisons import PlantedSetting, Source, SyntheticSource
from crosscoders.study.settings.corpora import HubCorpus, PlantedChats
from crosscoders.study.settings.crosscoders import PublishedSettings
from crosscoders.study.settings.models import DERIVED, FolderModel, RandomModel, TrainedModel
from crosscoders.study.settings.study import Study

WIDTH_PER_LAYER = 96
"""About the width of a language model per layer of its depth; taken where a study does not state the size of a model."""
VOCABULARY = 128_000
"""Taken where a study does not state the size of a vocabulary."""
PUBLISHED_EXPANSION, PUBLISHED_ACTIVE = 16, 100
"""Latents per column of a published crosscoder that is not here yet, and active latents per token of any: about."""
WHEEL_TEXT = 30_000_000
"""Bytes of text in a wheel: about."""
PAGE_EXAMPLES = 100_000
"""Examples that one file of a page may hold; a browser opens about 25 MB of them at once."""
BYTE_VOCABULARY = 260
"""Tokens of the byte-level tokenizer of a model with random weights."""


@dataclass(frozen=True)
class ModelSize:
    """A language model in numbers; `stated` says whether they are known or guessed from the depth."""

    parameters: int
    depth: int
    width: int
    vocabulary: int
    stated: bool = True

    @classmethod
    def of_llama(cls, depth: int, width: int, vocabulary: int, stated: bool = True) -> ModelSize:
        """A Llama whose feed-forward layers are four times as wide, with tied embeddings."""
        return cls(16 * depth * width**2 + vocabulary * width, depth, width, vocabulary, stated)

    def flops(self, layers: int | None = None) -> float:
        """Floating-point operations of a forward pass per token, up to a layer where one is given."""
        embedded = self.vocabulary * self.width
        inside = max(self.parameters - embedded, 0)
        return 2.0 * inside * layers / self.depth if layers is not None else 2.0 * (inside + embedded)


def model_size(study: Study, name: str) -> ModelSize:
    """The size of a model: from its settings, or from the files of its folder.

    Parameters
    ----------
    study : Study
    name : str
        A key of `models`.

    Returns
    -------
    ModelSize
    """
    model = study.models[name]
    if isinstance(model, DERIVED):
        return model_size(study, model.base)
    if isinstance(model, TrainedModel):
        return ModelSize.of_llama(model.depth, model.width, model.vocabulary)
    if isinstance(model, RandomModel):
        return ModelSize.of_llama(model.depth, model.width, BYTE_VOCABULARY)
    if isinstance(model, FolderModel):
        shape, parameters = model_folder.shape(Path(model.path)), model_folder.parameters(Path(model.path))
        depth = shape.depth or 1
        width = shape.width or WIDTH_PER_LAYER * depth
        guessed = ModelSize.of_llama(depth, width, shape.vocabulary or VOCABULARY, stated=False)
        return ModelSize(parameters, depth, width, guessed.vocabulary) if parameters else guessed
    if model.size is None:
        return ModelSize.of_llama(model.depth, WIDTH_PER_LAYER * model.depth, VOCABULARY, stated=False)
    return ModelSize(model.size.parameters, model.depth, model.size.width, model.size.vocabulary)


def unstated(study: Study) -> list[str]:
    """Models of the study whose size is guessed."""
    return [name for name in study.models if not model_size(study, name).stated]


def source_widths(study: Study, setting: str) -> dict[str, int]:
    """The width of every source of a setting's data, differences included.

    Parameters
    ----------
    study : Study
    setting : str

    Returns
    -------
    {source: width}
    """
    chosen = study.settings[data_setting(study, setting)]
    widths = {}
    for name, source in stored_sources(chosen).items():
        widths[name] = source.width if isinstance(source, SyntheticSource) else model_size(study, source.model).width
    return widths | {name: widths[minuend] for name, (minuend, _) in differences(chosen).items()}


def stored_bytes(study: Study, setting: str) -> int:
    """Bytes of one token's activations on disk: two for each number."""
    widths = source_widths(study, setting)
    return 2 * sum(widths[name] for name in stored_sources(study.settings[data_setting(study, setting)]))


def split_tokens(study: Study, setting: str, split: str) -> int:
    """Tokens of a split of a setting's data."""
    chosen = study.settings[data_setting(study, setting)]
    return chosen.tokens[split] if isinstance(chosen, PlantedSetting) else sum(chosen.tokens[split].values())


def deepest_layers(study: Study, setting: str) -> dict[str, int]:
    """For every model of a setting the number of layers up to its deepest source: {model: layers}."""
    deepest: dict[str, int] = {}
    for source in stored_sources(study.settings[data_setting(study, setting)]).values():
        if isinstance(source, Source):
            deepest[source.model] = max(deepest.get(source.model, 0), source.layer + 1)
    return deepest


@dataclass(frozen=True)
class CrosscoderSize:
    """A crosscoder in numbers.

    Attributes
    ----------
    latents : int
    width : int
        Sum of the widths of its sources, D.
    stored : int
        Weights that are kept, 2 m D.
    used : int
        Weights that a block may use; fewer where blocks read or write some sources alone.
    active : int
        Latents per token: k, the steered L0, or a guess.
    """

    latents: int
    width: int
    stored: int
    used: int
    active: int

    @property
    def training_flops(self) -> float:
        """Floating-point operations of training per token: two per weight forward and four backward."""
        return 6.0 * self.used


def crosscoder_size(study: Study, setting: str, name: str) -> CrosscoderSize:
    """The size of a crosscoder, plain or aligned, that a setting measures.

    Parameters
    ----------
    study : Study
    setting, name : str

    Returns
    -------
    CrosscoderSize
    """
    chosen, widths = study.settings[data_setting(study, setting)], source_widths(study, setting)
    member = study.crosscoders.get(name)
    if isinstance(member, PublishedSettings):
        own = [widths[source] for source in crosscoder_sources(chosen, member)]
        latents = published_latents(member, sum(own))
        return CrosscoderSize(latents, sum(own), 2 * latents * sum(own), 2 * latents * sum(own), PUBLISHED_ACTIVE)
    if member is not None:
        sources = crosscoder_sources(chosen, member)
        own = [widths[source] for source in sources]
        made = groups(member.blocks, sources)
        used = sum(
            size * sum(own[s] * (group.reads[s] + group.writes[s]) for s in range(len(own)))
            for size, group in zip(group_sizes(member.latents, [group.share for group in made]), made, strict=True)
        )
        factor = 1
    else:
        member = study.aligned[name]
        own = [widths[source] for source in stored_sources(chosen)]
        used, factor = member.latents * sum(own) * (1 + len(own)), len(own)
    active = member.activation.k or member.penalty.target_l0 or member.latents / 64
    stored = 2 * member.latents * sum(own)
    return CrosscoderSize(member.latents, sum(own), stored, int(used), int(active * factor) or 1)


def paged_in_parts(study: Study) -> list[str]:
    """Crosscoders whose pages would hold too many examples for one file, and lie in parts beside it.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
    """
    if study.page is None:
        return []
    each, large = study.page.shown, {}
    for setting in paged(study):
        for name in study.settings[setting].crosscoders:
            large[name] = large.get(name, False) or crosscoder_size(study, setting, name).latents * each > PAGE_EXAMPLES
    return [name for name, is_large in large.items() if is_large]


def published_latents(member: PublishedSettings, width: int) -> int:
    """About how many latents a published crosscoder has: from the size of its files, or as many as are usual."""
    path = Path(member.path) if member.path else None
    files = [] if path is None else [path] if path.is_file() else path.glob("*")
    stored = sum(file.stat().st_size for file in files if file.suffix in (".safetensors", ".pt", ".nc"))
    return max(1, stored // (8 * width)) if stored else PUBLISHED_EXPANSION * width


def corpus_bytes(study: Study, name: str) -> int:
    """About how large a corpus is in memory."""
    corpus = study.corpora[name]
    if isinstance(corpus, PlantedChats):
        return corpus_bytes(study, corpus.articles)
    if isinstance(corpus, HubCorpus):
        return 4000 * corpus.documents
    path = Path(getattr(corpus, "path", ""))
    if not path.name:
        return WHEEL_TEXT
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
