"""Stage measure_divergence: how far the two models of a contrast lie apart, in their weights and in what they predict.

Losses and the KL divergence of the second model's predictions from the first's are means over tokens of whole test
documents, with intervals by bootstrap over documents. Both models read the same tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.shuffle import consecutive, spread_documents
from crosscoders.analysis import bootstrap
from crosscoders.analysis.sections import MeasureDivergenceSection
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.language_models import snapshots, weights
from crosscoders.language_models.model_tokens import ChosenDocuments, ModelTokens
from crosscoders.language_models.windows import batches, padded

MEASURES = ("first_loss", "second_loss", "kl_divergence", "disagreement")


@torch.inference_mode()
def predictions(
    models: list[transformers.PreTrainedModel], ids: np.ndarray, spans: list[slice], sink: int, batch_tokens: int
) -> np.ndarray:
    """Losses and divergence of two models at every token of some windows.

    Parameters
    ----------
    models : two models
    ids : (tokens,)
    spans : windows
        Tokens outside of them get 0.
    sink : int
        Token before every window.
    batch_tokens : int

    Returns
    -------
    (measures, tokens)
        For the prediction of each token from those before it: the loss of the first model and of the second (nats),
        KL(first ‖ second) in nats, and whether the likeliest tokens of the two differ. Where one model has more tokens
        than the other, probabilities are those among the tokens that both have.
    """
    measured = np.zeros((len(MEASURES), len(ids)))
    progress = stage.Progress("measure_divergence", sum(span.stop - span.start for span in spans))
    for group in batches(spans, batch_tokens):
        rows = padded(ids, group, sink)
        logits = [model(input_ids=rows.to(model.device), use_cache=False).logits[:, :-1].float() for model in models]
        common = min(one.shape[-1] for one in logits)
        first, second = (one[..., :common].log_softmax(-1) for one in logits)
        following = rows[:, 1:].to(first.device).clamp(max=common - 1)[..., None]
        values = torch.stack(
            [
                -first.gather(-1, following)[..., 0],
                -second.gather(-1, following)[..., 0],
                (first.exp() * (first - second)).sum(-1),
                (first.argmax(-1) != second.argmax(-1)).float(),
            ]
        ).double()
        for i, span in enumerate(group):
            measured[:, span] = values[:, i, : span.stop - span.start].cpu().numpy()
        progress.update(sum(span.stop - span.start for span in group))
    return measured


def to_dataset(sums: np.ndarray, counts: np.ndarray, resamples: np.ndarray, confidence: float) -> xr.Dataset:
    """Means over tokens with their intervals.

    Parameters
    ----------
    sums : (measures, documents)
    counts : (documents,)
        Tokens.
    resamples : (replicates, documents)
    confidence : float
    """
    both, v = np.vstack([sums, sums[1] - sums[0]]).T, artifacts.variable
    mean, low, high = bootstrap.ratio_interval(
        both, np.broadcast_to(counts[:, None], both.shape), resamples, confidence
    )
    labels = {
        "model_first_loss": ("next-token loss of the first model", "nats"),
        "model_second_loss": ("next-token loss of the second model", "nats"),
        "model_kl_divergence": ("KL divergence of the second model's predictions from the first's", "nats"),
        "model_disagreement": ("share of tokens for which the models' likeliest tokens differ", "1"),
        "model_loss_difference": ("next-token loss of the second model less that of the first", "nats"),
    }
    dataset = xr.Dataset()
    for i, (name, (label, units)) in enumerate(labels.items()):
        dataset[name] = v((), mean[i], label, units=units)
        dataset[f"{name}_low"] = v((), low[i], "lower end of its interval over documents", units=units)
        dataset[f"{name}_high"] = v((), high[i], "upper end of its interval over documents", units=units)
    dataset["model_tokens"] = v((), np.int64(counts.sum()), "test tokens on which the models are compared")
    return dataset


def main(arguments) -> None:
    """Compare the models of one setting."""
    section: MeasureDivergenceSection = arguments.settings
    options, device = section.bootstrap, chosen_device(section.device)
    dtype = chosen_dtype(section.dtype, device)
    tokens = artifacts.read(arguments.tokens)
    document = consecutive(tokens["document"].values)
    chosen = spread_documents(document, section.divergence_tokens)[document]
    numbers = np.unique(document[chosen & tokens["in_all_models"].values.astype(bool)])
    read = ModelTokens.of(tokens, section.models[0])
    documents = ChosenDocuments.of(read, tokens["document"].values, numbers)
    models = [snapshots.load_model(path.parent, device, dtype) for path in arguments.models]
    measured = predictions(models, read.ids, documents.spans, read.sink, section.batch_tokens)
    resamples = bootstrap.resamples(documents.documents, options.bootstrap_replicates, options.seed)
    dataset = to_dataset(documents.sums(measured), documents.counts, resamples, options.confidence)
    del models
    dataset = dataset.merge(weight_changes([path.parent for path in arguments.models], section.bits))
    artifacts.write(dataset.assign_attrs(**section.provenance(), title="two models compared"), arguments.output)
    change = f"{100 * float(dataset['weight_change']):.3g}%"
    kl, loss = (float(dataset[f"model_{name}"]) for name in ("kl_divergence", "loss_difference"))
    stage.say(f"measure_divergence {section.setting_name}: weights {change}, KL {kl:.4g}, loss {loss:+.4g} nats")


def weight_changes(folders: list[Path], bits: int | None) -> xr.Dataset:
    """By how much the second model's weights differ from the first's; NaN where their tensors have no common names."""
    v = artifacts.variable
    first, second = (snapshots.load_model(folder, "cpu", torch.float32) for folder in folders)
    try:
        norms = weights.change_norms(weights.paired(first, second))
    except ValueError:
        norms = {}
    names = np.array(list(norms), dtype=object)
    pairs = np.array(list(norms.values()), dtype=np.float64).reshape(-1, 2)
    total = weights.relative_change(norms) if norms else np.nan
    label = "Frobenius norm of the change of all weights over that of the first model's weights"
    return xr.Dataset(
        {
            "weight_norm": v("tensor", pairs[:, 0], "Frobenius norm of the first model's tensor"),
            "weight_change_norm": v("tensor", pairs[:, 1], "Frobenius norm of the tensor's change"),
            "weight_change": v((), np.float64(total), label),
            "weight_bits": v((), np.float64(bits or np.nan), "bits to which the second model's weights are rounded"),
        },
        coords={"tensor": names},
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    parser = stage.parser(MeasureDivergenceSection, __doc__, "tokens", "output", lists=("models",))
    stage.run(main, parser.parse_args())
