"""Mutated study files: each is accepted, or refused in short lines, soon; and one that is accepted can be planned.

`FAULTS=long` takes 10,000 of them, and plans 100 of those that are accepted.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.faults.mutations import mutated

from crosscoders.errors import UserError
from crosscoders.study import loading

ROOT = Path(__file__).parents[2]
STUDIES = [
    "studies/smoke.yaml",
    "config.yaml",
    "studies/planted.yaml",
    "studies/gemma-2-2b-pair.yaml",
    "studies/layers.yaml",
]
LONG = os.environ.get("FAULTS") == "long"
FILES, PLANNED = (10_000, 100) if LONG else (150, 0)
SECONDS = 10


@pytest.fixture
def accepted(monkeypatch, tmp_path):
    """Mutated files that the loader accepts; every other one is refused as it should be."""
    monkeypatch.chdir(ROOT)
    texts = [Path(name).read_text(encoding="utf-8") for name in STUDIES]
    valid = []
    for number in range(FILES):
        draw = random.Random(f"study file {number}")
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(mutated(draw.choice(texts), draw).encode("utf-8", "surrogatepass"))
        began = time.monotonic()
        try:
            loading.load(path)
        except UserError as error:
            lines = str(error).splitlines()
            assert lines and all(len(line) <= 200 for line in lines), path
            path.unlink()
        else:
            valid.append(path)
        assert time.monotonic() - began < SECONDS, path
    return valid


def test_a_mutated_study_is_refused_in_short_lines_or_can_be_planned(accepted):
    print(f"{FILES:,} mutated files, of which {len(accepted):,} are accepted")
    assert 0 < len(accepted) < FILES / 2, "some changes are harmless, most are not"
    for path in accepted[:PLANNED]:
        command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--configfile", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{path}: {done.stderr[-2000:]}"
