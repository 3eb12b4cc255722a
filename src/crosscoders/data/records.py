"""Records as documents: one validator for files, wheels and the hub. What it leaves out it counts, and says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from crosscoders.data.chats import Document, Segment
from crosscoders.data.readers import Record
from crosscoders.errors import UserError

TEXT_KEYS = ("text", "content", "document", "article", "body", "extract")
CHAT_KEYS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
PROMPT_KEYS = ("prompt", "instruction", "question", "input")
ANSWER_KEYS = ("completion", "response", "answer", "output", "chosen")
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker", "author"), ("content", "value", "text")
SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "tool": "user",
    "function": "user",
    "ipython": "user",
    "observation": "user",
}
"""The role of a message by what a dataset calls its speaker; what a tool answers is read as the user's."""
NUL, SURROGATES = "\x00", ("\ud800", "\udfff")


@dataclass
class Counts:
    """What became of the records of a corpus."""

    documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Records that were left out, by the reason."""
    changed: Counter[str] = field(default_factory=Counter)
    """Changes that were made to texts, by what was changed."""

    def lines(self) -> list[str]:
        """What a reader of the log should know, one sentence each."""
        said = [f"{count:,} records left out: {reason}" for reason, count in sorted(self.dropped.items())]
        return said + [f"{count:,} texts changed: {change}" for change, count in sorted(self.changed.items())]


def documents(records: Iterable[Record], counts: Counts, column: str | None = None) -> list[Document]:
    """Documents of records.

    Parameters
    ----------
    records : iterable of Record
    counts : Counts
        Gets what was left out and changed.
    column : str, optional
        The key that holds text or conversation; found by its usual names where absent.

    Returns
    -------
    list of Document

    Raises
    ------
    UserError
        A record has neither text nor conversation under any known name; the line names its place.
    """
    made = []
    for record in records:
        document = _document(record, counts, column)
        if document is not None:
            made.append(document)
    counts.documents += len(made)
    return made


def _document(record: Record, counts: Counts, column: str | None) -> Document | None:
    """The document of one record; None, counted, where it holds no text."""
    value = record.value
    if isinstance(value, str) or value is None or isinstance(value, (int, float)):
        value = {"text": value}
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise UserError(
            f"{record.place}: a {type(value).__name__}; expected a text, or a mapping with text or messages"
        )
    title, topic = (_clean(value.get(key), counts) or "" for key in ("title", "topic"))
    name = title or record.name
    if column is not None and column not in value:
        raise UserError(f"{record.place}: no column {column!r}; it has {', '.join(map(str, value)) or 'none'}")
    content = value[column] if column is not None else _first(value, CHAT_KEYS)
    if isinstance(content, list):
        segments = _messages(content, record, counts)
        return (
            Document(f"chat:{name}", topic, segments) if segments else _dropped(counts, "a conversation without text")
        )
    if column is None and _has(value, PROMPT_KEYS) and _has(value, ANSWER_KEYS):
        pair = [("user", _first(value, PROMPT_KEYS)), ("assistant", _first(value, ANSWER_KEYS))]
        segments = _messages([{"role": role, "content": one} for role, one in pair], record, counts)
        return (
            Document(f"chat:{name}", topic, segments) if segments else _dropped(counts, "a conversation without text")
        )
    if column is None and not _has(value, TEXT_KEYS):
        expected = "text, messages, conversations, or prompt and completion"
        raise UserError(f"{record.place}: it has {', '.join(map(str, value)) or 'no keys'}; expected {expected}")
    return _article(value, content if column is not None else _first(value, TEXT_KEYS), (name, title, topic), counts)


def _article(value: dict, content: object, names: tuple[str, str, str], counts: Counts) -> Document | None:
    name, title, topic = names
    if content is None:
        return _dropped(counts, "no text (null)")
    if not isinstance(content, str):
        return _dropped(counts, f"a {_kind(content)} in place of text")
    text = _clean(content, counts)
    if not text.strip():
        return _dropped(counts, "an empty text")
    segments = (Segment(f"{title}\n"), Segment(text)) if title else (Segment(text),)
    return Document(f"article:{name}", topic, segments)


def _messages(messages: list, record: Record, counts: Counts) -> tuple[Segment, ...]:
    """Segments of a conversation; messages without text are left out and counted."""
    segments = []
    for number, message in enumerate(messages, 1):
        if isinstance(message, str):  # speakers take turns
            message = {"role": ("user", "assistant")[(number - 1) % 2], "content": message}
        if not isinstance(message, dict):
            raise UserError(f"{record.place}: message {number} is a {_kind(message)}; expected role and content")
        speaker = _first(message, ROLE_KEYS)
        role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            known = ", ".join(SPEAKERS)
            raise UserError(f"{record.place}: message {number}: role {speaker!r} is not one of {known}")
        text = _content(_first(message, CONTENT_KEYS), counts)
        if text.strip():
            segments.append(Segment(text, role, message=len(segments)))
        else:
            counts.dropped["a message without text"] += 1
    return tuple(segments)


def _content(content: object, counts: Counts) -> str:
    """The text of a message, given as text or as a list of parts."""
    if isinstance(content, str):
        return _clean(content, counts)
    texts = []
    for part in content if isinstance(content, list) else ():
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            texts.append(_clean(text, counts))
        else:
            counts.dropped["a part of a message that is no text"] += 1
    return "".join(texts)


def _clean(text: object, counts: Counts) -> str | None:
    """A text that can be stored: NUL becomes a space, and half of a surrogate pair U+FFFD; both are counted."""
    if not isinstance(text, str):
        return None
    if NUL in text:
        counts.changed["NUL characters became spaces"] += 1
        text = text.replace(NUL, " ")
    if any(SURROGATES[0] <= character <= SURROGATES[1] for character in text):
        counts.changed["halves of surrogate pairs became U+FFFD"] += 1
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _dropped(counts: Counts, reason: str) -> None:
    counts.dropped[reason] += 1


def _has(value: dict, keys: tuple[str, ...]) -> bool:
    return any(key in value for key in keys)


def _first(value: dict, keys: tuple[str, ...]) -> object:
    """The value under the first of some keys that is there; None where none is."""
    return next((value[key] for key in keys if key in value), None)


def _kind(value: object) -> str:
    return {bool: "truth value", int: "number", float: "number", list: "list", dict: "mapping"}.get(
        type(value), type(value).__name__
    )
