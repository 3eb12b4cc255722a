"""The commands that take crosscoders out of a study; they load torch only when they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from crosscoders.errors import UserError

CROSSCODERS = ("crosscoder_learning", "sae-lens", "sparsify", "netcdf")
"""Formats of crosscoders."""
DOCUMENTS = ("delphi", "neuronpedia")
"""Formats of what a crosscoder says of the test documents of its study."""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to those of `crosscoders`.

    Parameters
    ----------
    commands : object
        What `add_subparsers` returned.
    """
    export = commands.add_parser(
        "export", help="write a crosscoder, or its activations on test documents, for other tools"
    )
    _add_source_flags(export)
    export.add_argument("--format", required=True, choices=[*CROSSCODERS, *DOCUMENTS])
    export.add_argument("--output", type=Path, metavar="FOLDER", help="a new folder; under exports/ if absent")
    export.add_argument("--source", help="write the dictionary of this source alone, of SAEs per source")
    export.set_defaults(run=run_export)
    push = commands.add_parser("push", help="put a crosscoder with a model card on the hub of Hugging Face")
    _add_source_flags(push)
    push.add_argument(
        "repo", metavar="REPO", help="id of the repository, as organisation/name; made where there is none"
    )
    push.add_argument("--format", default=CROSSCODERS[0], choices=CROSSCODERS)
    push.add_argument("--licence", help="id of a licence for the model card, as mit")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.set_defaults(run=run_push)


def _add_source_flags(parser: argparse.ArgumentParser) -> None:
    """What says which crosscoder is meant."""
    parser.add_argument("path", type=Path, metavar="PATH", help="results/…/seed-N.nc, or a folder in a peer's format")
    parser.add_argument("--sources", type=_names, help="names of the sources in order, where the files give none")
    parser.add_argument(
        "--input-scale",
        type=_numbers,
        metavar="base=0.28,chat=0.24",
        help="what activations were multiplied by in training",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers by source, as base=0.28,chat=0.24") from None


def run_export(given: argparse.Namespace) -> None:
    """Write what `crosscoders export` asks for.

    Parameters
    ----------
    given : argparse.Namespace
        `path`, `format`, `output`, `source`, `sources`, `input_scale`.

    Raises
    ------
    UserError
        The crosscoder cannot be read, the format cannot express it, or the folder is not new.
    """
    folder = given.output or Path("exports") / "-".join(given.path.with_suffix("").parts[-3:]) / given.format
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output: {folder} is there already and not empty; expected a new folder")
    if given.format in DOCUMENTS and (given.source or given.sources or given.input_scale):
        raise UserError(f"--format: {given.format} takes a crosscoder of a study as it is; remove the other flags")
    export(given.path, folder, given.format, given.source, given.sources, given.input_scale)
    print(f"{folder}: written as {given.format}; docs/formats.md says what it holds")


def export(
    path: Path,
    folder: Path,
    format_name: str,
    source: str | None = None,
    sources: list[str] | None = None,
    input_scale: dict[str, float] | None = None,
) -> None:
    """Write a crosscoder, or what it says of test documents, in a format.

    Parameters
    ----------
    path, folder : Path
        The crosscoder, and where its files go.
    format_name : str
        One of `CROSSCODERS` or `DOCUMENTS`; the others below are for those of `CROSSCODERS`.
    source : str, optional
        The source whose dictionary alone is written, of SAEs per source.
    sources : list of str, optional
        Names of the sources in order, where the files give none.
    input_scale : {source: float}, optional
        What activations were multiplied by in training.

    Raises
    ------
    UserError
        The crosscoder cannot be read, the format cannot express it, or the folder cannot be written.
    """
    if format_name in DOCUMENTS:
        _write_documents(path, folder, format_name)
        return
    from crosscoders.formats import recognise

    found = recognise.read(path, sources, input_scale)
    recognise.write(found.of_source(source) if source else found, folder, format_name)


def run_push(given: argparse.Namespace) -> None:
    """Push what `crosscoders push` asks for.

    Parameters
    ----------
    given : argparse.Namespace
        `path`, `repo`, `format`, `licence`, `private`, `sources`, `input_scale`.

    Raises
    ------
    UserError
        The crosscoder cannot be read, the format cannot express it, or the hub refuses it.
    """
    from crosscoders.formats import hub, recognise
    from crosscoders.library import card

    found = recognise.read(given.path, given.sources, given.input_scale)
    text = card.text(found, card.measured(given.path), given.repo, given.format, given.licence)
    revision = hub.push(found, given.repo, given.format, text, given.private)
    print(f"{given.repo}@{revision}: pushed as {given.format}")


def _write_documents(path: Path, folder: Path, name: str) -> None:
    """Write test documents for another tool."""
    from crosscoders.library import delphi, neuronpedia
    from crosscoders.library.documents import Documents

    {"delphi": delphi, "neuronpedia": neuronpedia}[name].write(Documents(path), folder)
