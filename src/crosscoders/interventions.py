"""What a collapsed node does in its model: ablated where it begins, against what its last direction predicts."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from scipy.sparse import csr_array

from crosscoders import stage
from crosscoders.classification import lives
from crosscoders.crosscoder import Crosscoder
from crosscoders.settings import Circuits
from crosscoders.sites import Site, attached
from crosscoders.windows import batches, padded


def span_of(coder: Crosscoder) -> tuple[np.ndarray, np.ndarray]:
    """First and last source in which every latent lives, (m,) each."""
    found = lives(coder.decoder_norms().numpy())
    return found.argmax(1), found.shape[1] - 1 - found[:, ::-1].argmax(1)


def draw(
    coder: Crosscoder, code: csr_array, labels: list[np.ndarray], position: np.ndarray, options: Circuits
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and latents to ablate, and another active latent for each: (interventions,) each.

    Latents that stand for SAE latents of two sources or more and live up to the last source, on tokens early in their
    window, no token twice.
    """
    first, last = span_of(coder)
    sources = np.stack([np.isin(np.arange(coder.latents), part) for part in labels]).sum(0)
    allowed = (sources > 1) & (first < last) & (last == len(labels) - 1)
    generator, found = np.random.default_rng(options.seed), []
    for token in generator.permutation(np.flatnonzero(position <= options.ablated_before)):
        active = code.indices[code.indptr[token] : code.indptr[token + 1]]
        choice = active[allowed[active]]
        if len(choice) and len(active) > 1:
            latent = generator.choice(choice)
            found.append((token, latent, generator.choice(active[active != latent])))
        if len(found) == options.interventions:
            break
    return tuple(np.array(found, int).reshape(-1, 3).T)


def _logit(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Logits of some tokens above the mean over the vocabulary, (batch,)."""
    return logits.gather(1, wanted[:, None])[:, 0] - logits.mean(1)


def _logits(
    model: transformers.PreTrainedModel, ids: torch.Tensor, ends: torch.Tensor, site: Site, act
) -> torch.Tensor:
    """Logits at the ends of some windows, (batch, vocabulary); `act` changes what a site gives there, (batch, width)."""
    rows = torch.arange(len(ids))

    def change(_: Site, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_put((rows, ends), act(tensor[rows, ends]))

    with attached(model, [site], change):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[rows, ends])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def respond(
    model: transformers.PreTrainedModel, ids: torch.Tensor, ends: torch.Tensor, first: Site, last: Site, part: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What taking `part`, (batch, width), away at the first site does to the logit of the most likely next token.

    Returns
    -------
    change : (batch,)
    gradient : (batch, width)
        Of that logit, at the last site of the unchanged pass.
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
    model: transformers.PreTrainedModel, sites: list[Site], coder: Crosscoder, scales: np.ndarray, code: csr_array,
    labels: list[np.ndarray], token_index: np.ndarray, document: np.ndarray, tokens, options: Circuits, label: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Change of the most likely next token's logit when a node is taken away at the first source in which it lives.

    A window is cut off after the ablated token. Predicted is −f σ ⟨∇, W_dec^last⟩, with the logit's gradient at the last
    source: right if taking the feature away early takes it away late, as one persistent node claims. The control predicts
    with another latent that is active on the token.

    Returns
    -------
    dict of (interventions,)
        `measured`, `predicted`, `control`, `document`.
    """
    position, ids = tokens["position"].values, tokens["token_id"].values
    token, latent, other = draw(coder, code, labels, position[token_index], options)
    first, sink = span_of(coder)[0][latent], int(tokens.attrs["sink_token_id"])
    stop = token_index[token] + 1
    start = stop - position[token_index[token]]
    found = {name: np.full(len(token), np.nan) for name in ("measured", "predicted", "control")}

    def part(which: np.ndarray, source: int, chosen: np.ndarray) -> torch.Tensor:
        """What some latents add to a source, raw, (chosen, width)."""
        strength = torch.from_numpy(code[token[chosen]].toarray()[np.arange(len(chosen)), which[chosen]])
        return strength[:, None] * float(scales[source]) * coder.decoder[which[chosen], coder.columns[source]]

    model.requires_grad_(False)
    progress = stage.Progress(label, len(token), "interventions")
    for begins in np.unique(first):
        ending = {int(stop[i]): i for i in np.flatnonzero(first == begins)}  # no token twice: none is lost
        spans = [slice(int(start[i]), end) for end, i in ending.items()]
        for group in batches(spans, options.batch_tokens):
            chosen = np.array([ending[span.stop] for span in group])
            ends = torch.tensor([span.stop - span.start for span in group])
            window = padded(ids, group, sink).to(model.device)
            change, gradient = respond(model, window, ends, sites[begins], sites[-1], part(latent, begins, chosen))
            found["measured"][chosen] = change.numpy()
            for name, which in (("predicted", latent), ("control", other)):
                found[name][chosen] = -(gradient * part(which, len(sites) - 1, chosen)).sum(1).numpy()
            progress.update(len(group))
    return found | {"document": document[token]}


def correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlation of two samples under every row of weights, (replicates, samples): (replicates,)."""
    total = weights.sum(1, keepdims=True)
    left, right = (x - weights @ x[:, None] / total for x in (a, b))
    return (weights * left * right).sum(1) / np.sqrt((weights * left**2).sum(1) * (weights * right**2).sum(1))
