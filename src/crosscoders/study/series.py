"""Series over doses: a setting and its fine-tune, repeated at every dose and with every seed, as ordinary sections."""

from __future__ import annotations

from dataclasses import dataclass

from crosscoders.study.settings.comparisons import DoseSeries, Setting, Source
from crosscoders.study.settings.study import Study


@dataclass(frozen=True)
class Cell:
    """One repetition.

    Attributes
    ----------
    dose : float
    seed : int
        Of the fine-tune.
    setting, model : str
        Names of the setting and of the fine-tuned model that are made for it.
    """

    dose: float
    seed: int
    setting: str
    model: str


def cells(series: DoseSeries) -> list[Cell]:
    """The repetitions of a series, dose by dose.

    Parameters
    ----------
    series : DoseSeries

    Returns
    -------
    list of Cell
        The names say the dose in percent, with `p` for a decimal point, as `base-vs-chat-dose-2p5-seed-0`.
    """
    made = []
    for dose in series.doses:
        for seed in series.seeds:
            end = f"dose-{100 * dose:g}-seed-{seed}".replace(".", "p")
            made.append(Cell(dose, seed, f"{series.setting}-{end}", f"{series.model}-{end}"))
    return made


def expanded(study: Study) -> Study:
    """A checked study with a setting and a model for every repetition of its series.

    All that reads a study after it was loaded sees ordinary settings and models.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Study
        The study itself where it has no series.
    """
    models, settings = dict(study.models), dict(study.settings)
    for series in [one for one in study.settings.values() if isinstance(one, DoseSeries)]:
        for cell in cells(series):
            changes = {"dose": cell.dose, "seed": cell.seed}
            models[cell.model] = study.models[series.model].model_copy(update=changes)
            settings[cell.setting] = _reading(study.settings[series.setting], series.model, cell.model)
    if len(settings) == len(study.settings):
        return study
    return study.model_copy(update={"models": models, "settings": settings})


def _reading(setting: Setting, old: str, new: str) -> Setting:
    """A setting whose sources read another model in place of one."""
    sources = {
        name: source.model_copy(update={"model": new}) if isinstance(source, Source) and source.model == old else source
        for name, source in setting.sources.items()
    }
    return setting.model_copy(update={"sources": sources})
