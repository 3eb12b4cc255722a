"""Text as users have it: every format is read, nothing is lost silently, and what cannot be read is one line."""

import gzip
import json

import numpy as np
import pytest

from crosscoders import artifacts
from crosscoders.data import corpora, readers
from crosscoders.data.records import Counts
from crosscoders.errors import UserError
from crosscoders.study.settings.corpora import FileCorpus, HubCorpus

ROWS = [{"text": f"The fern number {i} grows on a hill."} for i in range(3)]


def read(path, column=None):
    counts = Counts()
    return corpora.from_file(FileCorpus(kind="file", path=str(path), column=column), counts), counts


def texts(documents):
    return ["".join(segment.text for segment in document.segments) for document in documents]


def written(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FORMATS = {
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "lines.json": LINES,
    "a.JSONL": LINES,
    "a.data": LINES,
    "list.json": json.dumps(ROWS),
    "texts.json": json.dumps([row["text"] for row in ROWS]),
    "held.json": json.dumps({"data": ROWS}),
    "mapping.json": json.dumps(dict(zip("abc", ROWS, strict=True))),
    "a.csv": "title,text\n" + "".join(f',"{row["text"]}"\n' for row in ROWS),
    "a.tsv": "text\n" + "".join(f"{row['text']}\n" for row in ROWS),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "crlf.jsonl": LINES.replace("\n", "\r\n"),
    "open.jsonl": LINES.rstrip("\n"),
    "blank.jsonl": "\n\n" + LINES + "\n\n",
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "wide.jsonl": LINES.encode("utf-16"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    documents, counts = read(written(tmp_path, name, FORMATS[name]))
    assert texts(documents) == [row["text"] for row in ROWS]
    assert (counts.documents, counts.lines()) == (3, [])


def test_parquet_and_folders_are_read_in_the_order_of_names(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "all" / "deep").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "all" / "b.parquet")
    written(tmp_path / "all", "a.jsonl", LINES)
    written(tmp_path / "all" / "deep", "c.txt", "Plain.")
    written(tmp_path / "all", "picture.png", b"\x89PNG")
    documents, _ = read(tmp_path / "all")
    assert texts(documents) == [row["text"] for row in ROWS] * 2 + ["Plain."]
    assert len({document.key for document in documents}) == 7, "names decide splits, so they differ between files"


@pytest.mark.parametrize("separator", ["\n\n", "\n", ". ", " ", ""])
def test_plain_text_is_cut_and_nothing_is_lost(tmp_path, separator):
    text = separator.join(f"word{i} and another" for i in range(2000))
    documents, _ = read(written(tmp_path, "a.txt", text))
    assert "".join(texts(documents)) == text
    assert all(len(piece) <= readers.PIECE_CHARACTERS for piece in texts(documents)) or not separator
    assert len({document.key for document in documents}) == len(documents) > 10


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Before\x00after", "Before after"),
        ("One.\u2028Two\u0085three\x0b\x0cfour", "One.\u2028Two\u0085three\x0b\x0cfour"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("a 👩‍👩‍👧 family", "a 👩‍👩‍👧 family"),
        ("\ufeffmarked", "\ufeffmarked"),
    ],
)
def test_odd_characters_are_kept_or_their_change_is_told(tmp_path, text, kept):
    path = written(tmp_path, "a.jsonl", json.dumps({"text": text}) + "\n" + LINES)
    documents, counts = read(path)
    assert texts(documents)[0] == kept
    assert bool(counts.changed) == (text != kept)
    artifacts.write(corpora.to_dataset(documents).assign_attrs(title="t"), tmp_path / "a.nc")
    again = corpora.from_dataset(artifacts.read(tmp_path / "a.nc"))
    assert texts(again) == texts(documents)


@pytest.mark.parametrize("value", [12, 1.5, None, True, "", "  \n", [], {}])
def test_what_is_no_text_is_counted_and_left_out(tmp_path, value):
    path = written(tmp_path, "a.jsonl", json.dumps({"text": value}) + "\n" + LINES)
    documents, counts = read(path)
    assert len(documents) == counts.documents == 3
    assert sum(counts.dropped.values()) == 1
    assert counts.lines()[0].startswith("1 records left out: ")


CONVERSATIONS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
            {"role": "assistant", "content": "Hello"},
        ]
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"prompt": "Hi", "completion": "Hello"},
    {"instruction": "Hi", "output": "Hello"},
    {"conversation": ["Hi", "Hello"]},
    [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}],
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "Hello"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello"},
        ]
    },
]


@pytest.mark.parametrize("record", CONVERSATIONS)
def test_conversations_of_every_kind_are_the_same_segments(tmp_path, record):
    documents, _ = read(written(tmp_path, "a.jsonl", json.dumps(record)))
    assert [(s.text, s.role, s.message) for s in documents[0].segments] == [
        ("Hi", "user", 0),
        ("Hello", "assistant", 1),
    ]


def test_system_and_tool_messages_have_roles(tmp_path):
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "tool", "assistant")]
    documents, _ = read(written(tmp_path, "a.jsonl", json.dumps({"messages": messages})))
    assert [segment.role for segment in documents[0].segments] == ["system", "user", "assistant", "user", "assistant"]


def test_a_column_is_taken_where_it_is_named(tmp_path):
    path = written(tmp_path, "a.csv", "text,other\nno,yes\n")
    assert texts(read(path, "other")[0]) == ["yes"]
    with pytest.raises(UserError, match=r"a\.csv: row 1: no column 'absent'; it has text, other"):
        read(path, "absent")


WRONG = {
    "latin.jsonl": (
        (LINES + '{"text": "caf\xe9"}\n').encode("latin-1"),
        r"latin\.jsonl: line 4: byte 0xE9 is not UTF-8",
    ),
    "cut.jsonl": (LINES + '{"text": "a', r"cut\.jsonl: line 4: no valid JSON"),
    "deep.jsonl": ("[" * 100_000, r"deep\.jsonl: line 1: (nested too deeply|no valid JSON)"),
    "keys.jsonl": ('{"number": 1}', r"keys\.jsonl: line 1: it has number; expected text"),
    "role.jsonl": (
        json.dumps({"messages": [{"role": "narrator", "content": "x"}]}),
        r"role\.jsonl: line 1: message 1: role 'narrator'",
    ),
    "message.jsonl": (json.dumps({"messages": [3]}), r"message\.jsonl: line 1: message 1 is a number"),
    "a.json": ("3", r"a\.json: .*expected"),
    "a.json.gz": (b"no gzip", r"a\.json\.gz: cannot be read"),
    "cut.txt.gz": (gzip.compress(b"x" * 9999)[:-20], r"cut\.txt\.gz: cannot be read"),
    "a.parquet": (b"PAR1 no", r"a\.parquet: no valid Parquet file"),
    "binary.txt": (bytes(range(256)), r"binary\.txt: line \d+: byte 0x80 is not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path, name):
    content, message = WRONG[name]
    with pytest.raises(UserError, match=message) as caught:
        read(written(tmp_path, name, content))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_a_folder_without_text_and_a_missing_file_are_lines(tmp_path):
    written(tmp_path, "picture.png", b"\x89PNG")
    with pytest.raises(UserError, match="no file of text in this folder"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"absent\.txt: cannot be read"):
        read(tmp_path / "absent.txt")


def test_rows_of_the_hub_pass_the_same_validator():
    corpus = HubCorpus(kind="hub", repo="a/b", revision="0" * 40, column="text", documents=4, licence="MIT")
    counts = Counts()
    rows = iter([{"text": "one"}, {"text": None}, {"text": "t\x00o"}, {"text": 3}, {"text": "never read"}])
    assert texts(corpora.from_hub(corpus, counts, rows)) == ["one", "t o"]
    assert sum(counts.dropped.values()) == 2
    assert np.all([line for line in counts.lines()])
