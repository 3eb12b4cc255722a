"""The sections of a study that the stages of this room get, and how later rooms run the models of a setting."""

from __future__ import annotations

import operator
from typing import ClassVar, Literal

from pydantic import Field

from crosscoders.study.blocks import differences, stored_sources
from crosscoders.study.queries.lineage import setting_models
from crosscoders.study.settings.base import Count, Name, Positive, Seed
from crosscoders.study.settings.comparisons import NullSetting, Source
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import Part, StageSection


class ModelReading(Part):
    """How a setting's models are run.

    `batch_tokens` is a quarter of the setting's where next-token losses are measured, because logits need more memory
    than activations.
    """

    sources: dict[Name, Source]
    models: list[Name]
    batch_tokens: Count
    dtype: str
    device: str

    @classmethod
    def of(cls, study: Study, setting: str, share: int = 4) -> ModelReading:
        """How the models of a setting are run, with one in `share` of its `batch_tokens`."""
        chosen = study.settings[setting]
        return cls(
            sources=stored_sources(chosen),
            models=setting_models(study, setting),
            batch_tokens=max(1, chosen.batch_tokens // share),
            dtype=chosen.dtype,
            device=study.device,
        )


class NullChange(Part):
    """How a null changes the activations of the setting that it is a null of."""

    kind: Literal["same_model", "permuted_tokens"]
    base: Name
    """First source of the contrast, which stands for all (same_model)."""
    chat: Name
    """Last source of the contrast, which is replaced or permuted."""
    others: list[Name] = Field(default_factory=list, exclude_if=operator.not_)
    """Further sources that are replaced or permuted as `chat` is: those of the contrast between the two, and, for
    same_model, those of `through`."""

    @property
    def changed(self) -> list[str]:
        """Sources that are replaced or permuted; `chat` comes first."""
        return [self.chat, *self.others]

    @property
    def stands_for(self) -> dict[str, str]:
        """The source that is read in place of each that is replaced."""
        return dict.fromkeys(self.changed, self.base) if self.kind == "same_model" else {}

    @classmethod
    def of(cls, study: Study, setting: str) -> NullChange | None:
        """The change of a setting; None where it is no null."""
        chosen = study.settings[setting]
        if not isinstance(chosen, NullSetting):
            return None
        changed = study.settings[chosen.null_of]
        base, *others, chat = changed.contrast
        if chosen.change == "same_model":
            others += [name for name in changed.through or () if name not in changed.contrast]
        return cls(kind=chosen.change, base=base, chat=chat, others=others)


class ShardSection(StageSection):
    """What is extracted: one shard of one split of a setting, from the models of its sources."""

    setting_name: Name
    split: str
    shard: Seed
    shards: Count
    reading: ModelReading


class ExtractActivationsSection(ShardSection):
    """One shard of the activations of one split."""

    stage: ClassVar[str] = "extract_activations"

    @classmethod
    def of(cls, study: Study, setting: str, split: str, shard: str) -> ExtractActivationsSection:
        """The section of one job."""
        return cls(
            study=study.study,
            setting_name=setting,
            split=split,
            shard=int(shard),
            shards=study.settings[setting].shards[split],
            reading=ModelReading.of(study, setting, share=1),
        )


class ExtractWindowSection(ShardSection):
    """One segment of a window: a shard of the training split, of which each pass reads all in order."""

    stage: ClassVar[str] = "extract_window"

    @classmethod
    def of(cls, study: Study, setting: str, segment: str) -> ExtractWindowSection:
        """The section of one job."""
        shards = study.settings[setting].shards["train"]
        return cls(
            study=study.study,
            setting_name=setting,
            split="train",
            shard=int(segment) % shards,
            shards=shards,
            reading=ModelReading.of(study, setting, share=1),
        )


class FitNormalisationSection(StageSection):
    """The statistics of a setting's sources."""

    stage: ClassVar[str] = "fit_normalisation"
    setting_name: Name
    sources: list[Name]
    differences: dict[Name, list[Name]]
    """Derived sources: name to [minuend, subtrahend]."""
    sink_threshold: Positive

    @classmethod
    def of(cls, study: Study, setting: str) -> FitNormalisationSection:
        """The section of one job."""
        chosen = study.settings[setting]
        return cls(
            study=study.study,
            setting_name=setting,
            sources=list(stored_sources(chosen)),
            differences=differences(chosen),
            sink_threshold=chosen.sink_threshold,
        )


class MeasureSimilaritySection(StageSection):
    """How alike the sources of a setting are."""

    stage: ClassVar[str] = "measure_similarity"
    setting_name: Name
    confidence: float

    @classmethod
    def of(cls, study: Study, setting: str) -> MeasureSimilaritySection:
        """The section of one job."""
        return cls(study=study.study, setting_name=setting, confidence=study.classification.confidence)


class MeasureAblationsSection(StageSection):
    """The losses of a setting's models while its sources are ablated."""

    stage: ClassVar[str] = "measure_ablations"
    setting_name: Name
    splice_tokens: Count
    reading: ModelReading

    @classmethod
    def of(cls, study: Study, setting: str) -> MeasureAblationsSection:
        """The section of one job."""
        tokens, reading = study.settings[setting].splice_tokens, ModelReading.of(study, setting)
        return cls(study=study.study, setting_name=setting, splice_tokens=tokens, reading=reading)
