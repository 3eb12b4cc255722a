"""Stage import_crosscoder: a crosscoder that was trained elsewhere, checked against the activations of a setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, provenance, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis.reconstruction import reconstruction
from crosscoders.analysis.sections import ImportCrosscoderSection
from crosscoders.errors import UserError
from crosscoders.formats import hub, recognise
from crosscoders.formats.portable import Portable
from crosscoders.study.settings.crosscoders import PublishedSettings


def find(settings: PublishedSettings) -> Path:
    """Where the files of a published crosscoder lie; those of the hub are fetched.

    Raises
    ------
    UserError
        The hub cannot be reached, or has no such revision.
    """
    if settings.path is not None:
        return Path(settings.path)
    return hub.fetch(settings.repo, settings.revision, settings.folder)


def named(found: Portable, sources: list[str], where: str) -> Portable:
    """The crosscoder with the names that its sources have in a setting.

    Names of the files that the setting has as well are kept, in whatever order. Others are replaced in the order of the
    setting.

    Parameters
    ----------
    found : Portable
    sources : list of str
        Those that the crosscoder is to read.
    where : str
        The section of the study, for errors.

    Returns
    -------
    Portable

    Raises
    ------
    UserError
        It has another number of sources.
    """
    own = found.crosscoder.sources
    if set(own) == set(sources):
        return found
    if len(own) != len(sources):
        raise UserError(f"{where}.sources: {', '.join(sources)}; expected {len(own)}, as many as its files have")
    stage.say(f"import_crosscoder: its sources {', '.join(own)} are taken for {', '.join(sources)}, in this order")
    return replace(found, crosscoder=replace(found.crosscoder, sources=list(sources)))


def in_units_of(found: Portable, normalisation: xr.Dataset) -> xr.Dataset:
    """The statistics of a setting with the mean and scale that a published crosscoder applies to its sources."""
    own, sources = normalisation.copy(deep=True), found.crosscoder.sources
    for name, mean, scale in zip(sources, found.mean, found.scale.tolist(), strict=True):
        own["scale"].loc[{"source": name}] = scale
        own[f"mean_{name}"].values[:] = mean.numpy()
    return own


def explained(found: Portable, data: Activations) -> np.ndarray:
    """Fraction of variance explained of every source, (S,), on a split."""
    sums = reconstruction(found.crosscoder, data, consecutive(data.metadata["document"].values))
    return 1 - sums["error"].sum(0) / sums["variance"].sum(0)


def main(arguments) -> None:
    """Read a crosscoder, and refuse one that explains nothing of the setting's activations."""
    section: ImportCrosscoderSection = arguments.settings
    torch.set_grad_enabled(False)
    settings, where = section.crosscoder, f"crosscoders.{section.crosscoder_name}"
    found = named(recognise.read(find(settings), settings.sources, settings.input_scale), section.sources, where)
    fitted = artifacts.read(arguments.normalisation)
    if found.differences:
        raise UserError(f"{where}: reads the difference {found.differences[0]!r}; expected sources that models have")
    for name, width in zip(found.crosscoder.sources, found.crosscoder.widths, strict=True):
        if fitted.sizes[f"width_{name}"] != width:
            raise UserError(f"{where}: {name} has the width {width}; expected {fitted.sizes[f'width_{name}']}")
    found.sink_norm = torch.from_numpy(fitted["sink_norm"].sel(source=found.crosscoder.sources).values)
    units = in_units_of(found, fitted)
    shares = explained(found, Activations(arguments.validation, units, found.crosscoder.sources))
    shown = ", ".join(f"{name} {share:.3f}" for name, share in zip(found.crosscoder.sources, shares, strict=True))
    if not (shares >= 0).all():
        raise UserError(
            f"{where}: explains less than nothing of the variance on validation tokens ({shown}); expected a crosscoder of "
            "these models and this layer, in the units of their activations (input_scale)"
        )
    attributes = section.provenance() | {"title": f"crosscoder {section.label}", "format": found.origin}
    units.attrs = attributes | {"differences": provenance.json_text({}), "title": f"units of {section.label}"}
    artifacts.write(units, arguments.units)
    dataset = found.to_dataset()
    dataset["training_tokens"] = artifacts.variable((), np.int64(-1), "tokens seen in training; -1 where not known")
    artifacts.write(dataset.assign_attrs(attributes), arguments.output)
    stage.say(f"import_crosscoder {section.label}: {found.origin}; FVE on validation tokens {shown}")


if __name__ == "__main__":
    flags = ("normalisation", "output", "units")
    stage.run(main, stage.parser(ImportCrosscoderSection, __doc__, *flags, lists=("validation",)).parse_args())
