"""What a collapsed node does in its model.

A node is a crosscoder latent together with the SAE latents that it stands for. It is ablated at the source where it
begins, and the change is compared with what its direction at the last source predicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
import xarray as xr
from scipy.sparse import csr_array

from crosscoders import stage
from crosscoders.analysis.classification import lives
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.language_models.hooks import Site, attached
from crosscoders.language_models.windows import batches, padded
from crosscoders.study.settings.comparisons import Circuits


def span_of(coder: Crosscoder) -> tuple[np.ndarray, np.ndarray]:
    """First and last source in which every latent lives, (m,) each."""
    living = lives(coder.decoder_norms().numpy())
    return living.argmax(1), living.shape[1] - 1 - living[:, ::-1].argmax(1)


@dataclass
class Graph:
    """A crosscoder on some tokens, and the SAE latents that its latents stand for.

    Attributes
    ----------
    coder : Crosscoder
    code : (tokens, m) csr_array
    labels : per source, (SAE latents,)
        The crosscoder's latent that each SAE latent is collapsed into, −1 where there is none.
    sites : per source
        Where the source stands in the model.
    scales : (S,)
        σ_s of every source.
    """

    coder: Crosscoder
    code: csr_array
    labels: list[np.ndarray]
    sites: list[Site]
    scales: np.ndarray

    def part(self, latents: np.ndarray, source: int, rows: np.ndarray) -> torch.Tensor:
        """What a latent of each of some tokens adds to a source, raw, (tokens, width)."""
        strength = torch.from_numpy(self.code[rows].toarray()[np.arange(len(rows)), latents])
        decoder = self.coder.decoder[latents, self.coder.columns[source]]
        return strength[:, None] * float(self.scales[source]) * decoder


@dataclass
class Where:
    """Where the tokens of a code stand: index in the split and document, (tokens,) each, and the split's tokens."""

    token_index: np.ndarray
    document: np.ndarray
    tokens: xr.Dataset


def draw(graph: Graph, position: np.ndarray, options: Circuits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and latents to ablate, and another active latent for each: (interventions,) each.

    The latents stand for SAE latents of two sources or more and live up to the last source. The tokens stand early in
    their window, and none is drawn twice. `position`, (tokens,), is the place in the window.
    """
    first, last = span_of(graph.coder)
    code, labels = graph.code, graph.labels
    sources = np.stack([np.isin(np.arange(graph.coder.latents), part) for part in labels]).sum(0)
    allowed = (sources > 1) & (first < last) & (last == len(labels) - 1)
    generator, drawn = np.random.default_rng(options.seed), []
    for token in generator.permutation(np.flatnonzero(position <= options.ablated_before)):
        active = code.indices[code.indptr[token] : code.indptr[token + 1]]
        choice = active[allowed[active]]
        if len(choice) and len(active) > 1:
            latent = generator.choice(choice)
            drawn.append((token, latent, generator.choice(active[active != latent])))
        if len(drawn) == options.interventions:
            break
    return tuple(np.array(drawn, int).reshape(-1, 3).T)


def _logit(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Logits of some tokens above the mean over the vocabulary, (batch,)."""
    return logits.gather(1, wanted[:, None])[:, 0] - logits.mean(1)


def _logits(
    model: transformers.PreTrainedModel, ids: torch.Tensor, ends: torch.Tensor, site: Site, act
) -> torch.Tensor:
    """Logits at the ends of some windows, (batch, vocabulary); `act` changes a site's activations there."""
    rows = torch.arange(len(ids))

    def change(_: Site, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_put((rows, ends), act(tensor[rows, ends]))

    with attached(model, [site], change):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return unembedded(model, hidden[rows, ends])


def unembedded(model: transformers.PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of last hidden states, (batch, width), at least in float32: (batch, vocabulary).

    Parameters
    ----------
    model : PreTrainedModel
    hidden : (batch, width)
        After the final norm.

    Returns
    -------
    (batch, vocabulary)
    """
    logits = model.get_output_embeddings()(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def respond(
    model: transformers.PreTrainedModel,
    ids: torch.Tensor,
    ends: torch.Tensor,
    first: Site,
    last: Site,
    part: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What taking `part`, (batch, width), away at the first site does to the logit of the most likely next token.

    Returns
    -------
    change : (batch,)
    gradient : (batch, width)
        Of that logit at the last site, with nothing taken away.
    """
    with torch.enable_grad():
        leaf: list[torch.Tensor] = []

        def keep(activation: torch.Tensor) -> torch.Tensor:
            leaf.append(activation.detach().requires_grad_())
            return leaf[0]

        logits = _logits(model, ids, ends, last, keep)
        wanted = logits.argmax(1)
        value = _logit(logits, wanted)
        (gradient,) = torch.autograd.grad(value.sum(), leaf[0])
    changed = _logits(model, ids, ends, first, lambda activation: activation - part.to(activation))
    return (_logit(changed, wanted) - value.detach()).cpu(), gradient.to(
        torch.promote_types(gradient.dtype, torch.float32)
    ).cpu()


def ablate(
    model: transformers.PreTrainedModel, graph: Graph, where: Where, options: Circuits, label: str
) -> dict[str, np.ndarray]:
    """Change of the most likely next token's logit when a node is taken away at the first source in which it lives.

    A window is cut off after the ablated token. Predicted is −f σ ⟨∇, W_dec^last⟩, with the logit's gradient at the
    last source. This is right if a feature that is taken away early is gone late, too, as it must be where the node is
    one persistent feature. The control predicts with another latent that is active on the token.

    Parameters
    ----------
    model, graph, where, options, label
        What is ablated, on which tokens, and how many; `label` is for progress.

    Returns
    -------
    `measured`, `predicted`, `control` and `document`, (interventions,) each
    """
    position, ids = where.tokens["position"].values, where.tokens["token_id"].values
    token, latent, other = draw(graph, position[where.token_index], options)
    first, sink = span_of(graph.coder)[0][latent], int(where.tokens.attrs["sink_token_id"])
    stop = where.token_index[token] + 1
    start = stop - position[where.token_index[token]]
    changes = {name: np.full(len(token), np.nan) for name in ("measured", "predicted", "control")}
    last = len(graph.sites) - 1
    model.requires_grad_(False)
    progress = stage.Progress(label, len(token), "interventions")
    for begins in np.unique(first):
        ending = {int(stop[i]): i for i in np.flatnonzero(first == begins)}  # one each: no token is drawn twice
        spans = [slice(int(start[i]), end) for end, i in ending.items()]
        for group in batches(spans, options.batch_tokens):
            chosen = np.array([ending[span.stop] for span in group])
            ends = torch.tensor([span.stop - span.start for span in group])
            window = padded(ids, group, sink).to(model.device)
            removed = graph.part(latent[chosen], begins, token[chosen])
            change, gradient = respond(model, window, ends, graph.sites[begins], graph.sites[last], removed)
            changes["measured"][chosen] = change.numpy()
            for name, which in (("predicted", latent), ("control", other)):
                changes[name][chosen] = -(gradient * graph.part(which[chosen], last, token[chosen])).sum(1).numpy()
            progress.update(len(group))
    return changes | {"document": where.document[token]}


def correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlation of two samples under every row of weights, (replicates, samples): (replicates,)."""
    total = weights.sum(1, keepdims=True)
    left, right = (x - weights @ x[:, None] / total for x in (a, b))
    return (weights * left * right).sum(1) / np.sqrt((weights * left**2).sum(1) * (weights * right**2).sum(1))
