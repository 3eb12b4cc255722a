"""Names, paths and placeholders: whether they stand for something."""

from __future__ import annotations

import difflib
import stat
import string
from pathlib import Path


def suggestion(name: str, allowed: list[str]) -> str:
    """The nearest valid name, as the end of a message."""
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def placeholder_problems(key: str, text: str, allowed: set[str], needed: bool = True) -> list[str]:
    """Whether a text has the placeholders that it may have; braces for themselves are written twice."""
    try:
        fields = [field[1:] for field in string.Formatter().parse(text) if field[1] is not None]
        names = {name for name, _, _ in fields}
    except ValueError as error:
        return [f"{key}: {text!r} has a stray brace ({error}); write {{{{ or }}}} for a brace"]
    expected = " or ".join(f"{{{name}}}" for name in sorted(allowed)) or "no placeholder"
    problems = [f"{key}: unknown placeholder {{{name}}}; expected {expected}" for name in sorted(names - allowed)]
    if any(width or conversion for _, width, conversion in fields):
        problems.append(f"{key}: {text!r} formats a placeholder; expected {expected} as it is")
    if needed and not names:
        problems.append(f"{key}: {text!r} lacks {expected}")
    return problems


def path_problem(key: str, path: str) -> list[str]:
    """Whether a path leads to a file or a folder that can be read."""
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        return [f"{key}: {path!r} {problem}; expected an existing path"]
    return [] if kind in (stat.S_IFREG, stat.S_IFDIR) else [f"{key}: {path!r} is a device; expected a file or a folder"]


def member_problem(file: str) -> list[str]:
    """Whether a path stays within a wheel."""
    if Path(file).is_absolute() or ".." in Path(file).parts:
        return [f"file: {file!r} leaves the wheel; expected a relative path without '..'"]
    return []


def unknown_name(key: str, name: str, known: dict) -> list[str]:
    """Whether a name is defined; the line lists those that are."""
    if name in known:
        return []
    return [f"{key}: {name!r} is not defined; known: {', '.join(known) or 'none'}{suggestion(name, list(known))}"]
