"""What the stages of this room get of a study."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar

from crosscoders.report.registry import expected_figures, leading
from crosscoders.study.queries.comparisons import data_setting, drawn_settings, nulls_of, paged, transfers_of
from crosscoders.study.queries.lineage import models_first
from crosscoders.study.queries.measurements import circuits_of
from crosscoders.study.queries.trainings import aligned_of, members_of, with_seeds
from crosscoders.study.settings.analysis import Classification
from crosscoders.study.settings.base import Digest, Name, Seed, Share
from crosscoders.study.settings.comparisons import AnySource, Planted
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import Part, StageSection


class CollateSection(StageSection):
    """The summary of one setting."""

    stage: ClassVar[str] = "collate"
    setting_name: Name
    crosscoders: list[Name]
    members: dict[Name, Name]
    """The member of the family that each crosscoder is: one member may be trained for several numbers of tokens."""
    aligned: list[Name]
    seeds: list[Seed]
    contrast: list[Name]
    classification: Classification
    sources: dict[Name, AnySource]

    @classmethod
    def of(cls, study: Study, setting: str) -> CollateSection:
        """The section of one job."""
        chosen, names = study.settings[data_setting(study, setting)], study.settings[setting].crosscoders
        trains = aligned_of(study, setting) or circuits_of(study, setting)
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoders=names,
            members=members_of(study, setting),
            aligned=aligned_of(study, setting),
            seeds=study.seeds if trains else sorted({seed for _, seed in with_seeds(study, names)}),
            contrast=chosen.contrast,
            classification=study.classification,
            sources=chosen.sources,
        )


class CollateTrialsSection(StageSection):
    """The summary of one setting of synthetic sources."""

    stage: ClassVar[str] = "collate_trials"
    setting_name: Name
    crosscoders: list[Name]
    seeds: list[Seed]
    planted: Planted
    confidence: float

    @classmethod
    def of(cls, study: Study, setting: str) -> CollateTrialsSection:
        """The section of one job."""
        chosen = study.settings[setting]
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoders=chosen.crosscoders,
            seeds=study.seeds,
            planted=chosen.planted,
            confidence=study.classification.confidence,
        )


class SummarisePowerSection(StageSection):
    """The summary of one series over doses."""

    stage: ClassVar[str] = "summarise_power"
    setting_name: Name
    doses: list[Share]
    fine_tune_seeds: list[Seed]
    seeds: list[Seed]
    false_alarms: float
    confidence: float

    @classmethod
    def of(cls, study: Study, setting: str) -> SummarisePowerSection:
        """The section of one job."""
        chosen = study.settings[setting]
        return cls(
            study=study.study,
            setting_name=setting,
            doses=chosen.doses,
            fine_tune_seeds=chosen.seeds,
            seeds=study.seeds,
            false_alarms=chosen.false_alarms,
            confidence=study.classification.confidence,
        )


class NotebookSection(StageSection):
    """One notebook: the figures that it draws, and the settings whose results stand beside its own."""

    stage: ClassVar[str] = "notebook"
    setting_name: Name
    figures: dict[str, str]
    """Id of every figure, and the name of its files without suffix."""
    nulls: list[Name]
    transfers: list[Name]

    @classmethod
    def of(cls, study: Study, setting: str) -> NotebookSection:
        """The section of one job."""
        return cls(
            study=study.study,
            setting_name=setting,
            figures=expected_figures(study, setting),
            nulls=nulls_of(study, setting),
            transfers=transfers_of(study, setting),
        )


class HtmlSection(StageSection):
    """One executed notebook as a page."""

    stage: ClassVar[str] = "html"

    @classmethod
    def of(cls, study: Study, **_: str) -> HtmlSection:
        """The section of one job; the files of the rule say which notebook it is."""
        return cls(study=study.study)


class ReportSection(StageSection):
    """The report on the whole study."""

    stage: ClassVar[str] = "report"

    @classmethod
    def of(cls, study: Study) -> ReportSection:
        """The section of one job."""
        return cls(study=study.study)


class IndexedSetting(Part):
    """What the front page needs to know of one setting."""

    name: Name
    notebook: Name
    trainings: list[tuple[Name, Seed]]
    """Its crosscoders, with every seed of each."""
    figures: dict[str, str]
    """Id of every figure, and the name of its files without suffix."""
    leading: dict[str, int]
    """Figures that stand on the front page, and how many lines of their words."""
    nulls: list[Name]
    transfers: list[Name]
    paged: bool
    """Whether its latents have pages."""

    @property
    def summaries(self) -> list[str]:
        """The settings whose summaries are read."""
        return [self.name, *self.nulls, *self.transfers]


class IndexSection(StageSection):
    """The front page of the study."""

    stage: ClassVar[str] = "index"
    settings: list[IndexedSetting]

    @classmethod
    def of(cls, study: Study) -> IndexSection:
        """The section of one job."""
        return cls(
            study=study.study,
            settings=[
                IndexedSetting(
                    name=name,
                    notebook=study.settings[name].notebook,
                    trainings=with_seeds(study, study.settings[name].crosscoders),
                    figures=expected_figures(study, name),
                    leading=leading(study, name),
                    nulls=nulls_of(study, name),
                    transfers=transfers_of(study, name),
                    paged=name in paged(study),
                )
                for name in models_first(study, drawn_settings(study))
            ],
        )


class ManifestSection(StageSection):
    """The list of all that a study made."""

    stage: ClassVar[str] = "manifest"
    settings_sha256: Digest

    @classmethod
    def of(cls, study: Study) -> ManifestSection:
        """The section of one job."""
        settings = json.dumps(study.model_dump(mode="json"), sort_keys=True)
        return cls(study=study.study, settings_sha256=hashlib.sha256(settings.encode()).hexdigest())
