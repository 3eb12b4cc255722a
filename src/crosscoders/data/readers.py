"""Files of text as records: JSON Lines, JSON, plain text, CSV and Parquet, folders of these, compressed with gzip or not.

A record is a mapping, or the text itself. Where a file is not what it seems, the error names the file and the line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crosscoders.errors import UserError

PIECE_CHARACTERS = 2000
"""About how long the documents are into which plain text is cut, so that splits can share one file."""
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order marks, and the encodings that they announce."""
LISTS = ("data", "rows", "train", "documents", "conversations", "examples")
"""Keys under which a JSON file may hold its list of records."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".text", ".md", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Record:
    """One record: a mapping or a text, where it stands in a file, and a name that nothing else in the corpus has."""

    value: object
    place: str
    name: str


def records(path: Path) -> Iterator[Record]:
    """The records of a file, or of all files of a folder in the order of their names.

    Parameters
    ----------
    path : Path
        A file, or a folder whose files end in one of SUFFIXES, with or without `.gz`.

    Yields
    ------
    Record

    Raises
    ------
    UserError
        A file is missing, damaged, not in UTF-8, or no valid JSON; the line names file and line.
    """
    if not path.is_dir():
        yield from _file_records(path, "")
        return
    files = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) in SUFFIXES)
    if not files:
        raise UserError(f"{path}: no file of text in this folder; expected files that end in {', '.join(SUFFIXES)}")
    for file in files:
        yield from _file_records(file, f"{file.relative_to(path).as_posix()}:")


def _suffix(path: Path) -> str:
    """The ending that says what a file holds."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _file_records(path: Path, prefix: str) -> Iterator[Record]:
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path, prefix)
        return
    text = _text(path)
    if suffix in (".csv", ".tsv"):
        yield from _table(path, prefix, text, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".json" and not _is_lines(text):
        yield from _json(path, prefix, text)
    elif suffix in (".jsonl", ".ndjson", ".json") or (suffix not in SUFFIXES and _is_lines(text)):
        yield from _json_lines(path, prefix, text)
    else:
        pieces = cut(text)
        name = prefix.rstrip(":") or path.name
        for number, piece in enumerate(pieces, 1):
            yield Record(piece, f"{path}: piece {number}", f"{name}:{number}" if len(pieces) > 1 else name)


def _text(path: Path) -> str:
    """The text of a file, by its byte order mark, else UTF-8."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged or cut off"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"0x{content[error.start]:02X}" if error.start < len(content) else "none"
        raise UserError(
            f"{path}: line {line}: byte {byte} is not {encoding.upper().removesuffix('-SIG')}; expected a file in UTF-8"
        ) from None


def _is_lines(text: str) -> bool:
    """Whether the first line alone is a JSON mapping, and more than one line follows or it is a record itself."""
    first, *rest = text.strip().split("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    holds_records = isinstance(value, dict) and any(isinstance(entry, (list, dict)) for entry in value.values())
    return isinstance(value, dict) and (bool(rest) or not holds_records)


def _json_lines(path: Path, prefix: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):  # other line separators may stand within a text
        if line.strip():
            yield Record(_parsed(line, f"{path}: line {number}"), f"{path}: line {number}", f"{prefix}line-{number}")


def _json(path: Path, prefix: str, text: str) -> Iterator[Record]:
    content = _parsed(text, str(path))
    if isinstance(content, dict):
        held = next((content[key] for key in LISTS if isinstance(content.get(key), list)), None)
        content = held if held is not None else list(content.values())
    if not isinstance(content, list):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a list of records")
    for number, value in enumerate(content, 1):
        yield Record(value, f"{path}: record {number}", f"{prefix}record-{number}")


def _parsed(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{place}: nested too deeply; expected a record of text") from None
    except ValueError as error:
        raise UserError(f"{place}: no valid JSON ({str(error)[:80]}); expected a record") from None


def _table(path: Path, prefix: str, text: str, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for number, row in enumerate(reader, 1):
            value = {key: cell for key, cell in row.items() if key is not None}
            yield Record(value, f"{path}: row {number}", f"{prefix}row-{number}")
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: no valid table ({error})") from None


def _parquet(path: Path, prefix: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: no valid Parquet file ({str(error).splitlines()[0][:80]})") from None
    for number, row in enumerate(rows, 1):
        yield Record(row, f"{path}: row {number}", f"{prefix}row-{number}")


def cut(text: str) -> list[str]:
    """Plain text in pieces of about PIECE_CHARACTERS, cut at blank lines, else at line ends, else at spaces.

    Nothing is lost: the pieces together are the text.
    """
    parts = [text]
    for boundary in (r"(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?] )", r"(?<= )"):
        parts = [p for part in parts for p in (re.split(boundary, part) if len(part) > PIECE_CHARACTERS else [part])]
    pieces = [""]
    for part in parts:
        if pieces[-1] and len(pieces[-1]) + len(part) > PIECE_CHARACTERS:
            pieces.append("")
        pieces[-1] += part
    return pieces
