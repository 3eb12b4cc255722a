"""What a stage gets of a study: its own settings and nothing else, typed, and as the JSON of its command line.

A stage reruns when its section changes, so a section holds no key that the stage does not read. The classes lie in the
`sections` module of each room, beside the stages that take them; they import no torch, so that Snakemake, which fills them,
starts fast.
"""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from crosscoders import provenance
from crosscoders.study.settings.base import Name, Seed


class Part(BaseModel):
    """A part of a section: strict types, unknown keys refused, never changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StageSection(Part):
    """What one job of a stage gets.

    Attributes
    ----------
    stage : str
        Name of the stage: of its rule, its module, and the folders of its logs and benchmarks.
    study : str
        Name of the study.
    """

    stage: ClassVar[str]
    study: Name

    def to_json(self) -> str:
        """The section as one line of JSON, keys sorted, in ASCII, which every locale can hand to a job."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def provenance(self, seed: int | None = None) -> dict[str, str | int]:
        """Global attributes of what the stage writes; with the section's own seed where it has one and none is given."""
        return provenance.provenance(self.study, self.stage, self.model_dump(mode="json"), seed)


class TrainingSection(StageSection):
    """A section about one training of one crosscoder."""

    setting_name: Name
    crosscoder_name: Name
    seed: Seed

    @property
    def label(self) -> str:
        """What the job is about, for progress and titles."""
        return f"{self.setting_name}/{self.crosscoder_name}/seed-{self.seed}"

    def provenance(self, seed: int | None = None) -> dict[str, str | int]:
        """Global attributes of what the stage writes, with the training's seed."""
        return super().provenance(self.seed if seed is None else seed)


class AlignedSection(StageSection):
    """A section about one training of one aligned crosscoder."""

    setting_name: Name
    aligned_name: Name
    seed: Seed

    @property
    def label(self) -> str:
        """What the job is about, for progress and titles."""
        return f"{self.setting_name}/{self.aligned_name}/seed-{self.seed}"

    def provenance(self, seed: int | None = None) -> dict[str, str | int]:
        """Global attributes of what the stage writes, with the training's seed."""
        return super().provenance(self.seed if seed is None else seed)
