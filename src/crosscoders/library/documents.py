"""The test documents of a finished study as one of its crosscoders encodes them, for other people's tools.

B windows of at most L tokens, the sink before each window included; P active pairs of token and latent.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr

from crosscoders import artifacts
from crosscoders.activations.dataset import Activations
from crosscoders.analysis.active_pairs import ActivePairs
from crosscoders.crosscoder.files import from_dataset
from crosscoders.errors import UserError
from crosscoders.language_models.windows import windows
from crosscoders.study.settings.comparisons import Source

PLACE = re.compile(r"crosscoders/(?P<setting>[^/]+)/(?P<crosscoder>[^/]+)/seed-(?P<seed>\d+)\.nc")


class Documents:
    """The test documents of the setting that a crosscoder of a finished study belongs to.

    Parameters
    ----------
    path : Path
        `results/STUDY/crosscoders/SETTING/NAME/seed-N.nc`.

    Raises
    ------
    UserError
        The path has another form, or the study lacks a file that belongs to it.
    """

    def __init__(self, path: Path):
        place = PLACE.fullmatch("/".join(path.parts[-4:]))
        if place is None:
            raise UserError(
                f"{path}: expected a crosscoder of a study, as results/STUDY/crosscoders/SETTING/NAME/seed-N.nc"
            )
        self.results, self.setting, self.name = path.parents[3], place["setting"], place["crosscoder"]
        self.label = f"{self.setting}.{self.name}.seed-{place['seed']}"
        self.shards = sorted((self.results / "activations" / self.setting / "test").glob("*.nc"))
        if not self.shards:
            raise UserError(
                f"{self.results}: {self.setting} has no activations of test documents; expected activations/"
            )
        self.tokens = artifacts.read(self.results / f"tokens/{self.setting}/test.nc")
        self.coder = from_dataset(artifacts.read(path))
        own = path.with_suffix(".normalisation.nc")
        usual = self.results / f"activations/{self.setting}/normalisation.nc"
        self.normalisation = artifacts.read(own if own.is_file() else usual)

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Sources of the setting that are activations of models."""
        with xr.open_dataset(self.shards[0]) as shard:
            stated = json.loads(shard.attrs["settings"])["reading"]["sources"]
        return {name: Source.model_validate(source) for name, source in stated.items()}

    @property
    def reference(self) -> str:
        """The model whose tokens the split counts: that of the crosscoder's last source that has one."""
        own = [name for name in self.coder.sources if name in self.sources] or list(self.sources)
        return self.sources[own[-1]].model

    @cached_property
    def spans(self) -> list[slice]:
        """Tokens of every window."""
        return windows(self.tokens["position"].values)

    @cached_property
    def rows(self) -> np.ndarray:
        """Token ids, (B, L): the sink, then the window, then sinks up to the length of the longest."""
        longest = 1 + max(span.stop - span.start for span in self.spans)
        rows = np.full((len(self.spans), longest), self.tokens.attrs["sink_token_id"], np.int64)
        for row, span in zip(rows, self.spans, strict=True):
            row[1 : 1 + span.stop - span.start] = self.tokens["token_id"].values[span]
        return rows

    @cached_property
    def window(self) -> np.ndarray:
        """The window that every token stands in, (tokens,)."""
        return np.repeat(np.arange(len(self.spans)), [span.stop - span.start for span in self.spans])

    @cached_property
    def pairs(self) -> ActivePairs:
        """Every active pair of the split."""
        return ActivePairs.of(self.coder, Activations(self.shards, self.normalisation, self.coder.sources))
