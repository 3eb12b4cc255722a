"""YAML of study files, read strictly: plain values of limited size, and one line for whatever cannot be read.

The limits are far above what a study needs. They keep a file of a few lines from becoming gigabytes by repeated aliases.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from crosscoders.errors import UserError, shortened

LARGEST_FILE = 2_000_000
"""Characters."""
DEEPEST = 20
"""Mappings and lists within each other."""
LARGEST_CONTENT = 200_000
"""Values, where every alias counts as often as it is used."""
LONGEST_NUMBER = 40
"""Digits and signs of a number."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: duplicate keys are refused, `1e-4` is a number, a date is text, keys are text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = key_node.value, key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            shown = f"the key {shortened(key, 40)}" if isinstance(key, str) else "a list or mapping as key"
            raise _refusal(key_node, f"{shown}; expected a text, in quotes where it looks like something else")
        if key in seen:
            raise _refusal(key_node, f"duplicate key {key!r}, first given in line {seen[key]}")
        seen[key] = line
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > LONGEST_NUMBER:
        raise _refusal(node, f"a number of {len(node.value):,} characters; expected at most {LONGEST_NUMBER}")
    return yaml.SafeLoader.construct_yaml_int(loader, node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)


def _refusal(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def parse(text: str, place: str) -> Any:
    """The value that a YAML text stands for.

    Parameters
    ----------
    text : str
    place : str
        What messages name.

    Returns
    -------
    object
        Mappings, lists, texts, numbers, truth values and None.

    Raises
    ------
    UserError
        One line: the text is no YAML, or exceeds a limit.
    """
    if len(text) > LARGEST_FILE:
        raise UserError(f"{place}: {len(text):,} characters; expected at most {LARGEST_FILE:,}")
    try:
        return _parsed(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = error.problem or "not valid YAML"
        if "\\t" in problem:
            problem = "indented with a tab; expected spaces"
        raise UserError(shortened(f"{place}: line {line}: {problem}")) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character U+{error.character:04X} is not allowed in YAML"
        raise UserError(shortened(f"{place}: line {line}: {problem}")) from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(shortened(f"{place}: not valid YAML ({reason})")) from None


def _parsed(text: str) -> Any:
    _check_events(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_events(text: str) -> None:
    """Refuse tags and deep nesting before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {DEEPEST} deep; expected a study", problem_mark=event.start_mark
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {tag[:40]!r}; expected values without tags", problem_mark=event.start_mark
            )


def _check_size(node: yaml.Node) -> None:
    """Refuse content that aliases make too large, or that contains itself."""
    sizes: dict[int, int | None] = {}

    def size(one: yaml.Node) -> int:
        if id(one) in sizes:
            known = sizes[id(one)]
            if known is None:
                raise _refusal(one, "a value that contains itself; expected a study")
            return known
        sizes[id(one)] = None
        children = [part for pair in one.value for part in pair] if isinstance(one, yaml.MappingNode) else one.value
        total = 1 + (sum(map(size, children)) if isinstance(one, yaml.CollectionNode) else 0)
        if total > LARGEST_CONTENT:
            raise _refusal(one, f"more than {LARGEST_CONTENT:,} values, aliases counted; expected a study")
        sizes[id(one)] = total
        return total

    size(node)
