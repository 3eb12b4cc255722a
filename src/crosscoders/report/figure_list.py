"""docs/figures.md, made from the registry: `python -m crosscoders.report.figure_list` writes it anew."""

from __future__ import annotations

from pathlib import Path

from crosscoders.report.registry import FIGURES, Figure

TARGET = Path("docs/figures.md")
HEAD = """# Figures

A notebook draws every figure from `summary/{setting}.nc` alone, as PNG and SVG in `results/{study}/figures/`. Where two
settings of a study draw the same figure, the setting's name is appended to the file's name. The command is

```
snakemake --cores all --configfile studies/{study}.yaml    # `make study` for the study `embedded`
```

`src/crosscoders/report/registry.py` declares the figures, and this page is made from it.

Sources: [L24] Lindsey et al. 2024, *Sparse Crosscoders for Cross-Layer Features and Model Diffing*; [K24] Kissane et al.
2024; [M25] Minder et al. 2025, arXiv 2504.02922; [D26] arXiv 2602.11729.

| figure | id | notebook | study |
|---|---|---|---|
"""
EXTRA = """
### ours-circuits, where concepts are known

The same on planted layers, with the share of persistent concepts that one node holds; study `planted`.

![Circuits of planted concepts](images/ours-circuits-planted.png)
"""


def text() -> str:
    """The whole page."""
    listed = [figure for figure in FIGURES if figure.id not in ("training", "evaluation")]
    return HEAD + "".join(map(_row, listed)) + "\n## Pictures\n" + "".join(map(_picture, listed)) + EXTRA


def _captioned(figure: Figure) -> str:
    return f"{figure.caption} {figure.paper}".strip()


def _row(figure: Figure) -> str:
    first, *others = (f"`{study}`" for study in figure.studies)
    studies = f"{first}; also {', '.join(others)}" if others else first
    notebooks = ", ".join(f"`{name}`" for name in figure.notebooks)
    return f"| {_captioned(figure)} | `{figure.id}` | {notebooks} | {studies} |\n"


def _picture(figure: Figure) -> str:
    finding = f" {figure.finding}" if figure.finding else ""
    head = f"\n### {figure.id}\n\n{_captioned(figure)}; study `{figure.studies[0]}`.{finding}\n"
    if not (TARGET.parent / "images" / f"{figure.id}.png").is_file():
        return head  # the study that draws it has not been run for this page
    return f"{head}\n![{figure.caption}](images/{figure.id}.png)\n"


def main() -> None:
    """Write the page."""
    TARGET.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
