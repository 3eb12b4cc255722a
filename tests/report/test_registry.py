"""The figures are declared once: every name in the list leads somewhere, and the page of figures is the list."""

import importlib
import json
from pathlib import Path

import pytest

from crosscoders.report import figure_list
from crosscoders.report.registry import BY_ID, FIGURES, NOTEBOOKS, expected_figures, figures_of, modules
from crosscoders.study import loading
from crosscoders.study.queries import comparisons

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.id)
def test_every_figure_has_a_function_and_a_sentence_where_there_is_nothing_to_draw(figure):
    for name in filter(None, (figure.draw, figure.words)):
        module, function = name.split(".")
        assert callable(getattr(importlib.import_module(f"crosscoders.report.{module}"), function))
        assert f"report.{module}" in modules()
    assert bool(figure.needs) == bool(figure.absent)
    assert set(figure.notebooks) <= set(NOTEBOOKS)


def test_ids_are_unique():
    assert len(BY_ID) == len(FIGURES)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_shows_the_figures_that_the_list_gives_it(notebook):
    cells = json.loads(Path(f"notebooks/{notebook}.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert {figure.id for figure in FIGURES if f'results.show("{figure.id}"' in code} == {
        figure.id for figure in figures_of(notebook)
    }


@pytest.mark.parametrize("path", ["config.yaml", *map(str, sorted((ROOT / "studies").glob("*.yaml")))])
def test_files_of_figures_have_names_of_their_own(path):
    study = loading.load(path)
    names = [
        name for setting in comparisons.drawn_settings(study) for name in expected_figures(study, setting).values()
    ]
    assert len(names) == len(set(names)) > 0


def test_the_page_of_figures_is_made_from_the_list():
    assert Path("docs/figures.md").read_text(encoding="utf-8") == figure_list.text(), (
        "run `python -m crosscoders.report.figure_list`"
    )
