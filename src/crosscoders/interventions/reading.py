"""The two models of a contrast read at the compared site, and the part that latents have in what is read there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.interventions import patching
from crosscoders.interventions.patching import Directions, Pair
from crosscoders.interventions.sections import PairSection
from crosscoders.language_models import snapshots
from crosscoders.language_models.hooks import forward


class Scale:
    """Means and scales of sources, as float32 tensors, with which raw activations are normalised and restored."""

    def __init__(self, normalisation: xr.Dataset, sources: list[str]):
        self.mean = {
            name: torch.from_numpy(normalisation[f"mean_{name}"].values.astype(np.float32)) for name in sources
        }
        self.scale = {name: float(normalisation["scale"].sel(source=name)) for name in sources}


def directions(coder: Crosscoder, scale: Scale, base: str, chat: str) -> tuple[Directions, torch.Tensor]:
    """What latents add to base's activation, and what is added to it at every token, (width,).

    A crosscoder of both models adds its decoder vectors alone. An SAE on their difference adds its reconstruction.
    """
    raw = {
        name: scale.scale[name] * coder.decoder[:, part]
        for name, part in zip(coder.sources, coder.columns, strict=True)
    }
    if base in raw and chat in raw:
        return Directions(raw[base], raw[chat]), torch.zeros(raw[base].shape[1])
    (name,) = coder.sources
    return Directions(torch.zeros_like(raw[name]), raw[name]), scale.mean[name] + scale.scale[name] * coder.decoder_bias


@dataclass
class Reader:
    """Both models of a pair, and how their activations at the compared site are encoded.

    Attributes
    ----------
    base, chat : PreTrainedModel
    contrast : [base, chat]
        Names of the sources.
    layer : int
        Decoder layer of the compared site.
    coder : Crosscoder
    scale : Scale
    norms : {source: float}
        Norms above which tokens are left out as sinks.
    """

    base: transformers.PreTrainedModel
    chat: transformers.PreTrainedModel
    contrast: list[str]
    layer: int
    coder: Crosscoder
    scale: Scale
    norms: dict[str, float]

    def read(self, rows: torch.Tensor, inside: torch.Tensor) -> tuple[Pair, torch.Tensor]:
        """Activations of both models on padded windows, with their code; and the tokens kept, (batch, position) bool.

        Parameters
        ----------
        rows : (batch, position)
            Token ids.
        inside : (batch, position) bool
            Positions that are no padding.
        """
        raw = [_read(model, (self.layer, "resid_post"), rows) for model in (self.base, self.chat)]
        return self.encoded(*raw, inside)

    def encoded(self, of_base: torch.Tensor, of_chat: torch.Tensor, inside: torch.Tensor) -> tuple[Pair, torch.Tensor]:
        """Activations of both models, (batch, position, width), with their code; and the tokens kept, as `read` gives."""
        base, chat = self.contrast
        sources, raw = self.coder.sources, {base: of_base, chat: of_chat}
        kept = inside & (raw[base].norm(dim=-1) <= self.norms[base]) & (raw[chat].norm(dim=-1) <= self.norms[chat])
        parts = [raw[name] if name in raw else raw[chat] - raw[base] for name in sources]
        means, scales = ([kind[name] for name in sources] for kind in (self.scale.mean, self.scale.scale))
        return Pair(raw[base], raw[chat], patching.encode(self.coder, parts, means, scales, kept)), kept


def _read(model, site: tuple[int, str], rows: torch.Tensor) -> torch.Tensor:
    """Raw activations at the site, float32, (batch, position, width)."""
    return forward(model, [site], rows.to(model.device))[site].float().cpu()


def load_pair(
    section: PairSection, folders: dict[str, Path]
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    """The models of the contrast, base first, from the folders of their provenance."""
    device = chosen_device(section.device)
    dtype = chosen_dtype(section.dtype, device)
    return tuple(snapshots.load_model(folders[name].parent, device, dtype) for name in (section.base, section.chat))
