"""What the stages of this room get of a study."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from crosscoders.activations.sections import ModelReading, NullChange
from crosscoders.study.blocks import crosscoder_sources, stored_sources
from crosscoders.study.queries.comparisons import data_setting, series_of
from crosscoders.study.queries.lineage import contrast_models, setting_models, training_step
from crosscoders.study.queries.measurements import spliced
from crosscoders.study.queries.trainings import comparable, seeds_of, with_seeds
from crosscoders.study.settings.analysis import Bootstrap, Classification, Page
from crosscoders.study.settings.base import Count, Name, Seed
from crosscoders.study.settings.comparisons import Explain, Number, Source
from crosscoders.study.settings.crosscoders import PublishedSettings
from crosscoders.study.settings.models import RoundedModel
from crosscoders.study.settings.study import Study
from crosscoders.study.sizes import crosscoder_size
from crosscoders.study.stage_section import AlignedSection, StageSection, TrainingSection


def _is_cpu(device: str) -> bool:
    return device == "cpu"


Device = Annotated[Literal["cpu", "cuda"], Field(exclude_if=_is_cpu)]
"""Where a finished crosscoder is applied; results name it where it is a GPU."""


def _device(study: Study) -> Literal["cpu", "cuda"]:
    """The GPU where the study asks for one, as its jobs then do of the cluster."""
    return "cuda" if study.device == "cuda" else "cpu"


class ImportCrosscoderSection(TrainingSection):
    """One crosscoder that was trained elsewhere."""

    stage: ClassVar[str] = "import_crosscoder"
    crosscoder: PublishedSettings
    sources: list[Name]

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> ImportCrosscoderSection:
        """The section of one job."""
        chosen = study.crosscoders[crosscoder]
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            crosscoder=chosen,
            sources=crosscoder_sources(study.settings[setting], chosen),
        )


class EvaluateSection(TrainingSection):
    """One crosscoder on the test documents."""

    stage: ClassVar[str] = "evaluate"
    bootstrap: Bootstrap
    null: NullChange | None
    splice: ModelReading | None
    """How the models are run into which reconstructions are spliced; none where the setting splices nothing."""
    device: Device = "cpu"

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> EvaluateSection:
        """The section of one job."""
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            bootstrap=study.classification.bootstrap,
            null=NullChange.of(study, setting),
            splice=ModelReading.of(study, setting) if spliced(study, setting) else None,
            device=_device(study),
        )


class EvaluateAlignedSection(AlignedSection):
    """One aligned crosscoder on the test documents."""

    stage: ClassVar[str] = "evaluate_aligned"
    bootstrap: Bootstrap

    @classmethod
    def of(cls, study: Study, setting: str, aligned: str, seed: str) -> EvaluateAlignedSection:
        """The section of one job."""
        bootstrap = study.classification.bootstrap
        return cls(study=study.study, setting_name=setting, aligned_name=aligned, seed=int(seed), bootstrap=bootstrap)


class MeasureDivergenceSection(StageSection):
    """The models of the first and the last source of a setting's contrast."""

    stage: ClassVar[str] = "measure_divergence"
    setting_name: Name
    models: list[Name]
    divergence_tokens: Count
    batch_tokens: Count
    """A quarter of the setting's, because logits need more memory than activations."""
    dtype: str
    device: str
    bits: int | None
    """Bits to which the second model's weights are rounded; none where they are not."""
    bootstrap: Bootstrap

    @classmethod
    def of(cls, study: Study, setting: str) -> MeasureDivergenceSection:
        """The section of one job."""
        chosen, models = study.settings[setting], contrast_models(study.settings[setting])
        second = study.models[models[1]]
        return cls(
            study=study.study,
            setting_name=setting,
            models=models,
            divergence_tokens=chosen.divergence_tokens,
            batch_tokens=max(1, chosen.batch_tokens // 4),
            dtype=chosen.dtype,
            device=study.device,
            bits=second.bits if isinstance(second, RoundedModel) else None,
            bootstrap=study.classification.bootstrap,
        )


class ClassifyLatentsSection(TrainingSection):
    """The latents of one crosscoder."""

    stage: ClassVar[str] = "classify_latents"
    contrast: list[Name]
    classification: Classification
    null: NullChange | None
    device: Device = "cpu"

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> ClassifyLatentsSection:
        """The section of one job."""
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            contrast=study.settings[data_setting(study, setting)].contrast,
            classification=study.classification,
            null=NullChange.of(study, setting),
            device=_device(study),
        )


class MatchSeedsSection(TrainingSection):
    """The latents of one training, matched with those of all seeds."""

    stage: ClassVar[str] = "match_seeds"
    seeds: list[Seed]

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> MatchSeedsSection:
        """The section of one job."""
        names = {"setting_name": setting, "crosscoder_name": crosscoder}
        return cls(study=study.study, **names, seed=int(seed), seeds=seeds_of(study, crosscoder))


class TraceLatentsSection(TrainingSection):
    """The latents of one crosscoder over snapshots of a training."""

    stage: ClassVar[str] = "trace_latents"
    through: list[Name]
    """Sources in the order of training."""
    steps: list[Number]
    """Steps of the training after which they stand; empty where the study does not know them."""
    permutations: Count
    bootstrap: Bootstrap

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> TraceLatentsSection:
        """The section of one job."""
        chosen = study.settings[data_setting(study, setting)]
        known = [training_step(study, chosen.sources[name].model) for name in chosen.through]
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            through=chosen.through,
            steps=[step for _, step in known] if None not in known else [],
            permutations=study.classification.null_permutations,
            bootstrap=study.classification.bootstrap,
        )


class DetectPlantedSection(StageSection):
    """All methods on one repetition of a series, for one seed of the crosscoders."""

    stage: ClassVar[str] = "detect_planted"
    setting_name: Name
    seed: Seed
    crosscoders: list[Name]
    contrast: list[Name]
    best: Count
    components: Count
    random_latents: Count
    """Random latents, as many as the largest dictionary has …"""
    random_active: Count
    """… of which so many fire per token."""
    bootstrap: Bootstrap
    reading: ModelReading
    device: Device = "cpu"

    @property
    def label(self) -> str:
        """What the job is about, for progress and titles."""
        return f"{self.setting_name}/seed-{self.seed}"

    @classmethod
    def of(cls, study: Study, setting: str, seed: str) -> DetectPlantedSection:
        """The section of one job."""
        series, chosen = study.settings[series_of(study)[setting]], study.settings[setting]
        members = [crosscoder_size(study, setting, name) for name in chosen.crosscoders]
        largest = max(members, key=lambda member: member.latents)
        return cls(
            study=study.study,
            setting_name=setting,
            seed=int(seed),
            crosscoders=chosen.crosscoders,
            contrast=chosen.contrast,
            best=series.best,
            components=series.components,
            random_latents=largest.latents,
            random_active=largest.active,
            bootstrap=study.classification.bootstrap,
            reading=ModelReading.of(study, setting),
            device=_device(study),
        )


class LatentPageSection(TrainingSection):
    """The page of one crosscoder."""

    stage: ClassVar[str] = "latent_page"
    sources: dict[Name, Source]
    contrast: list[Name]
    """The first and the last source of the setting's contrast, which the page compares."""
    models: list[Name]
    page: Page
    pages: list[tuple[Name, Seed]]
    """Crosscoders and seeds of the setting, whose pages are named at the top."""
    others: list[tuple[Name, Seed]]
    """Those with which its latents are compared."""

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> LatentPageSection:
        """The section of one job."""
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            sources=stored_sources(study.settings[setting]),
            contrast=[study.settings[setting].contrast[0], study.settings[setting].contrast[-1]],
            models=setting_models(study, setting),
            page=study.page,
            pages=with_seeds(study, study.settings[setting].crosscoders),
            others=comparable(study, setting, crosscoder, int(seed)),
        )


class ExplainLatentsSection(TrainingSection):
    """The labels of some latents of one crosscoder."""

    stage: ClassVar[str] = "explain_latents"
    explain: Explain
    bootstrap: Bootstrap
    dtype: str
    device: str

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> ExplainLatentsSection:
        """The section of one job."""
        chosen = study.settings[setting]
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            explain=chosen.explain,
            bootstrap=study.classification.bootstrap,
            dtype=chosen.dtype,
            device=study.device,
        )
