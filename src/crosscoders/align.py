"""Stage train_aligned: one aligned crosscoder, trained, and measured on test documents from every source to every source."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import aligned, artifacts, stage
from crosscoders.errors import UserError
from crosscoders.feed import Activations
from crosscoders.settings import AlignedSettings


def to_dataset(coder: aligned.Aligned, measured: dict[str, np.ndarray]) -> xr.Dataset:
    """Weights and measurements."""
    v = artifacts.variable
    pair = ("source", "other_source")
    found = {
        "aligned_fraction_variance_explained": v(pair, measured["fraction_variance_explained"], "fraction of the variance of the other source explained from the source's code"),
        "aligned_overlap": v(pair, measured["overlap"], "Jaccard overlap of the active latents of two sources"),
        "aligned_l0": v("source", measured["l0"], "active latents per token of the source's code"),
        "encoder_bias": v(("source", "latent"), coder.encoder_bias.numpy(), "encoder bias"),
        "threshold": v("source", coder.thresholds.numpy(), "score above which a latent is on at inference"),
    }  # fmt: skip
    decoders = coder.decoder.split(coder.widths, dim=1)
    biases = coder.decoder_bias.split(coder.widths)
    for name, encoder, decoder, bias in zip(coder.sources, coder.encoders, decoders, biases, strict=True):
        width = f"width_{name}"
        found[f"encoder_{name}"] = v(("latent", width), encoder.numpy(), f"encoder for {name}")
        found[f"decoder_{name}"] = v(("latent", width), decoder.numpy(), f"decoder for {name}")
        found[f"decoder_bias_{name}"] = v(width, bias.numpy(), f"decoder bias for {name}")
    names = np.array(coder.sources, dtype=object)
    return xr.Dataset(found, coords={"source": names, "other_source": names})


def main(arguments) -> None:
    """Train, measure, save."""
    section = arguments.settings
    settings = AlignedSettings.model_validate(section["aligned"])
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    normalisation = artifacts.read(arguments.normalisation)
    train, held_out, test = (
        Activations(paths, normalisation) for paths in (arguments.activations, arguments.validation, arguments.test)
    )
    name = f"align {section['setting_name']}/{section['aligned_name']}/seed-{section['seed']}"
    progress = stage.Progress(name, settings.training.steps, "steps")
    try:
        coder = aligned.fit(settings, train, held_out, section["seed"], lambda step, loss, l0: progress.reach(step, loss=loss, l0=l0))  # fmt: skip
    except FloatingPointError as error:
        raise UserError(f"aligned.{section['aligned_name']}: {error}; expected a lower learning_rate") from None
    dataset = to_dataset(coder, aligned.evaluate(coder, test))
    dataset.attrs = artifacts.provenance(section["study"], "train_aligned", section, section["seed"])
    artifacts.write(dataset.assign_attrs(title=name, activation=coder.activation), arguments.output)
    matrix = dataset["aligned_fraction_variance_explained"].values
    stage.say(
        f"{name}: FVE own {np.diag(matrix).mean():.3f}, across {matrix[~np.eye(len(matrix), dtype=bool)].mean():.3f}"
    )


if __name__ == "__main__":
    flags = ("normalisation", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations", "validation", "test")).parse_args())
