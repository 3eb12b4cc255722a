"""Settings of the analysis: thresholds, resampling, pages, behaviours."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field

from crosscoders.study.settings.base import Count, Positive, Rule, Section, Seed, Share


class Bootstrap(Section):
    """Resampling of documents, from which every interval comes."""

    bootstrap_replicates: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed = 0


class Classification(Bootstrap):
    """Thresholds and resampling of the classification of latents."""

    base_only_below: Share
    shared_between: list[Share] = Field(min_length=2, max_length=2)
    chat_only_above: Share
    present_above: Annotated[float, Field(gt=0, le=1)] = 0.2
    """With three sources or more, a latent is written to those whose decoder norm is at least this share of its largest."""
    specific_error_below: Positive
    """A latent is specific where ν of the error stays below this …"""
    specific_reconstruction_below: Positive
    """… and ν of the reconstruction below this."""
    delta_quantiles: list[Share] = Field(min_length=2)
    """Edges of the groups of alive latents, by relative norm, whose enrichment is reported."""
    null_permutations: Count
    top_latents: Count
    """Latents at either end of the ranking whose strongest examples are kept."""
    top_examples: Count
    RULES = (
        Rule("shared_between", lambda c: c.shared_between[0] < c.shared_between[1], "[low, high] with low < high"),
        Rule(
            "base_only_below",
            lambda c: c.base_only_below <= min(c.shared_between),
            "at most the lower end of shared_between = {shared_between}",
        ),
        Rule(
            "chat_only_above",
            lambda c: c.chat_only_above >= max(c.shared_between),
            "at least the upper end of shared_between = {shared_between}",
        ),
        Rule(
            "delta_quantiles",
            lambda c: all(low < high for low, high in itertools.pairwise(c.delta_quantiles)),
            "edges that ascend",
        ),
    )

    @property
    def bootstrap(self) -> Bootstrap:
        """What the intervals of stages that classify nothing depend on."""
        return Bootstrap.model_validate({name: getattr(self, name) for name in Bootstrap.model_fields})


class Page(Section):
    """A page per crosscoder to read its latents in."""

    examples: Count = 4
    """Strongest test examples of each latent."""
    quantiles: Annotated[int, Field(ge=0, le=20)] = 3
    """Equal groups, by rank, of a latent's activations; half as many examples as of the strongest are drawn from each."""

    promoted: Count = 8
    """Tokens that each decoder direction promotes, and as many that it suppresses."""

    @property
    def shown(self) -> int:
        """Examples of a latent at most."""
        return self.examples + self.quantiles * max(1, self.examples // 2)


class Behaviours(Section):
    """Measurement of planted behaviours: held-out prompts and greedy generation."""

    prompts_per_behaviour: Count
    new_tokens: Count
    batch_prompts: Count = 24
