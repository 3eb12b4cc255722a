"""The weights of two models of one architecture side by side, and embeddings that are tied or not."""

from __future__ import annotations

import torch
import transformers

Pair = tuple[torch.nn.Parameter, torch.nn.Parameter]


def tied(model: transformers.PreTrainedModel) -> bool:
    """Whether the output embedding of a model is its input embedding."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untie(model: transformers.PreTrainedModel) -> None:
    """Give a model an output embedding of its own, equal to the input embedding that it was tied to."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model._tied_weights_keys = {}


def paired(first: transformers.PreTrainedModel, second: transformers.PreTrainedModel) -> dict[str, Pair]:
    """The tensors of two models by name.

    Parameters
    ----------
    first, second : PreTrainedModel

    Returns
    -------
    {name: (tensor of the first, tensor of the second)}
        A tensor that both models use at two places stands here once. Where one model ties two tensors and the other does
        not, both stand here.

    Raises
    ------
    ValueError
        The models differ in the names or shapes of their tensors; the message says in which.
    """
    ours, theirs = (dict(one.named_parameters(remove_duplicate=False)) for one in (first, second))
    differing = sorted(set(ours) ^ set(theirs))
    differing += [name for name in ours if name in theirs and ours[name].shape != theirs[name].shape]
    if differing:
        raise ValueError(f"{differing[0]} is in one alone or has another shape")
    pairs: dict[tuple[int, int], tuple[str, Pair]] = {}
    for name, ours_here in ours.items():
        pairs.setdefault((id(ours_here), id(theirs[name])), (name, (ours_here, theirs[name])))
    return dict(pairs.values())


def norm(tensor: torch.Tensor) -> float:
    """Frobenius norm, summed in float64."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))


def change_norms(pairs: dict[str, Pair]) -> dict[str, tuple[float, float]]:
    """Frobenius norms of tensors of one model, and of their difference from those of another.

    Parameters
    ----------
    pairs : {name: (tensor of the first model, tensor of the second)}

    Returns
    -------
    {name: (norm of the first, norm of the second minus the first)}
    """
    return {name: (norm(one), norm(other.detach() - one.detach())) for name, (one, other) in pairs.items()}


def relative_change(norms: dict[str, tuple[float, float]]) -> float:
    """Frobenius norm of all changes together over that of all weights of the first model."""
    weights, changes = (sum(value**2 for value in column) ** 0.5 for column in zip(*norms.values(), strict=True))
    return changes / weights
