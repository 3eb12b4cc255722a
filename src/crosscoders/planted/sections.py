"""What the stages of this room get of a study."""

from __future__ import annotations

from typing import ClassVar

from crosscoders.study.blocks import crosscoder_sources, differences, stored_sources
from crosscoders.study.settings.analysis import Bootstrap, Classification
from crosscoders.study.settings.base import Count, Name
from crosscoders.study.settings.comparisons import Circuits, Planted
from crosscoders.study.settings.crosscoders import CrosscoderSettings
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import Part, TrainingSection


class Synthetic(Part):
    """What a setting's sources are drawn from."""

    planted: Planted
    widths: dict[Name, Count]
    differences: dict[Name, list[Name]]
    tokens: dict[str, Count]

    @classmethod
    def of(cls, study: Study, setting: str) -> Synthetic:
        """The synthetic sources of a setting."""
        chosen = study.settings[setting]
        return cls(
            planted=chosen.planted,
            widths={name: source.width for name, source in stored_sources(chosen).items()},
            differences=differences(chosen),
            tokens=chosen.tokens,
        )


class TrialSection(TrainingSection):
    """One training of one crosscoder on synthetic sources, and its judgement."""

    stage: ClassVar[str] = "trial"
    synthetic: Synthetic
    contrast: list[Name]
    crosscoder: CrosscoderSettings
    sources: list[Name]
    classification: Classification

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> TrialSection:
        """The section of one job."""
        chosen, member = study.settings[setting], study.crosscoders[crosscoder]
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            synthetic=Synthetic.of(study, setting),
            contrast=chosen.contrast,
            crosscoder=member,
            sources=crosscoder_sources(chosen, member),
            classification=study.classification,
        )


class CircuitTrialSection(TrainingSection):
    """A crosscoder and SAEs trained on synthetic layers, and the graph that one makes of the other."""

    stage: ClassVar[str] = "circuit_trial"
    synthetic: Synthetic
    circuits: Circuits
    crosscoder: CrosscoderSettings
    saes: CrosscoderSettings
    bootstrap: Bootstrap

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> CircuitTrialSection:
        """The section of one job."""
        chosen = study.settings[setting].circuits
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            synthetic=Synthetic.of(study, setting),
            circuits=chosen,
            crosscoder=study.crosscoders[chosen.crosscoder],
            saes=study.crosscoders[chosen.saes],
            bootstrap=study.classification.bootstrap,
        )
