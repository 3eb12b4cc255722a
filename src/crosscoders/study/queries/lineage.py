"""The models and corpora that a setting needs, and what a model was made from."""

from __future__ import annotations

from crosscoders.study.blocks import stored_sources
from crosscoders.study.settings.comparisons import Setting, Source
from crosscoders.study.settings.corpora import PlantedChats
from crosscoders.study.settings.models import DERIVED, FineTunedModel, NoisedModel, SnapshotModel, TrainedModel
from crosscoders.study.settings.study import Study


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
        Empty but where the setting aligns characters. The model of the contrast's last source is the reference: its
        tokens are those that the study counts and shows.
    """
    chosen = study.settings[setting]
    if not isinstance(chosen, Setting) or chosen.alignment == "tokens":
        return {}
    reference = root_model(study, contrast_model(chosen))
    roots = {name: root_model(study, name) for name in setting_models(study, setting)}
    return {name: root for name, root in roots.items() if root != reference}


def contrast_models(setting: Setting) -> list[str]:
    """The models of the first and the last source of a setting's contrast.

    Parameters
    ----------
    setting : Setting

    Returns
    -------
    list of str
        Where a source is a difference, the model of its minuend.
    """
    chosen = [setting.sources[name] for name in (setting.contrast[0], setting.contrast[-1])]
    return [(one if isinstance(one, Source) else setting.sources[one.of[0]]).model for one in chosen]


def models_first(study: Study, settings: list[str]) -> list[str]:
    """Settings in the order in which a reader meets them: those that compare two models, then all others.

    Parameters
    ----------
    study : Study
    settings : list of str
        Names of settings of the study.

    Returns
    -------
    list of str
        The same names; within both groups they keep their order.
    """
    chosen = {name: study.settings[name] for name in settings}
    compare = {name: isinstance(one, Setting) and len(set(contrast_models(one))) > 1 for name, one in chosen.items()}
    return sorted(settings, key=lambda name: not compare[name])


def contrast_model(setting: Setting) -> str:
    """The model of the last source of a setting's contrast; where that is a difference, of its minuend."""
    return contrast_models(setting)[1]


def training_step(study: Study, model: str) -> tuple[str, int] | None:
    """Whose training a model shows, and after how many steps, where the study says so.

    Parameters
    ----------
    study : Study
    model : str

    Returns
    -------
    (str, int) or None
        The trained model and the step: that of a snapshot, or the last one for the trained model itself.
    """
    chosen = study.models.get(model)
    if isinstance(chosen, SnapshotModel):
        return chosen.of, chosen.step
    return (model, chosen.steps) if isinstance(chosen, TrainedModel) else None


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


def behaving_models(study: Study, model: str) -> list[str]:
    """The models in which the behaviours are measured that a fine-tune plants.

    Parameters
    ----------
    study : Study
    model : str
        A fine-tuned model of the study.

    Returns
    -------
    list of str
        What it was made from, the model itself, and the further fine-tunes of it that a setting reads.
    """
    settings = [name for name, one in study.settings.items() if isinstance(one, Setting)]
    read = {name for setting in settings for name in setting_models(study, setting)}
    tuned = [name for name, one in study.models.items() if isinstance(one, FineTunedModel) and name in read]
    further = [name for name in tuned if name != model and model in with_origins(study, name)]
    return [study.models[model].base, model, *further]


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
