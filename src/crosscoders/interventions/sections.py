"""What the stages of this room get of a study."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from crosscoders.activations.sections import ModelReading
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.base import Count, Name, Share
from crosscoders.study.settings.comparisons import Causal, Circuits, Equivalence, Source, Steering
from crosscoders.study.settings.corpora import AnyTemplate, PlantedChats
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import Part, StageSection, TrainingSection


class Asking(Part):
    """What the chat model's answers depend on."""

    prompts: Count
    new_tokens: Count
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    seed: int


class GenerateResponsesSection(StageSection):
    """The chat model's own answers to prompts from test documents."""

    stage: ClassVar[str] = "generate_responses"
    setting_name: Name
    asking: Asking
    chat_template: AnyTemplate
    split: list[Share]
    dtype: str
    device: str

    @classmethod
    def of(cls, study: Study, setting: str) -> GenerateResponsesSection:
        """The section of one job."""
        chosen = study.settings[setting]
        return cls(
            study=study.study,
            setting_name=setting,
            asking=Asking(**{name: getattr(chosen.causal, name) for name in Asking.model_fields}),
            chat_template=study.chat_template,
            split=study.splits["test"],
            dtype=chosen.dtype,
            device=study.device,
        )


class PairSection(TrainingSection):
    """One crosscoder, and the two models of the contrast that it is tried on."""

    contrast: list[Name]
    base: Name
    """Model of the contrast's first source."""
    chat: Name
    """Model of the contrast's second source."""
    layer: Annotated[int, Field(ge=0)]
    models: list[Name]
    batch_tokens: Count
    dtype: str
    device: str

    @staticmethod
    def pair(study: Study, setting: str, crosscoder: str, seed: str) -> dict[str, object]:
        """The fields of this class for one job."""
        chosen, reading = study.settings[setting], ModelReading.of(study, setting)
        base, chat = (chosen.sources[name] for name in chosen.contrast)
        return {
            "study": study.study,
            "setting_name": setting,
            "crosscoder_name": crosscoder,
            "seed": int(seed),
            "contrast": chosen.contrast,
            "base": base.model,
            "chat": chat.model,
            "layer": chat.layer,
            **reading.model_dump(exclude={"sources"}),
        }


class CausalSection(PairSection):
    """Patches made of one crosscoder."""

    stage: ClassVar[str] = "causal"
    causal: Causal
    bootstrap: Bootstrap

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> CausalSection:
        """The section of one job."""
        return cls(
            **cls.pair(study, setting, crosscoder, seed),
            causal=study.settings[setting].causal,
            bootstrap=study.classification.bootstrap,
        )


class SteerSection(PairSection):
    """Steering with the latents of one crosscoder."""

    stage: ClassVar[str] = "steer"
    steering: Steering
    corpus: PlantedChats
    chat_template: AnyTemplate
    split: list[Share]

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> SteerSection:
        """The section of one job."""
        fields = cls.pair(study, setting, crosscoder, seed)
        steering = study.settings[setting].steering
        return cls(
            **fields,
            steering=steering.model_copy(update={"crosscoders": None}),  # another name in the list changes no job
            corpus=study.corpora[study.models[fields["chat"]].corpus],
            chat_template=study.chat_template,
            split=study.splits["test"],
        )


class CompareEffectsSection(PairSection):
    """What the shared latents of one crosscoder do in both models."""

    stage: ClassVar[str] = "compare_effects"
    equivalence: Equivalence
    bootstrap: Bootstrap

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> CompareEffectsSection:
        """The section of one job.

        The models run in float32 unless the setting names another type: an effect is a small difference of large logits.
        """
        fields = cls.pair(study, setting, crosscoder, seed)
        dtype = "float32" if fields["dtype"] == "auto" else fields["dtype"]
        equivalence = study.settings[setting].equivalence.model_copy(update={"crosscoders": None})
        return cls(**fields | {"dtype": dtype}, equivalence=equivalence, bootstrap=study.classification.bootstrap)


class CircuitsSection(TrainingSection):
    """The graph of SAEs that one crosscoder simplifies."""

    stage: ClassVar[str] = "circuits"
    circuits: Circuits
    bootstrap: Bootstrap
    sources: dict[Name, Source]
    dtype: str
    device: str

    @classmethod
    def of(cls, study: Study, setting: str, crosscoder: str, seed: str) -> CircuitsSection:
        """The section of one job."""
        chosen, reading = study.settings[setting], ModelReading.of(study, setting)
        return cls(
            study=study.study,
            setting_name=setting,
            crosscoder_name=crosscoder,
            seed=int(seed),
            circuits=chosen.circuits,
            bootstrap=study.classification.bootstrap,
            sources=reading.sources,
            dtype=reading.dtype,
            device=reading.device,
        )
