"""Where activations stand in a Hugging Face model, and how they are read or changed during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
import transformers

from crosscoders.errors import UserError

Site = tuple[int, str]
"""Decoder layer, counted from 0, and hook: `resid_pre`, `resid_post` or `mlp_out`."""


def decoder_layers(model: transformers.PreTrainedModel) -> torch.nn.ModuleList:
    """The model's list of decoder layers.

    Raises
    ------
    UserError
        The architecture keeps its layers elsewhere.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for name, part in model.base_model.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == depth and name.split(".")[-1] in ("layers", "h"):
            return part
    raise UserError(
        f"{type(model).__name__}: no list of {depth} decoder layers found; this architecture is not supported"
    )


def mlp_output(layer: torch.nn.Module) -> torch.nn.Module:
    """The module whose output the MLP adds to the residual stream: in Gemma-2 and -3 the norm after the MLP."""
    for name in ("post_feedforward_layernorm", "mlp"):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise UserError(f"{type(layer).__name__}: no MLP found; the hook 'mlp_out' is not supported for it")


@contextmanager
def attached(
    model: transformers.PreTrainedModel, sites: list[Site], act: Callable[[Site, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Within this context a forward pass calls `act(site, activation)`; what it returns takes the activation's place.

    Activations are (batch, position, width). `None` leaves them as they are.

    Raises
    ------
    UserError
        A module gives something else.
    """

    def changed(site: Site, value: object) -> object:
        """`value` with its tensor replaced, or `None`."""
        tensor = value[0] if isinstance(value, tuple) else value
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
            raise UserError(
                f"layer {site[0]} {site[1]}: expected (batch, position, width), found {type(value).__name__}"
            )
        new = act(site, tensor)
        return new if new is None or not isinstance(value, tuple) else (new, *value[1:])

    def before(site: Site, arguments: tuple, keywords: dict) -> tuple[tuple, dict] | None:
        new = changed(site, arguments[0] if arguments else keywords["hidden_states"])
        if new is None:
            return None
        return ((new, *arguments[1:]), keywords) if arguments else ((), keywords | {"hidden_states": new})

    handles, layers = [], decoder_layers(model)
    for site in sites:
        index, hook = site
        layer = layers[index]
        if hook == "resid_pre":
            handles.append(
                layer.register_forward_pre_hook(lambda _, a, k, site=site: before(site, a, k), with_kwargs=True)
            )
        else:
            module = layer if hook == "resid_post" else mlp_output(layer)
            handles.append(module.register_forward_hook(lambda _, a, output, site=site: changed(site, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Done(Exception):
    """Leaves a forward pass once the deepest site has been read."""


@torch.inference_mode()
def forward(model: transformers.PreTrainedModel, sites: list[Site], ids: torch.Tensor) -> dict:
    """Activations {site: (batch, position, width)} of one batch; the pass stops once all are there."""
    found: dict[Site, torch.Tensor] = {}

    def keep(site: Site, tensor: torch.Tensor) -> None:
        found[site] = tensor
        if len(found) == len(sites):
            raise _Done

    with attached(model, sites, keep), suppress(_Done):
        model.base_model(input_ids=ids, use_cache=False)
    return found


@contextmanager
def starting_after(model: transformers.PreTrainedModel, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """Within this context a forward pass takes `hidden`, (batch, position, width), for what `layer` gives.

    The layers up to it are skipped; embedding, masks, positions, the layers above and the head are the model's own.
    """
    skipped = decoder_layers(model)[: layer + 1]
    for part in skipped:
        part.forward = lambda *_, **__: hidden
    try:
        yield
    finally:
        for part in skipped:
            del part.forward
