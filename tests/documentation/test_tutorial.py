"""The tutorial, command by command, as a reader types it: with two small models in place of the embedded ones, and a text at hand."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from tests import preloaded
from tests.project import ROOT, copy_finished, environment

PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
MODELS, SMALL = "results/embedded/models", "results/smoke/models"
TEXT = "studies/smoke/articles.jsonl"


def typed() -> list[str]:
    """Every command of the page, of its blocks and its sentences, in the order in which a reader meets them."""
    parts = re.findall(r"^```(\w*)\n(.*?)^```|`(crosscoders [^`\n]+)`", PAGE, re.M | re.S)
    found = [line for kind, block, inline in parts if not kind for line in (block or inline).splitlines()]
    return [line for line in found if line.startswith(("crosscoders ", "snakemake "))]


def run(folder, line: str) -> str:
    """What a command prints, in the folder of the project."""
    words = shlex.split(line.replace(MODELS, SMALL))
    if words[:2] == ["crosscoders", "new"] and "--text" not in words:
        words += ["--text", TEXT]  # the corpora of the package index would take minutes
    if words[0] == "snakemake":
        done = preloaded.snakemake(folder, words[1:], environment(folder))
    else:
        done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_of_the_tutorial_lead_from_two_models_to_a_finding(finished_project, tmp_path):
    folder = copy_finished(finished_project, tmp_path / "project")
    said = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Wren, a small model."}]
    (folder / "my_chats.jsonl").write_text(f"{json.dumps({'messages': said})}\n" * 400)
    printed = {line: run(folder, line) for line in typed()}
    kinds = {" ".join(shlex.split(line)[:2]) for line in printed}
    assert kinds == {
        "crosscoders new",
        "crosscoders check",
        "crosscoders plan",
        "snakemake --cores",
        "crosscoders verify",
    }
    for start, words in {
        "crosscoders new": "is written for",
        "crosscoders plan": "in all: ",
        "snakemake": "start here: results/mine/index.html",
    }.items():
        assert all(words in text for line, text in printed.items() if line.startswith(start)), start
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert shown.returncode == 0 and len(re.findall(r"^\d+ +\d\.\d+$", shown.stdout, re.M)) == 5, shown.stderr
    assert (folder / "results/mine/report.html").is_file()
