"""Problems of models, and what is known of a model's size before it is there."""

from __future__ import annotations

from pathlib import Path

from crosscoders.study import model_folder
from crosscoders.study.settings.corpora import PlantedChats
from crosscoders.study.settings.models import (
    DERIVED,
    PERTURBED,
    FineTunedModel,
    FolderModel,
    NoisedModel,
    RandomModel,
    RoundedModel,
    SnapshotModel,
    TrainedModel,
    WheelModel,
)
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.names import member_problem, unknown_name


def model_problems(study: Study, model: object) -> list[str]:
    """Problems of a model, each as it stands under `models.NAME.`."""
    if isinstance(model, FolderModel):
        return [f"path: {line}" for line in model_folder.problems(Path(model.path))]
    if isinstance(model, WheelModel):
        return member_problem(model.file)
    if isinstance(model, TrainedModel):
        return [line for name in model.corpora for line in unknown_name("corpora", name, study.corpora)]
    if isinstance(model, SnapshotModel):
        return _snapshot_problems(study, model)
    if isinstance(model, FineTunedModel):
        problems = unknown_name("base", model.base, study.models)
        problems += unknown_name("corpus", model.corpus, study.corpora)
        if isinstance(base := study.models.get(model.base), (SnapshotModel, *PERTURBED)):
            problems.append(f"base: {model.base!r} is itself {base.kind}; expected one that is fetched or trained")
        if _circular(study, model):
            problems.append(
                f"base: {model.base!r} is made, in turn, from a model that is made from it; expected no circle"
            )
        if study.corpora.get(model.corpus) and not isinstance(study.corpora[model.corpus], PlantedChats):
            problems.append(f"corpus: {model.corpus!r} is no corpus of kind planted_chats")
        problems += _dose_problems(study, model)
        if model.batch_tokens < model.row_tokens:
            problems.append(f"batch_tokens: {model.batch_tokens} is less than row_tokens = {model.row_tokens}")
        depth, context = model_shape(study, model)
        if depth is not None and model.layers[1] >= depth:
            problems.append(f"layers: {model.layers} is not a range of layers below the depth {depth}")
        if context is not None and model.row_tokens > context:
            problems.append(f"row_tokens: {model.row_tokens} exceeds the {context} tokens that {model.base!r} takes")
        return problems
    return _perturbed_problems(study, model) if isinstance(model, PERTURBED) else []


def _snapshot_problems(study: Study, model: SnapshotModel) -> list[str]:
    """Problems of a model that is a snapshot of another's training."""
    problems, trained = unknown_name("of", model.of, study.models), study.models.get(model.of)
    if trained is None:
        return problems
    if not isinstance(trained, TrainedModel):
        return [f"of: {model.of!r} is of kind {trained.kind}; expected a model of kind trained"]
    if model.step not in (trained.snapshots or ()):
        kept = ", ".join(map(str, trained.snapshots or ())) or "none"
        return [f"step: {model.step}; expected one of the snapshots of {model.of!r} ({kept})"]
    return []


def _perturbed_problems(study: Study, model: NoisedModel | RoundedModel) -> list[str]:
    """Problems of a model whose weights are those of another, changed."""
    problems = unknown_name("base", model.base, study.models)
    if isinstance(base := study.models.get(model.base), PERTURBED):
        problems.append(f"base: {model.base!r} is itself {base.kind}; expected a model that is fetched or trained")
    if isinstance(model, RoundedModel):
        return problems
    problems += unknown_name("like", model.like, study.models)
    like = study.models.get(model.like)
    if isinstance(like, NoisedModel):
        problems.append(f"like: {model.like!r} is itself noised; expected a model that is fetched, trained or rounded")
    elif isinstance(like, DERIVED) and like.base != model.base:
        problems.append(f"like: {model.like!r} is made from {like.base!r}; expected a model made from {model.base!r}")
    if problems or like is None or base is None:
        return problems
    sizes = [(model_shape(study, one)[0], model_width(study, one)) for one in (base, like)]
    for key, one, other in zip(("depth", "width"), *sizes, strict=True):
        if None not in (one, other) and one != other:
            problems.append(f"like: {model.like!r} has {key} {other}; expected {one}, that of {model.base!r}")
    return problems


def _dose_problems(study: Study, model: FineTunedModel) -> list[str]:
    """Problems of the chats that stand for those that a dose leaves out."""
    if model.plain is None:
        return []
    problems = unknown_name("plain", model.plain, study.corpora)
    corpus, plain = study.corpora.get(model.corpus), study.corpora.get(model.plain)
    if plain is not None and not (isinstance(plain, PlantedChats) and not plain.plants):
        problems.append(
            f"plain: {model.plain!r} plants something; expected a corpus of kind planted_chats that does not"
        )
    elif plain is not None and isinstance(corpus, PlantedChats):
        for key in ("articles", "untagged_topic"):
            own, other = getattr(corpus, key), getattr(plain, key)
            if own != other:
                problems.append(
                    f"plain: {model.plain!r} has {key} = {other!r}; expected {own!r}, as {model.corpus!r} has"
                )
    return problems


def _circular(study: Study, model: object) -> bool:
    """Whether the models that a model is made from lead in a circle."""
    before: list[object] = []
    while isinstance(model, DERIVED):
        if any(model is one for one in before):
            return True
        before.append(model)
        model = study.models.get(model.base)
    return False


def _made_from(study: Study, model: object) -> object:
    """The model that a model is made from; `None` where it cannot be made from that."""
    base = study.models.get(model.base)
    return None if isinstance(base, PERTURBED) or _circular(study, model) else base


def model_width(study: Study, model: object) -> int | None:
    """Width of a model's residual stream, `None` where it cannot be known before it is there."""
    if isinstance(model, DERIVED):
        return model_width(study, _made_from(study, model))
    if isinstance(model, FolderModel):
        return model_folder.shape(Path(model.path)).width
    return model.width if isinstance(model, (RandomModel, TrainedModel)) else None


def model_shape(study: Study, model: object) -> tuple[int | None, int | None]:
    """Depth and context length of a model, `None` where they cannot be known before it is there."""
    if isinstance(model, DERIVED):
        return model_shape(study, _made_from(study, model))
    if isinstance(model, FolderModel):
        shape = model_folder.shape(Path(model.path))
        return shape.depth, shape.context_length
    return (None, None) if model is None else (model.depth, model.context_length)
