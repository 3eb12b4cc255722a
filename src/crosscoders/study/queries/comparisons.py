"""How the settings of a study belong together: nulls, transfers and series, and which of them are drawn."""

from __future__ import annotations

from crosscoders.study.series import Cell, cells
from crosscoders.study.settings.comparisons import (
    AnySetting,
    DoseSeries,
    NullSetting,
    PlantedSetting,
    Setting,
    TransferSetting,
)
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


def paged(study: Study) -> list[str]:
    """Settings whose latents get pages: those with activations of their own, where the study asks for it."""
    drawn = drawn_settings(study) if study.page else []
    return [name for name in drawn if isinstance(study.settings[name], Setting)]
