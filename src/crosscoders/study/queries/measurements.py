"""The measurements that a setting asks for beyond those that every setting gets."""

from __future__ import annotations

from crosscoders.study.blocks import crosscoder_sources, groups
from crosscoders.study.queries.comparisons import data_setting, is_transfer, nulls_of, reported_settings
from crosscoders.study.queries.lineage import contrast_model
from crosscoders.study.settings.comparisons import Circuits, PlantedSetting, Setting
from crosscoders.study.settings.crosscoders import AnyCrosscoder, CrosscoderSettings
from crosscoders.study.settings.models import RoundedModel
from crosscoders.study.settings.study import Study


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


def traced(study: Study, setting: str) -> list[str]:
    """Crosscoders of a setting whose latents are followed through training.

    Parameters
    ----------
    study : Study
    setting : str
        Name of a setting of the study; a null follows what the setting that it is a null of follows.

    Returns
    -------
    list of str
        Names, in the order of the setting; none where its sources are in no order of training.
    """
    chosen = study.settings[data_setting(study, setting)]
    if not isinstance(chosen, Setting) or chosen.through is None or is_transfer(study, setting):
        return []
    return [name for name in study.settings[setting].crosscoders if follows(chosen, study.crosscoders[name])]


def follows(setting: Setting, member: AnyCrosscoder) -> bool:
    """Whether some latents of a crosscoder write every source of a setting's `through`."""
    sources, through = crosscoder_sources(setting, member), set(setting.through)
    if not isinstance(member, CrosscoderSettings):
        return through <= set(sources)
    written = [
        {name for name, writes in zip(sources, group.writes, strict=True) if writes}
        for group in groups(member.blocks, sources)
    ]
    return any(through <= some for some in written)


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
