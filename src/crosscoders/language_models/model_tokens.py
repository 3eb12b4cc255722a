"""What one model reads of a split: the split's own tokens, or those of a tokenizer of its own on the same text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from crosscoders.language_models.windows import windows


@dataclass(frozen=True)
class ModelTokens:
    """The tokens that a model reads, and where the split's tokens end among them.

    Attributes
    ----------
    ids, position, document : (n,) int
    counted : (n,) bool
        Tokens whose next-token losses count.
    place : (split tokens,) int
        The token of the model that ends where a token of the split does, -1 where none does.
    sink : int
        The token before every window.
    own : bool
        Whether the model has a tokenizer of its own.
    """

    ids: np.ndarray
    position: np.ndarray
    document: np.ndarray
    counted: np.ndarray
    place: np.ndarray
    sink: int
    own: bool

    @classmethod
    def of(cls, tokens: xr.Dataset, model: str) -> ModelTokens:
        """What a model reads.

        Parameters
        ----------
        tokens : xarray.Dataset
            What `tokenize` wrote of a split.
        model : str

        Returns
        -------
        ModelTokens
        """
        own = f"token_id_of_{model}" in tokens
        end = f"_of_{model}" if own else ""
        columns = {name: tokens[f"{name}{end}"].values for name in ("token_id", "position", "document")}
        return cls(
            ids=columns["token_id"],
            position=columns["position"],
            document=columns["document"],
            counted=np.ones(len(columns["token_id"]), bool) if own else _counted(tokens),
            place=tokens[f"place_of_{model}"].values if own else np.arange(tokens.sizes["token"]),
            sink=int(tokens.attrs[f"sink_token_id{end}"]),
            own=own,
        )

    def within(self, chosen: slice, document: np.ndarray) -> ModelTokens:
        """What the model reads of whole documents.

        Parameters
        ----------
        chosen : slice
            Tokens of the split, not empty.
        document : (split tokens,)
            Their documents.

        Returns
        -------
        ModelTokens
            Its `place` is that of the chosen tokens.
        """
        first, last = document[chosen.start], document[chosen.stop - 1]
        start, stop = np.searchsorted(self.document, first), np.searchsorted(self.document, last, side="right")
        place = self.place[chosen]
        columns = (column[start:stop] for column in (self.ids, self.position, self.document, self.counted))
        return ModelTokens(*columns, np.where(place < 0, -1, place - start), self.sink, self.own)

    def marked(self, tokens: np.ndarray) -> np.ndarray:
        """Of some tokens of the split, (split tokens,) bool, those that the model has, as (n,) bool."""
        marked = np.zeros(len(self.ids), bool)
        marked[self.place[tokens & (self.place >= 0)]] = True
        return marked

    def spread(self, values: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Rows over the split's tokens, (split tokens, width), as rows over the model's, (n, width).

        Rows of tokens that are not marked in `tokens`, (split tokens,) bool, are 0.
        """
        if not self.own:
            return values
        spread = np.zeros((len(self.ids), values.shape[1]), values.dtype)
        paired = tokens & (self.place >= 0)
        spread[self.place[paired]] = values[paired]
        return spread


@dataclass(frozen=True)
class ChosenDocuments:
    """Some documents of a split as a model reads them, and sums over their tokens.

    Attributes
    ----------
    spans : list of slice
        Their windows.
    counted : (n,) bool
        Their tokens whose losses count.
    place : (counted tokens,) int
        Which of the documents a token belongs to.
    documents : int
    """

    spans: list[slice]
    counted: np.ndarray
    place: np.ndarray
    documents: int

    @classmethod
    def of(cls, read: ModelTokens, document: np.ndarray, numbers: np.ndarray) -> ChosenDocuments:
        """Choose documents.

        Parameters
        ----------
        read : ModelTokens
        document : (split tokens,)
            The document of every token of the split.
        numbers : (documents,)
            Numbers of the chosen ones, counted without gaps, ascending.

        Returns
        -------
        ChosenDocuments
        """
        names = np.unique(document)[numbers]
        inside = np.isin(read.document, names)
        counted = inside & read.counted
        spans = [span for span in windows(read.position) if inside[span.start]]
        return cls(spans, counted, np.searchsorted(names, read.document[counted]), len(names))

    @property
    def counts(self) -> np.ndarray:
        """Counted tokens of every document, (documents,)."""
        return np.bincount(self.place, minlength=self.documents)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums within documents, (rows, documents), of values of the counted tokens, (rows, n)."""
        return np.stack([np.bincount(self.place, row[self.counted], self.documents) for row in values])


def _counted(tokens: xr.Dataset) -> np.ndarray:
    """Tokens whose losses count: all that every model has, where models share a vocabulary but for added tokens."""
    aligned = any(name.startswith("token_id_of_") for name in tokens)
    return np.ones(tokens.sizes["token"], bool) if aligned else tokens["in_all_models"].values.astype(bool)
