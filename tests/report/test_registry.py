"""The figures are declared once: every name in the list leads somewhere, and the page of figures is the list."""

import importlib
import json
from pathlib import Path

import matplotlib.pyplot as plt
import matplotlib.text
import pytest

from crosscoders.report import figure_list, figures
from crosscoders.report.registry import BY_ID, FIGURES, NOTEBOOKS, expected_figures, figures_of, modules
from crosscoders.report.results import Results
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


@pytest.mark.parametrize("setting", ["base-vs-chat", "cross-layer", "pair"])
def test_figures_are_as_wide_as_a_page_and_no_text_is_smaller_than_seven_points(finished_project, setting, monkeypatch):
    study, folder = loading.load(finished_project / "studies/smoke.yaml"), finished_project / "results/smoke/summary"
    nulls = {name: str(folder / f"{name}.nc") for name in comparisons.nulls_of(study, setting)}
    transfers = {name: str(folder / f"{name}.nc") for name in comparisons.transfers_of(study, setting)}
    results = Results.open(str(folder / f"{setting}.nc"), "", {}, nulls, transfers)
    drawn = {}
    monkeypatch.setattr(results, "_save_and_show", lambda figure, name: drawn.update({name: figure}))
    for figure in figures_of(study.settings[setting].notebook):
        results.show(figure.id)
    assert len(drawn) > 1
    for name, figure in drawn.items():
        texts = [
            text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()
        ]
        assert figure.get_figwidth() <= figures.PAGE_WIDTH, name
        assert {
            text.get_text(): text.get_fontsize() for text in texts if text.get_fontsize() < figures.SMALLEST_TEXT
        } == {}, name
        plt.close(figure)


def test_a_note_of_many_crosscoders_is_read_whole_and_covers_nothing(tmp_path):
    """In lines that end within the page, below all that the figure draws."""
    figures.style()
    names = [f"{member}-{factor}x" for member in ("l1", "batchtopk", "dedicated", "WWWWWWWW") for factor in (1, 2, 4)]
    note = f"Tokens seen in training: {', '.join(f'{name} 1,474,560' for name in names)}."
    drawn, axis = plt.subplots(figsize=(figures.PAGE_WIDTH, 2))
    axis.set_xlabel("tokens")
    drawn.legend(handles=axis.plot([0, 1], label="one"), loc="outside lower center")
    figures.save(drawn, tmp_path, "figure", note)
    (shown,) = (text for text in drawn.texts if text.get_text().startswith("Tokens seen"))
    assert shown.get_text().split() == note.split()
    box, page = shown.get_window_extent(), drawn.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
    others = [axis.get_tightbbox(), *(legend.get_window_extent() for legend in drawn.legends)]
    assert all(box.y1 <= other.y0 for other in others)
    plt.close(drawn)


def test_last_bits_of_the_layout_do_not_change_a_picture(tmp_path, monkeypatch):
    """The solver's sums depend on addresses in memory; a run that was killed and continued must end with the same bytes."""
    figures.style()
    solve = matplotlib.layout_engine.ConstrainedLayoutEngine.execute

    def execute(engine, figure):
        solve(engine, figure)
        for axis in figure.axes:
            axis._set_position([part + offset for part in axis.get_position(original=True).bounds])

    monkeypatch.setattr(matplotlib.layout_engine.ConstrainedLayoutEngine, "execute", execute)
    for name in ("solved", "solved-otherwise"):
        offset = 0.0 if name == "solved" else 4e-16
        drawn, axes = plt.subplots(1, 2, figsize=(4, 2))
        axes[0].plot([0, 1])
        drawn.colorbar(axes[1].imshow([[0, 1]]))
        figures.save(drawn, tmp_path, name)
        plt.close(drawn)
    for suffix in ("svg", "png"):
        first, second = (tmp_path / f"{name}.{suffix}" for name in ("solved", "solved-otherwise"))
        assert first.read_bytes() == second.read_bytes()
