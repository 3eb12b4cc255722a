"""The source files that a stage depends on. Rules declare them as inputs, so that an edit reruns what it can change."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

PACKAGE = "crosscoders"
DATA = {"kernels/cpu_library.py": ("kernels/cpu.cpp",)}
"""Files that a module reads besides importing modules."""


def code(*modules: str, folder: Path | str = "src/crosscoders") -> list[str]:
    """Paths of modules and of all modules of this package that they import, directly or through others.

    Parameters
    ----------
    modules : str
        Dotted names within the package, as `training.train_crosscoder`.
    folder : path
        The package's folder, from where rules name their files.

    Returns
    -------
    list of str
        Sorted; with the data files that the modules read. Rooms' `__init__` hold no code and are left out.
    """
    folder = Path(folder)
    paths: set[str] = set()
    waiting = [folder / f"{module.replace('.', '/')}.py" for module in modules]
    while waiting:
        path = waiting.pop()
        if str(path) not in paths:
            paths.add(str(path))
            waiting += imports(path, folder)
    data = {str(folder / file) for module, files in DATA.items() if str(folder / module) in paths for file in files}
    return sorted(paths | data)


@functools.cache
def imports(path: Path, folder: Path) -> list[Path]:
    """Modules of the package that a file imports, at its top or within a function."""
    paths: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            here = folder.joinpath(*node.module.split(".")[1:])
            if here.with_suffix(".py").is_file():
                paths.append(here.with_suffix(".py"))
            else:
                paths += [here / f"{alias.name}.py" for alias in node.names if (here / f"{alias.name}.py").is_file()]
        elif isinstance(node, ast.Call) and _imported(node):
            paths.append(folder.joinpath(*_imported(node).split(".")[1:]).with_suffix(".py"))
    return paths


def _imported(call: ast.Call) -> str | None:
    """The module of this package that a call `importlib.import_module("crosscoders…")` names."""
    named = isinstance(call.func, ast.Attribute) and call.func.attr == "import_module"
    first = call.args[0] if named and call.args else None
    literal = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return first.value if literal and first.value.split(".")[0] == PACKAGE else None
