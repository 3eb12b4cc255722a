"""A page of latents as files: one HTML file, or one with parts beside it that a browser loads when they are wanted.

A page opens from disk, where a browser forbids a page to fetch files. It may add scripts, so a part is a script that
calls `part(name, content)`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from crosscoders import storage

MARK = "/*DATA*/"
"""Place in the template that the data take."""
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The signs for whole numbers from 0 to 61 in strings of levels."""
LATENTS_PER_PART = 128
ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


class Texts:
    """Texts of tokens by number, each held once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text."""
        return self.numbers.setdefault(text, len(self.numbers))

    def listed(self) -> list[str]:
        """All texts in the order of their numbers."""
        return list(self.numbers)


def signs(levels, offset: int = 0, unknown: int | None = None) -> str:
    """Whole numbers as a string with a sign for each; `-` where a number is `unknown`."""
    return "".join("-" if level == unknown else ALPHABET[level + offset] for level in levels.tolist())


def escaped(content: object) -> str:
    """JSON in which no text can end a script or begin a tag."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).translate(ESCAPES)


def render(template: str, content: dict) -> str:
    """The page with its data."""
    before, after = template.split(MARK)
    return before + escaped(content) + after


class Parts:
    """The details of a page's latents: within the page, or in files of a folder beside it.

    Parameters
    ----------
    page : Path
        The page. What an earlier one left in the folder of the same name is removed.
    beside : bool
        Whether parts are written to that folder.
    """

    def __init__(self, page: Path, beside: bool):
        self.folder, self.inline = page.with_suffix("") if beside else None, {}
        shutil.rmtree(page.with_suffix(""), ignore_errors=True)

    @property
    def latents(self) -> int | None:
        """Latents of one part; None where all are in one."""
        return None if self.folder is None else LATENTS_PER_PART

    def add(self, name: str, content: object) -> None:
        """Keep a part, or write it."""
        if self.folder is None:
            self.inline[name] = content
        else:
            script = f"part({escaped(name)},{escaped(content)});\n"
            storage.write_sealed(script, self.folder / f"{name}.js", flush=False)
