"""The source files that a stage depends on. Rules declare them as inputs, so that an edit reruns what it can change."""

from __future__ import annotations

import functools
import re
from pathlib import Path

PACKAGE = "crosscoders"
DATA = {"kernels/cpu_library.py": ("kernels/cpu.cpp",)}
"""Files that a module reads besides importing modules."""
STATEMENT = re.compile(
    rf"^[ ]*from[ ]+({PACKAGE}(?:\.\w+)*)[ ]+import[ ]+(?:\(((?:[^)#]|#.*)*)\)|([^\n(#]+))", re.MULTILINE
)
"""`from PACKAGE.room import names`, the only form of the statement in this package (a test compares all modules)."""
COMMENT = re.compile("#.*")
CALL = re.compile(rf'\bimport_module\("({PACKAGE}(?:\.\w+)+)"\)')
"""`importlib.import_module("PACKAGE.room.module")`."""


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
    """Modules of the package that a file imports, at its top or within a function.

    Statements are searched for as text: parsing all modules took a quarter of the time in which a workflow starts.
    """
    text = path.read_text(encoding="utf-8")
    paths: list[Path] = []
    for module, grouped, listed in STATEMENT.findall(text):
        here = folder.joinpath(*module.split(".")[1:])
        if here.with_suffix(".py").is_file():
            paths.append(here.with_suffix(".py"))
        else:
            names = (item.split()[0] for item in COMMENT.sub("", grouped or listed).split(",") if item.strip())
            paths += [here / f"{name}.py" for name in names if (here / f"{name}.py").is_file()]
    return paths + [folder.joinpath(*module.split(".")[1:]).with_suffix(".py") for module in CALL.findall(text)]
