"""Source files a stage depends on: rules declare them as inputs, so that an edit reruns what it can change."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path("src/crosscoders")


def code(*modules: str) -> list[str]:
    """Paths, from the project's folder, of modules and of the first-party modules they import, directly or not.

    `native` brings the C++ code that it compiles.
    """
    found: set[str] = set()
    waiting = set(modules)
    while waiting:
        path = FOLDER / f"{waiting.pop()}.py"
        found.add(str(path))
        waiting |= {name for name in imports(path) if str(FOLDER / f"{name}.py") not in found}
    if str(FOLDER / "native.py") in found:
        found.add(str(FOLDER / "passes.cpp"))
    return sorted(found)


def imports(path: Path) -> set[str]:
    """First-party modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "crosscoders":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crosscoders."):
            names.add(node.module.split(".")[1])
    return names
