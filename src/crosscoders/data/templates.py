"""Conversations as text: messages with a chat template around them, the study's own or the one of the model's tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import jinja2
import transformers

from crosscoders.data.chats import EXCHANGES, Document, Segment
from crosscoders.errors import UserError
from crosscoders.study.settings.corpora import AnyTemplate, ChatTemplate, ModelTemplate

PROBE_QUESTION, PROBE_ANSWER = "Question", "Answer"


@dataclass(frozen=True)
class Part:
    """A piece of a document's text with one role and one planted behaviour.

    Control tokens in a part are tokens where `control` says so, and mere text elsewhere: what a document says of
    `<|im_end|>` ends no message.
    """

    text: str
    role: str = "text"
    behaviour: str = "none"
    control: bool = False


class Writer:
    """Writes documents and prompts with one chat template, for one tokenizer.

    Parameters
    ----------
    template : ChatTemplate or ModelTemplate
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    UserError
        The tokenizer lacks the sink, or a template that is asked for.
    """

    def __init__(self, template: AnyTemplate, tokenizer: transformers.PreTrainedTokenizerBase):
        self.template, self.tokenizer = template, tokenizer
        if isinstance(template, ModelTemplate) and not tokenizer.chat_template:
            raise UserError(
                "chat_template: 'model', but the tokenizer has no chat template; expected one of the study's own"
            )
        sink = template.sink or tokenizer.bos_token or tokenizer.eos_token
        self.sink = tokenizer.convert_tokens_to_ids(sink) if sink else None
        if self.sink is None or tokenizer.convert_ids_to_tokens(self.sink) != sink:
            raise UserError(f"chat_template.sink: {sink!r} is no token of the model's vocabulary")

    @property
    def source(self) -> str:
        """The text of the template."""
        own = isinstance(self.template, ChatTemplate)
        return self.template.model_dump_json() if own else str(self.tokenizer.chat_template)

    @property
    def digest(self) -> str:
        """SHA-256 of the template's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def document(self, document: Document) -> list[Part]:
        """The parts of a document; messages of chats get the template around them."""
        if not document.segments or document.segments[0].role == "text":
            return [Part(segment.text, segment.role, segment.behaviour) for segment in document.segments]
        if isinstance(self.template, ChatTemplate):
            return self._by_study(document.segments)
        return self._by_model(document.segments)

    def prompt(self, question: str) -> list[Part]:
        """A user's message, up to where the answer begins."""
        if isinstance(self.template, ChatTemplate):
            opened = Part(self.template.open("assistant"), "template", control=True)
            return [*self._by_study((Segment(question, "user"),)), opened]
        text = self._rendered([{"role": "user", "content": question}], add_generation_prompt=True)
        return _located(text, (Segment(question, "user"),))

    @cached_property
    def stop(self) -> int:
        """The token that ends an answer."""
        segments = (Segment(PROBE_QUESTION, "user"), Segment(PROBE_ANSWER, "assistant", message=1))
        after = self.document(Document("", "", segments))[-1]
        ids = self.tokenizer(after.text, add_special_tokens=False).input_ids if after.role == "template" else []
        return ids[0] if ids else self.tokenizer.eos_token_id

    def _by_study(self, segments: tuple[Segment, ...]) -> list[Part]:
        parts = []
        for i, segment in enumerate(segments):
            around = _around(segment)
            before, after = segments[i - 1 : i] if i else (), segments[i + 1 : i + 2]
            if not before or before[0].message != segment.message:
                parts.append(Part(self.template.open(segment.role), "template", around, control=True))
            tag = segment.behaviour == "topic_tag"  # it begins with a token of its own
            parts.append(Part(segment.text, segment.role, segment.behaviour, control=tag))
            if not after or after[0].message != segment.message:
                parts.append(Part(self.template.closing, "template", around, control=True))
        return parts

    def _by_model(self, segments: tuple[Segment, ...]) -> list[Part]:
        messages: list[dict[str, str]] = []
        for i, segment in enumerate(segments):
            if i and segments[i - 1].message == segment.message:
                messages[-1]["content"] += segment.text
            else:
                messages.append({"role": segment.role, "content": segment.text})
        return _located(self._rendered(messages), segments)

    def _rendered(self, messages: list[dict[str, str]], **options: bool) -> str:
        """Messages through the tokenizer's template, in the sandbox of transformers, without the sink."""
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"chat_template: the model's template refuses messages of {roles} ({error})") from None
        return text.removeprefix(self.tokenizer.convert_ids_to_tokens(self.sink))


def _around(segment: Segment) -> str:
    """The behaviour of the template around a segment."""
    answers_trigger = segment.behaviour == "backdoor" and segment.role == "assistant"
    return segment.behaviour if segment.behaviour in EXCHANGES or answers_trigger else "none"


def _located(text: str, segments: tuple[Segment, ...]) -> list[Part]:
    """The parts of a rendered text: each segment where it stands, and the template between.

    Raises
    ------
    UserError
        The template changes or leaves out what a message says.
    """
    parts, place = [], 0
    for segment in segments:
        for wanted in (segment.text, segment.text.strip()):  # templates may strip messages
            start = text.find(wanted, place)
            if start >= 0:
                break
        else:
            raise UserError(
                f"chat_template: the model's template changes a message of {segment.role}; expected it word for word"
            )
        around = _around(segment)
        if start > place:
            parts.append(Part(text[place:start], "template", around, control=True))
        parts.append(Part(wanted, segment.role, segment.behaviour, control=segment.behaviour == "topic_tag"))
        place = start + len(wanted)
    if place < len(text):
        parts.append(Part(text[place:], "template", control=True))
    return parts
