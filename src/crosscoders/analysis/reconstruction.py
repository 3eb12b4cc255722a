"""What a crosscoder rebuilds of held-out tokens, as sums within documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    prefixes: Sequence[int] = (),
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
    prefixes : list of int
        Numbers of latents whose reconstruction, by the first so many of the dictionary, is measured too.

    Returns
    -------
    dict
        `error` and `variance` (documents, sources), `active`, `penalty` and `tokens` (documents,), `fired`
        (latents,); `prefix_error` (documents, prefixes, sources). The variance is about the split's own mean.
    """
    backend = backend or backends.choose(coder.decoder.device)
    documents, sources = int(document[-1]) + 1, len(coder.widths)
    mean = sum(x.double().sum(0) for _, x in data.batches(BATCH)) / len(data)
    sums = {"error": np.zeros((documents, sources)), "variance": np.zeros((documents, sources))}
    sums |= {
        "active": np.zeros(documents),
        "penalty": np.zeros(documents),
        "tokens": np.bincount(document, minlength=documents).astype(float),
        "prefix_error": np.zeros((documents, len(prefixes), sources)),
    }
    decoders = [coder.decoder[:latents] for latents in prefixes]
    fired = np.zeros(coder.latents, np.int64)
    for chosen, x in data.batches(BATCH):
        code = encode_sparse(coder, x, backend)
        error = (x - backend.decode(code, coder.decoder, coder.decoder_bias)).double().pow(2)
        variance = (x.double() - mean).pow(2)
        inside = document[chosen]
        for s, columns in enumerate(coder.columns):
            for name, squares in (("error", error), ("variance", variance)):
                sums[name][:, s] += np.bincount(inside, squares[:, columns].sum(1).numpy(), documents)
        for p, decoder in enumerate(decoders):
            part, _ = code.split([len(decoder), coder.latents - len(decoder)])
            squares = (x - backend.decode(part, decoder, coder.decoder_bias)).double().pow(2)
            for s, columns in enumerate(coder.columns):
                sums["prefix_error"][:, p, s] += np.bincount(inside, squares[:, columns].sum(1).numpy(), documents)
        sums["active"] += np.bincount(inside, code.offsets.diff().numpy(), documents)
        if cost is not None:
            sums["penalty"] += np.bincount(inside[code.tokens.numpy()], cost(code).numpy(), documents)
        fired += np.bincount(code.latents.numpy(), minlength=coder.latents)
    return {**sums, "fired": fired}
