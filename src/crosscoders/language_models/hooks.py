"""Where activations stand in a Hugging Face model, and how they are read or changed during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
import transformers

from crosscoders.errors import UserError
from crosscoders.language_models.anatomy import decoder_layers, hidden_of

Site = tuple[int, str]
"""Decoder layer, counted from 0, and hook: `resid_pre`, `resid_post` or `mlp_out`."""


def mlp_output(layer: torch.nn.Module) -> torch.nn.Module:
    """The module whose output the MLP adds to the residual stream: in Gemma-2 and -3 the norm after the MLP."""
    for name in ("post_feedforward_layernorm", "mlp"):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise UserError(f"{type(layer).__name__}: no MLP found; the hook 'mlp_out' is not supported for it")


Act = Callable[[Site, torch.Tensor], torch.Tensor | None]
"""Gets a site and its activation, (batch, position, width), and returns what takes its place; `None` leaves it as it is."""


def _changed(act: Act, site: Site, value: object) -> object:
    """What a module takes or gives with its tensor replaced, or `None` where it stays."""
    tensor = hidden_of(value)
    if tensor is None:
        raise UserError(f"layer {site[0]} {site[1]}: expected (batch, position, width), found {type(value).__name__}")
    new = act(site, tensor)
    return new if new is None or isinstance(value, torch.Tensor) else type(value)([new, *value[1:]])


@contextmanager
def attached(model: transformers.PreTrainedModel, sites: list[Site], act: Act) -> Iterator[None]:
    """Within this context a forward pass calls `act(site, activation)`; what it returns takes the activation's place.

    Parameters
    ----------
    model : PreTrainedModel
    sites : list of Site
    act : Act

    Returns
    -------
    context manager

    Raises
    ------
    UserError
        A module takes or gives something else than (batch, position, width).
    """

    def changed(site: Site, value: object) -> object:
        return _changed(act, site, value)

    def before(site: Site, arguments: tuple, keywords: dict) -> tuple[tuple, dict] | None:
        name = next((name for name, value in keywords.items() if hidden_of(value) is not None), None)
        new = changed(site, arguments[0] if arguments else keywords.get(name))
        if new is None:
            return None
        return ((new, *arguments[1:]), keywords) if arguments else ((), keywords | {name: new})

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
def forward(model: transformers.PreTrainedModel, sites: list[Site], ids: torch.Tensor, **reading: object) -> dict:
    """Activations of one batch; the forward pass stops once all are there.

    Parameters
    ----------
    model : PreTrainedModel
    sites : list of Site
    ids : (batch, position)
        Token ids.
    reading
        What the model gets besides, as an attention mask or a cache; nothing is cached where absent.

    Returns
    -------
    dict of (batch, position, width)
        Site to activation.

    Raises
    ------
    UserError
        A module takes or gives something else than (batch, position, width).
    """
    activations: dict[Site, torch.Tensor] = {}

    def keep(site: Site, tensor: torch.Tensor) -> None:
        activations[site] = tensor
        if len(activations) == len(sites):
            raise _Done

    with attached(model, sites, keep), suppress(_Done):
        model.base_model(input_ids=ids, **({"use_cache": False} | reading))
    return activations
