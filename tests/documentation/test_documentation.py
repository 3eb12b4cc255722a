"""The texts: the site builds without a warning, and every command in them is one that exists and takes these arguments."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.project import ROOT

from crosscoders import cli

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("crosscoders ", "snakemake ", "make ", "python -m ")


def commands(page: Path) -> list[str]:
    """The commands of a page: lines of its blocks of code, and code in its sentences."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|console|text)?\n(.*?)^```", text, re.M | re.S)
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", sentences)]
    return [line for line in lines if line.startswith(STARTS) and "{" not in line]


def _is_known(command: str) -> bool:
    """Whether a command is one of ours, of the Makefile or of a module, and its arguments are ones that it takes."""
    words = shlex.split(command.replace("FORMAT", "netcdf"), comments=True)
    if words[0] == "crosscoders":
        arguments = [word for word in words[1:] if word not in ("…", "...")]
        return len(arguments) < 2 or cli.parser().parse_args(arguments) is not None
    if words[0] == "make":
        targets = re.findall(r"^([\w.$()/-]+):", (ROOT / "Makefile").read_text(), re.M)
        return words[1].replace(".venv/", "$(VENV)/") in targets or words[1] in targets
    if words[0] == "python":
        return importlib.util.find_spec(words[2]) is not None
    from snakemake.cli import parse_args

    return parse_args([word for word in words[1:] if word != "-m"]) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        assert _is_known(command), command


def test_the_site_explains_the_terms_as_the_readme_does():
    tables = [
        page.read_text(encoding="utf-8").split("## Ten terms\n\n")[1].split("\n\n")[0].strip()
        for page in (ROOT / "README.md", ROOT / "docs/index.md")
    ]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 2 + 10


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="make .venv/docs installs what the site is built with")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "crosscoders verify" in (tmp_path / "site/command-line.html").read_text()
    assert "open_study" in (tmp_path / "site/library.html").read_text()
