"""What formats of single SAEs share: the sources of a crosscoder side by side, as one activation of n·d columns.

Such formats know no units and no decoder norm per source. We fold the units into the weights, and note the names and scales
of the sources in the file's metadata, by which our own files come back as they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.errors import UserError
from crosscoders.formats import portable as form
from crosscoders.formats.portable import Folded, Portable
from crosscoders.formats.tensors import Tensors


def metadata(portable: Portable) -> dict:
    """Names and scales of the sources, for the metadata of a file."""
    return {"sources": portable.crosscoder.sources, "scale": portable.scale.tolist()}


def ranked_by_activation(crosscoder: Crosscoder) -> Crosscoder:
    """The same crosscoder with latents rescaled, so that its largest activations are those of its largest scores."""
    weights = crosscoder.score_weights()
    return form.rescaled(form.silenced(crosscoder, weights == 0), torch.where(weights > 0, weights, 1.0))


def activation_threshold(crosscoder: Crosscoder) -> torch.Tensor:
    """The activation above which a latent is on, (m,): the threshold of its score divided by N_j."""
    norms, limit = crosscoder.decoder_norms().sum(1), crosscoder.on_above
    limit = limit if isinstance(limit, torch.Tensor) else torch.full_like(norms, limit)
    return torch.where(norms > 0, limit / norms, 0.0).clamp_min(0.0)


def always_off(crosscoder: Crosscoder) -> torch.Tensor:
    """Latents without decoder whose score, which is 0, exceeds no threshold, (m,) bool."""
    return (crosscoder.decoder_norms().sum(1) == 0) & (torch.as_tensor(crosscoder.on_above) >= 0)


def unfolded(
    weights: Folded,
    tensors: Tensors,
    sources: Sequence[str] | None,
    origin: str,
    k: int | None = None,
    threshold: torch.Tensor | None = None,
    centred: bool = True,
) -> Portable:
    """A crosscoder over one or several sources of equal width, of weights that act on raw activations.

    Parameters
    ----------
    weights : Folded
        Of the whole activation.
    tensors : Tensors
        The file; its metadata may name sources and their scales.
    sources : list of str, optional
        Names given by the caller.
    origin : str
    k : int, optional
        Latents kept per token, those of the largest activations.
    threshold : (m,), optional
        Activation above which a latent is on.
    centred : bool
        Whether the decoder bias is subtracted from what the encoder reads.

    Returns
    -------
    Portable

    Raises
    ------
    UserError
        The columns cannot be divided among the sources.
    """
    names = form.source_names(sources, tensors.metadata.get("sources"), None, tensors.path)
    columns = weights.encoder.shape[1]
    if columns % len(names):
        raise UserError(f"{tensors.path}: {columns} columns; expected a multiple of the {len(names)} sources")
    scale = _scales(tensors, len(names))
    per_column = form.spread(scale, [columns // len(names)] * len(names))
    decoder = weights.decoder.double() / per_column
    norms, ranked = decoder.reshape(len(decoder), len(names), -1).norm(dim=2).sum(1), None
    if k is not None and norms.max() > (1 + form.EQUAL) * norms.where(norms > 0, norms.max()).min():
        ranked = torch.ones(len(norms))
    crosscoder = form.make(
        weights.encoder * per_column,
        weights.encoder_bias,
        decoder,
        torch.zeros_like(per_column) if centred else weights.decoder_bias / per_column,
        names,
        "topk" if k is not None else "relu" if threshold is None else "jumprelu",
        k,
        0.0 if threshold is None else threshold * norms,
    )
    crosscoder.rank_weight = ranked
    found = form.without_units(crosscoder, origin, scale)
    if centred:  # as the mean, which is subtracted first, a large bias costs no digits
        found.mean = list(weights.decoder_bias.double().split(crosscoder.widths))
    return found


def centred(portable: Portable) -> Folded:
    """Weights on raw activations from which the decoder bias has been subtracted."""
    raw = form.folded(portable)
    raw.encoder_bias += raw.encoder @ raw.decoder_bias
    return raw


def _scales(tensors: Tensors, count: int) -> torch.Tensor:
    """Scales of the sources, (S,), from a file of ours; 1 in others'."""
    stored = tensors.metadata.get("scale", [1.0] * count)
    valid = isinstance(stored, list) and len(stored) == count and all(type(one) is float for one in stored)
    scale = torch.tensor(stored, dtype=torch.float64) if valid else torch.zeros(1)
    if not (torch.isfinite(scale) & (scale > 0)).all():
        raise UserError(f"{tensors.path}: its metadata give the scales {stored!r}; expected {count} positive fractions")
    return scale
