"""A crosscoder attached to a language model: its codes of every forward pass, and latents ablated or steered in it.

B prompts, T tokens, m latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from crosscoders.errors import UserError
from crosscoders.language_models import hooks
from crosscoders.language_models.anatomy import decoder_layers
from crosscoders.library.loaded import Loaded, load

HOOKS = ("resid_pre", "resid_post", "mlp_out")
Sites = dict[str, hooks.Site]
"""Source to its place in a model."""


class Attachment:
    """What a model's forward passes say in terms of a crosscoder, and what is changed in them.

    Attributes
    ----------
    code : (B, T, m) or None
        Of the tokens of the last forward pass, before any change; 0 at attention sinks, which crosscoders do not see.
    """

    def __init__(self, crosscoder: Loaded, sites: Sites, others: list[tuple[transformers.PreTrainedModel, Sites]]):
        self.crosscoder, self._sites, self._others = crosscoder, sites, others
        self.code: torch.Tensor | None = None
        self._ablated: set[int] = set()
        self._added: dict[int, float] = {}
        self._ids: torch.Tensor | None = None
        self._measuring = False

    def ablate(self, latents: Iterable[int] | int) -> None:
        """Take what some latents write out of the model's activations, from the next forward pass on."""
        self._ablated |= {self._checked(j) for j in ([latents] if isinstance(latents, int) else latents)}

    def steer(self, latent: int, amount: float) -> None:
        """Add a latent's decoder vector times `amount`, in units of its code, at every token from the next pass on."""
        self._added[self._checked(latent)] = float(amount)

    def clear(self) -> None:
        """Change nothing any more."""
        self._ablated.clear()
        self._added.clear()

    def _checked(self, latent: int) -> int:
        if not 0 <= int(latent) < self.crosscoder.latents:
            raise UserError(f"latent {latent}; expected 0 to {self.crosscoder.latents - 1}")
        return int(latent)

    @torch.no_grad()
    def _measure(self, model: transformers.PreTrainedModel, arguments: tuple, keywords: dict) -> None:
        """Before a forward pass, find the code of its tokens by passes that stop at the sites."""
        if self._measuring:
            return
        ids = keywords.get("input_ids", arguments[0] if arguments else None)
        if ids is None:
            raise UserError("attach: the model was given no input_ids; expected token ids")
        past = keywords.get("past_key_values")
        before = past.get_seq_length() if past is not None else 0
        if before and self._ids is not None:
            ids = torch.cat([self._ids[:, :before], ids], dim=1)
        self._ids, self._measuring = ids, True
        try:
            found: dict[str, torch.Tensor] = {}
            for one, sites in [(model, self._sites), *self._others]:
                read = hooks.forward(one, list(dict.fromkeys(sites.values())), ids.to(one.device))
                found |= {name: read[site][:, before:].to(self.crosscoder.device) for name, site in sites.items()}
        finally:
            self._measuring = False
        norms = torch.stack([found[name].float().norm(dim=-1) for name in self.crosscoder.sources], dim=-1)
        sinks = (norms > self.crosscoder.portable.sink_norm.to(norms)).any(-1)
        self.code = self.crosscoder.encode(found).masked_fill(sinks[..., None], 0.0)

    def _change(self, site: hooks.Site, activation: torch.Tensor) -> torch.Tensor | None:
        """The activation with what the changes of the code write into its source."""
        if self._measuring or self.code is None or not (self._ablated or self._added):
            return None
        latents = sorted(self._ablated | self._added.keys())
        before = self.code[..., latents]
        kept = torch.tensor([float(j not in self._ablated) for j in latents], device=before.device)
        added = torch.tensor([self._added.get(j, 0.0) for j in latents], device=before.device)
        for name in (name for name, own in self._sites.items() if own == site):
            written = (before * (kept - 1) + added) @ self.crosscoder.directions(name)[latents]
            activation = activation + written.to(activation)
        return activation


@contextmanager
def attach(
    model: transformers.PreTrainedModel,
    crosscoder: Loaded | Path | str,
    source: str | None = None,
    layer: int | Mapping[str, int] | None = None,
    hook: str = "resid_post",
    others: Mapping[str, transformers.PreTrainedModel] | None = None,
) -> Iterator[Attachment]:
    """Within this context, every forward pass of a model is read by a crosscoder, and its latents can be changed.

    The code needs the activations of all sources. Those of other models, as `base` beside `chat`, are read by running these
    models on the same tokens; those of one model at several layers by naming a layer for each. Prompts of one batch must
    have one length. Generation works with and without a cache.

    Parameters
    ----------
    model : PreTrainedModel
        Any Hugging Face model; its activations are changed.
    crosscoder : Loaded or path
    source : str, optional
        The source that the model is; all that `layer` names where absent.
    layer : int or {source: int}
        Decoder layer, counted from 0; for other models' sources the same, or named here too.
    hook : str
        `resid_pre`, `resid_post` or `mlp_out`, for all sources.
    others : {source: PreTrainedModel}, optional
        Models of the other sources.

    Yields
    ------
    Attachment

    Raises
    ------
    UserError
        A source has no model or layer, or a model is too shallow or of another width.

    Examples
    --------
    >>> with crosscoders.attach(chat, coder, "chat", 13, others={"base": base}) as attached:  # doctest: +SKIP
    ...     attached.ablate([17, 400])
    ...     chat.generate(ids, max_new_tokens=20)
    """
    coder = crosscoder if isinstance(crosscoder, Loaded) else load(crosscoder)
    others = dict(others or {})
    own = [source] if source is not None else list(layer if isinstance(layer, Mapping) else ())
    own = [name for name in own if name not in others]
    places = {name: layer if isinstance(layer, int) else (layer or {}).get(name) for name in [*own, *others]}
    lacking = [name for name in coder.sources if places.get(name) is None]
    if lacking or set(places) - set(coder.sources) or hook not in HOOKS:
        known = f"sources {', '.join(coder.sources)}, each with a model and a layer, and a hook of {', '.join(HOOKS)}"
        given = ", ".join(f"{name} at layer {place}" for name, place in places.items()) or "nothing"
        raise UserError(f"attach: given {given}, hook {hook!r}; expected {known}")
    for name, width in zip(coder.sources, coder.widths, strict=True):
        _check(name, others.get(name, model), places[name], width)
    sites = {name: (places[name], hook) for name in own}
    beside = [(one, {name: (places[name], hook)}) for name, one in others.items()]
    attachment = Attachment(coder, sites, beside)
    handle = model.register_forward_pre_hook(
        lambda _, arguments, keywords: attachment._measure(model, arguments, keywords), with_kwargs=True
    )
    try:
        with hooks.attached(model, list(dict.fromkeys(sites.values())), attachment._change):
            yield attachment
    finally:
        handle.remove()


def _check(source: str, model: transformers.PreTrainedModel, layer: int, width: int) -> None:
    """Whether a model has a layer, of the width that a source has."""
    depth, found = len(decoder_layers(model)), model.config.get_text_config().hidden_size
    if not 0 <= layer < depth:
        raise UserError(f"attach: layer {layer} of {source}; expected 0 to {depth - 1}")
    if found != width:
        raise UserError(f"attach: {source} has the width {width}, but the model's is {found}")
