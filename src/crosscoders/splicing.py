"""Next-token loss with activations of a source replaced: by their reconstruction, by zero, by their mean.

Replaced are kept tokens alone, so that the sink and other massive activations, which no crosscoder is trained on, stay.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers

from crosscoders.sites import Site, attached
from crosscoders.windows import batches, padded


def choose(document: np.ndarray, tokens: int) -> np.ndarray:
    """Documents spread evenly over a split that hold about `tokens` of its tokens, (documents,) bool."""
    share = min(1.0, tokens / len(document))
    count = int(document[-1]) + 1
    return np.diff(np.floor(np.arange(count + 1) * share)) > 0


@torch.inference_mode()
def token_losses(
    model: transformers.PreTrainedModel, ids: np.ndarray, spans: list[slice], sink: int, batch_tokens: int,
    site: Site | None = None, replacement: np.ndarray | None = None, replaced: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Cross-entropy (nats) of every token of some windows, given the sink and the tokens before it, (tokens,).

    Parameters
    ----------
    ids : (tokens,)
    spans : windows; tokens outside of them get NaN
    site : where activations are replaced, if anywhere
    replacement : (tokens, width)
        Raw activations, float32.
    replaced : (tokens,) bool
        Tokens at which they are replaced.
    """
    found = np.full(len(ids), np.nan)
    for group in batches(spans, batch_tokens):
        rows = padded(ids, group, sink)

        def splice(_: Site, activation: torch.Tensor, group: list[slice] = group) -> torch.Tensor:
            changed = activation.clone()
            for i, span in enumerate(group):
                chosen = np.flatnonzero(replaced[span])
                new = torch.from_numpy(replacement[span.start + chosen]).to(changed)
                changed[i, torch.from_numpy(1 + chosen).to(changed.device)] = new
            return changed

        with attached(model, [site] if site else [], splice):
            logits = model(input_ids=rows.to(model.device), use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), rows[:, 1:].to(logits.device), reduction="none"
        )
        for i, span in enumerate(group):
            found[span] = losses[i, : span.stop - span.start].double().cpu().numpy()
    return found
