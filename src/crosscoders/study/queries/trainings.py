"""The trainings of a study: which there are, how often they read their activations, and what becomes of them."""

from __future__ import annotations

import itertools

from crosscoders.study.blocks import crosscoder_sources
from crosscoders.study.queries.comparisons import data_setting, is_transfer, reported_settings, series_of
from crosscoders.study.settings.comparisons import Setting, TransferSetting
from crosscoders.study.settings.crosscoders import PublishedSettings
from crosscoders.study.settings.study import Study


def published(study: Study) -> list[str]:
    """Crosscoders that are read, not trained.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
        Names, in the order of the study file.
    """
    return [name for name, one in study.crosscoders.items() if isinstance(one, PublishedSettings)]


def seeds_of(study: Study, crosscoder: str) -> list[int]:
    """Seeds of the study with which there is a crosscoder: all, and the smallest alone of a published one.

    A published crosscoder is one training, whatever seeds the study has.

    Parameters
    ----------
    study : Study
    crosscoder : str
        Name of a section under `crosscoders`.

    Returns
    -------
    list of int
    """
    return [min(study.seeds)] if crosscoder in published(study) else study.seeds


def with_seeds(study: Study, crosscoders: list[str]) -> list[tuple[str, int]]:
    """Crosscoders, each with all seeds that it has.

    Parameters
    ----------
    study : Study
    crosscoders : list of str

    Returns
    -------
    list of (crosscoder, seed)
    """
    return [(name, seed) for name in crosscoders for seed in seeds_of(study, name)]


def repeated(study: Study, setting: str) -> list[tuple[str, int]]:
    """The trainings of a setting whose latents are matched with those of other seeds.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of (crosscoder, seed)
        Those of crosscoders that have several seeds; none of a setting that trains nothing.
    """
    names = [] if is_transfer(study, setting) else study.settings[setting].crosscoders
    return with_seeds(study, [name for name in names if len(seeds_of(study, name)) > 1])


def comparable(study: Study, setting: str, crosscoder: str, seed: int) -> list[tuple[str, int]]:
    """The crosscoders of a setting whose latents can be compared with those of one: those with the same sources.

    Parameters
    ----------
    study : Study
    setting : str
        A setting with activations of models.
    crosscoder : str
    seed : int

    Returns
    -------
    list of (crosscoder, seed)
        All other seeds of the same crosscoder, then the other crosscoders, each with the same seed or, where there is none,
        with its first.
    """
    chosen, members = study.settings[setting], study.crosscoders
    sources = set(crosscoder_sources(chosen, members[crosscoder]))
    found = [(crosscoder, other) for other in seeds_of(study, crosscoder) if other != seed]
    for name in chosen.crosscoders:
        if name != crosscoder and set(crosscoder_sources(chosen, members[name])) == sources:
            seeds = seeds_of(study, name)
            found.append((name, seed if seed in seeds else seeds[0]))
    return found


def aligned_of(study: Study, setting: str) -> list[str]:
    """Aligned crosscoders that a setting trains or measures.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of str
        Names of sections under `aligned`.
    """
    chosen = study.settings[setting]
    return chosen.aligned if isinstance(chosen, (Setting, TransferSetting)) else []


def windowed(study: Study, setting: str) -> bool:
    """Whether the training activations that a setting reads pass through a window and are deleted."""
    chosen = study.settings[data_setting(study, setting)]
    return isinstance(chosen, Setting) and chosen.activations.keep == "window"


def trainings_on(study: Study, data: str) -> list[tuple[str, str, int]]:
    """Trainings that read the training activations of a setting: its own, and those of its nulls.

    Parameters
    ----------
    study : Study
    data : str
        A setting with activations of its own.

    Returns
    -------
    list of (setting, crosscoder, seed)
    """
    read = published(study)
    return [
        (name, crosscoder, seed)
        for name, setting in study.settings.items()
        if data_setting(study, name) == data and not is_transfer(study, name)
        for crosscoder in setting.crosscoders
        if crosscoder not in read
        for seed in study.seeds
    ]


def passes(study: Study, data: str) -> int:
    """How often the training activations of a windowed setting are extracted: as often as its longest training reads them.

    Parameters
    ----------
    study : Study
    data : str

    Returns
    -------
    int
        Training tokens that a crosscoder sees, over those that there are, rounded up.
    """
    there = sum(study.settings[data].tokens["train"].values())
    trainings = trainings_on(study, data)
    seen = max((study.crosscoders[name].training.tokens for _, name, _ in trainings), default=there)
    return max(1, -(-seen // there))


def segments(study: Study, data: str) -> int:
    """Parts of a training on a window: one for every shard of every pass."""
    return study.settings[data].shards["train"] * passes(study, data)


def members_of(study: Study, setting: str) -> dict[str, str]:
    """The member of the family that each crosscoder of a setting is.

    Crosscoders are one member where they differ in nothing but the steps that they are trained for.

    Parameters
    ----------
    study : Study
    setting : str
        A setting with crosscoders.

    Returns
    -------
    {crosscoder: member}
        A member has the name that its crosscoders share up to a hyphen, and one crosscoder's own where there is no other.
    """
    alike: dict[str, list[str]] = {}
    for name in study.settings[setting].crosscoders:
        one = study.crosscoders[name]
        excluded = {} if isinstance(one, PublishedSettings) else {"training": {"steps"}}
        alike.setdefault(one.model_dump_json(exclude=excluded), []).append(name)
    shared = {names[0]: _common_words(names) or names[0] for names in alike.values()}
    if len(set(shared.values())) < len(shared):  # two members whose crosscoders begin alike keep the names apart
        shared = {first: first for first in shared}
    return {name: shared[names[0]] for names in alike.values() for name in names}


def _common_words(names: list[str]) -> str:
    """The words between hyphens with which all of the names begin."""
    words = zip(*(name.split("-") for name in names), strict=False)
    return "-".join(first for first, *others in itertools.takewhile(lambda same: len(set(same)) == 1, words))


def unequal_budgets(study: Study) -> list[str]:
    """Settings that compare members of the family which see unequal numbers of tokens in training.

    A difference between such crosscoders may come from the tokens and not from what they are. A member that is trained for
    several numbers of tokens is compared at each of them: the others need the same numbers.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
        A line for each setting, with the tokens of every member.
    """
    lines = []
    repeated = series_of(study)
    for name, setting in study.settings.items():
        if name in repeated:
            continue  # said of the setting that is repeated
        read = published(study)  # what they saw is not known
        members = {member: study.crosscoders[member] for member in setting.crosscoders if member not in read}
        members |= {member: study.aligned[member] for member in aligned_of(study, name)}
        tokens = {member: one.training.tokens for member, one in members.items()}
        budgets: dict[str, list[int]] = {}
        alike = members_of(study, name)
        for member, count in tokens.items():
            budgets.setdefault(alike.get(member, member), []).append(count)
        if len({tuple(sorted(counts)) for counts in budgets.values()}) > 1:
            listed = ", ".join(f"{member} {count:,}" for member, count in tokens.items())
            lines.append(
                f"settings.{name}: its members see unequal numbers of tokens in training ({listed}); expected equal "
                "steps × batch_tokens where they are compared"
            )
    return lines


def trackers(study: Study) -> dict[str, list[str]]:
    """What follows the trainings of a study while they run.

    Parameters
    ----------
    study : Study

    Returns
    -------
    {section: list of str}
        By section of the study, as `crosscoders.l1`; those without trackers are left out.
    """
    sections = {f"crosscoders.{name}": one for name, one in study.crosscoders.items() if name not in published(study)}
    sections |= {f"aligned.{name}": one for name, one in study.aligned.items()}
    return {place: one.training.trackers for place, one in sections.items() if one.training.trackers}


def exports(study: Study) -> list[tuple[str, str, int, str]]:
    """What a study writes for other tools.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of (setting, crosscoder, seed, format)
        Of settings with activations of models of their own.
    """
    return [
        (name, crosscoder, seed, format_name)
        for name in reported_settings(study)
        if isinstance(study.settings[name], Setting)
        for crosscoder, seed in with_seeds(study, study.settings[name].crosscoders)
        for format_name in study.crosscoders[crosscoder].exports
    ]
