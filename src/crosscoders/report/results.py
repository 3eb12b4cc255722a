"""What a notebook draws from, one setting's summary and those that stand beside it, and how it shows a figure."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr
from IPython.display import Image, Markdown, display

from crosscoders import artifacts
from crosscoders.report import figures
from crosscoders.report.registry import BY_ID, Figure

PIXELS_PER_INCH = 100


@dataclass
class Results:
    """The results of one setting, as figures read them.

    Attributes
    ----------
    summary : xarray.Dataset
        All crosscoders and seeds of the setting.
    nulls, transfers : {setting: xarray.Dataset}
        Summaries of the setting's nulls, and of the settings on which its crosscoders were measured.
    folder : Path
        Where figures are saved.
    names : {id: str}
        Names of the files of those that Snakemake expects, without suffix.
    """

    summary: xr.Dataset
    nulls: dict[str, xr.Dataset] = field(default_factory=dict)
    transfers: dict[str, xr.Dataset] = field(default_factory=dict)
    folder: Path = Path("figures")
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        summary_file: str,
        figure_folder: str,
        figure_names: dict[str, str],
        null_files: dict[str, str],
        transfer_files: dict[str, str],
    ) -> Results:
        """Read verified summaries, as the parameters of a notebook name them, and set the style of figures.

        Parameters
        ----------
        summary_file, figure_folder : str
        figure_names : {id: str}
            Names of figures' files, without suffix.
        null_files, transfer_files : {setting: str}
            Summaries of nulls, and of settings on which the crosscoders were measured.

        Returns
        -------
        Results
        """
        figures.style()
        nulls, transfers = (
            {name: artifacts.read(path) for name, path in files.items()} for files in (null_files, transfer_files)
        )
        return cls(artifacts.read(summary_file), nulls, transfers, Path(figure_folder), figure_names)

    @cached_property
    def pair(self) -> xr.Dataset:
        """The summary of the crosscoders that read both sources of the contrast."""
        return figures.contrasted(self.summary)

    @cached_property
    def spanning(self) -> xr.Dataset:
        """The summary of the crosscoders whose latents may span several sources."""
        return figures.spanning(self.summary)

    def show(self, identifier: str, reads: tuple[str, ...] | None = None) -> None:
        """Draw a figure, save it as PNG and SVG, and show it with its sentences; or say why there is nothing to draw.

        Parameters
        ----------
        identifier : str
            Id of the figure.
        reads : tuple of str, optional
            Attributes to draw from in place of those that the registry names.
        """
        figure = BY_ID[identifier]
        try:
            given = self._given(figure, reads)
            self._save_and_show(_function(figure.draw)(*given), self.names.get(identifier, identifier))
            if figure.words:
                display(Markdown(_function(figure.words)(*given)))
        except figures.NothingToDraw as nothing:
            plt.close("all")
            display(Markdown(str(nothing)))
            if identifier in self.names:  # Snakemake waits for its files
                self._save(figures.message(str(nothing)), self.names[identifier])

    def sentences(self, identifier: str) -> str:
        """The sentences of a figure.

        Parameters
        ----------
        identifier : str
            Id of a figure that has some.

        Returns
        -------
        str

        Raises
        ------
        NothingToDraw
            The summary lacks what they say.
        """
        figure = BY_ID[identifier]
        return _function(figure.words)(*self._given(figure))

    def say(self, words: str) -> None:
        """Show sentences about the summary.

        Parameters
        ----------
        words : str
            `module.function` of this room that writes them.
        """
        try:
            display(Markdown(_function(words)(self.summary)))
        except figures.NothingToDraw as nothing:
            display(Markdown(str(nothing)))

    def _given(self, figure: Figure, reads: tuple[str, ...] | None = None) -> list:
        """What a figure is drawn from."""
        beside = {"nulls": self.nulls, "transfers": self.transfers}
        if not all(beside.get(name, name in self.summary) for name in figure.needs):
            raise figures.NothingToDraw(figure.absent)
        return [getattr(self, name) for name in reads or figure.reads]

    def _save_and_show(self, drawn: plt.Figure, name: str) -> None:
        self._save(drawn, name)
        width = round(PIXELS_PER_INCH * drawn.get_figwidth())
        display(Image(filename=self.folder / f"{name}.png", width=width))

    def _save(self, drawn: plt.Figure, name: str) -> None:
        figures.save(drawn, self.folder, name, figures.budget(self.summary))
        plt.close(drawn)


def _function(name: str):
    """A function of this room by `module.function`."""
    module, function = name.split(".")
    return getattr(importlib.import_module(f"crosscoders.report.{module}"), function)
