"""Problems of settings: their sources, and the settings that they are nulls, transfers or repetitions of."""

from __future__ import annotations

import itertools
from pathlib import Path

from crosscoders.study.blocks import crosscoder_sources, differences, stored_sources
from crosscoders.study.contrasts import NONE
from crosscoders.study.queries.lineage import training_step
from crosscoders.study.queries.measurements import follows
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
from crosscoders.study.settings.crosscoders import CrosscoderSettings, PublishedSettings
from crosscoders.study.settings.models import FineTunedModel
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.crosscoders import block_problems
from crosscoders.study.validation.interventions import circuit_problems
from crosscoders.study.validation.models import model_width
from crosscoders.study.validation.names import unknown_name

NOTEBOOKS = Path(__file__).parents[4] / "notebooks"


def _read_problems(study: Study, setting: Setting | PlantedSetting | NullSetting, why: str) -> list[str]:
    """Crosscoders of a setting that are read where all must be trained."""
    read = [name for name in setting.crosscoders if isinstance(study.crosscoders.get(name), PublishedSettings)]
    return [f"crosscoders: {name!r} is published; {why}" for name in read]


def source_problems(study: Study, setting: Setting | PlantedSetting) -> list[str]:
    """Problems of sources, contrast and crosscoders."""
    problems, stored = [], stored_sources(setting)
    if len(stored) < 2:
        problems.append(f"sources: {len(stored)} given; a crosscoder needs at least two")
    for name, parts in differences(setting).items():
        for part in parts:
            problems += unknown_name(f"sources.{name}.of", part, stored)
        if parts[0] == parts[1]:
            problems.append(f"sources.{name}.of: {parts} names one source twice")
    for name in setting.contrast:
        problems += unknown_name("contrast", name, setting.sources)
    if len(set(setting.contrast)) < len(setting.contrast):
        problems.append(f"contrast: {setting.contrast} names one source twice")
    if len(setting.contrast) > 2:
        problems += [
            f"contrast: {name!r} is a difference; expected sources that are none in a contrast of more than two"
            for name in setting.contrast
            if name in differences(setting)
        ]
        if NONE in setting.contrast:
            problems.append(
                f"contrast: a source called {NONE!r}; expected another name, since latents that write no source are called so"
            )
    tokens = setting.tokens.get("train", 0)
    available = sum(tokens.values()) if isinstance(tokens, dict) else tokens
    for name in setting.crosscoders:
        problems += unknown_name("crosscoders", name, study.crosscoders)
        crosscoder = study.crosscoders.get(name)
        if crosscoder is None:
            continue
        if isinstance(crosscoder, PublishedSettings):
            for source in crosscoder.sources or ():
                problems += unknown_name(f"crosscoders ({name!r}): sources", source, stored)
            continue
        batch = crosscoder.training.batch_tokens
        if 0 < available < batch:
            problems.append(f"tokens.train: {available} tokens are fewer than a batch of {name!r} ({batch})")
        problems += block_problems(f"crosscoders ({name!r})", crosscoder, setting)
    return list(dict.fromkeys(problems))


def through_problems(study: Study, setting: Setting) -> list[str]:
    """Problems of the order in which a setting's sources stand in training."""
    stored = stored_sources(setting)
    problems = [line for name in setting.through for line in unknown_name("through", name, stored)]
    if problems:
        return problems
    first, *later = ((name, stored[name]) for name in setting.through)
    for name, source in later:
        if (source.layer, source.hook) != (first[1].layer, first[1].hook):
            problems.append(
                f"through: {name!r} reads {source.hook} of layer {source.layer}; expected {first[1].hook} of layer "
                f"{first[1].layer}, as {first[0]!r} does"
            )
    known = {name: training_step(study, stored[name].model) for name in setting.through}
    for one, other in itertools.pairwise(name for name, step in known.items() if step is not None):
        (trained, step), (other_trained, other_step) = known[one], known[other]
        if other_trained != trained:
            problems.append(f"through: {other!r} is of the training of {other_trained!r}; expected that of {trained!r}")
        elif other_step <= step:
            problems.append(
                f"through: {other!r} (step {other_step}) comes after {one!r} (step {step}); expected a later step"
            )
    members = {name: study.crosscoders.get(name) for name in setting.crosscoders}
    if not problems and not any(member is None or follows(setting, member) for member in members.values()):
        problems.append(
            f"through: no latent of {', '.join(members)} writes all of its sources; expected a crosscoder that does"
        )
    return problems


def notebook_problem(notebook: str) -> list[str]:
    """Whether the project has a notebook."""
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    return unknown_name("notebook", notebook, dict.fromkeys(known)) if known else []


def null_problems(study: Study, setting: NullSetting) -> list[str]:
    """Problems of a setting that changes another's activations."""
    problems = unknown_name("null_of", setting.null_of, study.settings)
    other = study.settings.get(setting.null_of)
    for name in setting.crosscoders:
        problems += unknown_name("crosscoders", name, study.crosscoders)
    if not isinstance(other, Setting):
        return (
            problems if problems or other is None else [f"null_of: {setting.null_of!r} reads no activations of models"]
        )
    problems += _read_problems(study, setting, "expected ones that are trained on the changed activations")
    for name in setting.crosscoders:
        if not isinstance(study.crosscoders.get(name), CrosscoderSettings):
            continue
        problems += block_problems(f"crosscoders ({name!r})", study.crosscoders[name], other)
        lacking = set(other.contrast) - set(crosscoder_sources(other, study.crosscoders[name]))
        if lacking:
            problems.append(f"crosscoders: {name!r} does not read {sorted(lacking)}, which a null needs")
    return problems


def transfer_problems(study: Study, setting: TransferSetting) -> list[str]:
    """Problems of a setting that measures another's crosscoders elsewhere."""
    problems = unknown_name("trained_on", setting.trained_on, study.settings)
    problems += unknown_name("measured_on", setting.measured_on, study.settings)
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
            problems += unknown_name(key, name, dict.fromkeys(getattr(trained, key)))
    return problems


def series_problems(study: Study, series: DoseSeries) -> list[str]:
    """Problems of a setting that is repeated over doses."""
    problems = unknown_name("setting", series.setting, study.settings) + unknown_name(
        "model", series.model, study.models
    )
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
    if len(getattr(study, "seeds", [0])) > 1:
        problems += [
            f"setting: {line.removeprefix('crosscoders: ')}"
            for line in _read_problems(study, setting, "expected ones that are trained with every seed")
        ]
    if series.best > series.components:
        problems.append(f"best: {series.best} exceeds components = {series.components}")
    taken = {cell.setting for cell in cells(series)} & set(study.settings)
    taken |= {cell.model for cell in cells(series)} & set(study.models)
    return problems + [f"setting: {name!r} is a name that the series gives; expected another" for name in sorted(taken)]


def planted_problems(study: Study, setting: PlantedSetting) -> list[str]:
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
        problems += circuit_problems(study, setting)
    return problems + subset_problems(setting) + width_problems(study, setting, widths)


def subset_problems(setting: PlantedSetting) -> list[str]:
    """Problems of concepts that live in some of the sources."""
    names, seen = setting.contrast, {}
    if setting.planted.subsets and len(names) == 2:
        return [
            "planted.subsets: expected with a contrast of three sources or more; a pair has base-only and chat-only concepts"
        ]
    problems = []
    for label in setting.planted.subsets:
        parts = label.split("+")
        if not set(parts) <= set(names) or len(set(parts)) < len(parts) or len(parts) == len(names):
            problems.append(
                f"planted.subsets: {label!r}; expected some of {', '.join(names)}, but not all, each once and joined by +"
            )
        elif (known := seen.setdefault(frozenset(parts), label)) != label:
            problems.append(f"planted.subsets: {label!r} is {known!r} in another order; expected each subset once")
    return problems


def model_widths(study: Study, setting: Setting) -> dict[str, int]:
    """Widths of the sources whose models' widths are known before they are fetched."""
    models = {name: source.model for name, source in stored_sources(setting).items() if isinstance(source, Source)}
    widths = {name: model_width(study, study.models.get(model)) for name, model in models.items()}
    return {name: width for name, width in widths.items() if width is not None}


def width_problems(study: Study, setting: Setting | PlantedSetting, widths: dict[str, int]) -> list[str]:
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
