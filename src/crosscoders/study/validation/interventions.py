"""Problems of what intervenes in models: patching, steering, ablation and circuits."""

from __future__ import annotations

from crosscoders.study.blocks import crosscoder_sources, differences, stored_sources
from crosscoders.study.settings.comparisons import PlantedSetting, Setting, Source
from crosscoders.study.settings.corpora import PlantedChats
from crosscoders.study.settings.crosscoders import CrosscoderSettings, PublishedSettings
from crosscoders.study.settings.models import FineTunedModel
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.models import model_width
from crosscoders.study.validation.names import unknown_name


def circuit_problems(study: Study, setting: Setting | PlantedSetting) -> list[str]:
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


def _more_than_two(key: str, setting: Setting) -> list[str]:
    """Whether what needs a pair of models is asked of a contrast of more sources."""
    if len(setting.contrast) == 2:
        return []
    first, last = setting.contrast[0], setting.contrast[-1]
    return [
        f"{key}: the contrast names {len(setting.contrast)} sources; expected a pair, because {key} runs two models: make "
        f"a setting of its own with contrast: [{first}, {last}], or leave it out"
    ]


def causal_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of patching the contrast's second model with latents."""
    problems = []
    if more := _more_than_two("causal", setting):
        return more
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


def steering_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of steering base with latents and of ablating them in chat."""
    if more := _more_than_two("steering", setting):
        return more
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
        problems += unknown_name("steering.crosscoders", name, dict.fromkeys(setting.crosscoders))
    chosen = [name for name in setting.crosscoders if name in named or setting.steering.crosscoders is None]
    return problems + _beside_contrast("steering", study, setting, chosen)


def equivalence_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of comparing what latents do in the two models of the contrast."""
    if more := _more_than_two("equivalence", setting):
        return more
    pair = [setting.sources.get(name) for name in setting.contrast]
    if not all(isinstance(source, Source) for source in pair):
        return ["equivalence: the contrast is no pair of models"]
    problems, named = [], setting.equivalence.crosscoders or []
    if setting.alignment != "tokens":
        problems.append("equivalence: the models need one tokenizer, and alignment is 'characters'")
    if pair[0].layer != pair[1].layer or pair[0].model == pair[1].model or {s.hook for s in pair} != {"resid_post"}:
        problems.append("equivalence: the contrast needs two models at the same layer, hook resid_post")
    for name in named:
        problems += unknown_name("equivalence.crosscoders", name, dict.fromkeys(setting.crosscoders))
    for name in setting.crosscoders:
        member = study.crosscoders.get(name)
        lacking = set(setting.contrast) - set(crosscoder_sources(setting, member)) if member else set()
        if name in named and lacking:
            sources = ", ".join(sorted(lacking))
            problems.append(
                f"equivalence.crosscoders: {name!r} does not read {sources}; expected both sources of the contrast"
            )
    return problems
