"""A model that reads the tokens that another one reads or writes, up to one of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers

from crosscoders.language_models.hooks import Site, forward


@dataclass
class Companion:
    """What the other model has at the tokens of the present forward pass.

    Attributes
    ----------
    activation : (batch, position, width)
    inside : (batch, position) bool
        Positions that are no padding.
    """

    activation: torch.Tensor | None = None
    inside: torch.Tensor | None = None
    cache: transformers.Cache | None = None


@contextmanager
def reading_along(
    model: transformers.PreTrainedModel, other: transformers.PreTrainedModel, site: Site
) -> Iterator[Companion]:
    """Within this context, another model reads what `model` is given, before every forward pass of `model`.

    It keeps a cache of its own, so that generation with a cache costs it one token at a time, too.

    Parameters
    ----------
    model, other : PreTrainedModel
        They read the same token ids.
    site : Site
        Where the other model is read; its layers above are not run.

    Yields
    ------
    Companion
        Filled anew before every forward pass.
    """
    beside = Companion()

    def before(_: torch.nn.Module, __: tuple, keywords: dict) -> None:
        ids, past = keywords["input_ids"].to(other.device), keywords.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            beside.cache = transformers.DynamicCache(config=other.config)
        mask = keywords.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(other.device)
        reading = {"attention_mask": mask, "past_key_values": beside.cache, "use_cache": True}
        if keywords.get("position_ids") is not None:
            reading["position_ids"] = keywords["position_ids"].to(other.device)
        beside.activation = forward(other, [site], ids, **reading)[site]
        beside.inside = mask[:, -ids.shape[1] :].bool()

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield beside
    finally:
        handle.remove()
