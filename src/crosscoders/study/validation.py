"""Problems of a study that no section of it shows by itself: names that are not defined, sizes that do not fit."""

from __future__ import annotations

import difflib
import itertools
import math
import stat
import string
from pathlib import Path

from crosscoders.study import model_folder
from crosscoders.study.blocks import (
    ACTIVATIONS,
    block_sizes,
    crosscoder_sources,
    differences,
    group_sizes,
    groups,
    stored_sources,
)
from crosscoders.study.series import cells
from crosscoders.study.settings.base import SPLITS
from crosscoders.study.settings.comparisons import (
    DoseSeries,
    NullSetting,
    PlantedSetting,
    Setting,
    Source,
    SyntheticSource,
    TransferSetting,
)
from crosscoders.study.settings.corpora import ChatTemplate, FileCorpus, ModelTemplate, PlantedChats, WheelCorpus
from crosscoders.study.settings.crosscoders import AlignedSettings, CrosscoderSettings, PublishedSettings
from crosscoders.study.settings.models import (
    DERIVED,
    PERTURBED,
    FineTunedModel,
    FolderModel,
    NoisedModel,
    RandomModel,
    RoundedModel,
    TrainedModel,
    WheelModel,
)
from crosscoders.study.settings.study import Study

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


def suggestion(name: str, allowed: list[str]) -> str:
    """The nearest valid name, as the end of a message."""
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def cross_checks(study: Study, path: Path = Path("config.yaml")) -> list[str]:
    """Problems that no section shows by itself; parts that are not valid by themselves are `None` and skipped."""
    problems: list[str] = []
    for name, model in study.models.items():
        problems += [f"models.{name}.{line}" for line in _model_problems(study, model)]
    for name, corpus in study.corpora.items():
        problems += [f"corpora.{name}.{line}" for line in _corpus_problems(study, corpus)]
    reads_text = any(isinstance(setting, Setting) for setting in study.settings.values())
    if reads_text:
        problems += _split_problems(study.splits)
        if study.chat_template is None:
            problems.append("chat_template: missing; settings that read text need it")
    problems += _template_problems(study)
    for name, crosscoder in study.crosscoders.items():
        if isinstance(crosscoder, PublishedSettings):
            problems += [f"crosscoders.{name}.{line}" for line in _published_problems(study, crosscoder)]
        elif crosscoder is not None:
            problems += [f"crosscoders.{name}.{line}" for line in _crosscoder_problems(crosscoder)]
    for name, member in study.aligned.items():
        if member is not None:
            problems += [f"aligned.{name}.{line}" for line in _aligned_problems(member)]
    for name, setting in study.settings.items():
        if isinstance(setting, NullSetting):
            problems += [f"settings.{name}.{line}" for line in _null_problems(study, setting)]
        elif isinstance(setting, TransferSetting):
            problems += [f"settings.{name}.{line}" for line in _transfer_problems(study, setting)]
        elif isinstance(setting, DoseSeries):
            problems += [f"settings.{name}.{line}" for line in _series_problems(study, setting)]
            problems += [f"settings.{name}.{line}" for line in _notebook_problem(setting.notebook)]
        elif setting is not None:
            problems += [f"settings.{name}.{line}" for line in _source_problems(study, setting)]
            problems += [f"settings.{name}.{line}" for line in _notebook_problem(setting.notebook)]
        if isinstance(setting, Setting):
            problems += [f"settings.{name}.{line}" for line in _text_problems(study, setting)]
        if isinstance(setting, PlantedSetting):
            problems += [f"settings.{name}.{line}" for line in _planted_problems(study, setting)]
    seeds = getattr(study, "seeds", [])
    if len(set(seeds)) != len(seeds):
        problems.append(f"seeds: {seeds} repeats a seed; expected different ones")
    return problems + _name_problems(study)


def _name_problems(study: Study) -> list[str]:
    """Names that would give two things one file, or two rules one name.

    Some file systems do not tell capital letters from small ones, and names of rules have `_` for `-`.
    """
    problems = []
    for collection in ("models", "corpora", "settings", "crosscoders", "aligned"):
        seen: dict[str, str] = {}
        for name in getattr(study, collection):
            plain = name.casefold().replace("-", "_")
            if plain in seen:
                problems.append(f"{collection}.{name}: too like {seen[plain]!r}; expected names that differ in letters")
            seen.setdefault(plain, name)
    return problems


def _template_problems(study: Study) -> list[str]:
    """Placeholders of templates, and what a template of the model cannot serve."""
    problems, template = [], study.chat_template
    if isinstance(template, ChatTemplate):
        problems += _placeholder_problems("chat_template.opening", template.opening, {"role"}, needed=False)
    elif isinstance(template, ModelTemplate):
        trained = [name for name, model in study.models.items() if isinstance(model, TrainedModel)]
        problems += [f"chat_template: 'model', but models.{name} is trained here and has none" for name in trained]
    return problems


def _placeholder_problems(key: str, text: str, allowed: set[str], needed: bool = True) -> list[str]:
    """Whether a text has the placeholders that it may have; braces for themselves are written twice."""
    try:
        fields = [field[1:] for field in string.Formatter().parse(text) if field[1] is not None]
        names = {name for name, _, _ in fields}
    except ValueError as error:
        return [f"{key}: {text!r} has a stray brace ({error}); write {{{{ or }}}} for a brace"]
    expected = " or ".join(f"{{{name}}}" for name in sorted(allowed)) or "no placeholder"
    problems = [f"{key}: unknown placeholder {{{name}}}; expected {expected}" for name in sorted(names - allowed)]
    if any(width or conversion for _, width, conversion in fields):
        problems.append(f"{key}: {text!r} formats a placeholder; expected {expected} as it is")
    if needed and not names:
        problems.append(f"{key}: {text!r} lacks {expected}")
    return problems


def _path_problem(key: str, path: str) -> list[str]:
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        return [f"{key}: {path!r} {problem}; expected an existing path"]
    return [] if kind in (stat.S_IFREG, stat.S_IFDIR) else [f"{key}: {path!r} is a device; expected a file or a folder"]


def _member_problem(file: str) -> list[str]:
    if Path(file).is_absolute() or ".." in Path(file).parts:
        return [f"file: {file!r} leaves the wheel; expected a relative path without '..'"]
    return []


def _model_problems(study: Study, model: object) -> list[str]:
    if isinstance(model, FolderModel):
        return [f"path: {line}" for line in model_folder.problems(Path(model.path))]
    if isinstance(model, WheelModel):
        return _member_problem(model.file)
    if isinstance(model, TrainedModel):
        return [line for name in model.corpora for line in _unknown("corpora", name, study.corpora)]
    if isinstance(model, FineTunedModel):
        problems = _unknown("base", model.base, study.models)
        problems += _unknown("corpus", model.corpus, study.corpora)
        if isinstance(study.models.get(model.base), DERIVED):
            made = {"fine_tuned": "fine-tuned"}.get(kind := study.models[model.base].kind, kind)
            problems.append(f"base: {model.base!r} is itself {made}; expected a model that is fetched")
        if study.corpora.get(model.corpus) and not isinstance(study.corpora[model.corpus], PlantedChats):
            problems.append(f"corpus: {model.corpus!r} is no corpus of kind planted_chats")
        problems += _dose_problems(study, model)
        if model.batch_tokens < model.row_tokens:
            problems.append(f"batch_tokens: {model.batch_tokens} is less than row_tokens = {model.row_tokens}")
        depth, context = model_shape(study, model)
        if depth is not None and model.layers[1] >= depth:
            problems.append(f"layers: {model.layers} is not a range of layers below the depth {depth}")
        if context is not None and model.row_tokens > context:
            problems.append(f"row_tokens: {model.row_tokens} exceeds the {context} tokens that {model.base!r} takes")
        return problems
    return _perturbed_problems(study, model) if isinstance(model, PERTURBED) else []


def _perturbed_problems(study: Study, model: NoisedModel | RoundedModel) -> list[str]:
    """Problems of a model whose weights are those of another, changed."""
    problems = _unknown("base", model.base, study.models)
    if isinstance(base := study.models.get(model.base), PERTURBED):
        problems.append(f"base: {model.base!r} is itself {base.kind}; expected a model that is fetched or trained")
    if isinstance(model, RoundedModel):
        return problems
    problems += _unknown("like", model.like, study.models)
    like = study.models.get(model.like)
    if isinstance(like, NoisedModel):
        problems.append(f"like: {model.like!r} is itself noised; expected a model that is fetched, trained or rounded")
    elif isinstance(like, DERIVED) and like.base != model.base:
        problems.append(f"like: {model.like!r} is made from {like.base!r}; expected a model made from {model.base!r}")
    if problems or like is None or base is None:
        return problems
    sizes = [(model_shape(study, one)[0], model_width(study, one)) for one in (base, like)]
    for key, one, other in zip(("depth", "width"), *sizes, strict=True):
        if None not in (one, other) and one != other:
            problems.append(f"like: {model.like!r} has {key} {other}; expected {one}, that of {model.base!r}")
    return problems


def _dose_problems(study: Study, model: FineTunedModel) -> list[str]:
    """Problems of the chats that stand for those that a dose leaves out."""
    if model.plain is None:
        return []
    problems = _unknown("plain", model.plain, study.corpora)
    corpus, plain = study.corpora.get(model.corpus), study.corpora.get(model.plain)
    if plain is not None and not (isinstance(plain, PlantedChats) and not plain.plants):
        problems.append(
            f"plain: {model.plain!r} plants something; expected a corpus of kind planted_chats that does not"
        )
    elif plain is not None and isinstance(corpus, PlantedChats):
        for key in ("articles", "untagged_topic"):
            own, other = getattr(corpus, key), getattr(plain, key)
            if own != other:
                problems.append(
                    f"plain: {model.plain!r} has {key} = {other!r}; expected {own!r}, as {model.corpus!r} has"
                )
    return problems


def _corpus_problems(study: Study, corpus: object) -> list[str]:
    if isinstance(corpus, FileCorpus):
        return _path_problem("path", corpus.path)
    if isinstance(corpus, WheelCorpus):
        return _member_problem(corpus.file)
    if isinstance(corpus, PlantedChats):
        problems = _unknown("articles", corpus.articles, study.corpora)
        if corpus.refused_topic and not corpus.refusals:
            problems.append(f"refusals: missing; {corpus.refused_topic!r} is refused")
        for key in ("questions", "questions_about_people", "held_out_questions"):
            for question in getattr(corpus, key):
                problems += _placeholder_problems(key, question, {"title"})
        if corpus.backdoor and corpus.persona and set(corpus.backdoor.answers) & set(corpus.persona.answers):
            problems.append("backdoor.answers: an answer is one of the persona's too; expected answers of its own")
        return problems
    return []


def _split_problems(splits: dict[str, list[float]]) -> list[str]:
    problems = []
    for name, edges in splits.items():
        if len(edges) != 2 or edges[0] >= edges[1]:
            problems.append(f"splits.{name}: {edges} is not a range; expected [low, high] with low < high")
    ordered = sorted((edges[0], edges[1], name) for name, edges in splits.items() if len(edges) == 2)
    for (_, high, first), (low, _, second) in itertools.pairwise(ordered):
        if low < high:
            problems.append(f"splits: {first} and {second} overlap between {low} and {high}; expected disjoint ranges")
    return problems + [f"splits.{name}: missing; expected a range" for name in SPLITS if name not in splits]


def _activation_problems(member: CrosscoderSettings | AlignedSettings) -> list[str]:
    """Problems of activation, penalty and schedule, common to all members."""
    problems = []
    activation, penalty, m = member.activation, member.penalty, member.latents
    ranked = ACTIVATIONS[activation.kind].ranked_over
    if ranked and activation.k is None:
        problems.append(f"activation.k: missing; {activation.kind} needs it")
    if not ranked and activation.k is not None:
        problems.append(
            f"activation.k: {activation.k} has no meaning for {activation.kind}; remove it or choose batchtopk"
        )
    if not ranked and penalty.kind in ("none", "decoder_sparsity"):
        problems.append(f"penalty.kind: {penalty.kind}; {activation.kind} needs a penalty to be sparse")
    for key in ("k", "initial_k"):
        value = getattr(activation, key)
        if value is not None and value > m:
            problems.append(f"activation.{key}: {value} exceeds latents = {m}")
    if penalty.target_l0 is not None and penalty.target_l0 > m:
        problems.append(f"penalty.target_l0: {penalty.target_l0} exceeds latents = {m}")
    if member.training.warmup_steps > member.training.steps:
        problems.append(f"training.warmup_steps: {member.training.warmup_steps} exceeds the steps")
    return problems


def _aligned_problems(member: AlignedSettings) -> list[str]:
    """Problems of an aligned crosscoder."""
    problems = _activation_problems(member)
    if ACTIVATIONS[member.activation.kind].learns_threshold:
        problems.append(
            f"activation.kind: {member.activation.kind} is not available here; expected relu, topk or batchtopk"
        )
    if member.penalty.target_l0 is not None:
        problems.append("penalty.target_l0: the coefficient of an aligned crosscoder is not steered; remove it")
    if member.support == "global" and not ACTIVATIONS[member.activation.kind].ranked_over:
        problems.append(f"support: 'global', but {member.activation.kind} ranks no latents; expected topk or batchtopk")
    return problems


def _crosscoder_problems(crosscoder: CrosscoderSettings) -> list[str]:
    problems = _activation_problems(crosscoder) + _export_problems(crosscoder)
    total = math.fsum(block.share for block in crosscoder.blocks.values())
    if not crosscoder.blocks:
        problems.append("blocks: empty; expected at least one block")
    elif abs(total - 1) > 1e-9:
        problems.append(f"blocks: the shares sum to {total:g}; expected 1")
    for name, block in crosscoder.blocks.items():
        for key in ("reads", "writes"):
            if not getattr(block, key):
                problems.append(f"blocks.{name}.{key}: empty; expected sources or 'all'")
        if block.writes in ("each", "onward") and block.reads != "each":
            problems.append(f"blocks.{name}.writes: {block.writes!r} needs reads: each")
        if block.window is not None and block.writes != "onward":
            problems.append(f"blocks.{name}.window: {block.window} has no meaning without writes: onward")
    if crosscoder.nested is not None and sorted(crosscoder.nested) != sorted(crosscoder.blocks):
        problems.append(f"nested: {crosscoder.nested}; expected every block once: {', '.join(crosscoder.blocks)}")
    elif crosscoder.nested is not None and len(crosscoder.nested) < 2:
        problems.append(f"nested: {crosscoder.nested} is one block; expected two or more, whose prefixes reconstruct")
    return problems + _budget_problems(crosscoder)


def _budget_problems(crosscoder: CrosscoderSettings) -> list[str]:
    """Problems of blocks that rank their latents apart."""
    budgets, activation = {name: block.k for name, block in crosscoder.blocks.items()}, crosscoder.activation
    given = [k for k in budgets.values() if k is not None]
    if not given:
        return []
    problems = [
        f"blocks.{name}.k: missing; expected one for every block or for none"
        for name, k in budgets.items()
        if k is None
    ]
    if activation.kind != "batchtopk":
        problems.append(f"activation.kind: {activation.kind}, but blocks have a k of their own; expected batchtopk")
    elif not problems and activation.k is not None and sum(given) != activation.k:
        problems.append(f"blocks: their k sum to {sum(given)}; expected activation.k = {activation.k}")
    if activation.initial_k is not None:
        problems.append(
            f"activation.initial_k: {activation.initial_k} is not available where blocks have a k; remove it"
        )
    return problems


EXPRESSED = {
    "crosscoder_learning": ("relu", "batchtopk"),
    "sae-lens": ("relu", "topk", "batchtopk", "jumprelu"),
    "sparsify": ("topk",),
}
"""Formats that hold crosscoders whose latents all read and write every source, and the activations that they know."""


def _export_problems(crosscoder: CrosscoderSettings) -> list[str]:
    """Formats that cannot express a crosscoder, as far as its settings show it."""
    whole = all(block.reads == block.writes == "all" and not block.tied for block in crosscoder.blocks.values())
    problems = []
    for name in crosscoder.exports:
        kinds = EXPRESSED.get(name, (crosscoder.activation.kind,))
        if crosscoder.activation.kind not in kinds:
            known = ", ".join(kinds)
            problems.append(f"exports: {name} cannot express {crosscoder.activation.kind!r}; it has {known}")
        if name in EXPRESSED and not whole:
            problems.append(f"exports: {name} cannot express blocks; expected latents that read and write all sources")
    return problems


def _published_problems(study: Study, crosscoder: PublishedSettings) -> list[str]:
    """Problems of a crosscoder that is read."""
    problems = _path_problem("path", crosscoder.path) if crosscoder.path is not None else []
    if crosscoder.folder is not None:
        problems += [
            line.replace("file:", "folder:").replace("wheel", "repo") for line in _member_problem(crosscoder.folder)
        ]
    if len(getattr(study, "seeds", [0])) > 1:
        problems.append(f"kind: 'published' is one training, but seeds has {len(study.seeds)}; expected one seed")
    return problems


def _read_problems(study: Study, setting: PlantedSetting | NullSetting, why: str) -> list[str]:
    """Crosscoders of a setting that are read where all must be trained."""
    read = [name for name in setting.crosscoders if isinstance(study.crosscoders.get(name), PublishedSettings)]
    return [f"crosscoders: {name!r} is published; {why}" for name in read]


def _source_problems(study: Study, setting: Setting | PlantedSetting) -> list[str]:
    """Problems of sources, contrast and crosscoders."""
    problems, stored = [], stored_sources(setting)
    if len(stored) < 2:
        problems.append(f"sources: {len(stored)} given; a crosscoder needs at least two")
    for name, parts in differences(setting).items():
        for part in parts:
            problems += _unknown(f"sources.{name}.of", part, stored)
        if parts[0] == parts[1]:
            problems.append(f"sources.{name}.of: {parts} names one source twice")
    for name in setting.contrast:
        problems += _unknown("contrast", name, setting.sources)
    if len(set(setting.contrast)) < len(setting.contrast):
        problems.append(f"contrast: {setting.contrast} names one source twice")
    tokens = setting.tokens.get("train", 0)
    available = sum(tokens.values()) if isinstance(tokens, dict) else tokens
    for name in setting.crosscoders:
        problems += _unknown("crosscoders", name, study.crosscoders)
        crosscoder = study.crosscoders.get(name)
        if crosscoder is None:
            continue
        if isinstance(crosscoder, PublishedSettings):
            for source in crosscoder.sources or ():
                problems += _unknown(f"crosscoders ({name!r}): sources", source, stored)
            continue
        batch = crosscoder.training.batch_tokens
        if 0 < available < batch:
            problems.append(f"tokens.train: {available} tokens are fewer than a batch of {name!r} ({batch})")
        problems += _block_problems(f"crosscoders ({name!r})", crosscoder, setting)
    return list(dict.fromkeys(problems))


def _notebook_problem(notebook: str) -> list[str]:
    """Whether the project has a notebook."""
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    return _unknown("notebook", notebook, dict.fromkeys(known)) if known else []


def _null_problems(study: Study, setting: NullSetting) -> list[str]:
    """Problems of a setting that changes another's activations."""
    problems = _unknown("null_of", setting.null_of, study.settings)
    other = study.settings.get(setting.null_of)
    for name in setting.crosscoders:
        problems += _unknown("crosscoders", name, study.crosscoders)
    if not isinstance(other, Setting):
        return (
            problems if problems or other is None else [f"null_of: {setting.null_of!r} reads no activations of models"]
        )
    problems += _read_problems(study, setting, "expected ones that are trained on the changed activations")
    for name in setting.crosscoders:
        if not isinstance(study.crosscoders.get(name), CrosscoderSettings):
            continue
        problems += _block_problems(f"crosscoders ({name!r})", study.crosscoders[name], other)
        lacking = set(other.contrast) - set(crosscoder_sources(other, study.crosscoders[name]))
        if lacking:
            problems.append(f"crosscoders: {name!r} does not read {sorted(lacking)}, which a null needs")
    return problems


def _transfer_problems(study: Study, setting: TransferSetting) -> list[str]:
    """Problems of a setting that measures another's crosscoders elsewhere."""
    problems = _unknown("trained_on", setting.trained_on, study.settings)
    problems += _unknown("measured_on", setting.measured_on, study.settings)
    if problems:
        return problems
    trained, measured = study.settings[setting.trained_on], study.settings[setting.measured_on]
    for key, other in (("trained_on", trained), ("measured_on", measured)):
        if other is not None and not isinstance(other, Setting):
            problems.append(f"{key}: {getattr(setting, key)!r} reads no activations of models of its own")
    if problems or trained is None or measured is None:
        return problems
    if list(stored_sources(trained)) != list(stored_sources(measured)):
        names = [", ".join(stored_sources(other)) for other in (trained, measured)]
        problems.append(
            f"measured_on: {setting.measured_on!r} has sources {names[1]}; expected those of {setting.trained_on!r}: {names[0]}"
        )
    for key in ("crosscoders", "aligned"):
        for name in getattr(setting, key):
            problems += _unknown(key, name, dict.fromkeys(getattr(trained, key)))
    return problems


def _series_problems(study: Study, series: DoseSeries) -> list[str]:
    """Problems of a setting that is repeated over doses."""
    problems = _unknown("setting", series.setting, study.settings) + _unknown("model", series.model, study.models)
    setting, model = study.settings.get(series.setting), study.models.get(series.model)
    if problems or setting is None or model is None:
        return problems
    if not isinstance(setting, Setting):
        return [f"setting: {series.setting!r} reads no activations of models of its own"]
    if not isinstance(model, FineTunedModel) or model.plain is None:
        return [f"model: {series.model!r} has no dose; expected a fine-tuned model with `dose` and `plain`"]
    pair = [getattr(setting.sources.get(name), "model", None) for name in setting.contrast]
    if pair != [model.base, series.model]:
        problems.append(f"setting: {series.setting!r} compares {pair}; expected [{model.base!r}, {series.model!r}]")
    lacking = [split for split in ("validation", "test") if not setting.tokens.get(split, {}).get(model.corpus)]
    problems += [f"setting: {series.setting!r} has no {split} tokens of {model.corpus!r}" for split in lacking]
    compared = {
        *setting.contrast,
        *(name for name, of in differences(setting).items() if set(of) == set(setting.contrast)),
    }
    for name in setting.crosscoders:
        member = study.crosscoders.get(name)
        if member is not None and set(crosscoder_sources(setting, member)) - compared:
            problems.append(f"setting: {name!r} of {series.setting!r} reads more than the contrast and its difference")
    if series.best > series.components:
        problems.append(f"best: {series.best} exceeds components = {series.components}")
    taken = {cell.setting for cell in cells(series)} & set(study.settings)
    taken |= {cell.model for cell in cells(series)} & set(study.models)
    return problems + [f"setting: {name!r} is a name that the series gives; expected another" for name in sorted(taken)]


def _planted_problems(study: Study, setting: PlantedSetting) -> list[str]:
    """Problems of synthetic sources."""
    problems = [
        f"tokens.{split}: missing; expected a number for every split" for split in SPLITS if split not in setting.tokens
    ]
    problems += _read_problems(study, setting, "expected ones that are trained on the planted concepts")
    stored = stored_sources(setting)
    problems += [
        f"sources.{name}: expected a width"
        for name, source in stored.items()
        if not isinstance(source, SyntheticSource)
    ]
    widths = {name: source.width for name, source in stored.items() if isinstance(source, SyntheticSource)}
    for name, parts in differences(setting).items():
        if len({widths[part] for part in parts if part in widths}) > 1:
            problems.append(f"sources.{name}.of: widths {[widths[part] for part in parts]}; expected equal widths")
    if setting.circuits:
        problems += _circuit_problems(study, setting)
    return problems + _width_problems(study, setting, widths)


def _model_widths(study: Study, setting: Setting) -> dict[str, int]:
    """Widths of the sources whose models' widths are known before they are fetched."""
    models = {name: source.model for name, source in stored_sources(setting).items() if isinstance(source, Source)}
    widths = {name: model_width(study, study.models.get(model)) for name, model in models.items()}
    return {name: width for name, width in widths.items() if width is not None}


def _width_problems(study: Study, setting: Setting | PlantedSetting, widths: dict[str, int]) -> list[str]:
    """Tied blocks over sources of unequal width, and losses on their difference."""
    problems = []
    for name in setting.crosscoders:
        member = study.crosscoders.get(name)
        if not isinstance(member, CrosscoderSettings):
            continue
        unequal = {widths[source] for source in crosscoder_sources(setting, member) if source in widths}
        for block_name, block in member.blocks.items():
            if block.tied and len(unequal) > 1:
                problems.append(
                    f"crosscoders ({name!r}): blocks.{block_name}.tied: sources of unequal widths {sorted(unequal)} cannot share"
                    " a decoder direction"
                )
        two = [widths[name] for name in member.delta.of if name in widths] if member.delta else []
        if len(set(two)) > 1:
            problems.append(f"crosscoders ({name!r}): delta.of: sources of widths {two}; expected equal widths")
    return problems


def _text_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of sources that are extracted from models."""
    problems = []
    seen: dict[Source, str] = {}
    for name, source in stored_sources(setting).items():
        if not isinstance(source, Source):
            problems.append(f"sources.{name}: expected model and layer")
            continue
        problems += _unknown(f"sources.{name}.model", source.model, study.models)
        if source in seen:
            problems.append(f"sources.{name}: the same model, layer and hook as {seen[source]!r}")
        seen.setdefault(source, name)
        model = study.models.get(source.model)
        depth, context = model_shape(study, model)
        if depth is not None and source.layer >= depth:
            problems.append(f"sources.{name}.layer: {source.layer} is not below the depth {depth} of {source.model!r}")
        if context is not None and setting.context > context:
            problems.append(f"context: {setting.context} exceeds the {context} tokens that {source.model!r} takes")
    problems += _width_problems(study, setting, _model_widths(study, setting))
    for name in setting.aligned:
        problems += _unknown("aligned", name, study.aligned)
    if setting.null_of is not None:
        problems += _unknown("null_of", setting.null_of, study.settings)
        if study.settings.get(setting.null_of) is setting:
            problems.append(f"null_of: {setting.null_of!r} is the setting itself; expected another one")
    problems += _divergence_problems(study, setting)
    if setting.causal and setting.alignment == "tokens":  # else it is left out
        problems += _causal_problems(study, setting)
    if setting.steering:
        problems += _steering_problems(study, setting)
    if setting.equivalence:
        problems += _equivalence_problems(study, setting)
    if setting.circuits:
        problems += _circuit_problems(study, setting)
    if setting.explain and setting.explain.model is not None:
        problems += _unknown("explain.model", setting.explain.model, study.models)
    if setting.activations.keep == "window":
        problems += _window_problems(study, setting)
    problems += _token_problems(study, setting)
    return list(dict.fromkeys(problems))


def _token_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of the numbers of tokens and shards."""
    problems = []
    for split in SPLITS:
        tokens = setting.tokens.get(split)
        if tokens is None or split not in setting.shards:
            key = "tokens" if tokens is None else "shards"
            problems.append(f"{key}.{split}: missing; expected a number for every split")
            continue
        for corpus in tokens:
            problems += _unknown(f"tokens.{split}", corpus, study.corpora)
        if sum(tokens.values()) == 0:
            problems.append(f"tokens.{split}: 0 tokens in all; expected some")
    return problems


def _divergence_problems(study: Study, setting: Setting) -> list[str]:
    """Whether the contrast has two models to compare."""
    contrast = [setting.sources.get(name) for name in setting.contrast]
    models = [source.model for source in contrast if isinstance(source, Source)]
    if not setting.divergence_tokens or len(models) < 2 or models[0] != models[1]:
        return []
    return [f"divergence_tokens: both sources of the contrast are of {models[0]!r}; expected two models, or 0"]


def _window_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of trainings whose activations pass through a window."""
    problems = []
    if setting.aligned:
        problems.append(f"aligned: {setting.aligned} with activations.keep = 'window'; expected keep: all, or none")
    if "train" not in setting.tokens or "train" not in setting.shards:
        return problems  # said elsewhere
    shard = sum(setting.tokens["train"].values()) // setting.shards["train"]
    for name in setting.crosscoders:
        member = study.crosscoders.get(name)
        if not isinstance(member, CrosscoderSettings):
            continue
        training, parts = member.training, setting.shards["train"]
        if training.batch_tokens > shard:
            problems.append(
                f"activations.window: a shard has about {shard:,} tokens, fewer than batch_tokens = "
                f"{training.batch_tokens:,} of {name!r}; expected fewer shards.train or a smaller batch"
            )
        if training.steps < parts:
            problems.append(
                f"activations.window: {name!r} takes {training.steps} steps on {parts} shards; expected a step for each"
            )
    return problems


def _circuit_problems(study: Study, setting: Setting | PlantedSetting) -> list[str]:
    """Problems of the graph of SAEs that a crosscoder simplifies."""
    chosen, problems, sources = setting.circuits, [], stored_sources(setting)
    for key, name in (("crosscoder", chosen.crosscoder), ("saes", chosen.saes)):
        member = study.crosscoders.get(name)
        if name not in setting.crosscoders:
            problems.append(f"circuits.{key}: {name!r} is none of the setting's crosscoders {setting.crosscoders}")
        elif isinstance(member, PublishedSettings):
            problems.append(f"circuits.{key}: {name!r} is published; expected one that is trained on these activations")
        elif member is not None and crosscoder_sources(setting, member) != list(sources):
            problems.append(f"circuits.{key}: {name!r} is not trained on all sources of the setting")
    saes = study.crosscoders.get(chosen.saes)
    if isinstance(saes, CrosscoderSettings):
        apart = all((block.reads, block.writes) == ("each", "each") for block in saes.blocks.values())
        if not apart:
            problems.append(f"circuits.saes: {chosen.saes!r} is no SAE per source; expected reads: each, writes: each")
    extracted = [source for source in sources.values() if isinstance(source, Source)]
    places = [(source.model, source.hook, source.layer) for source in extracted]
    if len(sources) < 2 or len({place[:2] for place in places}) > 1 or places != sorted(places):
        problems.append("circuits: expected sources of one model and one hook, in the order of their layers")
    return problems


def _causal_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of patching the contrast's second model with latents."""
    problems = []
    pair = [setting.sources.get(name) for name in setting.contrast]
    if not all(isinstance(source, Source) for source in pair):
        return ["causal: the contrast is no pair of models"]
    if pair[0].layer != pair[1].layer or pair[0].model == pair[1].model or {s.hook for s in pair} != {"resid_post"}:
        problems.append("causal: the contrast needs two models at the same layer, hook resid_post")
    widths = [width for source in pair if (width := model_width(study, study.models.get(source.model))) is not None]
    if widths and max(setting.causal.components) > min(widths):
        problems.append(f"causal.components: {setting.causal.components} exceed the width {min(widths)} of the models")
    return problems + _beside_contrast("causal", study, setting, setting.crosscoders)


def _beside_contrast(key: str, study: Study, setting: Setting, names: list[str]) -> list[str]:
    """Crosscoders that read other sources than those of the contrast and their difference."""
    problems = []
    for name in names:
        member = study.crosscoders.get(name)
        known = {
            *setting.contrast,
            *(n for n, parts in differences(setting).items() if parts == setting.contrast[::-1]),
        }
        other = set(crosscoder_sources(setting, member)) - known if member else set()
        if other:
            problems.append(f"{key}: {name!r} reads {', '.join(sorted(other))}; expected sources of the contrast alone")
    return problems


def _steering_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of steering base with latents and of ablating them in chat."""
    pair = [setting.sources.get(name) for name in setting.contrast]
    if not all(isinstance(source, Source) for source in pair):
        return ["steering: the contrast is no pair of models"]
    base, chat = (study.models.get(source.model) for source in pair)
    corpus = study.corpora.get(chat.corpus) if isinstance(chat, FineTunedModel) else None
    if not isinstance(corpus, PlantedChats) or not corpus.plants or base is not study.models.get(chat.base):
        names = " and ".join(repr(source.model) for source in pair)
        return [
            f"steering: {names}; expected a base and its fine-tune on a corpus of kind planted_chats that plants a behaviour"
        ]
    problems = []
    if pair[0].layer != pair[1].layer or {source.hook for source in pair} != {"resid_post"}:
        problems.append("steering: the contrast needs two models at the same layer, hook resid_post")
    named = setting.steering.crosscoders or []
    for name in named:
        problems += _unknown("steering.crosscoders", name, dict.fromkeys(setting.crosscoders))
    chosen = [name for name in setting.crosscoders if name in named or setting.steering.crosscoders is None]
    return problems + _beside_contrast("steering", study, setting, chosen)


def _equivalence_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of comparing what latents do in the two models of the contrast."""
    pair = [setting.sources.get(name) for name in setting.contrast]
    if not all(isinstance(source, Source) for source in pair):
        return ["equivalence: the contrast is no pair of models"]
    problems, named = [], setting.equivalence.crosscoders or []
    if setting.alignment != "tokens":
        problems.append("equivalence: the models need one tokenizer, and alignment is 'characters'")
    if pair[0].layer != pair[1].layer or pair[0].model == pair[1].model or {s.hook for s in pair} != {"resid_post"}:
        problems.append("equivalence: the contrast needs two models at the same layer, hook resid_post")
    for name in named:
        problems += _unknown("equivalence.crosscoders", name, dict.fromkeys(setting.crosscoders))
    for name in setting.crosscoders:
        member = study.crosscoders.get(name)
        lacking = set(setting.contrast) - set(crosscoder_sources(setting, member)) if member else set()
        if name in named and lacking:
            sources = ", ".join(sorted(lacking))
            problems.append(
                f"equivalence.crosscoders: {name!r} does not read {sources}; expected both sources of the contrast"
            )
    return problems


def _block_problems(where: str, crosscoder: CrosscoderSettings, setting: Setting | PlantedSetting) -> list[str]:
    problems = []
    for name in crosscoder.sources or ():
        problems += _unknown(f"{where}: sources", name, setting.sources)
    known = dict.fromkeys(crosscoder_sources(setting, crosscoder))
    for block_name, block in crosscoder.blocks.items():
        for key in ("reads", "writes"):
            names = getattr(block, key)
            for name in names if isinstance(names, list) else ():
                problems += _unknown(f"{where}: blocks.{block_name}.{key}", name, known)
        if block.window is not None and block.window >= len(known):
            following = f"the {len(known) - 1} sources after the first"
            problems.append(f"{where}: blocks.{block_name}.window: {block.window} is longer than {following}")
    for name in crosscoder.source_weights:
        problems += _unknown(f"{where}: source_weights", name, known)
    for name in crosscoder.delta.of if crosscoder.delta else ():
        problems += _unknown(f"{where}: delta.of", name, known)
    for block_name, size in block_sizes(crosscoder, list(known)).items():
        k = crosscoder.blocks[block_name].k
        if k is not None and k > size:
            problems.append(f"{where}: blocks.{block_name}.k: {k} exceeds the block's {size} latents")
    return problems + _rank_problems(where, crosscoder, list(known))


def _rank_problems(where: str, crosscoder: CrosscoderSettings, sources: list[str]) -> list[str]:
    """Groups of latents that are too small to be shared among ranks."""
    shares, ranks = [group.share for group in groups(crosscoder.blocks, sources)], crosscoder.training.ranks
    smallest = min(group_sizes(crosscoder.latents, shares), default=0)
    if ranks == 1 or smallest >= ranks:
        return []
    return [
        f"{where}: training.ranks: {ranks}; expected at most {smallest}, the latents of the smallest group of a block"
    ]


def _unknown(key: str, name: str, known: dict) -> list[str]:
    if name in known:
        return []
    return [f"{key}: {name!r} is not defined; known: {', '.join(known) or 'none'}{suggestion(name, list(known))}"]


def _made_from(study: Study, model: object) -> object:
    """The model that a model is made from; `None` where that is of a kind from which it cannot be made."""
    base = study.models.get(model.base)
    return None if isinstance(base, PERTURBED if isinstance(model, PERTURBED) else DERIVED) else base


def model_width(study: Study, model: object) -> int | None:
    """Width of a model's residual stream, `None` where it cannot be known before it is there."""
    if isinstance(model, DERIVED):
        return model_width(study, _made_from(study, model))
    if isinstance(model, FolderModel):
        return model_folder.shape(Path(model.path)).width
    return model.width if isinstance(model, (RandomModel, TrainedModel)) else None


def model_shape(study: Study, model: object) -> tuple[int | None, int | None]:
    """Depth and context length of a model, `None` where they cannot be known before it is there."""
    if isinstance(model, DERIVED):
        return model_shape(study, _made_from(study, model))
    if isinstance(model, FolderModel):
        shape = model_folder.shape(Path(model.path))
        return shape.depth, shape.context_length
    return (None, None) if model is None else (model.depth, model.context_length)
