"""One name per stage: the rule, its module, its section, its estimate and the folders of its logs and times."""

import re
from pathlib import Path

import pytest

from crosscoders.workflow.costs import estimates
from crosscoders.workflow.sections import SECTIONS

ROOT = Path(__file__).parents[2]


def rules() -> dict[str, str]:
    """The text of every rule that runs a stage, by its name; `notebook_SETTING` stands for the stage `notebook`."""
    texts = [path.read_text() for path in sorted((ROOT / "rules").glob("*.smk"))]
    parts = [part for text in texts for part in re.split(r"^ *(?=rule\b)", text, flags=re.MULTILINE)[1:]]
    named = {(re.match(r"rule (\w+):", part) or re.search(r"name:\s+f\"(\w+)_\{", part))[1]: part for part in parts}
    return {name: part for name, part in named.items() if "python -m crosscoders" in part}


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_a_stage_has_one_name(name):
    text = rules()[name]
    room, module = re.search(r"python -m crosscoders (\w+)\.(\w+)", text).groups()
    assert module == name and f'code("{room}.{name}"' in text
    assert re.search(rf'(settings_of\("|STUDY, "){name}"', text) and name in estimates.RULES
    assert f"/logs/{name}" in text and f"/benchmarks/{name}" in text
    assert SECTIONS[name].__module__ == f"crosscoders.{room}.sections"
    assert (ROOT / f"src/crosscoders/{room}/{name}.py").read_text().startswith(f'"""Stage {name}: ')


def test_every_rule_runs_a_stage():
    assert set(rules()) == set(SECTIONS)
