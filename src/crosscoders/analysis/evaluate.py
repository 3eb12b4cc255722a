"""Stage evaluate: reconstruction, sparsity and spliced loss of one crosscoder on the test documents."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.sections import ModelReading
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis import bootstrap
from crosscoders.analysis.reconstruction import BATCH, reconstruction
from crosscoders.analysis.sections import EvaluateSection
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.crosscoder.files import from_dataset, settings_of
from crosscoders.crosscoder.penalties import PENALTIES
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.kernels import backends, sparse_code
from crosscoders.kernels.interface import Backend
from crosscoders.language_models import snapshots, splicing
from crosscoders.language_models.model_tokens import ChosenDocuments, ModelTokens
from crosscoders.study.blocks import block_sizes
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.crosscoders import CrosscoderSettings, PublishedSettings

REPLACEMENTS = ("clean", "spliced", "zero", "mean")


def pair_cost(coder: Crosscoder, settings: CrosscoderSettings | PublishedSettings, coefficient: float):
    """The penalty of every active pair of a code, as a function of the code; `None` where there is no penalty."""
    if settings.penalty.kind == "none":
        return None
    penalty = PENALTIES[settings.penalty.kind]
    size, rate = penalty.join(coder.decoder_norms()), coefficient * coder.penalty

    def cost(code: sparse_code.Code) -> torch.Tensor:
        return penalty.value(code.values * size[code.latents], settings.penalty.scale) * rate[code.latents]

    return cost


def effort(coder: Crosscoder, settings: CrosscoderSettings | PublishedSettings) -> dict[str, tuple]:
    """Size of the dictionary, and what its training took.

    A weight that a block may use counts 2 floating-point operations per token forward and 4 backward, whatever the
    sparse kernels save: m latents over L sources of one width cost what L SAEs of m latents cost [L24]. Of a published
    crosscoder the tokens are not known, −1, and neither are the operations, NaN.
    """
    widths = torch.tensor(coder.widths)
    weights = int((coder.reads * widths).sum() + (coder.writes * widths).sum())
    known = isinstance(settings, CrosscoderSettings)
    tokens = settings.training.tokens if known else -1
    v = artifacts.variable
    return {
        "dictionary_size": v((), np.int64(coder.latents), "latents of the dictionary"),
        "written_sources": v(
            (), coder.writes.float().sum(1).mean().item(), "sources that a latent may write, on average"
        ),
        "training_tokens": v((), np.int64(tokens), "tokens seen in training"),
        "training_flops": v(
            (), float(6 * weights * tokens) if known else np.nan, "floating-point operations of training"
        ),
    }


def to_dataset(
    coder: Crosscoder, sums: dict[str, np.ndarray], source_weights: np.ndarray, options: Bootstrap
) -> xr.Dataset:
    """Fraction of variance explained, loss, L0 and dead share, with intervals over documents."""
    weights = bootstrap.resamples(len(sums["tokens"]), options.bootstrap_replicates, options.seed)
    ratio = lambda a, b: bootstrap.ratio_interval(a, b, weights, options.confidence)  # noqa: E731
    unexplained, low, high = ratio(sums["error"], sums["variance"])
    l0, l0_low, l0_high = ratio(sums["active"], sums["tokens"])
    loss, loss_low, loss_high = ratio(sums["error"] @ source_weights + sums["penalty"], sums["tokens"])
    v = artifacts.variable
    return xr.Dataset(
        {
            "fraction_variance_explained": v("source", 1 - unexplained, "fraction of variance explained"),
            "fraction_variance_explained_low": v("source", 1 - high, "lower end of its interval over documents"),
            "fraction_variance_explained_high": v("source", 1 - low, "upper end of its interval over documents"),
            "l0": v((), np.float64(l0), "active latents per token at inference"),
            "l0_low": v((), np.float64(l0_low), "lower end of its interval over documents"),
            "l0_high": v((), np.float64(l0_high), "upper end of its interval over documents"),
            "loss": v((), np.float64(loss), "squared error of all sources and penalty, per token"),
            "loss_low": v((), np.float64(loss_low), "lower end of its interval over documents"),
            "loss_high": v((), np.float64(loss_high), "upper end of its interval over documents"),
            "dead_fraction": v((), np.mean(sums["fired"] == 0), "share of latents that fire on no test token"),
            "tokens": v((), np.int64(sums["tokens"].sum()), "test tokens, sinks left out"),
        },
        coords={"source": ("source", np.array(coder.sources, dtype=object), {"long_name": "source"})},
    )


def nested_prefixes(settings: CrosscoderSettings | PublishedSettings, sources: list[str]) -> list[int]:
    """Latents of every prefix of blocks that reconstructs on its own; none where blocks are not nested."""
    nested = isinstance(settings, CrosscoderSettings) and settings.nested
    return list(itertools.accumulate(block_sizes(settings, sources).values())) if nested else []


def prefix_dataset(prefixes: list[int], sums: dict[str, np.ndarray], options: Bootstrap) -> xr.Dataset:
    """Fraction of variance explained by every prefix of nested blocks, with intervals over documents."""
    weights = bootstrap.resamples(len(sums["tokens"]), options.bootstrap_replicates, options.seed)
    variance = np.broadcast_to(sums["variance"][:, None], sums["prefix_error"].shape)
    unexplained, low, high = bootstrap.ratio_interval(sums["prefix_error"], variance, weights, options.confidence)
    v, dims, name = artifacts.variable, ("prefix", "source"), "prefix_fraction_variance_explained"
    return xr.Dataset(
        {
            name: v(dims, 1 - unexplained, "fraction of variance explained by the first latents alone"),
            f"{name}_low": v(dims, 1 - high, "lower end of its interval over documents"),
            f"{name}_high": v(dims, 1 - low, "upper end of its interval over documents"),
        },
        coords={"prefix": ("prefix", np.array(prefixes, np.int64), {"long_name": "latents of the prefix"})},
    )


def rebuilt_rows(
    coder: Crosscoder, data: Activations, normalisation: xr.Dataset, chosen: np.ndarray, backend: Backend
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Reconstructions of the kept tokens among `chosen`, (tokens of the split,) bool, as raw activations.

    Returns
    -------
    replaced : (tokens,) bool
    rebuilt : {source: (tokens, width)}, float32, 0 where nothing is replaced
    """
    index = data.metadata["token_index"].values
    rows = np.flatnonzero(chosen[index])
    rebuilt = {
        name: np.zeros((len(chosen), width), np.float32)
        for name, width in zip(coder.sources, coder.widths, strict=True)
    }
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        code = encode_sparse(coder, data.rows(part), backend)
        decoded = backend.decode(code, coder.decoder, coder.decoder_bias).numpy()
        for name, columns in zip(coder.sources, coder.columns, strict=True):
            scale = normalisation["scale"].sel(source=name).values
            rebuilt[name][index[part]] = decoded[:, columns] * scale + normalisation[f"mean_{name}"].values
    replaced = np.zeros(len(chosen), bool)
    replaced[index[rows]] = True
    return replaced, rebuilt


def splice(
    coder: Crosscoder,
    data: Activations,
    normalisation: xr.Dataset,
    ablations: xr.Dataset,
    tokens: xr.Dataset,
    folders: dict[str, Path],
    reading: ModelReading,
    backend: Backend,
) -> np.ndarray:
    """Sums within documents of the loss with each source replaced by its reconstruction, (documents, sources).

    The sums are NaN for sources that no model has, as differences of models.
    """
    device = chosen_device(reading.device)
    document, numbers = tokens["document"].values, ablations["document_index"].values
    replaced, rebuilt = rebuilt_rows(coder, data, normalisation, np.isin(consecutive(document), numbers), backend)
    sums = np.full((len(numbers), len(coder.sources)), np.nan)
    for model_name, folder in folders.items():
        model = snapshots.load_model(folder.parent, device, chosen_dtype(reading.dtype, device))
        read = ModelTokens.of(tokens, model_name)
        chosen = ChosenDocuments.of(read, document, numbers)
        own = {s: reading.sources.get(name) for s, name in enumerate(coder.sources)}
        own = {s: source for s, source in own.items() if source and source.model == model_name}
        changes = [
            ((source.layer, source.hook), read.spread(rebuilt[coder.sources[s]], replaced)) for s, source in own.items()
        ]
        losses = splicing.token_losses(
            model, read.ids, chosen.spans, read.sink, reading.batch_tokens, changes, read.marked(replaced)
        )
        if own:
            sums[:, [*own]] = chosen.sums(losses).T
    return sums


def splice_dataset(sources: list[str], spliced: np.ndarray, ablations: xr.Dataset, options: Bootstrap) -> xr.Dataset:
    """Spliced loss, and how much of the loss that an ablation costs is recovered, with intervals over documents."""
    known = [name for name in sources if name in ablations["source"].values]
    losses = np.full((*spliced.shape, len(REPLACEMENTS)), np.nan)
    for s, name in enumerate(sources):
        losses[:, s, REPLACEMENTS.index("spliced")] = spliced[:, s]
        for replacement in ("clean", "zero", "mean") if name in known else ():
            losses[:, s, REPLACEMENTS.index(replacement)] = ablations["cross_entropy"].sel(
                source=name, ablation=replacement
            )
    weights = bootstrap.resamples(len(losses), options.bootstrap_replicates, options.seed)
    clean, ablated = losses[..., :1], losses[..., 2:]
    recovered = bootstrap.ratio_interval(ablated - losses[..., 1:2], ablated - clean, weights, options.confidence)
    v, dims, tokens = artifacts.variable, ("source", "ablation"), tokens_of(sources, ablations)
    return xr.Dataset(
        {
            "cross_entropy": v(
                ("source", "replacement"),
                losses.sum(0) / tokens[:, None],
                "next-token loss with the source changed",
                "nats",
            ),
            "cross_entropy_recovered": v(dims, recovered[0], "share of the loss that the ablation costs, recovered"),
            "cross_entropy_recovered_low": v(dims, recovered[1], "lower end of its interval over documents"),
            "cross_entropy_recovered_high": v(dims, recovered[2], "upper end of its interval over documents"),
            "splice_tokens": v(
                (), np.int64(tokens.max()), "test tokens on which losses were measured, most of any source"
            ),
        },
        coords={
            "replacement": np.array(REPLACEMENTS, dtype=object),
            "ablation": np.array(REPLACEMENTS[2:], dtype=object),
        },
    )


def tokens_of(sources: list[str], ablations: xr.Dataset) -> np.ndarray:
    """Tokens on which the losses of each source's model were measured, (sources,); models may have other tokenizers."""
    counts = ablations["tokens"].sum("document")
    if "source" in counts.dims:
        counts = counts.reindex(source=sources)
    return np.broadcast_to(counts.values.astype(float), len(sources))


def main(arguments) -> None:
    """Evaluate one crosscoder."""
    section: EvaluateSection = arguments.settings
    torch.set_grad_enabled(False)
    trained = artifacts.read(arguments.crosscoder)
    coder = from_dataset(trained)
    normalisation = artifacts.read(arguments.normalisation)
    data = Activations(arguments.activations, normalisation, coder.sources, section.null)
    settings = settings_of(trained)
    cost = pair_cost(coder, settings, float(trained["penalty_coefficient"]))
    backend = backends.choose_for_evaluation(chosen_device(section.device), coder.latents)
    prefixes = nested_prefixes(settings, coder.sources)
    sums = reconstruction(coder, data, consecutive(data.metadata["document"].values), cost, backend, prefixes)
    weights = np.array([settings.source_weights.get(name, 1.0) for name in coder.sources])
    dataset = to_dataset(coder, sums, weights, section.bootstrap)
    dataset = dataset.assign(effort(coder, settings))
    if prefixes:
        dataset = dataset.merge(prefix_dataset(prefixes, sums, section.bootstrap))
    for name in ("l0_training", "penalty_coefficient", "threshold", "threshold_training"):
        dataset[name] = trained[name].mean(
            keep_attrs=True
        )  # learned thresholds, and those of blocks, are one per latent
    if arguments.ablations:
        ablations, tokens = artifacts.read(arguments.ablations), artifacts.read(arguments.tokens)
        folders = dict(zip(section.splice.models, arguments.models, strict=True))
        spliced = splice(coder, data, normalisation, ablations, tokens, folders, section.splice, backend)
        dataset = dataset.merge(splice_dataset(coder.sources, spliced, ablations, section.bootstrap))
    artifacts.write(
        dataset.assign_attrs(**section.provenance(), title="evaluation on test documents"), arguments.output
    )
    explained = ", ".join(
        f"{name} {value:.3f}"
        for name, value in zip(coder.sources, dataset["fraction_variance_explained"].values, strict=True)
    )
    stage.say(f"evaluate: FVE {explained}; L0 {float(dataset['l0']):.1f}; dead {float(dataset['dead_fraction']):.3f}")


if __name__ == "__main__":
    flags = ("crosscoder", "normalisation", "output")
    parser = stage.parser(EvaluateSection, __doc__, *flags, lists=("activations",))
    for flag in ("--ablations", "--tokens"):
        parser.add_argument(flag, type=Path, help="for the spliced loss")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="for the spliced loss")
    stage.run(main, parser.parse_args())
