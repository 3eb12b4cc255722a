"""What a stage depends on: its modules, found through imports, and nothing that it does not use."""

import ast
from pathlib import Path

import pytest

from crosscoders.workflow.dependencies import code
from crosscoders.workflow.sections import SECTIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_training_depends_on_its_kernels_and_on_no_model():
    found = {str(Path(path).relative_to("src/crosscoders")) for path in code("training.train_crosscoder")}
    assert {"kernels/cpu.cpp", "kernels/gpu.py", "training/loop.py", "study/settings/crosscoders.py"} <= found
    assert not {path for path in found if path.startswith(("language_models/", "analysis/", "report/", "data/"))}


def test_every_stage_has_one_module_of_its_name_and_all_its_files_exist():
    for stage in SECTIONS:
        (path,) = Path("src/crosscoders").glob(f"*/{stage}.py")
        found = code(f"{path.parent.name}.{stage}")
        assert str(path) in found
        assert all(Path(file).is_file() for file in found)
        assert str(path.parent / "sections.py") in found, "a stage takes the section of its room"


def test_packages_hold_no_code_that_a_rerun_would_miss():
    for path in Path("src/crosscoders").glob("*/**/__init__.py"):
        (only,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr), path


def test_rule_log_benchmark_section_and_module_have_one_name():
    text = "".join(path.read_text() for path in sorted(Path("rules").glob("*.smk")))
    for stage in SECTIONS:
        (path,) = Path("src/crosscoders").glob(f"*/{stage}.py")
        module = f"{path.parent.name}.{stage}"
        assert f"python -m crosscoders {module} " in text
        if stage == "notebook":  # a rule for each setting, since every notebook draws figures of its own
            assert 'f"notebook_{setting_name' in text
        else:
            assert f"\nrule {stage}:" in text
            assert f'settings_of("{stage}")' in text
        assert f"/logs/{stage}" in text
        assert f"/benchmarks/{stage}" in text
