"""Stage index: the front page of a study: what was found, each sentence beside its figure, and the way to everything else."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
import xarray as xr
from nbconvert.filters.markdown import markdown2html

from crosscoders import artifacts, stage, storage
from crosscoders.report import figures
from crosscoders.report.registry import BY_ID
from crosscoders.report.results import Results
from crosscoders.report.sections import IndexedSetting, IndexSection
from crosscoders.report.verification import verify_documents


@dataclass
class Finding:
    """A figure of the front page: its caption, the stem of its files, and sentences about it as HTML."""

    caption: str
    picture: str
    sentences: str
    first: str
    """The first of the sentences, as plain text."""


@dataclass
class Chapter:
    """What the front page shows of one setting."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    members: list[dict[str, str]] = field(default_factory=list)
    pages: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    notebook: str = ""
    beside: list[str] = field(default_factory=list)


def findings(results: Results, setting: IndexedSetting) -> list[Finding]:
    """The figures of a setting that answer its question, with their sentences; those with nothing to draw are left out."""
    shown = []
    for identifier, lines in setting.leading.items():
        try:
            text = results.sentences(identifier)
        except figures.NothingToDraw:
            continue
        kept = [shortened(line) for line in text.splitlines()[:lines]]
        plain = kept[0].removeprefix("- ").replace("**", "").replace("`", "")
        shown.append(
            Finding(BY_ID[identifier].caption, setting.figures[identifier], markdown2html("\n".join(kept)), plain)
        )
    return shown


def shortened(line: str) -> str:
    """The first sentences of a line, as many as fit beside a figure; the notebook has them all."""
    kept, *others = line.split(". ")
    for sentence in others:
        if len(kept) + len(sentence) > LONGEST_LINE:
            break
        kept += f". {sentence}"
    return kept if kept.endswith(".") else f"{kept}."


def members(summary: xr.Dataset) -> list[dict[str, str]]:
    """A row for each crosscoder: how much it explains, how sparse it is, and what it calls exclusive; mean over seeds.

    Latents that are exclusive to the contrast's last source are called by its name, as `chat-only`.
    """
    rows = []
    for name in figures.crosscoders(summary) if "crosscoder" in summary.dims else ():
        one = summary.sel(crosscoder=name)
        row = {"crosscoder": name}
        for label, variable, form in COLUMNS:
            if variable in one:
                row[label] = _shown(one[variable].values, form)
        for call in ("chat-only", "chat-specific"):
            if "called" in one and call in one["call"].values:
                head = call.replace("chat", summary.attrs.get("chat", "chat"))
                row[head] = _shown(one["called"].sel(call=call).values, "{:,.0f}")
        rows.append(row)
    return rows


COLUMNS = (
    ("tokens seen", "training_tokens", "{:,.0f}"),
    ("variance explained", "fraction_variance_explained", "{:.3f}"),
    ("L0", "l0", "{:.1f}"),
    ("dead", "dead_fraction", "{:.1%}"),
)
"""Columns of the table of crosscoders: head, variable of the summary, and form."""


def _shown(values: np.ndarray, form: str) -> str:
    """The mean of what is known, as text."""
    known = values[np.isfinite(values.astype(float)) & (values >= 0)]
    return form.format(float(known.mean())) if len(known) else "–"


def chapter(section: IndexSection, setting: IndexedSetting, files: dict[str, Path]) -> Chapter:
    """What the front page shows of one setting; `files` are the summaries by setting."""
    summaries = {name: artifacts.read(files[name]) for name in setting.summaries}
    results = Results(
        summary=summaries[setting.name],
        nulls={name: summaries[name] for name in setting.nulls},
        transfers={name: summaries[name] for name in setting.transfers},
    )
    pages = [
        (f"{name}, seed {seed}", f"latents/{setting.name}/{name}/seed-{seed}.html")
        for name, seed in (setting.trainings if setting.paged else [])
    ]
    return Chapter(
        setting.name,
        findings(results, setting),
        members(results.summary),
        pages,
        list(setting.figures.values()),
        f"notebooks/{setting.notebook}-{setting.name}.html",
        [*setting.nulls, *setting.transfers],
    )


def datasets(folder: Path) -> list[tuple[str, str, str]]:
    """What lies in the folder of a study: path, number of files, and size."""
    rows = []
    for path in sorted(folder.iterdir()):
        inside = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
        if path.is_dir() and inside and path.name not in UNSTABLE:
            rows.append((path.name, f"{len(inside):,}", _size(sum(file.stat().st_size for file in inside))))
    return rows


def said(chapters: list[Chapter]) -> list[str]:
    """The first sentences of findings, a line each: the first of every setting, then the second of every one, and so on."""
    rows = itertools.zip_longest(*([f"  {one.name}: {finding.first}" for finding in one.findings] for one in chapters))
    return [line for row in rows for line in row if line is not None][:SAID]


LONGEST_LINE = 320
"""Characters of the sentences that stand beside a figure, but for a first one that is longer."""
SAID = 6
"""Findings that are printed when the page is written."""
UNSTABLE = ("logs", "benchmarks", "notebooks", "figures")
"""Folders that are linked from elsewhere, or whose size differs between two equal runs."""


def _size(count: int) -> str:
    unit = min(int(math.log10(max(count, 1)) // 3), 3)
    return f"{count / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB')[unit]}"


def render(template: str, **content: object) -> str:
    """The page; whatever is put into it is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(**content)


def main(arguments) -> None:
    """Write the front page, and its findings alone for the report of the workflow."""
    section: IndexSection = arguments.settings
    folder = arguments.output.parent
    verify_documents(folder)  # the page names them and tells how large they are
    files = {path.stem: path for path in arguments.summaries}
    chapters = [chapter(section, setting, files) for setting in section.settings]
    page = render(
        arguments.template.read_text(encoding="utf-8"),
        study=section.study,
        chapters=chapters,
        datasets=datasets(folder),
    )
    storage.write_sealed(page, arguments.output)
    findings = render(arguments.findings_template.read_text(encoding="utf-8"), chapters=chapters)
    storage.write_sealed(findings, arguments.findings)
    for line in ["what was found, among other things:", *said(chapters)]:
        stage.say(line)


if __name__ == "__main__":
    flags = ("template", "findings_template", "output", "findings")
    stage.run(main, stage.parser(IndexSection, __doc__, *flags, lists=("summaries",)).parse_args())
