"""A crosscoder together with the units of its sources: what every format is read into and written from.

T tokens, m latents, S sources of widths d_s, D = Σ d_s. With the mean μ_s and the scale σ_s of every source, the code of raw
activations a_s is f = encode((a_s − μ_s) / σ_s), and a reconstruction is σ_s x̂_s + μ_s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.files import to_dataset
from crosscoders.crosscoder.separate import separate
from crosscoders.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
PAIR = ["base", "chat"]
"""Names of two sources, in the order of all published crosscoders, where the files give none."""
EQUAL = 1e-4
"""Relative difference up to which decoder norms count as equal, and rounding explains it."""


@dataclass
class Portable:
    """A crosscoder and the units in which it reads and writes.

    Attributes
    ----------
    crosscoder : Crosscoder
        On the CPU, float32.
    mean : list of (d_s,), float64
        What is subtracted from the activations of every source.
    scale : (S,), float64
        By what they are divided then.
    sink_norm : (S,), float64
        Norm above which a token is an attention sink; infinite where none is known.
    differences : list of str
        Sources that are the difference of two others.
    origin : str
        Format that it was read from.
    """

    crosscoder: Crosscoder
    mean: list[torch.Tensor]
    scale: torch.Tensor
    sink_norm: torch.Tensor
    differences: list[str] = field(default_factory=list)
    origin: str = "netcdf"

    def to(self, device: str) -> Portable:
        """A copy on another device, `cpu` or `cuda`."""
        return replace(
            self,
            crosscoder=self.crosscoder.to(device),
            mean=[mean.to(device) for mean in self.mean],
            scale=self.scale.to(device),
        )

    def of_source(self, name: str) -> Portable:
        """The dictionary of one source, where the crosscoder is one per source.

        Raises
        ------
        UserError
            There is no such source, or latents belong to several.
        """
        sources = self.crosscoder.sources
        if name not in sources:
            raise UserError(f"source: {name!r}; expected one of {', '.join(sources)}")
        apart, s = separate(self.crosscoder), sources.index(name)
        if apart is None:
            raise UserError(f"source: {name!r} has no dictionary of its own; expected SAEs (reads: each, writes: each)")
        part = slice(s, s + 1)
        differences = [name] if name in self.differences else []
        return replace(
            self,
            crosscoder=apart.parts[s],
            mean=self.mean[part],
            scale=self.scale[part],
            sink_norm=self.sink_norm[part],
            differences=differences,
        )

    def normalise(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Normalised activations, (T, D), of raw ones, (T, d_s) by source."""
        means, scales = [mean.float() for mean in self.mean], self.scale.float()
        parts = zip(self.crosscoder.sources, means, scales, strict=True)
        return torch.cat([(activations[name].float() - mean) / scale for name, mean, scale in parts], dim=-1)

    def denormalise(self, rebuilt: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raw activations, (T, d_s) by source, of normalised ones, (T, D)."""
        parts = rebuilt.split(self.crosscoder.widths, dim=-1)
        units = zip(self.crosscoder.sources, parts, self.mean, self.scale, strict=True)
        return {name: part * scale.float() + mean.float() for name, part, mean, scale in units}

    def encode(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The code, (T, m), of raw activations, (T, d_s) by source."""
        return self.crosscoder.encode(self.normalise(activations))

    def decode(self, code: torch.Tensor) -> dict[str, torch.Tensor]:
        """The reconstruction, (T, d_s) by source, of a code, (T, m), as raw activations."""
        return self.denormalise(self.crosscoder.decode(code))

    def normalisation(self) -> xr.Dataset:
        """The units as the stage `fit_normalisation` writes them."""
        v, sources = artifacts.variable, self.crosscoder.sources
        dataset = xr.Dataset(
            {
                "scale": v("source", self.scale.numpy(), "scale of the source"),
                "sink_norm": v(
                    "source", self.sink_norm.numpy(), "norm above which a token counts as an attention sink"
                ),
            },
            coords={"source": ("source", np.array(sources, dtype=object), {"long_name": "source"})},
        )
        for name, mean in zip(sources, self.mean, strict=True):
            dataset[f"mean_{name}"] = v(f"width_{name}", mean.numpy(), f"mean activation of {name}")
        return dataset

    def to_dataset(self) -> xr.Dataset:
        """The crosscoder in the form of our own files; what only a training knows is NaN."""
        dataset, v = to_dataset(self.crosscoder, self.normalisation()), artifacts.variable
        unknown = {
            "threshold_training": "moving average of the smallest score kept",
            "l0_training": "latents per token at the end of training",
            "penalty_coefficient": "penalty coefficient at the end of training",
        }
        for name, label in unknown.items():
            dataset[name] = v((), np.float64(np.nan), label)
        return dataset.assign_attrs(format=self.origin)


def make(
    encoder: torch.Tensor,
    encoder_bias: torch.Tensor,
    decoder: torch.Tensor,
    decoder_bias: torch.Tensor,
    sources: list[str],
    activation: str = "relu",
    k: int | None = None,
    threshold: float | torch.Tensor = 0.0,
) -> Crosscoder:
    """A crosscoder without blocks over sources of equal width, as peers have it.

    Parameters
    ----------
    encoder, decoder : (m, D)
    encoder_bias : (m,)
    decoder_bias : (D,)
    sources : list of str
    activation : str
    k : int, optional
    threshold : float or (m,)
        Score f_j N_j above which a latent is on.

    Returns
    -------
    Crosscoder
    """
    m, count = len(encoder), len(sources)
    crosscoder = Crosscoder(
        encoder=encoder.float().contiguous(),
        encoder_bias=encoder_bias.float().contiguous(),
        decoder=decoder.float().contiguous(),
        decoder_bias=decoder_bias.float().contiguous(),
        sources=sources,
        widths=[encoder.shape[1] // count] * count,
        reads=torch.ones(m, count, dtype=torch.bool),
        writes=torch.ones(m, count, dtype=torch.bool),
        tied=torch.zeros(m, dtype=torch.bool),
        penalty=torch.ones(m),
        activation=activation,
        k=k,
        threshold=threshold.float() if isinstance(threshold, torch.Tensor) else threshold,
    )
    if crosscoder.selection.learns_threshold:
        crosscoder.log_threshold, crosscoder.threshold = crosscoder.threshold.log(), 0.0
    return crosscoder


def without_units(crosscoder: Crosscoder, origin: str, scale: torch.Tensor | None = None) -> Portable:
    """A crosscoder that subtracts no mean, and divides by a scale where one is given, (S,)."""
    count = len(crosscoder.widths)
    return Portable(
        crosscoder,
        mean=[torch.zeros(width, dtype=torch.float64) for width in crosscoder.widths],
        scale=torch.ones(count, dtype=torch.float64) if scale is None else scale.double(),
        sink_norm=torch.full((count,), torch.inf, dtype=torch.float64),
        origin=origin,
    )


def source_names(given: Sequence[str] | None, stored: object, count: int | None, place: object) -> list[str]:
    """Names of the sources: those that a caller gives, else those stored in the files, else usual ones.

    Parameters
    ----------
    given : list of str, optional
    stored : object
        What the files say, checked here.
    count : int, optional
        Number of sources; any where absent, and one where nothing names any.
    place : path
        What errors name.

    Returns
    -------
    list of str

    Raises
    ------
    UserError
        There are more or fewer names than sources, or one is not valid.
    """
    names = given if given is not None else stored
    if names is None:
        return PAIR if count == 2 else [f"source-{i}" for i in range(count or 1)]
    names = list(names) if isinstance(names, (list, tuple)) else [names]
    valid = all(isinstance(name, str) and NAME.fullmatch(name) for name in names)
    if not names or not valid or len(set(names)) != len(names):
        raise UserError(f"{place}: sources {names!r}; expected different names of letters, digits, '_' and '-'")
    if count is not None and len(names) != count:
        raise UserError(f"{place}: {len(names)} sources named ({', '.join(names)}); expected {count}")
    return names


def refuse(format_name: str, what: str) -> None:
    """Say in one line what a format cannot express."""
    raise UserError(f"{format_name} cannot express {what}")


def require_plain(portable: Portable, format_name: str, activations: Sequence[str]) -> Crosscoder:
    """The crosscoder, if a peer's format can hold it: no blocks, no difference, sources of one width, a known activation.

    Parameters
    ----------
    portable : Portable
    format_name : str
        What the error names.
    activations : list of str
        Those that the format has.

    Returns
    -------
    Crosscoder

    Raises
    ------
    UserError
        The format cannot express the crosscoder; the line says why.
    """
    crosscoder = portable.crosscoder
    if portable.differences:
        refuse(format_name, f"the source {portable.differences[0]!r}, which is a difference of others")
    if not (crosscoder.reads.all() and crosscoder.writes.all()):
        refuse(format_name, "blocks: some latents read or write only some of the sources")
    if crosscoder.tied.any():
        refuse(format_name, "blocks: some latents are tied to one direction for all sources")
    if len(set(crosscoder.widths)) > 1:
        refuse(format_name, f"sources of unequal widths {crosscoder.widths}")
    if crosscoder.activation not in activations:
        refuse(format_name, f"the activation {crosscoder.activation!r}; it has {', '.join(activations)}")
    if not all(torch.isfinite(tensor).all() for tensor in crosscoder.parameters[:4]):
        raise UserError(f"{format_name}: the crosscoder has weights that are not finite; expected numbers")
    return crosscoder


def spread(per_source: torch.Tensor, widths: list[int]) -> torch.Tensor:
    """A number of every source for each of its columns, (D,)."""
    return torch.repeat_interleave(per_source, torch.tensor(widths))


def silenced(crosscoder: Crosscoder, off: torch.Tensor) -> Crosscoder:
    """The crosscoder with encoders of 0 for some latents, (m,) bool, which then are never on."""
    return replace(
        crosscoder,
        encoder=crosscoder.encoder.masked_fill(off[:, None], 0.0),
        encoder_bias=crosscoder.encoder_bias.masked_fill(off, 0.0),
    )


def rescaled(crosscoder: Crosscoder, factor: torch.Tensor) -> Crosscoder:
    """The crosscoder whose codes are multiplied by a factor, (m,), and its decoder divided; scores stay as they are."""
    ranked = crosscoder.rank_weight
    return replace(
        crosscoder,
        encoder=crosscoder.encoder * factor[:, None],
        encoder_bias=crosscoder.encoder_bias * factor,
        decoder=crosscoder.decoder / factor[:, None],
        rank_weight=None if ranked is None else ranked / factor,
    )


@dataclass
class Folded:
    """Weights that act on raw activations: the units are folded into them. All are float64.

    Attributes
    ----------
    encoder, decoder : (m, D)
    encoder_bias : (m,)
    decoder_bias : (D,)
    """

    encoder: torch.Tensor
    encoder_bias: torch.Tensor
    decoder: torch.Tensor
    decoder_bias: torch.Tensor


def folded(portable: Portable) -> Folded:
    """W_enc / σ, b_enc − W_enc (μ / σ), σ W_dec and σ b_dec + μ, so that raw activations give the same code."""
    crosscoder, mean = portable.crosscoder, torch.cat(portable.mean)
    scale = spread(portable.scale, crosscoder.widths)
    encoder = crosscoder.encoder.double() / scale
    return Folded(
        encoder,
        crosscoder.encoder_bias.double() - encoder @ mean,
        crosscoder.decoder.double() * scale,
        crosscoder.decoder_bias.double() * scale + mean,
    )
