"""Windows of tokens that pass through a model together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def windows(position: np.ndarray) -> list[slice]:
    """Slices of tokens that stand in one window; each window starts at position 1.

    Parameters
    ----------
    position : (T,)
        Position of each token within its window, counted from 1.

    Returns
    -------
    list of slice
        One for each window, in order; together they cover all T tokens.
    """
    starts = np.flatnonzero(position == 1)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(position)], strict=True)]


def batches(spans: list[slice], batch_tokens: int) -> Iterator[list[slice]]:
    """Windows of similar length together, as many as fit into `batch_tokens`, padding and sink included.

    Parameters
    ----------
    spans : list of slice
        What :func:`windows` returned.
    batch_tokens : int
        Most tokens of a batch; a window that is longer makes a batch of its own.

    Returns
    -------
    iterator of list of slice
        The longest windows come first.
    """
    ordered = sorted(spans, key=lambda span: (span.stop - span.start, span.start))
    while ordered:
        width = 1 + ordered[-1].stop - ordered[-1].start
        count = max(1, batch_tokens // width)
        yield ordered[-count:]
        del ordered[-count:]


def padded(ids: np.ndarray, group: list[slice], sink: int) -> torch.Tensor:
    """Token ids of some windows, each after the sink, padded with it on the right.

    No attention mask goes with them: attention is causal, so no token sees the padding after it; and attention without
    one is faster.

    Parameters
    ----------
    ids : (T,)
        Token ids of all windows.
    group : list of slice
        The windows to take.
    sink : int
        Token id that begins every row.

    Returns
    -------
    (windows, 1 + longest) of int64
    """
    longest = max(span.stop - span.start for span in group)
    rows = torch.full((len(group), 1 + longest), sink)
    for i, span in enumerate(group):
        rows[i, 1 : 1 + span.stop - span.start] = torch.from_numpy(ids[span].astype(np.int64))
    return rows
