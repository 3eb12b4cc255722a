"""Crosscoders whose sources share no latent, as SAEs per source: one dictionary per source, trained together.

In one (m, D) matrix all but 1/S of their weights would be zeros, which every step would multiply and update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from crosscoders.crosscoder.crosscoder import Crosscoder


@dataclass
class Separate:
    """One crosscoder per source, which share the sparsity rule, the optimizer and the data.

    Attributes
    ----------
    parts : list of Crosscoder
        One per source, in the order of the sources.
    """

    parts: list[Crosscoder]

    @property
    def latents(self) -> int:
        """Latents of all sources together."""
        return sum(part.latents for part in self.parts)

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in column order."""
        return [name for part in self.parts for name in part.sources]

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The parameters of every part, one after the other."""
        return [parameter for part in self.parts for parameter in part.parameters]

    @property
    def latent_axes(self) -> list[int | None]:
        """The axis of every one of `parameters` along which latents lie."""
        return [axis for part in self.parts for axis in part.latent_axes]

    def join(self, whole: Crosscoder) -> None:
        """Write the weights of all parts, in place, into the crosscoder that was separated."""
        row = 0
        for part, columns in zip(self.parts, whole.columns, strict=True):
            rows = slice(row, row + part.latents)
            whole.encoder[rows, columns], whole.decoder[rows, columns] = part.encoder, part.decoder
            whole.encoder_bias[rows], whole.decoder_bias[columns] = part.encoder_bias, part.decoder_bias
            if whole.log_threshold is not None:
                whole.log_threshold[rows] = part.log_threshold
            row += part.latents


def separate(whole: Crosscoder) -> Separate | None:
    """A crosscoder as one dictionary per source.

    Parameters
    ----------
    whole : Crosscoder

    Returns
    -------
    Separate or None
        None where there is one source, sources share latents, or one has no latent of its own.
    """
    counts = whole.reads.sum(0).tolist()
    alone = (whole.reads == whole.writes).all() and (whole.reads.sum(1) == 1).all()
    own = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if len(counts) < 2 or not alone or min(counts) == 0 or not torch.equal(whole.reads.long().argmax(1).cpu(), own):
        return None
    parts, row = [], 0
    for s, (count, columns) in enumerate(zip(counts, whole.columns, strict=True)):
        rows = slice(row, row + count)
        parts.append(
            replace(
                whole,
                encoder=whole.encoder[rows, columns].clone(),
                encoder_bias=whole.encoder_bias[rows].clone(),
                decoder=whole.decoder[rows, columns].clone(),
                decoder_bias=whole.decoder_bias[columns].clone(),
                sources=[whole.sources[s]],
                widths=[whole.widths[s]],
                reads=whole.reads[rows, s : s + 1],
                writes=whole.writes[rows, s : s + 1],
                tied=torch.zeros_like(whole.tied[rows]),
                penalty=whole.penalty[rows],
                log_threshold=None if whole.log_threshold is None else whole.log_threshold[rows].clone(),
                block=None if whole.block is None else whole.block[rows],
            )
        )
        row += count
    return Separate(parts)
