"""What the stages of this room get of a study."""

from __future__ import annotations

from typing import ClassVar

from crosscoders.study.settings.crosscoders import ExportFormat
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import TrainingSection


class ExportSection(TrainingSection):
    """One crosscoder in one format."""

    stage: ClassVar[str] = "export"
    format_name: ExportFormat

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str, format_name: str) -> ExportSection:
        """The section of one job."""
        names = {"setting_name": setting, "crosscoder_name": crosscoder}
        return cls(study=study.study, **names, seed=int(seed), format_name=format_name)
