"""Loading a study file and every check that can be made before a job starts: all problems at once, one line each.

Reads no file but the study file itself (and, for a local model folder, its `config.json`).
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from crosscoders.errors import UserError, shortened
from crosscoders.study import yaml_text
from crosscoders.study.places import place_paths
from crosscoders.study.series import expanded
from crosscoders.study.settings.base import Digest, Name, Package, Repository, Revision, Section, Version
from crosscoders.study.settings.comparisons import AnySetting
from crosscoders.study.settings.corpora import AnyTemplate, Corpus
from crosscoders.study.settings.crosscoders import AlignedSettings, AnyCrosscoder
from crosscoders.study.settings.models import Model
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.names import suggestion
from crosscoders.study.validation.study import cross_checks

# -- loading -----------------------------------------------------------------------------------------------------------


def load(*paths: Path | str, overrides: Mapping[str, object] | None = None) -> Study:
    """Read and check a study; settings of later files replace those of earlier ones, and `overrides` those of all.

    Paths in a file are read from its folder, else from the working directory; paths in `overrides` from the latter.

    Parameters
    ----------
    *paths : path
        Study files.
    overrides : mapping, optional
        Settings from a command line: key to value; a value that is text is read as YAML.

    Returns
    -------
    Study

    Raises
    ------
    UserError
        One line per problem, all problems at once.
    """
    content: dict = {}
    lost: dict[str, str] = {}
    for path in map(Path, paths):
        placed, lines = place_paths(read(path), path.parent)
        content, lost = merge(content, placed), lost | lines
    for place, kind in implied_kinds(content):
        print(f"{paths[-1]}: {place}.kind: missing; read as {kind!r}. Please write `kind: {kind}`.", file=sys.stderr)
    for key, value in (overrides or {}).items():
        placed, lines = place_paths({key: _typed(value)})
        content, lost = merge(content, placed), lost | lines
    return check(content, Path(paths[-1]), {place: line for place, line in lost.items() if line})


def _typed(value: object) -> object:
    """A command-line value as the study file would read it; Snakemake leaves the members of lists as text."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return yaml_text.parse(value, "--config") if isinstance(value, str) else value


def merge(old: dict, new: dict) -> dict:
    """`old` with the entries of `new`, section by section."""
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read(path: Path) -> dict:
    """The mapping in a YAML file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict

    Raises
    ------
    UserError
        The file is missing, empty, or not valid.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(yaml_text.LARGEST_FILE + 1)
    except UnicodeDecodeError:
        raise UserError(shortened(f"{path}: not UTF-8 text; expected a study file")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(shortened(f"{path}: cannot be read ({reason}); expected a study file")) from None
    content = yaml_text.parse(text, str(path))
    if not content:
        raise UserError(f"{path}: the study file is empty; expected the settings described in config.yaml")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of settings, found a {type(content).__name__}")
    return content


MARKS = {"settings": {"planted": "planted", "change": "null_control", "trained_on": "transfer"}}
SOURCE_MARKS = {"of": "difference", "width": "synthetic"}
"""Keys by which a section without `kind` shows what it is; study files were once written without."""


def implied_kinds(content: dict) -> list[tuple[str, str]]:
    """The place and the kind of every section that does not say its kind although it is not the usual one."""
    unsaid = []
    for name, setting in _mappings(content.get("settings")):
        place = f"settings.{name}"
        unsaid += [(place, kind) for key, kind in MARKS["settings"].items() if "kind" not in setting and key in setting]
        for source_name, source in _mappings(setting.get("sources")):
            marks = SOURCE_MARKS.items() if "kind" not in source else ()
            unsaid += [(f"{place}.sources.{source_name}", kind) for key, kind in marks if key in source]
    return unsaid


def with_kinds(content: dict) -> dict:
    """The content with the kinds of :func:`implied_kinds` written in."""
    completed = copy.deepcopy(content)
    for place, kind in implied_kinds(content):
        here = completed
        for step in place.split("."):
            here = here[step]
        here["kind"] = kind
    return completed


def _mappings(value: object) -> list[tuple[str, dict]]:
    """The entries of a mapping that are mappings themselves."""
    entries = value.items() if isinstance(value, dict) else ()
    return [(name, entry) for name, entry in entries if isinstance(name, str) and isinstance(entry, dict)]


def check(content: dict, path: Path | str = "config", lost: Mapping[str, str] | None = None) -> Study:
    """Check settings already read, for instance the configuration that Snakemake merged.

    Parameters
    ----------
    content : dict
        Settings.
    path : path
        The file that messages name.
    lost : {place: str}, optional
        What to say of entries whose path was found nowhere, as :func:`crosscoders.study.places.place_paths` gives it; it
        stands in place of whatever else the checks say of their files.

    Returns
    -------
    Study
        With the settings and models that its series stand for.

    Raises
    ------
    UserError
        One line per problem, all problems at once.
    """
    content, lost = with_kinds(content), lost or {}
    if content.get("chat_template") == "model":
        content["chat_template"] = {"kind": "model"}
    problems = []
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        problems = [line for item in error.errors() for line in _lines(item, content)]
        crossed = _cross_checks_where_possible(content, Path(path))
    else:
        crossed = cross_checks(study, Path(path))
    problems += [line for line in crossed if not line.startswith(tuple(f"{place}.path: " for place in lost))]
    problems += [f"{place}.{line}" for place, line in lost.items()]
    if problems:
        file = shortened(str(path), 50)
        raise UserError("\n".join(shortened(f"{file}: {problem}") for problem in dict.fromkeys(problems)))
    return expanded(study)


def _cross_checks_where_possible(content: dict, path: Path) -> list[str]:
    """Cross-checks of the parts of a faulty study that are valid by themselves, so that all errors come at once."""
    parts: dict[str, Any] = {}
    collections = {
        "models": Model,
        "corpora": Corpus,
        "settings": AnySetting,
        "crosscoders": AnyCrosscoder,
        "aligned": AlignedSettings,
    }
    for key, kind in collections.items():
        entries = content.get(key)
        parts[key] = {}
        for name, value in entries.items() if isinstance(entries, dict) else ():
            parts[key][name] = _valid(kind, value)
    splits = content.get("splits")
    parts["chat_template"] = _valid(AnyTemplate, content.get("chat_template")) or content.get("chat_template")
    parts["splits"] = splits if _are_ranges(splits) else {}
    return cross_checks(Study.model_construct(**parts), path)


def _valid(kind: object, value: object) -> object:
    """A section, where it is valid by itself; else None."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def _are_ranges(splits: object) -> bool:
    return isinstance(splits, dict) and all(
        isinstance(edges, list) and len(edges) == 2 and all(type(edge) in (int, float) for edge in edges)
        for edges in splits.values()
    )


def _lines(item: dict, content: dict) -> list[str]:
    """One pydantic error as lines, of which only broken rules of a section give several."""
    where = ".".join(map(str, _place(item)))
    if item["type"] == "rules":
        return [f"{where}.{line}" for line in item["ctx"]["lines"]]
    return [_line(item, content)]


def _place(item: dict) -> list[Any]:
    """Where in a study an error lies, without what pydantic says of the kind that it tried."""
    steps: list[Any] = []
    skip = False
    for step in item["loc"]:
        is_name = isinstance(step, str) and ("list[" in step or "literal[" in step or "constrained" in step)
        if step == "[key]" or is_name or skip:  # what pydantic says of the kind that it tried
            skip = False
            continue
        steps.append(step)
        skip = _has_kind(steps)
    return steps


def _line(item: dict, content: dict) -> str:
    """One pydantic error as one line: setting, value, expectation, nearest name."""
    steps = _place(item)
    where = ".".join(map(str, steps))
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown setting{suggestion(str(steps[-1]), _siblings(item, content))}"
    if item["type"] == "missing":
        return f"{where}: missing; expected a value"
    if item["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return f"{where}: {_shown(value)} is not one of {', '.join(allowed)}{suggestion(str(value), allowed)}"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kind = value.get("kind") if isinstance(value, dict) else value
        allowed = (
            re.findall(r"'([^']*)'", item["ctx"].get("expected_tags", ""))
            or KINDS[steps[0] if len(steps) < 3 else "sources"]
        )
        return f"{where}.kind: {_shown(kind)} is not one of {', '.join(allowed)}{suggestion(str(kind), allowed)}"
    if item["type"] == "string_pattern_mismatch":
        return f"{where}: {_shown(value)} does not fit; expected {_PATTERNS.get(item['ctx']['pattern'], item['ctx']['pattern'])}"
    if item["type"] == "refused":
        return f"{where}: {_shown(value)} does not fit; expected {item['msg']}"
    shown = _shown(value) if not isinstance(value, (dict, list)) else f"a {type(value).__name__}"
    return f"{where}: {shown} does not fit; expected {_expected(item['msg'])}"


def _shown(value: object) -> str:
    """A value as an error shows it, shortened where it is long."""
    return shortened(repr(value), 80)


def _expected(message: str) -> str:
    """What pydantic expected, as the end of a sentence."""
    message = message.removeprefix("Input should be ")
    message = re.sub(r"^(String|List|Dictionary) should have ", lambda kind: f"{SIZED[kind[1]]} of ", message)
    return re.sub(r" after validation, not \d+$", "", message)


SIZED = {"String": "a text", "List": "a list", "Dictionary": "a mapping"}


KINDS = {
    "models": ["wheel", "hub", "folder", "random", "trained", "snapshot", "fine_tuned", "noised", "rounded"],
    "corpora": ["wheel", "hub", "file", "planted_chats"],
    "settings": ["text", "planted", "null_control", "transfer", "dose_series"],
    "sources": ["model", "synthetic", "difference"],
    "crosscoders": ["trained", "published"],
    "chat_template": ["study", "model"],
}
"""Kinds of the entries of a study, where pydantic names none because `kind` is no text."""


def _has_kind(steps: list) -> bool:
    """Whether a place in a study is an entry of which there are several kinds."""
    entry = len(steps) == 2 and steps[0] in ("models", "corpora", "settings", "crosscoders")
    return entry or steps[-2:-1] == ["sources"] or steps == ["chat_template"]


def _pattern(kind: Any) -> str:
    """The pattern of a kind of text."""
    return next(part.pattern for part in kind.__metadata__[0].metadata if hasattr(part, "pattern"))


_PATTERNS = {
    _pattern(Name): "a name of letters, digits, '_' and '-'",
    _pattern(Digest): "a SHA-256 (64 hexadecimal digits)",
    _pattern(Revision): "a commit hash (40 hexadecimal digits); branches and tags are not pinned",
    _pattern(Package): "the name of a package (PEP 508)",
    _pattern(Version): "a version such as 1.2.3 (PEP 440)",
    _pattern(Repository): "an id of the hub, as organisation/name",
}


def _has(here: object, step: object) -> bool:
    if isinstance(here, dict):
        return step in here
    return isinstance(here, list) and isinstance(step, int) and step < len(here)


def _siblings(item: dict, content: dict) -> list[str]:
    """Field names a misspelt key could have meant: those of the sections that know most of its neighbours."""
    here: Any = content
    for step in item["loc"][:-1]:
        here = here[step] if _has(here, step) else here
    present = set(here) if isinstance(here, dict) else set()
    shared = {kind: len(present & set(kind.model_fields)) for kind in _sections(Section)}
    known = {name for kind, count in shared.items() if count == max(shared.values()) for name in kind.model_fields}
    return sorted(known - {item["loc"][-1]})


def _sections(kind: type[Section]) -> list[type[Section]]:
    below = []
    for child in kind.__subclasses__():
        below += [child, *_sections(child)]
    return below
