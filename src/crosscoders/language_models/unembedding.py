"""What directions of the residual stream do to the next token, read through the final norm and the unembedding."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from crosscoders.errors import UserError
from crosscoders.language_models.anatomy import anatomy_of


def promoted(
    model: transformers.PreTrainedModel, directions: torch.Tensor, count: int, known: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids that directions promote and suppress most through the unembedding.

    Parameters
    ----------
    model : PreTrainedModel
    directions : (m, width)
    count : int
        Tokens on either side; all where there are fewer.
    known : (ids,), optional
        Ids that the tokenizer has; all rows of the unembedding count where absent.

    Returns
    -------
    promoted, suppressed : (m, count)

    Raises
    ------
    UserError
        What stands between the last layer and the unembedding is not known.
    """
    ids, _ = logit_effects(model, directions, count, known)
    return ids[0], ids[1]


@torch.inference_mode()
def logit_effects(
    model: transformers.PreTrainedModel, directions: torch.Tensor, count: int, known: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids that directions promote and suppress most, and by how much they change the logits.

    Parameters
    ----------
    model : PreTrainedModel
    directions : (m, width)
    count : int
        Tokens on either side; all where there are fewer.
    known : (ids,), optional
        Ids that the tokenizer has; all rows of the unembedding count where absent.

    Returns
    -------
    ids, logits : (2, m, count)
        Of the tokens that are promoted, then of those that are suppressed.

    Raises
    ------
    UserError
        What stands between the last layer and the unembedding is not known.
    """
    parts = anatomy_of(model)
    if parts.final_norm is None:
        raise UserError(parts.unknown)

    def normed(rows: torch.Tensor) -> torch.Tensor:
        for part in parts.final_norm:
            rows = part(rows)
        return rows

    columns = np.arange(len(parts.unembedding.weight)) if known is None else known
    count = min(count, len(columns))
    ids, changes = np.empty((2, len(directions), count), np.int64), np.empty((2, len(directions), count), np.float32)
    for first in range(0, len(directions), 256):
        part = directions[first : first + 256].to(model.dtype)
        logits = parts.unembedding(normed(part) - normed(torch.zeros_like(part[:1]))).float()
        for side, largest in enumerate((True, False)):
            chosen = logits[:, torch.from_numpy(columns)].topk(count, largest=largest)
            ids[side, first : first + len(part)] = columns[chosen.indices.numpy()]
            changes[side, first : first + len(part)] = chosen.values.numpy()
    return ids, changes


def known_ids(tokenizer: transformers.PreTrainedTokenizerBase, model: transformers.PreTrainedModel) -> np.ndarray:
    """Ids that both the tokenizer and the unembedding have, ascending."""
    rows = anatomy_of(model).unembedding.weight.shape[0]
    return np.array(sorted(i for i in set(tokenizer.get_vocab().values()) if i < rows))
