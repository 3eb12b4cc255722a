"""What a crosscoder rebuilds of held-out tokens, as sums within documents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.kernels import backends, sparse_code
from crosscoders.kernels.interface import Backend

BATCH = 2048


def reconstruction(
    coder: Crosscoder,
    data,
    document: np.ndarray,
    cost: Callable[[sparse_code.Code], torch.Tensor] | None = None,
    backend: Backend | None = None,
) -> dict[str, np.ndarray]:
    """Sums within each document from which the measures of evaluation follow.

    Parameters
    ----------
    coder, data
        The crosscoder, and a split of its activations.
    document : (tokens,)
        Consecutive document numbers from 0.
    cost : optional
        The penalty of every active pair of a code, (pairs,).
    backend : Backend, optional
        What computes; chosen by the device of the weights where absent.

    Returns
    -------
    dict
        `error` and `variance` (documents, sources), `active`, `penalty` and `tokens` (documents,), `fired`
        (latents,). The variance is about the split's own mean.
    """
    backend = backend or backends.choose(coder.decoder.device)
    documents, sources = int(document[-1]) + 1, len(coder.widths)
    mean = sum(x.double().sum(0) for _, x in data.batches(BATCH)) / len(data)
    sums = {"error": np.zeros((documents, sources)), "variance": np.zeros((documents, sources))}
    sums |= {
        "active": np.zeros(documents),
        "penalty": np.zeros(documents),
        "tokens": np.bincount(document, minlength=documents).astype(float),
    }
    fired = np.zeros(coder.latents, np.int64)
    for chosen, x in data.batches(BATCH):
        code = encode_sparse(coder, x, backend)
        error = (x - backend.decode(code, coder.decoder, coder.decoder_bias)).double().pow(2)
        variance = (x.double() - mean).pow(2)
        inside = document[chosen]
        for s, columns in enumerate(coder.columns):
            for name, squares in (("error", error), ("variance", variance)):
                sums[name][:, s] += np.bincount(inside, squares[:, columns].sum(1).numpy(), documents)
        sums["active"] += np.bincount(inside, code.offsets.diff().numpy(), documents)
        if cost is not None:
            sums["penalty"] += np.bincount(inside[code.tokens.numpy()], cost(code).numpy(), documents)
        fired += np.bincount(code.latents.numpy(), minlength=coder.latents)
    return {**sums, "fired": fired}
