"""Reports draw what a study has, and say in a sentence why there is nothing to draw where it lacks something."""

import contextlib
import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from crosscoders import artifacts
from crosscoders.report import figures, registry
from crosscoders.report import results as report


def without(summary: xr.Dataset, *names: str) -> xr.Dataset:
    """A summary in which some variables, and their intervals, are undefined."""
    chosen = [v for v in summary.data_vars if v in names or v.startswith(tuple(f"{name}_" for name in names))]
    return summary.assign({v: summary[v] * float("nan") for v in chosen if summary[v].dtype.kind == "f"})


ABSENT = {
    "no alive latent": lambda d: d.assign(density=d["density"] * 0),
    "nothing planted and no template": lambda d: without(d, "enrichment"),
    "every nu undefined": lambda d: without(d, "nu"),
    "one seed": lambda d: d.isel(seed=[0]).drop_vars([v for v in d.data_vars if "other_seed" in d[v].dims]),
    "one crosscoder": lambda d: d.isel(crosscoder=[0]),
    "no twins": lambda d: without(d, "twin_divergence"),
    "one source each": lambda d: d.assign(written_sources=d["written_sources"] * 0 + 1),
    "sources of unequal width": lambda d: without(d, "decoder_cosine", "source_cosine"),
    "no spliced loss": lambda d: d.drop_vars([v for v in d.data_vars if v.startswith("cross_entropy")]),
}


TRIPLES = [
    tuple(list(ABSENT)[i] for i in triple)
    for triple in itertools.combinations(range(9), 3)
    if sum(i // 3 for i in triple) % 3 == 0 and sum(i % 3 for i in triple) % 3 == 0
]
"""Twelve triples in which any two of the nine parts are absent together once: the lines of the plane over three numbers."""


def test_any_two_parts_are_absent_together_once():
    pairs = [frozenset(pair) for triple in TRIPLES for pair in itertools.combinations(triple, 2)]
    assert len(pairs) == len(set(pairs)) == 36


def crowded(summary: xr.Dataset, dim: str, labels: list) -> xr.Dataset:
    """A summary with many crosscoders, or many seeds: its own, again and again."""
    others = [name for name in summary.dims if name == f"other_{dim}"]
    places = [i % summary.sizes[dim] for i in range(len(labels))]
    many = summary.isel({name: places for name in (dim, *others)})
    return many.assign_coords({name: np.array(labels, dtype=many[name].dtype) for name in (dim, *others)})


CROWDED = {
    "eleven crosscoders": ("crosscoder", [f"member-{i}" for i in range(11)]),
    "nine seeds": ("seed", list(range(9))),
}
CHANGES = ABSENT | {name: functools.partial(crowded, dim=dim, labels=labels) for name, (dim, labels) in CROWDED.items()}


@pytest.mark.parametrize("absent", [(name,) for name in CHANGES] + TRIPLES, ids="+".join)
def test_reports_draw_or_say_why_not(finished_project, absent, tmp_path, monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(report, "display", lambda shown_object: shown.append(getattr(shown_object, "data", "")))

    def save(figure, folder, name, note=""):
        """Lay a single absence out; write no file, which takes most of the time."""
        written.append(name)
        if len(absent) == 1 and absent[0] in ABSENT:
            figure.get_layout_engine().execute(figure)

    monkeypatch.setattr(figures, "save", save)
    monkeypatch.setattr(report, "Image", lambda filename, width: Path(filename))
    notebooks = {"model_diffing": "base-vs-chat"} | ({"cross_layer": "cross-layer"} if len(absent) == 1 else {})
    if absent[0] in CROWDED:
        notebooks = {"compare": "base-vs-chat"}
    for notebook, name in notebooks.items():
        summary = artifacts.read(finished_project / "results/smoke/summary" / f"{name}.nc")
        for part in absent:
            summary = CHANGES[part](summary)
        written: list[str] = []
        expected = {figure.id: figure.id for figure in registry.figures_of(notebook)}
        artifacts.write(summary, tmp_path / f"{name}.nc")
        drawer = report.Results.open(str(tmp_path / f"{name}.nc"), str(tmp_path), expected, {}, {})
        for identifier in expected:
            drawer.show(identifier)
        drawer.say("prose.all_strongest_examples")
        for figure in registry.figures_of(notebook):
            with contextlib.suppress(figures.NothingToDraw):
                shown.append(drawer.sentences(figure.id) if figure.words else "")  # as the front page has them
        assert written == list(expected), "every file that Snakemake waits for is written, once"
    sentences = [text for text in shown if isinstance(text, str)]
    assert sentences
    assert not [text for text in sentences if re.search(r"\bnan\b", text)]
