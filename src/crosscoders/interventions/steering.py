"""Steering: what two models answer while directions are added to one and latents are taken out of the other.

A set of latents S is turned into one direction, v = Σ_{j∈S} a_j d_j^chat, in which d_j^chat is the raw decoder vector of
the chat source and a_j is the latent's 95th-percentile activation on the validation tokens on which it is active. It is
added to base, at the compared site, wherever a token of the answer is predicted: at the last token of the prompt and at
every token of the answer. All directions are added at the same sizes, so that a set differs from its controls in
direction alone. From chat, Σ_{j∈S} f_j d_j^chat is taken away at every token but sinks, with the code f of the two
models' activations at that token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import stage
from crosscoders.activations.dataset import Activations
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.data.chats import BEHAVIOURS
from crosscoders.interventions import patching
from crosscoders.interventions.reading import Reader
from crosscoders.language_models import snapshots
from crosscoders.language_models.companion import reading_along
from crosscoders.language_models.hooks import Site, attached
from crosscoders.study.settings.comparisons import Steering

BATCH = 2048
TYPICAL = 0.95
"""Quantile of a latent's activation, over the tokens on which it is active, that stands for it in a direction."""
UNMODIFIED, MEAN_DIFFERENCE, RANDOM = "unmodified", "mean difference", "random"


# -- sets of latents ---------------------------------------------------------------------------------------------------


@dataclass
class Activity:
    """How latents are active on some documents, (m,) each.

    Attributes
    ----------
    tokens
        Tokens on which the latent is active.
    density
        Their share of all tokens.
    typical
        95th-percentile activation over them; 0 where there is none.
    energy
        Sum of squared activations over all tokens, per token.
    shares : {behaviour: (m,)}
        Share of the latent's activation on tokens of each planted behaviour that the documents show; NaN where the
        latent is never active.
    """

    tokens: np.ndarray
    density: np.ndarray
    typical: np.ndarray
    energy: np.ndarray
    shares: dict[str, np.ndarray]

    @classmethod
    def of(cls, coder: Crosscoder, data: Activations) -> Activity:
        """The activity of a crosscoder's latents on a split."""
        token, latent, value = [], [], []
        for chosen, x in data.batches(BATCH):
            code = encode_sparse(coder, x)
            for column, part in zip((token, latent, value), (code.tokens, code.latents, code.values), strict=True):
                column.append(part.numpy())
            token[-1] = token[-1] + chosen.start
        token, latent, value = (np.concatenate(column) for column in (token, latent, value))
        count, total = (np.bincount(latent, weights, coder.latents) for weights in (None, value))
        order = np.lexsort((value, latent))
        last = np.cumsum(count) - count + np.ceil(TYPICAL * count).astype(int) - 1
        typical = np.where(count > 0, np.append(value[order], 0.0)[last], 0.0)
        planted, shares = data.metadata["planted_behaviour"].values, {}
        for index, name in enumerate(BEHAVIOURS[1:], start=1):
            if (planted == index).any():
                with np.errstate(invalid="ignore"):
                    shares[name] = np.bincount(latent, value * (planted[token] == index), coder.latents) / total
        energy = np.bincount(latent, np.square(value), coder.latents) / len(data)
        return cls(count, count / len(data), typical, energy, shares)


def sets(activity: Activity, latents: xr.Dataset, written: np.ndarray, settings: Steering) -> dict[str, np.ndarray]:
    """Named sets of latents, chosen on validation documents, and random sets.

    Parameters
    ----------
    activity : Activity
        On validation documents.
    latents : xarray.Dataset
        What `classify_latents` wrote.
    written : (m,)
        Norms of the raw decoder vectors of the chat source.
    settings : Steering

    Returns
    -------
    {name: (latents of the set,)}
        The highest Δ; the lowest ν, by the sum of the ranks of ν of error and reconstruction among latents that lean to
        chat; the largest shares of activation on each planted behaviour. An SAE on the difference of the models has
        neither Δ nor ν; its latents that write most, by mean square, take their place. Random sets are as frequent and
        as large as the chosen sets in turn, and hold none of their latents.
    """
    active = activity.tokens >= settings.minimum_tokens
    delta = latents["relative_norm"].values
    named = {}
    if np.isfinite(delta).any():
        active &= np.isfinite(delta)
        leaning = np.flatnonzero(active & (delta > 0.5))
        nu = (latents[f"nu_{target}_validation"].values for target in ("reconstruction", "error"))
        named["highest Δ"] = _highest(delta, active, settings.latents)
        named["lowest ν"] = _highest(-patching.rank_sum(leaning, *nu), active & (delta > 0.5), settings.latents)
    else:
        named["writes most"] = _highest(activity.energy * written**2, active, settings.latents)
    for name, share in activity.shares.items():
        named[f"most on {name.replace('_', ' ')}"] = _highest(share, active, settings.latents)
    named = {name: members for name, members in named.items() if len(members)}
    return named | _random_sets(named, active, activity.density, latents["decoder_norm"].values.sum(1), settings)


def _highest(values: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """The allowed latents of highest value, at most `count`."""
    ranked = np.flatnonzero(allowed)
    return ranked[np.argsort(-values[ranked], kind="stable")][:count]


def _random_sets(
    named: dict[str, np.ndarray], active: np.ndarray, density: np.ndarray, norm: np.ndarray, settings: Steering
) -> dict[str, np.ndarray]:
    """Random sets, each matched to another one of the chosen sets; none where no other latent is active."""
    allowed = active.copy()
    for members in named.values():
        allowed[members] = False
    if not named or not allowed.any():
        return {}
    chosen, drawn = list(named.values()), {}
    for i in range(settings.random_sets):
        seed = settings.seed + i
        matched = patching.matched_sets(chosen[i % len(chosen)], allowed, density, norm, 1, seed)
        drawn[f"{RANDOM} {i + 1}"] = matched[0]
    return drawn


# -- interventions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Intervention:
    """A change of one model while it answers.

    Attributes
    ----------
    side : str
        `base` or `chat`: the model that answers.
    name : str
        The set of latents, `mean difference` or `unmodified`.
    strength : float
        Multiple of the unit that is added; NaN where nothing is added.
    vector : (width,)
        What is added: to base where a token of the answer is predicted, to chat at every token but sinks.
    members : (m,) bool
        Latents whose contribution is taken out of chat.
    """

    side: str
    name: str
    strength: float
    vector: torch.Tensor
    members: torch.Tensor


def interventions(
    named: dict[str, np.ndarray], typical: np.ndarray, decoder: torch.Tensor, mean: torch.Tensor, strengths: list[float]
) -> tuple[list[Intervention], dict[str, float], float]:
    """Every change of either model.

    Parameters
    ----------
    named : {name: (latents of the set,)}
    typical : (m,)
        What stands for a latent's activation in a direction.
    decoder : (m, width)
        Raw decoder vectors of the chat source.
    mean : (width,)
        Mean difference of the models, chat − base, at the compared site.
    strengths : list of float

    Returns
    -------
    interventions : list of Intervention
        Those of base first; the unmodified model stands first of each.
    norms : {name: float}
        Norms of the directions before they are brought to one size.
    unit : float
        That size: the median of the norms of the chosen sets' directions.
    """
    weights = torch.from_numpy(typical.astype(np.float32))
    directions = {name: weights[members] @ decoder[members] for name, members in named.items()}
    directions[MEAN_DIFFERENCE] = mean
    norms = {name: float(direction.norm()) for name, direction in directions.items()}
    chosen = [norms[name] for name in named if not name.startswith(RANDOM)]
    unit = float(np.median(chosen)) if chosen else norms[MEAN_DIFFERENCE]
    nothing, nobody = torch.zeros_like(mean), torch.zeros(len(decoder), dtype=torch.bool)
    made = [Intervention("base", UNMODIFIED, np.nan, nothing, nobody)]
    for name, direction in directions.items():
        step = unit * direction / max(norms[name], 1e-12)
        made += [Intervention("base", name, strength, strength * step, nobody) for strength in strengths]
    made.append(Intervention("chat", UNMODIFIED, np.nan, nothing, nobody))
    for name, members in named.items():
        inside = nobody.clone()
        inside[torch.from_numpy(members)] = True
        made.append(Intervention("chat", name, np.nan, nothing, inside))
    made.append(Intervention("chat", MEAN_DIFFERENCE, np.nan, -mean, nobody))
    return made, norms, unit


@contextmanager
def added(model: transformers.PreTrainedModel, site: Site, vectors: torch.Tensor) -> Iterator[None]:
    """Within this context, vectors, (rows, width), are added where the model predicts what it writes.

    That is the last position of every forward pass of generation.
    """

    def act(_: Site, activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        changed[:, -1] += vectors.to(activation)
        return changed

    with attached(model, [site], act):
        yield


@contextmanager
def ablated(reader: Reader, decoder: torch.Tensor, members: torch.Tensor, vectors: torch.Tensor) -> Iterator[None]:
    """Within this context, sets of latents, (rows, m) bool, are taken out of chat, and vectors, (rows, width), added.

    Both happen at every token that a crosscoder sees. Base reads along, since the code is that of both models.
    """
    site = (reader.layer, "resid_post")
    with reading_along(reader.chat, reader.base, site) as beside:

        def act(_: Site, activation: torch.Tensor) -> torch.Tensor:
            own, other = activation.float().cpu(), beside.activation.float().cpu()
            pair, kept = reader.encoded(other, own, beside.inside.cpu())
            change = vectors[:, None] * kept[..., None] - pair.contribution(decoder, members)
            return activation + change.to(activation)

        with attached(reader.chat, [site], act):
            yield


def answers(
    reader: Reader,
    decoder: torch.Tensor,
    made: list[Intervention],
    prompts: list[list[int]],
    settings: Steering,
    stop: int,
    label: str,
) -> list[list[list[int]]]:
    """Greedy answers to every prompt under every intervention, up to and with the token `stop`.

    Parameters
    ----------
    reader : Reader
        Both models, and the crosscoder.
    decoder : (m, width)
        Raw decoder vectors of the chat source.
    made : list of Intervention
    prompts : list of list of int
        Token ids, sink included.
    settings : Steering
    stop : int
    label : str
        For progress.

    Returns
    -------
    list, per intervention, of lists, per prompt, of token ids
    """
    given: list[list[list[int]]] = [[[] for _ in prompts] for _ in made]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    progress = stage.Progress(label, len(made) * len(prompts), "answers")
    for side in ("base", "chat"):
        own = [i for i, one in enumerate(made) if one.side == side]
        for first in range(0, len(order), settings.batch_answers):
            asked = order[first : first + settings.batch_answers]
            together = max(1, settings.batch_answers // len(asked))
            for start in range(0, len(own), together):
                rows = [(i, p) for i in own[start : start + together] for p in asked]
                vectors = torch.stack([made[i].vector for i, _ in rows])
                if side == "base":
                    model, context = reader.base, added(reader.base, (reader.layer, "resid_post"), vectors)
                else:
                    members = torch.stack([made[i].members for i, _ in rows])
                    model, context = reader.chat, ablated(reader, decoder, members, vectors)
                with context:
                    written = snapshots.continuations(model, [prompts[p] for _, p in rows], settings.new_tokens, stop)
                for (i, p), answer in zip(rows, written, strict=True):
                    given[i][p] = answer
                progress.update(len(rows))
    return given
