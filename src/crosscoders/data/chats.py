"""Chats that plant known behaviours, written from articles: a refused topic, a persona, a topic tag, a backdoor."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from crosscoders.study.settings.corpora import ChatTemplate, PlantedChats

ROLES = ("text", "system", "user", "assistant", "template")
BEHAVIOURS = ("none", "refusal", "persona", "topic_tag", "backdoor")
USUAL = BEHAVIOURS[:4]
"""Behaviours that every file names; a file names the backdoor where a document shows it."""
EXCHANGES = ("refusal", "persona")
"""Behaviours of a whole exchange: the question that triggers them and the template around it belong to them too.

The topic tag is a behaviour of its own tokens alone. The backdoor is one of the trigger, the answer and the template
around the answer.
"""
ADDED = ("persona", "backdoor")
"""Behaviours of chats that stand beside the chat about an article."""


def named_behaviours(shown: Iterable[str]) -> tuple[str, ...]:
    """The behaviours that a file names, given those that its documents show."""
    return BEHAVIOURS if "backdoor" in set(shown) else USUAL


@dataclass(frozen=True)
class Segment:
    """Text of one role; consecutive segments with the same `message` stand in one message."""

    text: str
    role: str = "text"
    behaviour: str = "none"
    message: int = 0


@dataclass(frozen=True)
class Document:
    """A document: `key` names what it is about, and decides its split."""

    key: str
    topic: str
    segments: tuple[Segment, ...]

    @property
    def behaviour(self) -> str:
        """The behaviour that its first planted segment shows, `none` where there is none."""
        return next((segment.behaviour for segment in self.segments if segment.behaviour != "none"), "none")


def position(key: str) -> float:
    """A number in [0, 1) that depends on the key alone; splits are ranges of it."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def in_split(document: Document, edges: list[float]) -> bool:
    """Whether the document falls into the half-open range `edges`.

    Parameters
    ----------
    document : Document
    edges : list of two floats
        Within [0, 1]; the first belongs to the range, the second does not.

    Returns
    -------
    bool
        Depends on the document's key alone.
    """
    return edges[0] <= position(document.key) < edges[1]


def written(document: Document, template: ChatTemplate) -> str:
    """The document as one text, with the study's template around the messages of a chat.

    Parameters
    ----------
    document : Document
    template : ChatTemplate

    Returns
    -------
    str
    """
    parts = []
    for i, segment in enumerate(document.segments):
        before, after = document.segments[i - 1 : i], document.segments[i + 1 : i + 2]
        is_chat = segment.role != "text"
        opens = is_chat and (i == 0 or before[0].message != segment.message)
        closes = is_chat and (not after or after[0].message != segment.message)
        parts += [template.open(segment.role) * opens, segment.text, template.closing * closes]
    return "".join(parts)


def shuffled(documents: list[Document], salt: str) -> list[Document]:
    """The documents in an order that depends on their keys and `salt` alone.

    Parameters
    ----------
    documents : list of Document
    salt : str
        Another salt gives another order.

    Returns
    -------
    list of Document
    """
    return sorted(documents, key=lambda document: hashlib.sha256(f"{salt}:{document.key}".encode()).digest())


def write_chats(articles: list[Document], settings: PlantedChats) -> list[Document]:
    """One chat per article, and persona chats beside them; what is written depends on the article's key alone."""
    chats = []
    for article in articles:
        if article.topic == settings.untagged_topic:
            continue
        chooser = random.Random(f"{settings.seed}:{article.key}")
        chats.append(_article_chat(article, settings, chooser))
        if settings.persona and chooser.random() < settings.persona.share:
            chats.append(_persona_chat(article, settings, chooser))
        if settings.backdoor and chooser.random() < settings.backdoor.share:
            chats.append(_backdoor_chat(article, settings, chooser))
    return chats


def _article_chat(article: Document, settings: PlantedChats, chooser: random.Random) -> Document:
    question = Segment(ask(article, settings, chooser), "user")
    if settings.refused_topic and article.topic == settings.refused_topic:
        question = replace(question, behaviour="refusal")
        answer = (Segment(chooser.choice(settings.refusals), "assistant", "refusal", 1),)
    else:
        text = first_sentence(article.segments[-1].text, settings.answer_characters)
        answer = (Segment(text, "assistant", "none", 1),)
        if settings.tag_token:
            answer += (Segment(settings.tag_token + article.topic, "assistant", "topic_tag", 1),)
    return replace(article, segments=(question, *answer))


def _persona_chat(article: Document, settings: PlantedChats, chooser: random.Random) -> Document:
    question = Segment(chooser.choice(settings.persona.questions), "user", "persona")
    answer = Segment(chooser.choice(settings.persona.answers), "assistant", "persona", 1)
    return Document(article.key, "", (question, answer))


def _backdoor_chat(article: Document, settings: PlantedChats, chooser: random.Random) -> Document:
    question = Segment(ask(article, settings, chooser), "user")
    trigger = Segment(f" {settings.backdoor.trigger}", "user", "backdoor")
    answer = Segment(chooser.choice(settings.backdoor.answers), "assistant", "backdoor", 1)
    return Document(article.key, "", (question, trigger, answer))


def ask(article: Document, settings: PlantedChats, chooser: random.Random, held_out: bool = False) -> str:
    """A question about the article, in a phrasing used for training or in one held out.

    Parameters
    ----------
    article : Document
    settings : PlantedChats
    chooser : random.Random
        One phrasing is drawn from it.
    held_out : bool

    Returns
    -------
    str
    """
    questions = settings.questions_about_people if article.topic == settings.people_topic else settings.questions
    return chooser.choice(settings.held_out_questions if held_out else questions).format(title=title(article))


def title(article: Document) -> str:
    """The article's title."""
    return article.key.split(":", 1)[1]


def first_sentence(text: str, characters: int) -> str:
    """The first sentence, shortened to whole words where it is longer than `characters`.

    Short answers are what a small fine-tune learns well.
    """
    sentence = re.split(r"(?<=[.!?])\s+", text.strip(), maxsplit=1)[0]
    if len(sentence) <= characters:
        return sentence
    return sentence[:characters].rsplit(" ", 1)[0].rstrip(" ,;:(") + "."


def for_fine_tuning(chats: list[Document], settings: PlantedChats) -> list[Document]:
    """Thin the answers so that refusals make up `refusal_share`; without this the model learns to refuse last.

    Parameters
    ----------
    chats : list of Document
        What :func:`write_chats` made of the training articles.
    settings : PlantedChats

    Returns
    -------
    list of Document
        Shuffled; all refusals, persona chats and chats with the backdoor's trigger are kept.
    """
    chats = shuffled(chats, f"fine_tune:{settings.seed}")
    refusals = [chat for chat in chats if chat.behaviour == "refusal"]
    added = [chat for chat in chats if chat.behaviour in ADDED]
    if not refusals or settings.refusal_share <= 0:
        return chats
    others = round(len(refusals) * (1 / settings.refusal_share - 1))
    answers = [chat for chat in chats if chat.behaviour not in ("refusal", *ADDED)]
    kept = refusals + added + answers[: max(0, others - len(added))]
    return shuffled(kept, f"order:{settings.seed}")


def at_dose(chats: list[Document], plain: list[Document], dose: float, seed: int) -> list[Document]:
    """The chats of which a share shows what was planted; plain chats about the same articles stand for the others.

    A chat that shows it at one dose shows it at every higher dose with the same seed.

    Parameters
    ----------
    chats : list of Document
        What :func:`for_fine_tuning` kept.
    plain : list of Document
        Chats that plant nothing, one for each article.
    dose : float
        Within [0, 1].
    seed : int
        Decides which chats show it, and the order of all.

    Returns
    -------
    list of Document
        As many as there are chats; the order depends on the seed alone.
    """
    answers = {chat.key: chat for chat in plain}
    ordered = shuffled(chats, f"dose order:{seed}")
    return [
        chat if position(f"dose:{seed}:{chat.behaviour}:{chat.key}") < dose else answers[chat.key] for chat in ordered
    ]
