"""What a stage depends on: its modules, found through imports, and nothing that it does not use."""

import ast
from pathlib import Path

import pytest

from crosscoders.workflow.dependencies import code, imports
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


def imported(path: Path, folder: Path) -> set[Path]:
    """What Python's own parser finds of a file's imports: the modules that are named, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    own = [name.split(".")[1:] for name in names if name.split(".")[0] == "crosscoders"]
    return {file for parts in own if parts and (file := folder.joinpath(*parts).with_suffix(".py")).is_file()}


def test_imports_that_are_searched_for_as_text_are_those_that_python_finds(tmp_path):
    folder = Path("src/crosscoders")
    for path in sorted(folder.rglob("*.py")):
        assert set(imports(path, folder)) == imported(path, folder), path
    written = tmp_path / "more.py"
    written.write_text(
        "from crosscoders.kernels import (\n    cpu,  # why (or not), as it is\n    gpu as device,\n)\n"
        "from crosscoders import storage, artifacts as files\n"
        "def late():\n    from crosscoders.training.loop import train\n"
        'lazy = importlib.import_module("crosscoders.kernels.plain")\n'
        'import_module(f"crosscoders.report.{name}")\n# from nowhere import crosscoders\n'
    )
    assert set(imports(written, folder)) == imported(written, folder)
    assert {path.stem for path in imports(written, folder)} == {"cpu", "gpu", "storage", "artifacts", "loop", "plain"}


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
