"""The shuffle of a split's tokens: the token read at a position of the stream is a pure function of seed and position.

Blocks of consecutive tokens are shuffled, and rows are shuffled again within pools of many blocks. A resumed training
needs no record of what it has read.
"""

from __future__ import annotations

import numpy as np

BLOCK_ROWS = 128
POOL_BLOCKS = 512


class Order:
    """An endless, seeded sequence of row numbers in [0, rows): each epoch visits every row once.

    Parameters
    ----------
    rows : int
        Number of rows.
    seed : int
        Seed of the shuffles.
    """

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed = rows, seed
        self._pool_rows = BLOCK_ROWS * POOL_BLOCKS
        self._cached: tuple[tuple[int, int], np.ndarray] | None = None

    def take(self, start: int, count: int) -> np.ndarray:
        """Rows at the positions [start, start + count) of the sequence, (count,)."""
        parts = []
        while count > 0:
            epoch, inside = divmod(start, self.rows)
            pool, offset = divmod(inside, self._pool_rows)
            part = self._pool(epoch, pool)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _pool(self, epoch: int, pool: int) -> np.ndarray:
        """Shuffled rows of one pool of blocks."""
        if self._cached is None or self._cached[0] != (epoch, pool):
            blocks = np.random.default_rng([self.seed, epoch]).permutation(-(-self.rows // BLOCK_ROWS))
            last = np.flatnonzero(blocks == len(blocks) - 1)[0]
            blocks[[last, -1]] = blocks[[-1, last]]  # the one block that may be short comes last
            chosen = blocks[pool * POOL_BLOCKS : (pool + 1) * POOL_BLOCKS]
            rows = (chosen[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
            rows = np.random.default_rng([self.seed, epoch, pool]).permutation(rows[rows < self.rows])
            self._cached = ((epoch, pool), rows)
        return self._cached[1]


def consecutive(document: np.ndarray) -> np.ndarray:
    """Document numbers renumbered from 0 without gaps, in order of appearance.

    Parameters
    ----------
    document : (tokens,)
        Number of every token's document; the tokens of a document stand together.

    Returns
    -------
    (tokens,) int64
    """
    return np.r_[0, np.cumsum(document[1:] != document[:-1])]


def spread_documents(document: np.ndarray, tokens: int) -> np.ndarray:
    """Choose documents, spread evenly over a split, that hold about so many of its tokens.

    Parameters
    ----------
    document : (split tokens,)
        Consecutive document numbers from 0.
    tokens : int

    Returns
    -------
    (documents,) bool
    """
    share = min(1.0, tokens / len(document))
    count = int(document[-1]) + 1
    return np.diff(np.floor(np.arange(count + 1) * share)) > 0
