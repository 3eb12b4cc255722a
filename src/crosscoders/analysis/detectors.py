"""The methods that look for what a fine-tune changed: crosscoders and SAEs, and baselines that need no dictionary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis.classification import Pairs, compared_sources, relative_norm, scan
from crosscoders.analysis.detection import Method, rank_sum
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.data.chats import ROLES
from crosscoders.kernels.interface import Backend
from crosscoders.language_models.model_tokens import ModelTokens
from crosscoders.language_models.windows import batches, padded, windows

FIRST_POSITIONS = 5
"""Positions of unrelated text whose mean difference is the activation-difference lens [arXiv 2510.13900]."""


@dataclass
class Splits:
    """The kept tokens of validation and test documents with some sources, and statistics of the sources.

    Attributes
    ----------
    validation, test : Activations
    normalisation : xarray.Dataset
    """

    validation: Activations
    test: Activations
    normalisation: xr.Dataset


def crosscoder(coder: Crosscoder, splits: Splits, contrast: list[str], backend: Backend) -> Method:
    """A crosscoder's latents; a latent's value is f Σ_s n_s, which rescaling leaves as it is.

    Parameters
    ----------
    coder : Crosscoder
    splits : Splits
        With the crosscoder's sources.
    contrast : [base, chat]
    backend : Backend

    Returns
    -------
    Method
        Latents that fire on validation tokens are ranked by Δ (equal ones by energy), by ν, and by energy: the mean square
        of what they write into the difference of the two models. A crosscoder of the difference alone has the last only.
    """
    pair = compared_sources(coder, contrast)
    documents = [consecutive(data.metadata["document"].values) for data in (splits.validation, splits.test)]
    scaling, validation = scan(coder, splits.validation, documents[0], pair, backend=backend)
    _, test = scan(coder, splits.test, documents[1], (), backend=backend)
    squares = np.bincount(validation.latent, validation.value**2, coder.latents)
    energy = squares * _written(coder, splits.normalisation, pair)
    fires = np.flatnonzero(squares)
    orders = {"energy": fires[np.argsort(-energy[fires], kind="stable")]}
    norms = coder.decoder_norms().double().numpy()
    if pair:
        delta = relative_norm(*norms[:, list(pair)].T)
        orders["delta"] = fires[np.lexsort((-energy[fires], -delta[fires]))]
        chat = fires[delta[fires] >= 0.5]
        nu = [scaling.nu(target, 1)[0][chat] for target in ("error", "reconstruction")]
        orders["nu"] = chat[np.argsort(rank_sum(*nu), kind="stable")]
    scaled = (Pairs(p.token, p.latent, p.value * norms.sum(1)[p.latent]) for p in (validation, test))
    return Method(*scaled, coder.latents, orders)


def _written(coder: Crosscoder, normalisation: xr.Dataset, pair: tuple[int, ...]) -> np.ndarray:
    """Squared norm of what one unit of a latent writes into the difference of the two models, (m,)."""
    scale = normalisation["scale"].sel(source=coder.sources).values
    parts = [coder.decoder[:, columns].double().numpy() * s for columns, s in zip(coder.columns, scale, strict=True)]
    difference = parts[pair[1]] - parts[pair[0]] if pair else np.concatenate(parts, axis=1)
    return (difference**2).sum(1)


def difference(data: Activations, normalisation: xr.Dataset) -> np.ndarray:
    """What the second of two sources has and the first lacks, in units of the models, (tokens, width) float32."""
    base, chat = (
        part.numpy() * np.float32(normalisation["scale"].sel(source=name)) + normalisation[f"mean_{name}"].values
        for name, part in zip(data.sources, data.rows(np.arange(len(data))).split(data.widths, dim=1), strict=True)
    )
    return (chat - base).astype(np.float32)


def from_difference(splits: Splits, components: int) -> dict[str, Method]:
    """Methods that read the difference of two models and need no dictionary.

    Parameters
    ----------
    splits : Splits
        With the sources [base, chat].
    components : int
        Principal components; either sign of each is a direction of its own.

    Returns
    -------
    {name: Method}
        The mean difference over all validation tokens; the activation-difference lens, which is the mean over the first
        positions of unrelated text; the norm of the difference; and its principal components.
    """
    validation, test = (difference(data, splits.normalisation) for data in (splits.validation, splits.test))
    seen = splits.validation.metadata
    first = (seen["role"].values == ROLES.index("text")) & (seen["position"].values <= FIRST_POSITIONS)
    mean = validation.mean(0)
    lens = validation[first].mean(0) if first.any() else mean
    _, _, axes = np.linalg.svd(validation - mean, full_matrices=False)
    projected = ((part - mean) @ axes[:components].T for part in (validation, test))
    halves = [np.stack([part, -part], axis=2).reshape(len(part), -1).clip(min=0) for part in projected]
    return {
        "mean-difference": _directions(*(part @ mean for part in (validation, test))),
        "difference-lens": _directions(*(part @ lens for part in (validation, test))),
        "difference-norm": _directions(*(np.linalg.norm(part, axis=1) for part in (validation, test))),
        "principal-components": Method(
            *map(_active, halves), halves[0].shape[1], {"energy": np.arange(2 * components)}
        ),
    }


def random_latents(splits: Splits, latents: int, active: int, seed: int) -> Method:
    """Latents in random directions, each of which fires on as many validation tokens as a latent of a dictionary does.

    Parameters
    ----------
    splits : Splits
        With the sources [base, chat].
    latents, active : int
        Of the dictionary, and per token.
    seed : int

    Returns
    -------
    Method
        In no order of their own; the best of them by labels is what choosing among so many gives by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(latents, sum(splits.test.widths), generator=generator)
    values = [data.rows(np.arange(len(data))) @ drawn.T for data in (splits.validation, splits.test)]
    kept = max(1, round(len(values[0]) * active / latents))
    threshold = values[0].topk(min(kept + 1, len(values[0])), dim=0).values[-1]
    coded = (_active((value - threshold).clip(min=0).numpy()) for value in values)
    return Method(*coded, latents)


def divergence(kept: np.ndarray, of_token: np.ndarray) -> Method:
    """The divergence of two models' predictions, (split tokens,), at the kept test tokens; nothing is chosen."""
    nothing = Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    return Method(nothing, _dense(of_token[kept][:, None]), 1, {"energy": np.arange(1)})


@torch.inference_mode()
def token_divergence(models: list[transformers.PreTrainedModel], read: ModelTokens, batch_tokens: int) -> np.ndarray:
    """KL(p_chat ‖ p_base) in nats of what two models predict after every token of a split, (tokens,).

    Parameters
    ----------
    models : [base, chat]
    read : ModelTokens
        Of both.
    batch_tokens : int

    Returns
    -------
    (tokens,)
    """
    made = np.empty(len(read.ids))
    for group in batches(windows(read.position), batch_tokens):
        rows = padded(read.ids, group, read.sink)
        base, chat = (
            model(input_ids=rows.to(model.device), use_cache=False).logits.float().log_softmax(-1) for model in models
        )
        nats = (chat.exp() * (chat - base)).sum(-1).double().cpu().numpy()
        for i, span in enumerate(group):
            made[span] = nats[i, 1 : 1 + span.stop - span.start]
    return made


def _directions(validation: np.ndarray, test: np.ndarray) -> Method:
    """A single direction."""
    return Method(_dense(validation[:, None]), _dense(test[:, None]), 1, {"energy": np.arange(1)})


def _dense(values: np.ndarray) -> Pairs:
    """All entries of a matrix, (tokens, latents), as pairs."""
    token, latent = np.indices(values.shape).reshape(2, -1)
    return Pairs(token, latent, values.reshape(-1).astype(float))


def _active(values: np.ndarray) -> Pairs:
    """The entries above 0 of a matrix, (tokens, latents), as pairs."""
    token, latent = np.nonzero(values > 0)
    return Pairs(token, latent, values[token, latent].astype(float))
