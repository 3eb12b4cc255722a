"""Next-token loss with activations of a source replaced: by their reconstruction, by zero, by their mean.

Replaced are kept tokens alone, so that the sink and other massive activations, which no crosscoder is trained on, stay.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
import transformers

from crosscoders.language_models.anatomy import replaced_below
from crosscoders.language_models.hooks import Site, attached, forward
from crosscoders.language_models.windows import batches, padded

Change = tuple[Site, np.ndarray]
"""A site, and the raw activations, (tokens, width) in float32, that take the place of its own."""


@torch.inference_mode()
def token_losses(
    model: transformers.PreTrainedModel,
    ids: np.ndarray,
    spans: list[slice],
    sink: int,
    batch_tokens: int,
    changes: list[Change | None],
    replaced: np.ndarray | None = None,
) -> np.ndarray:
    """Cross-entropy (nats) of every token of some windows, given the sink and the tokens before it, under every change.

    The layers below the sites are run once for all changes.

    Parameters
    ----------
    ids : (tokens,)
    spans : windows; tokens outside of them get NaN
    changes : `None` stands for the model as it is
    replaced : (tokens,) bool
        Tokens at which activations are replaced.

    Returns
    -------
    (changes, tokens)
    """
    by_change = np.full((len(changes), len(ids)), np.nan)
    layers = sorted({change[0][0] for change in changes if change})
    for group in batches(spans, batch_tokens):
        rows = padded(ids, group, sink)
        streams = forward(model, [(layer, "resid_pre") for layer in layers], rows.to(model.device)) if layers else {}
        for losses, change in zip(by_change, changes, strict=True):
            layer = change[0][0] if change else max(layers, default=None)
            with ExitStack() as stack:
                if layer is not None:
                    stack.enter_context(replaced_below(model, layer - 1, streams[layer, "resid_pre"]))
                if change:
                    stack.enter_context(_spliced(model, change, replaced, group))
                logits = model(input_ids=rows.to(model.device), use_cache=False).logits.float()
            following = rows.roll(-1, dims=1).to(logits.device)  # what follows the last token is left out below
            following = following.clamp(max=logits.shape[-1] - 1)  # tokens that the model lacks are counted nowhere
            entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
            for i, span in enumerate(group):
                losses[span] = entropy.view_as(rows)[i, : span.stop - span.start].double().cpu().numpy()
    return by_change


def _spliced(model: transformers.PreTrainedModel, change: Change, replaced: np.ndarray, group: list[slice]):
    """The context in which a site gives what takes its place, at the replaced tokens of some padded windows."""
    site, replacement = change

    def splice(_: Site, activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        for i, span in enumerate(group):
            chosen = np.flatnonzero(replaced[span])
            new = torch.from_numpy(replacement[span.start + chosen]).to(changed)
            changed[i, torch.from_numpy(1 + chosen).to(changed.device)] = new
        return changed

    return attached(model, [site], splice)
