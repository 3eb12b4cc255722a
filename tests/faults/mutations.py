"""Mutated study files, drawn from a seed: what typing, merging and malice make of a study that was valid."""

import copy
import random
from collections.abc import Callable

import yaml

VALUES = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "a",
    "no",
    "1e-4",
    "../../etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "~",
    "é\u2028ü",
    "\U0001f642",
    "{role}",
    "{0}",
    "{",
    "%s",
    "$(touch /tmp/owned)",
    "'; touch /tmp/owned; '",
    "x" * 300,
    "x" * 5000,
    [],
    {},
    [[]],
    [0, 0],
    ["a", "a"],
    {"a": 1},
    {"kind": "text"},
    {"kind": ["text"]},
]
CHARACTERS = [*"{}[]:,#&*!|>'\"%@`-?\t\n \\\0\x7f\u2028\ufeff", "<<: ", "? ", "!!int ", "&a ", "*a ", "--- ", "9" * 50]


def places(content: object, path: tuple = ()) -> list[tuple]:
    """Every place in nested mappings and lists."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = [path] if path else []
    for key, value in entries:
        found += places(value, (*path, key))
    return found


def _parent(content: object, path: tuple) -> object:
    for step in path[:-1]:
        content = content[step]
    return content


def _replace(content: dict, path: tuple, draw: random.Random) -> None:
    _parent(content, path)[path[-1]] = copy.deepcopy(draw.choice(VALUES))


def _remove(content: dict, path: tuple, draw: random.Random) -> None:
    del _parent(content, path)[path[-1]]


def _rename(content: dict, path: tuple, draw: random.Random) -> None:
    parent = _parent(content, path)
    if isinstance(parent, dict):
        name = str(path[-1])
        place = draw.randrange(len(name) + 1)
        changed = draw.choice([name[:place] + name[place + 1 :], name[:place] + "x" + name[place:], name.upper(), ""])
        parent[changed] = parent.pop(path[-1])


def _move(content: dict, path: tuple, draw: random.Random) -> None:
    """Put the value of one place at another."""
    other = draw.choice(places(content))
    value: object = content
    for step in other:
        value = value[step]
    _parent(content, path)[path[-1]] = copy.deepcopy(value)


def _scale(content: dict, path: tuple, draw: random.Random) -> None:
    """Multiply a number."""
    parent = _parent(content, path)
    if isinstance(parent[path[-1]], (int, float)):
        parent[path[-1]] *= draw.choice([-1, 0, 2, 1000, 10**9, 1e-9])


OPERATIONS: list[Callable] = [_replace, _replace, _remove, _rename, _move, _scale]


def mutated(text: str, draw: random.Random) -> str:
    """A study file with one to three changes, of its values or of its characters."""
    if draw.random() < 0.3:
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(text) + 1)
            kind = draw.random()
            inserted = "" if kind < 0.3 else draw.choice(CHARACTERS)
            text = text[:place] + inserted + text[place + (draw.randint(0, 40) if kind < 0.5 else 0) :]
        return text
    content = yaml.safe_load(text)
    for _ in range(draw.randint(1, 3)):
        draw.choice(OPERATIONS)(content, draw.choice(places(content)), draw)
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
