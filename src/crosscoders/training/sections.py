"""What the stages of this room get of a study."""

from __future__ import annotations

from typing import ClassVar

from crosscoders.activations.sections import NullChange
from crosscoders.study.blocks import crosscoder_sources
from crosscoders.study.queries.comparisons import data_setting
from crosscoders.study.queries.trainings import segments
from crosscoders.study.settings.base import Count, Name, Seed
from crosscoders.study.settings.crosscoders import AlignedSettings, CrosscoderSettings
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import AlignedSection, TrainingSection


class TrainCrosscoderSection(TrainingSection):
    """One training of one crosscoder."""

    stage: ClassVar[str] = "train_crosscoder"
    crosscoder: CrosscoderSettings
    sources: list[Name]
    device: str
    null: NullChange | None

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> TrainCrosscoderSection:
        """The section of one job."""
        chosen = study.crosscoders[crosscoder]
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            crosscoder=chosen,
            sources=crosscoder_sources(study.settings[data_setting(study, setting)], chosen),
            device=study.device,
            null=NullChange.of(study, setting),
        )


class WindowedSection(TrainingSection):
    """A part of a training whose activations pass through a window."""

    crosscoder: CrosscoderSettings
    sources: list[Name]
    device: str
    null: NullChange | None
    segments: Count

    def identity(self) -> dict[str, object]:
        """What the states of one training have in common: the same for all of its segments."""
        processes = {"crosscoder": {"training": {"ranks", "replicas"}}}  # any number of them goes on from a state
        content = self.model_dump(mode="json", exclude=processes)
        return {name: content[name] for name in WindowedSection.model_fields if name != "device"}


class TrainSegmentSection(WindowedSection):
    """The steps that a training takes on one shard."""

    stage: ClassVar[str] = "train_segment"
    segment: Seed

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str, segment: str) -> TrainSegmentSection:
        """The section of one job."""
        common = FinishTrainingSection.of(study, setting, crosscoder, seed)
        return cls(**dict(common), segment=int(segment))


class FinishTrainingSection(WindowedSection):
    """The end of a training on a window."""

    stage: ClassVar[str] = "finish_training"

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> FinishTrainingSection:
        """The section of one job."""
        whole = TrainCrosscoderSection.of(study, setting, crosscoder, seed)
        return cls(**dict(whole), segments=segments(study, data_setting(study, setting)))


class TrainAlignedSection(AlignedSection):
    """One training of one aligned crosscoder."""

    stage: ClassVar[str] = "train_aligned"
    aligned: AlignedSettings
    device: str

    @classmethod
    def of(cls, study: Study, setting: str, aligned: str, seed: str) -> TrainAlignedSection:
        """The section of one job."""
        return cls(
            study=study.study,
            setting_name=setting,
            aligned_name=aligned,
            seed=int(seed),
            aligned=study.aligned[aligned],
            device=study.device,
        )
