"""What the stages of this room get of a study."""

from __future__ import annotations

from typing import ClassVar

from crosscoders.study.queries.lineage import behaving_models
from crosscoders.study.settings.analysis import Behaviours
from crosscoders.study.settings.base import Name, Share
from crosscoders.study.settings.corpora import AnyTemplate, ChatTemplate, PlantedChats
from crosscoders.study.settings.models import FineTunedModel, Model, PerturbedModel, SnapshotModel, TrainedModel
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import StageSection


class FetchModelSection(StageSection):
    """One model that is fetched."""

    stage: ClassVar[str] = "fetch_model"
    name: Name
    model: Model

    @classmethod
    def of(cls, study: Study, model: str) -> FetchModelSection:
        """The section of one job."""
        return cls(study=study.study, name=model, model=study.models[model])


class PretrainSection(StageSection):
    """One model that is trained from scratch."""

    stage: ClassVar[str] = "pretrain"
    name: Name
    model: TrainedModel
    chat_template: ChatTemplate
    splits: list[list[Share]]
    """Ranges of the splits whose documents it is trained on."""
    device: str

    @classmethod
    def of(cls, study: Study, model: str) -> PretrainSection:
        """The section of one job."""
        return cls(
            study=study.study,
            name=model,
            model=study.models[model],
            chat_template=study.chat_template,
            splits=[study.splits[name] for name in ("fine_tune", "train") if name in study.splits],
            device=study.device,
        )


class TakeSnapshotSection(StageSection):
    """One model that is a snapshot of another's training."""

    stage: ClassVar[str] = "take_snapshot"
    name: Name
    model: SnapshotModel

    @classmethod
    def of(cls, study: Study, model: str) -> TakeSnapshotSection:
        """The section of one job."""
        return cls(study=study.study, name=model, model=study.models[model])


class FineTuneSection(StageSection):
    """One model that is fine-tuned."""

    stage: ClassVar[str] = "fine_tune"
    name: Name
    model: FineTunedModel
    corpus: PlantedChats
    chat_template: AnyTemplate
    split: list[Share]
    device: str

    @classmethod
    def of(cls, study: Study, model: str) -> FineTuneSection:
        """The section of one job."""
        chosen = study.models[model]
        return cls(
            study=study.study,
            name=model,
            model=chosen,
            corpus=study.corpora[chosen.corpus],
            chat_template=study.chat_template,
            split=study.splits["fine_tune"],
            device=study.device,
        )


class PerturbSection(StageSection):
    """One model whose weights are another's, changed."""

    stage: ClassVar[str] = "perturb"
    name: Name
    model: PerturbedModel

    @classmethod
    def of(cls, study: Study, model: str) -> PerturbSection:
        """The section of one job."""
        return cls(study=study.study, name=model, model=study.models[model])


class MeasureBehavioursSection(StageSection):
    """The planted behaviours of a fine-tuned model, its base, and further fine-tunes of it."""

    stage: ClassVar[str] = "measure_behaviours"
    models: list[Name]
    corpus: PlantedChats
    chat_template: AnyTemplate
    split: list[Share]
    behaviours: Behaviours
    device: str

    @classmethod
    def of(cls, study: Study, model: str) -> MeasureBehavioursSection:
        """The section of one job."""
        chosen = study.models[model]
        return cls(
            study=study.study,
            models=behaving_models(study, model),
            corpus=study.corpora[chosen.corpus],
            chat_template=study.chat_template,
            split=study.splits["test"],
            behaviours=study.behaviours,
            device=study.device,
        )
