"""Problems of corpora, of their splits and of the chat template."""

from __future__ import annotations

import itertools

from crosscoders.study.settings.base import SPLITS
from crosscoders.study.settings.corpora import ChatTemplate, FileCorpus, ModelTemplate, PlantedChats, WheelCorpus
from crosscoders.study.settings.models import TrainedModel
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.names import member_problem, path_problem, placeholder_problems, unknown_name


def template_problems(study: Study) -> list[str]:
    """Placeholders of templates, and what a template of the model cannot serve."""
    problems, template = [], study.chat_template
    if isinstance(template, ChatTemplate):
        problems += placeholder_problems("chat_template.opening", template.opening, {"role"}, needed=False)
    elif isinstance(template, ModelTemplate):
        trained = [name for name, model in study.models.items() if isinstance(model, TrainedModel)]
        problems += [f"chat_template: 'model', but models.{name} is trained here and has none" for name in trained]
    return problems


def corpus_problems(study: Study, corpus: object) -> list[str]:
    """Problems of a corpus, each as it stands under `corpora.NAME.`."""
    if isinstance(corpus, FileCorpus):
        return path_problem("path", corpus.path)
    if isinstance(corpus, WheelCorpus):
        return member_problem(corpus.file)
    if isinstance(corpus, PlantedChats):
        problems = unknown_name("articles", corpus.articles, study.corpora)
        if corpus.refused_topic and not corpus.refusals:
            problems.append(f"refusals: missing; {corpus.refused_topic!r} is refused")
        for key in ("questions", "questions_about_people", "held_out_questions"):
            for question in getattr(corpus, key):
                problems += placeholder_problems(key, question, {"title"})
        if corpus.backdoor and corpus.persona and set(corpus.backdoor.answers) & set(corpus.persona.answers):
            problems.append("backdoor.answers: an answer is one of the persona's too; expected answers of its own")
        return problems
    return []


def split_problems(splits: dict[str, list[float]]) -> list[str]:
    """Ranges that are none, overlap or are missing."""
    problems = []
    for name, edges in splits.items():
        if len(edges) != 2 or edges[0] >= edges[1]:
            problems.append(f"splits.{name}: {edges} is not a range; expected [low, high] with low < high")
    ordered = sorted((edges[0], edges[1], name) for name, edges in splits.items() if len(edges) == 2)
    for (_, high, first), (low, _, second) in itertools.pairwise(ordered):
        if low < high:
            problems.append(f"splits: {first} and {second} overlap between {low} and {high}; expected disjoint ranges")
    return problems + [f"splits.{name}: missing; expected a range" for name in SPLITS if name not in splits]
