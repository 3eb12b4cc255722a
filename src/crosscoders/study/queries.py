"""Questions that rules and sections ask of a study: which settings, models and corpora belong together."""

from __future__ import annotations

from crosscoders.study.blocks import crosscoder_sources, stored_sources
from crosscoders.study.series import Cell, cells
from crosscoders.study.settings.comparisons import (
    AnySetting,
    Circuits,
    DoseSeries,
    NullSetting,
    PlantedSetting,
    Setting,
    Source,
    TransferSetting,
)
from crosscoders.study.settings.corpora import PlantedChats
from crosscoders.study.settings.crosscoders import PublishedSettings
from crosscoders.study.settings.models import DERIVED, FineTunedModel, NoisedModel, RoundedModel
from crosscoders.study.settings.study import Study


def planted_settings(study: Study) -> list[str]:
    """Settings whose sources are synthetic."""
    return [name for name, setting in study.settings.items() if isinstance(setting, PlantedSetting)]


def series_settings(study: Study) -> list[str]:
    """Settings that repeat another over doses."""
    return [name for name, setting in study.settings.items() if isinstance(setting, DoseSeries)]


def cells_of(study: Study, series: str) -> list[Cell]:
    """The repetitions of a series.

    Parameters
    ----------
    study : Study
    series : str
        Name of a setting of the study; others than series have none.

    Returns
    -------
    list of Cell
    """
    chosen = study.settings[series]
    return cells(chosen) if isinstance(chosen, DoseSeries) else []


def series_of(study: Study) -> dict[str, str]:
    """The settings that series make, and the series of each: {setting: series}."""
    return {cell.setting: name for name in series_settings(study) for cell in cells_of(study, name)}


def _patterns(study: Study) -> set[str]:
    """Settings that series repeat, which are not run themselves."""
    return {study.settings[name].setting for name in series_settings(study)}


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


def data_setting(study: Study, setting: str) -> str:
    """The setting whose tokens and activations a setting reads: its own, or another's for a null and a transfer.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    str
        Name of a setting.
    """
    chosen = study.settings[setting]
    if isinstance(chosen, TransferSetting):
        return chosen.measured_on
    return chosen.null_of if isinstance(chosen, NullSetting) else setting


def trained_setting(study: Study, setting: str) -> str:
    """The setting whose crosscoders a setting measures: its own, but for a transfer."""
    chosen = study.settings[setting]
    return chosen.trained_on if isinstance(chosen, TransferSetting) else setting


def is_transfer(study: Study, setting: str) -> bool:
    """Whether a setting trains nothing."""
    return isinstance(study.settings[setting], TransferSetting)


def transfers_of(study: Study, setting: str) -> list[str]:
    """Settings that measure a setting's crosscoders elsewhere.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of str
        Names, in the order of the study file.
    """
    others = study.settings.items()
    return [name for name, other in others if isinstance(other, TransferSetting) and other.trained_on == setting]


def nulls_of(study: Study, setting: str) -> list[str]:
    """Settings that are nulls of a setting.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of str
        Names, in the order of the study file.
    """
    return [name for name, other in study.settings.items() if null_of(other) == setting]


def null_of(setting: AnySetting) -> str | None:
    """The setting that a setting is a null of, beside which its results are shown."""
    return setting.null_of if isinstance(setting, (NullSetting, Setting)) else None


def drawn_settings(study: Study) -> list[str]:
    """Settings that have a notebook of their own: all but nulls, transfers and what a series repeats.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
        Names, in the order of the study file.
    """
    apart, kinds = _patterns(study) | set(series_of(study)), (Setting, PlantedSetting, DoseSeries)
    return [
        name
        for name, one in study.settings.items()
        if isinstance(one, kinds) and null_of(one) is None and name not in apart
    ]


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


def circuits_of(study: Study, setting: str) -> Circuits | None:
    """How a setting's circuits are simplified, where it asks for it.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    Circuits or None
    """
    chosen = study.settings[setting]
    return chosen.circuits if isinstance(chosen, (Setting, PlantedSetting)) else None


def setting_models(study: Study, setting: str) -> list[str]:
    """Models that a setting's sources need, each once; synthetic sources need none.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of str
        Names of models, in the order of the sources.
    """
    sources = stored_sources(study.settings[setting]).values()
    return list(dict.fromkeys(source.model for source in sources if isinstance(source, Source)))


def setting_corpora(study: Study, setting: str) -> list[str]:
    """Corpora that a setting takes tokens from, each once.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of str
        Names of corpora.
    """
    return list(dict.fromkeys(name for tokens in study.settings[setting].tokens.values() for name in tokens))


def root_model(study: Study, model: str) -> str:
    """The fetched model that a model is, or was made from; its tokenizer serves both."""
    chosen = study.models[model]
    return root_model(study, chosen.base) if isinstance(chosen, DERIVED) else model


def with_origins(study: Study, model: str) -> list[str]:
    """A model and those that it is made from, directly or through others.

    Parameters
    ----------
    study : Study
    model : str

    Returns
    -------
    list of str
        Names of models, each once; `model` comes first.
    """
    chosen = study.models[model]
    made_from = [chosen.base] if isinstance(chosen, DERIVED) else []
    made_from += [chosen.like] if isinstance(chosen, NoisedModel) else []
    return list(dict.fromkeys([model, *(name for one in made_from for name in with_origins(study, one))]))


def root_models(study: Study, setting: str) -> list[str]:
    """The models whose tokenizers serve those of a setting, each once.

    Parameters
    ----------
    study : Study
    setting : str

    Returns
    -------
    list of str
    """
    return list(dict.fromkeys(root_model(study, name) for name in setting_models(study, setting)))


def own_tokenizers(study: Study, setting: str) -> dict[str, str]:
    """Models of a setting that read its text through a tokenizer of their own, and the roots that it comes from.

    Parameters
    ----------
    study : Study
    setting : str

    Returns
    -------
    {model: root}
        Empty but where the setting aligns characters. The model of the contrast's second source is the reference: its
        tokens are those that the study counts and shows.
    """
    chosen = study.settings[setting]
    if not isinstance(chosen, Setting) or chosen.alignment == "tokens":
        return {}
    reference = root_model(study, contrast_model(chosen))
    roots = {name: root_model(study, name) for name in setting_models(study, setting)}
    return {name: root for name, root in roots.items() if root != reference}


def contrast_models(setting: Setting) -> list[str]:
    """The models of the two sources of a setting's contrast.

    Parameters
    ----------
    setting : Setting

    Returns
    -------
    list of str
        Where a source is a difference, the model of its minuend.
    """
    chosen = [setting.sources[name] for name in setting.contrast]
    return [(one if isinstance(one, Source) else setting.sources[one.of[0]]).model for one in chosen]


def contrast_model(setting: Setting) -> str:
    """The model of the second source of a setting's contrast; where that is a difference, of its minuend."""
    return contrast_models(setting)[1]


def plain_chats(study: Study, model: str) -> list[str]:
    """The corpus whose chats stand for those that a fine-tune's dose leaves out: one name, or none.

    Parameters
    ----------
    study : Study
    model : str
        A fine-tuned model of the study.

    Returns
    -------
    list of str
    """
    chosen = study.models[model]
    return [chosen.plain] if isinstance(chosen, FineTunedModel) and chosen.plain is not None else []


def planted_pair(study: Study, setting: str) -> tuple[str, str] | None:
    """The base and the fine-tune whose planted behaviours a setting shows, where its sources include such a pair.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    (str, str) or None
        Names of the two models.
    """
    for name in setting_models(study, setting):
        model = study.models[name]
        corpus = study.corpora[model.corpus] if isinstance(model, FineTunedModel) else None
        if isinstance(corpus, PlantedChats) and corpus.plants:
            return model.base, name
    return None


def spliced(study: Study, setting: str) -> bool:
    """Whether reconstructions of a setting's sources are spliced into their models.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    bool
    """
    chosen = study.settings[setting]
    return isinstance(chosen, Setting) and chosen.splice_tokens > 0


def diverging(study: Study, setting: str) -> bool:
    """Whether the predictions and weights of the two models of a setting's contrast are compared.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    bool
    """
    chosen = study.settings[setting]
    return isinstance(chosen, Setting) and chosen.divergence_tokens > 0 and chosen.alignment == "tokens"


def rounded_nulls(study: Study, setting: str) -> dict[str, int]:
    """The nulls of a setting whose second model has rounded weights and is compared with the first: {null: bits}.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    {str: int}
    """
    compared = [name for name in nulls_of(study, setting) if diverging(study, name)]
    models = {name: study.models[contrast_model(study.settings[name])] for name in compared}
    return {name: model.bits for name, model in models.items() if isinstance(model, RoundedModel)}


def patched(study: Study, setting: str) -> bool:
    """Whether a setting's latents are patched into its chat model.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    bool
    """
    chosen = study.settings[setting]
    return isinstance(chosen, Setting) and chosen.causal is not None and chosen.alignment == "tokens"


def steered(study: Study, setting: str) -> list[str]:
    """Crosscoders of a setting whose latents steer its models.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of str
        Names, in the order of the setting; none where it does not ask for it.
    """
    chosen = study.settings[setting]
    if not isinstance(chosen, Setting) or chosen.steering is None:
        return []
    wanted = chosen.steering.crosscoders
    return [name for name in chosen.crosscoders if wanted is None or name in wanted]


def compared(study: Study, setting: str) -> list[str]:
    """Crosscoders of a setting whose shared latents are compared by what they do in both models.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study.

    Returns
    -------
    list of str
        Names, in the order of the setting; none where it does not ask for it.
    """
    chosen = study.settings[setting]
    if not isinstance(chosen, Setting) or chosen.equivalence is None:
        return []
    wanted, members = chosen.equivalence.crosscoders, study.crosscoders
    both = [
        name for name in chosen.crosscoders if set(chosen.contrast) <= set(crosscoder_sources(chosen, members[name]))
    ]
    return [name for name in both if wanted is None or name in wanted]


def left_out(study: Study) -> list[str]:
    """What a study asks for and does not get.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
        A line each, with the reason.
    """
    settings = {name: setting for name, setting in study.settings.items() if isinstance(setting, Setting)}
    lines = [
        f"settings.{name}.causal: left out; patching one model's activations into the other needs one tokenizer, and "
        "alignment is 'characters'"
        for name, setting in settings.items()
        if setting.causal is not None and not patched(study, name)
    ]
    return lines + [
        f"settings.{name}.divergence_tokens: left out; the models' predictions are compared token by token, and "
        "alignment is 'characters'"
        for name, setting in settings.items()
        if setting.divergence_tokens and not diverging(study, name)
    ]


def reported_settings(study: Study) -> list[str]:
    """Settings that the report needs: those that have notebooks, then their nulls and transfers.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
    """
    drawn = drawn_settings(study)
    beside = [name for one in drawn for name in (*nulls_of(study, one), *transfers_of(study, one))]
    return list(dict.fromkeys([*drawn, *beside]))


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


def unequal_budgets(study: Study) -> list[str]:
    """Settings that compare crosscoders which see unequal numbers of tokens in training.

    A difference between such crosscoders may come from the tokens and not from what they are.

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
        if len(set(tokens.values())) > 1:
            listed = ", ".join(f"{member} {count:,}" for member, count in tokens.items())
            lines.append(
                f"settings.{name}: its members see unequal numbers of tokens in training ({listed}); expected equal "
                "steps × batch_tokens where they are compared"
            )
    return lines


def paged(study: Study) -> list[str]:
    """Settings whose latents get pages: those with activations of their own, where the study asks for it."""
    drawn = drawn_settings(study) if study.page else []
    return [name for name in drawn if isinstance(study.settings[name], Setting)]


def explained(study: Study) -> list[str]:
    """Settings whose latents are labelled.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
        Names, in the order of the study file.
    """
    reported = reported_settings(study)
    settings = study.settings.items()
    return [name for name, one in settings if name in reported and isinstance(one, Setting) and one.explain is not None]


def labellers(study: Study) -> list[str]:
    """Models of the study that label latents, each once."""
    asked = [study.settings[name].explain.model for name in explained(study)]
    return list(dict.fromkeys(name for name in asked if name is not None))


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
        for crosscoder in study.settings[name].crosscoders
        for seed in study.seeds
        for format_name in study.crosscoders[crosscoder].exports
    ]
