"""Where a language model keeps its parts: embedding, decoder layers, final norm, unembedding; and what a layer returns.

The parts are found by watching a short forward pass, so that no list of architectures has to be kept. A part that is not
found is named in one line, and nothing stands in for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import transformers

from crosscoders.errors import UserError

PROBE = [1, 2, 3, 2]
"""Token ids of the watched pass."""
_known: weakref.WeakKeyDictionary[transformers.PreTrainedModel, Anatomy] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model.

    Attributes
    ----------
    layers : ModuleList
        Decoder layers, in order.
    unembedding : Module
        Turns the last hidden state, (…, width), into logits, (…, vocabulary).
    final_norm : list of Module, optional
        What stands between the last layer and the unembedding, in order; empty where nothing does, None where it is not
        known, as `unknown` explains.
    returned : tuple or list, optional
        What a layer returns beside the hidden state, which stands first; None where a layer returns that alone.
    skippable : bool
        Whether a pass may start at a layer in the middle: no layer reads what a lower one has kept aside.
    unknown : str
        Why `final_norm` is not known.
    """

    layers: torch.nn.ModuleList
    unembedding: torch.nn.Module
    final_norm: list[torch.nn.Module] | None
    returned: tuple | list | None
    skippable: bool
    unknown: str = ""

    def as_returned(self, hidden: torch.Tensor) -> torch.Tensor | tuple:
        """A hidden state, (batch, position, width), as a layer returns it."""
        if self.returned is None:
            return hidden
        return type(self.returned)([hidden, *self.returned])


def anatomy_of(model: transformers.PreTrainedModel) -> Anatomy:
    """The parts of a model; found once for each model.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.

    Returns
    -------
    Anatomy

    Raises
    ------
    UserError
        The model has no list of decoder layers that is known, or no unembedding.
    """
    if model not in _known:
        _known[model] = _examined(model)
    return _known[model]


def decoder_layers(model: transformers.PreTrainedModel) -> torch.nn.ModuleList:
    """The one list of modules that is as long as the model is deep, and lies in no other such list.

    Parameters
    ----------
    model : PreTrainedModel

    Returns
    -------
    ModuleList
        The decoder layers, in order.

    Raises
    ------
    UserError
        There is none, or there are several.
    """
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == depth
    }
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        known = ", ".join(outermost) or "none"
        raise UserError(
            f"{type(model).__name__}: expected one list of {depth} decoder layers, found {known}; "
            "this architecture is not supported"
        )
    return lists[outermost[0]]


def hidden_of(value: object) -> torch.Tensor | None:
    """The hidden state, (batch, position, width), in what a module takes or returns; None where there is none."""
    tensor = value[0] if isinstance(value, (tuple, list)) and value else value
    return tensor if isinstance(tensor, torch.Tensor) and tensor.ndim == 3 else None


@contextmanager
def replaced_below(model: transformers.PreTrainedModel, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """Within this context `layer` gives `hidden`, and the layers below it are skipped.

    Parameters
    ----------
    model : PreTrainedModel
    layer : int
        Counted from 0; with -1 nothing is replaced.
    hidden : (batch, position, width)
        The hidden state after `layer`.

    Returns
    -------
    context manager
    """
    parts = anatomy_of(model)
    with ExitStack() as stack:
        _skip(stack, parts.layers[: layer + 1], parts.as_returned(hidden), parts.skippable)
        yield


def _skip(stack: ExitStack, layers: torch.nn.ModuleList, given: object, skippable: bool) -> None:
    """Let layers return what is given: without computing where they are skippable, else the last of them alone."""
    if skippable:
        for part in layers:
            part.forward = lambda *_, **__: given
            stack.callback(delattr, part, "forward")
    elif len(layers):
        handle = layers[-1].register_forward_hook(lambda *_: given)
        stack.callback(handle.remove)


# -- examining ---------------------------------------------------------------------------------------------------------


@dataclass
class _Pass:
    """What is seen during one pass."""

    outputs: list[object] = field(default_factory=list)
    """What each layer returns, in order."""
    calls: list[tuple[torch.nn.Module, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Modules that ran after the last layer, with the hidden state that they took and gave."""
    unembedded: torch.Tensor | None = None
    """What the unembedding took."""
    logits: torch.Tensor | None = None


def _examined(model: transformers.PreTrainedModel) -> Anatomy:
    layers, unembedding = decoder_layers(model), model.get_output_embeddings()
    if unembedding is None:
        raise UserError(f"{type(model).__name__}: the model has no unembedding; expected a causal language model")
    seen = _watched(model, layers, unembedding)
    shapes = [hidden_of(value).shape[:2] if hidden_of(value) is not None else None for value in seen.outputs]
    if shapes != [(1, len(PROBE))] * len(layers):
        raise UserError(
            f"{type(model).__name__}: its decoder layers do not return one hidden state for each token "
            "(batch, position, width); this architecture is not supported"
        )
    last = seen.outputs[-1]
    final_norm, unknown = _between(seen, hidden_of(last))
    if unknown:
        unknown = f"{type(model).__name__}: {unknown}"
    returned = type(last)([None] * (len(last) - 1)) if isinstance(last, (tuple, list)) else None
    parts = Anatomy(layers, unembedding, final_norm, returned, True, unknown)
    skippable = _starts_in_the_middle(model, parts, seen)
    return Anatomy(layers, unembedding, final_norm, returned, skippable, unknown)


@torch.inference_mode()
def _watched(model: transformers.PreTrainedModel, layers: torch.nn.ModuleList, unembedding: torch.nn.Module) -> _Pass:
    """A pass over PROBE, with all that the examination needs."""
    seen, inside = _Pass(), {part for layer in layers for part in layer.modules()}

    def after_layer(_: torch.nn.Module, __: object, output: object) -> None:
        seen.outputs.append(output)

    def after_other(module: torch.nn.Module, given: tuple, output: object) -> None:
        taken, made = hidden_of(given), hidden_of(output)
        if len(seen.outputs) == len(layers) and taken is not None and made is not None and module is not unembedding:
            seen.calls.append((module, taken, made))

    def before_unembedding(_: torch.nn.Module, given: tuple) -> None:
        seen.unembedded = given[0]

    with ExitStack() as stack:
        hooks = [layer.register_forward_hook(after_layer) for layer in layers]
        others = (part for part in model.modules() if part not in inside)
        hooks += [part.register_forward_hook(after_other) for part in others]
        hooks.append(unembedding.register_forward_pre_hook(before_unembedding))
        for hook in hooks:
            stack.callback(hook.remove)
        seen.logits = model(input_ids=torch.tensor([PROBE], device=model.device), use_cache=False).logits
    return seen


def _between(seen: _Pass, hidden: torch.Tensor) -> tuple[list[torch.nn.Module] | None, str]:
    """The modules between the last layer and the unembedding; None and the reason where they are not known."""
    path = []
    for module, taken, made in seen.calls:
        if taken.shape == hidden.shape and torch.equal(taken, hidden):
            path.append(module)
            hidden = made
    if seen.unembedded is None or seen.unembedded.shape[-1] != hidden.shape[-1]:
        return None, "what its unembedding reads was not found"
    read = seen.unembedded.reshape(-1, hidden.shape[-1])[-1].float()
    given = hidden[0, -1].float()
    scale = (read @ given) / (given @ given)  # a model may scale what it unembeds, which changes no order of logits
    if scale > 0 and torch.allclose(read, scale * given, rtol=1e-2, atol=1e-3 * float(read.abs().max())):
        return path, ""
    return None, "what stands between its last layer and its unembedding is not known"


@torch.inference_mode()
def _starts_in_the_middle(model: transformers.PreTrainedModel, parts: Anatomy, seen: _Pass) -> bool:
    """Whether a pass that skips the lower half of the layers ends with the same logits."""
    middle = len(parts.layers) // 2
    given = parts.as_returned(hidden_of(seen.outputs[middle - 1])) if middle else None
    try:
        with ExitStack() as stack:
            _skip(stack, parts.layers[:middle], given, skippable=True)
            logits = model(input_ids=torch.tensor([PROBE], device=model.device), use_cache=False).logits
    except Exception:  # a layer may read from a lower one in any way; then layers are not skipped
        return False
    return torch.equal(logits, seen.logits)
