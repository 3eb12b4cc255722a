"""A crosscoder as an object: raw activations in, codes and reconstructions out."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from crosscoders.errors import UserError
from crosscoders.formats import hub, recognise
from crosscoders.formats.portable import Portable

COMMIT = re.compile(r"[0-9a-f]{40}")
Activations = Mapping[str, "torch.Tensor | np.ndarray"]
"""Raw activations, (…, d_s), by the name of the source."""


class Loaded:
    """A crosscoder with the units of its sources.

    Parameters
    ----------
    portable : Portable
    device : str
        Where it computes.

    Attributes
    ----------
    sources : list of str
        Names of the sources, in order.
    widths : list of int
        Width d_s of every source.
    latents : int
        Size m of the dictionary.
    """

    def __init__(self, portable: Portable, device: str = "cpu"):
        self.portable = portable.to(device)
        self.device = device
        self.sources, self.widths = list(portable.crosscoder.sources), list(portable.crosscoder.widths)
        self.latents = portable.crosscoder.latents

    @property
    def decoder_norms(self) -> torch.Tensor:
        """Norm of every latent's decoder vector in every source's normalised units, (m, S)."""
        return self.portable.crosscoder.decoder_norms()

    @torch.no_grad()
    def encode(self, activations: Activations) -> torch.Tensor:
        """The code of raw activations.

        Parameters
        ----------
        activations : {source: (…, d_s)}
            Of every source, with the same leading dimensions; tensors or arrays.

        Returns
        -------
        (…, m)
            Not negative; in units of the crosscoder's own code.

        Raises
        ------
        UserError
            A source is missing or unknown, or has another shape.
        """
        given = {name: torch.as_tensor(value, device=self.device) for name, value in activations.items()}
        if set(given) != set(self.sources):
            raise UserError(f"activations of {', '.join(given) or 'no source'}; expected {', '.join(self.sources)}")
        leading = {tuple(value.shape[:-1]) for value in given.values()}
        for name, width in zip(self.sources, self.widths, strict=True):
            if given[name].ndim == 0 or given[name].shape[-1] != width or len(leading) > 1:
                shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
                raise UserError(
                    f"activations of shapes {shapes}; expected (…, {width}) for {name}, all alike before it"
                )
        flat = {name: value.reshape(-1, value.shape[-1]) for name, value in given.items()}
        return self.portable.encode(flat).reshape(*leading.pop(), self.latents)

    @torch.no_grad()
    def decode(self, code: torch.Tensor | np.ndarray) -> dict[str, torch.Tensor]:
        """The reconstruction of a code.

        Parameters
        ----------
        code : (…, m)

        Returns
        -------
        {source: (…, d_s)}
            Raw activations.

        Raises
        ------
        UserError
            The code has another number of latents.
        """
        code = torch.as_tensor(code, device=self.device).float()
        if code.ndim == 0 or code.shape[-1] != self.latents:
            raise UserError(f"a code of shape {tuple(code.shape)}; expected (…, {self.latents})")
        rebuilt = self.portable.decode(code.reshape(-1, self.latents))
        return {name: value.reshape(*code.shape[:-1], -1) for name, value in rebuilt.items()}

    def reconstruct(self, activations: Activations) -> dict[str, torch.Tensor]:
        """What the crosscoder makes of raw activations: :meth:`decode` of :meth:`encode`."""
        return self.decode(self.encode(activations))

    def directions(self, source: str) -> torch.Tensor:
        """What an activation of 1 of every latent adds to a source, (m, d_s), in the units of its raw activations."""
        if source not in self.sources:
            raise UserError(f"source {source!r}; expected one of {', '.join(self.sources)}")
        s = self.sources.index(source)
        return self.portable.crosscoder.decoder[:, self.portable.crosscoder.columns[s]] * self.portable.scale[s].float()

    def save(self, folder: Path | str, format: str) -> None:
        """Write the crosscoder in a format of :data:`crosscoders.formats.recognise.WRITTEN`.

        Raises
        ------
        UserError
            There is no such format, or it cannot express the crosscoder.
        """
        if format not in recognise.WRITTEN:
            raise UserError(f"format {format!r}; expected one of {', '.join(recognise.WRITTEN)}")
        recognise.write(self.portable.to("cpu"), folder, format)

    @property
    def _kind(self) -> str:
        coder = self.portable.crosscoder
        return f"{coder.activation} of {coder.k}" if coder.k else coder.activation

    def __repr__(self) -> str:
        sources = ", ".join(f"{name} ({width})" for name, width in zip(self.sources, self.widths, strict=True))
        return f"<crosscoder of {self.latents:,} latents, {self._kind}; {sources}; {self.portable.origin}>"

    def _repr_html_(self) -> str:
        """A table of the sources, for notebooks."""
        medians = self.decoder_norms.median(0).values.tolist()
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{width}</td><td>{scale:.4g}</td><td>{norm:.3g}</td></tr>"
            for name, width, scale, norm in zip(
                self.sources, self.widths, self.portable.scale.tolist(), medians, strict=True
            )
        ]
        head = "<tr><th>source</th><th>width</th><th>scale</th><th>median decoder norm</th></tr>"
        title = f"Crosscoder of {self.latents:,} latents, {self._kind}, read from {self.portable.origin}"
        return f"<table><caption>{html.escape(title)}</caption>{head}{''.join(rows)}</table>"


def load(
    path: Path | str,
    sources: Sequence[str] | None = None,
    input_scale: Mapping[str, float] | None = None,
    device: str = "cpu",
) -> Loaded:
    """Read a crosscoder of a study, or one in a peer's format.

    Parameters
    ----------
    path : path
        A netCDF file of a study, or a folder in any format of docs/formats.md.
    sources : list of str, optional
        Names of the sources in order; those in the files, or usual ones (base and chat), where absent.
    input_scale : {source: float}, optional
        By what the activations of each source were multiplied in training, where the files do not say.
    device : str
        Where it computes.

    Returns
    -------
    Loaded

    Raises
    ------
    UserError
        Nothing there can be read as a crosscoder; the line says why.

    Examples
    --------
    >>> import crosscoders, torch  # doctest: +SKIP
    >>> coder = crosscoders.load("results/embedded/crosscoders/base-vs-chat/batchtopk/seed-0.nc")  # doctest: +SKIP
    >>> coder.encode({"base": torch.zeros(5, 576), "chat": torch.zeros(5, 576)}).shape  # doctest: +SKIP
    torch.Size([5, 4096])
    """
    return Loaded(recognise.read(path, sources, input_scale), device)


def from_hub(
    repo: str,
    revision: str,
    folder: str | None = None,
    sources: Sequence[str] | None = None,
    input_scale: Mapping[str, float] | None = None,
    device: str = "cpu",
) -> Loaded:
    """Read a crosscoder of the hub of Hugging Face, in any known format.

    Parameters
    ----------
    repo : str
        Id of the repository.
    revision : str
        Commit hash, so that it is the same crosscoder tomorrow.
    folder : str, optional
        Folder within the repository.
    sources : list of str, optional
        As for :func:`load`.
    input_scale : {source: float}, optional
        As for :func:`load`.
    device : str
        Where it computes.

    Returns
    -------
    Loaded

    Raises
    ------
    UserError
        The revision is no commit hash, the hub cannot be reached, or there is no crosscoder.
    """
    if not COMMIT.fullmatch(revision):
        raise UserError(
            f"revision: {revision!r}; expected a commit hash (40 hexadecimal digits); branches and tags move"
        )
    return load(hub.fetch(repo, revision, folder), sources, input_scale, device)
