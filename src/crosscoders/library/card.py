"""The model card of a crosscoder: what it is, what was measured, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path

import xarray as xr

from crosscoders import __version__, artifacts
from crosscoders.formats.portable import Portable
from crosscoders.library.documents import PLACE


def measured(path: Path) -> xr.Dataset | None:
    """The evaluation of a crosscoder that lies in the results of its study; nothing for any other.

    Parameters
    ----------
    path : Path

    Returns
    -------
    xarray.Dataset or None

    Raises
    ------
    UserError
        The evaluation is damaged.
    """
    place = PLACE.fullmatch("/".join(path.parts[-4:]))
    if place is None:
        return None
    file = path.parents[3] / "evaluation" / Path(*path.parts[-3:])
    return artifacts.read(file) if file.is_file() else None


def text(
    found: Portable, evaluation: xr.Dataset | None, repo: str, format_name: str, licence: str | None = None
) -> str:
    """The model card.

    Parameters
    ----------
    found : Portable
    evaluation : xarray.Dataset, optional
        What `evaluate` wrote.
    repo : str
        Id of the repository that the card is for.
    format_name : str
        Format of the files beside the card.
    licence : str, optional
        Id of a licence, as the hub knows it.

    Returns
    -------
    str
        Markdown, with the fields that the hub reads before it.
    """
    coder = found.crosscoder
    fields = ["---", *([f"license: {licence}"] if licence else []), "library_name: crosscoders", "tags:"]
    fields += [f"- {tag}" for tag in ("crosscoder", "sparse-autoencoder", "mechanistic-interpretability")] + ["---"]
    selection = f"{coder.activation}, k = {coder.k}" if coder.k else coder.activation
    lines = [
        *fields,
        "",
        f"# {repo.split('/')[-1]}",
        "",
        f"A crosscoder of {coder.latents:,} latents ({selection}) over {len(coder.sources)} sources, "
        f"in the format `{format_name}`.",
        "",
        "| source | width | scale of its activations |",
        "|---|---|---|",
    ]
    rows = zip(coder.sources, coder.widths, found.scale.tolist(), strict=True)
    lines += [f"| {name} | {width} | {scale:.6g} |" for name, width, scale in rows]
    lines += _measured_lines(evaluation)
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import crosscoders",
        "",
        f'coder = crosscoders.from_hub("{repo}", revision="COMMIT")  # the commit hash that this page shows',
        f"code = coder.encode({{{', '.join(f'{name!r}: ...' for name in coder.sources)}}})  # raw activations, (tokens, width)",
        "```",
        "",
        f"Written by crosscoders {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _measured_lines(evaluation: xr.Dataset | None) -> list[str]:
    """What was measured on test documents, and where."""
    if evaluation is None:
        return []
    settings = json.loads(evaluation.attrs["settings"])
    where = f"study `{evaluation.attrs['study']}`, setting `{settings['setting_name']}`, commit `{evaluation.attrs['commit']}`"
    lines = ["", "## Measured on held-out documents", "", "| source | fraction of variance explained | interval |"]
    lines.append("|---|---|---|")
    for name in evaluation["source"].values:
        one = evaluation.sel(source=name)
        value, low, high = (float(one[f"fraction_variance_explained{end}"]) for end in ("", "_low", "_high"))
        lines.append(f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} |")
    lines += [
        "",
        f"{float(evaluation['l0']):.1f} latents are active per token; {100 * float(evaluation['dead_fraction']):.1f}% of "
        f"latents never fire on the {int(evaluation['tokens']):,} test tokens ({where}).",
    ]
    return lines
