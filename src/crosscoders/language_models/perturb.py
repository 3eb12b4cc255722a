"""Stage perturb: a model whose weights are another's with noise, or rounded to few bits; nothing is trained.

No behaviour is planted in such a model, so that what a pipeline calls exclusive to it comes from weights alone. How far its
predictions move is measured by the stage measure_divergence. Weights are stored in float32, so that small changes are not
rounded away.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from crosscoders import stage, storage
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots, weights
from crosscoders.language_models.sections import PerturbSection
from crosscoders.study.settings.models import NoisedModel


def add_noise(model: transformers.PreTrainedModel, like: transformers.PreTrainedModel, seed: int) -> int:
    """Add Gaussian noise to a model's tensors in place, of the norm by which another model's tensors differ from them.

    Where `like` has an output embedding of its own and the model does not, the model gets one, because a change of that
    embedding alone is not a change of the input embedding.

    Parameters
    ----------
    model, like : PreTrainedModel
        Of one architecture.
    seed : int

    Returns
    -------
    int
        Number of tensors that got noise; the others are equal in both models and stay.

    Raises
    ------
    ValueError
        The models differ in the names or shapes of their tensors.
    """
    if weights.tied(model) and not weights.tied(like):
        weights.untie(model)
    generator, changed = torch.Generator().manual_seed(seed), 0
    pairs = weights.paired(model, like)
    for tensor, other in pairs.values():
        length = weights.norm(other - tensor)
        if length == 0:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data += noise.mul_(length / weights.norm(noise))
        changed += 1
    return changed


def round_to_levels(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights rounded to the nearest of 2^bits − 1 levels, which lie evenly and symmetrically about 0 in every row.

    Parameters
    ----------
    weight : (outputs, inputs)
        The largest absolute value of a row is its largest level.
    bits : int
        At least 2.

    Returns
    -------
    (outputs, inputs)
    """
    largest_level = 2 ** (bits - 1) - 1
    step = weight.abs().amax(dim=1, keepdim=True) / largest_level
    return (weight / step.where(step > 0, 1.0)).round() * step


def round_weights(model: transformers.PreTrainedModel, bits: int, embeddings: bool) -> int:
    """Round a model's linear weights in place, one scale per output row, and its embeddings where asked for.

    Parameters
    ----------
    model : PreTrainedModel
    bits : int
    embeddings : bool
        Whether the input and the output embedding are rounded too, one scale per token.

    Returns
    -------
    int
        Number of weights that were rounded.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    rounded: dict[int, torch.Tensor] = {}
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head:
            rounded[id(module.weight)] = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
    for module in (embedding, head) if embeddings else ():
        if module is not None:
            rounded[id(module.weight)] = module.weight.data
    for weight in rounded.values():
        weight.copy_(round_to_levels(weight, bits))
    return sum(weight.numel() for weight in rounded.values())


def main(arguments) -> None:
    """Make one model, and record how far its weights lie from those of its base."""
    section: PerturbSection = arguments.settings
    settings, source = section.model, arguments.base.parent
    licence = storage.verify_folder(source)["licence"]
    model, base = (snapshots.load_model(source, "cpu", torch.float32) for _ in range(2))
    if isinstance(settings, NoisedModel):
        if arguments.like is None:
            raise UserError(f"models.{section.name}: expected --like, the model {settings.like!r}")
        like = snapshots.load_model(arguments.like.parent, "cpu", torch.float32)
        try:
            changed = add_noise(model, like, settings.seed)
        except ValueError as error:
            raise UserError(
                f"models.{section.name}.like: {settings.like!r} is no model of the architecture of {settings.base!r}: {error}"
            ) from None
        if not changed:
            raise UserError(
                f"models.{section.name}.like: {settings.like!r} has the weights of {settings.base!r}; expected others"
            )
        checks = {"changed_tensors": changed}
    else:
        checks = {"rounded_weights": round_weights(model, settings.bits, settings.embeddings)}
    change = weights.relative_change(weights.change_norms(weights.paired(base, model)))
    checks["relative_weight_change"] = float(f"{change:.6g}")
    save(model, arguments.output.parent, source, section, {"licence": licence, "checks": checks})
    stage.say(f"perturb {section.name}: the weights change by {100 * change:.3g}% of their norm")


def save(
    model: transformers.PreTrainedModel, target: Path, source: Path, section: PerturbSection, recorded: dict
) -> None:
    """Publish a model with the tokenizer of its base."""
    seed = section.model.seed if isinstance(section.model, NoisedModel) else None
    with snapshots.working_folder(target) as name:
        folder = Path(name) / "snapshot"
        folder.mkdir()
        model.save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)
        snapshots.publish(folder, target, {**section.provenance(seed), **recorded})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    flags = stage.parser(PerturbSection, __doc__, "base", "output")
    flags.add_argument("--like", type=Path, help="the model whose difference from the base says how large the noise is")
    stage.run(main, flags.parse_args())
