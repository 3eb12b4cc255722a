"""docs/settings.md and docs/study.schema.json, made from the classes: `python -m crosscoders.study.reference` writes them anew."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path

from crosscoders.study.settings.study import Study

FOLDER = Path(__file__).parent / "settings"
PAGE, SCHEMA = Path("docs/settings.md"), Path("docs/study.schema.json")
SUBJECTS = ("study", "models", "corpora", "comparisons", "crosscoders", "analysis")
"""Modules of settings, in the order of the page."""
HEAD = """# Settings

Every key of a study file, by the section that it stands in. `src/crosscoders/study/settings/` declares them, and this page is made
from it. An editor that knows JSON Schema completes and checks study files with
[study.schema.json](study.schema.json); for the YAML extension of VS Code, for one, the first line of the file then is

```yaml
# yaml-language-server: $schema=../docs/study.schema.json
```

The schema knows the keys, their types and ranges. `crosscoders check` also knows which values fit together.
"""


@dataclass
class Key:
    """A key of a section: what values it takes, its value where it is absent, and what it means."""

    name: str
    values: str
    default: str | None
    meaning: str = ""


@dataclass
class Documented:
    """A section as its class declares it."""

    name: str
    meaning: str
    keys: list[Key] = field(default_factory=list)


def sections(subject: str) -> list[Documented]:
    """The sections that one module declares, with the sentences below their keys.

    Parameters
    ----------
    subject : str
        One of `SUBJECTS`.

    Returns
    -------
    list of Documented
    """
    tree = ast.parse((FOLDER / f"{subject}.py").read_text(encoding="utf-8"))
    return [_section(node) for node in tree.body if isinstance(node, ast.ClassDef)]


def _section(node: ast.ClassDef) -> Documented:
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != "Section"]
    also = f" It has the keys of {' and '.join(bases)} too." if bases else ""
    documented = Documented(node.name, _one_line(ast.get_docstring(node) or "") + also)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.annotation).startswith("ClassVar"):
            default = None if statement.value is None else ast.unparse(statement.value)
            documented.keys.append(_key(statement.target.id, ast.unparse(statement.annotation), default))
        elif documented.keys and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            last = documented.keys[-1]
            last.meaning = last.meaning or _one_line(str(statement.value.value))
    return documented


def _key(name: str, annotation: str, default: str | None) -> Key:
    """A key; `Field(...)` without a value of its own means that the key is needed."""
    if default is not None and default.startswith("Field("):
        first = ast.parse(default, mode="eval").body.args
        default = ast.unparse(first[0]) if first else None
    return Key(name, annotation, default)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for subject in SUBJECTS:
        parts.append(f"\n## {subject.capitalize()}\n")
        for one in sections(subject):
            if one.keys:
                parts.append(
                    f"\n### {one.name}\n\n{one.meaning}\n\n| key | values | if absent | meaning |\n|---|---|---|---|\n"
                )
                parts += [_row(key) for key in one.keys]
    return "".join(parts)


def _row(key: Key) -> str:
    default = "needed" if key.default is None else f"`{key.default}`"
    cells = (f"`{key.name}`", f"`{key.values}`", default, key.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def schema() -> str:
    """The JSON Schema of study files, with the same sentences as descriptions."""
    content = Study.model_json_schema()
    documented = {one.name: one for subject in SUBJECTS for one in sections(subject)}
    for name, part in [("Study", content), *content["$defs"].items()]:
        for key in documented[name].keys if name in documented else []:
            if key.meaning and key.name in part.get("properties", {}):
                part["properties"][key.name]["description"] = key.meaning
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write both files."""
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
