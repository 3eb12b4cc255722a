"""Stage manifest: SHA-256 of every netCDF, PNG, SVG and page of latents; and the check that none has changed since."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crosscoders import artifacts, stage
from crosscoders.errors import UserError
from crosscoders.report.sections import ManifestSection

PATTERNS = ("**/*.nc", "**/*.png", "**/*.svg", "latents/**/*.html")


def listing(folder: Path) -> dict[str, str]:
    """SHA-256 by path within the study's folder; every netCDF is verified first.

    Raises
    ------
    UserError
        One line per damaged artifact.
    """

    def check(path: Path) -> str | UserError:
        try:
            if path.suffix == ".nc":
                artifacts.verify(path)
            return artifacts.sha256(path)
        except UserError as error:
            return error

    listed = (path for pattern in PATTERNS for path in folder.glob(pattern))
    paths = sorted(path for path in listed if not path.name.startswith("."))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        checked = dict(zip(paths, pool.map(check, paths), strict=True))
    problems = [str(one) for one in checked.values() if isinstance(one, UserError)]
    if problems:
        raise UserError("\n".join(problems))
    return {path.relative_to(folder).as_posix(): digest for path, digest in checked.items()}


def main(arguments) -> None:
    """Write the manifest."""
    section: ManifestSection = arguments.settings
    folder = arguments.output.parent
    content = {
        "study": section.study,
        "settings_sha256": section.settings_sha256,
        "commit": artifacts.commit(),
        "versions": artifacts.versions(),
        "artifacts": listing(folder),
    }
    artifacts.write_json(content, arguments.output)
    stage.say(f"manifest: {len(content['artifacts'])} artifacts")


if __name__ == "__main__":
    if "--check" in sys.argv:
        checker = argparse.ArgumentParser(description="Verify every netCDF of a study.")
        checker.add_argument("--check", type=Path, required=True)
        folder = checker.parse_args().check
        try:
            listing(folder)
        except UserError as error:
            sys.exit(f"error: {error}")
    else:
        stage.run(main, stage.parser(ManifestSection, __doc__, "output").parse_args())
