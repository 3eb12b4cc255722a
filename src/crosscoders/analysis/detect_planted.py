"""Stage detect_planted: how well every method tells tokens of planted behaviours from others, on test documents."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis import bootstrap, detection, detectors
from crosscoders.analysis.detection import RANKINGS, Labels, Method
from crosscoders.analysis.detectors import Splits
from crosscoders.analysis.reconstruction import reconstruction
from crosscoders.analysis.sections import DetectPlantedSection
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.files import from_dataset
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.kernels import backends
from crosscoders.language_models import snapshots
from crosscoders.language_models.model_tokens import ModelTokens


def dictionaries(
    arguments, section: DetectPlantedSection, normalisation: xr.Dataset
) -> tuple[dict[str, Method], dict[str, tuple[float, float]]]:
    """The methods that are crosscoders or SAEs, and what each explains of the test tokens and with how many latents."""
    methods, quality = {}, {}
    for name, path in zip(section.crosscoders, arguments.crosscoders, strict=True):
        coder = from_dataset(artifacts.read(path))
        splits = read(arguments, normalisation, coder.sources)
        backend = backends.choose_for_evaluation(chosen_device(section.device), coder.latents)
        methods[name] = detectors.crosscoder(coder, splits, section.contrast, backend)
        quality[name] = explained(coder, splits.test)
        stage.say(
            f"detect_planted {section.label}: {name} explains {quality[name][0]:.3f} with L0 {quality[name][1]:.1f}"
        )
    return methods, quality


def explained(coder: Crosscoder, data: Activations) -> tuple[float, float]:
    """Fraction of variance explained, mean of the sources, and L0."""
    sums = reconstruction(coder, data, consecutive(data.metadata["document"].values))
    fraction = 1 - sums["error"].sum(0) / sums["variance"].sum(0)
    return float(fraction.mean()), float(sums["active"].sum() / sums["tokens"].sum())


def read(arguments, normalisation: xr.Dataset, sources: list[str]) -> Splits:
    """Validation and test activations of some sources."""
    data = (Activations(paths, normalisation, sources) for paths in (arguments.validation, arguments.activations))
    return Splits(*data, normalisation)


def baselines(arguments, section: DetectPlantedSection, splits: Splits) -> dict[str, Method]:
    """The methods that need no dictionary."""
    methods = detectors.from_difference(splits, section.components)
    device = chosen_device(section.reading.device)
    dtype = chosen_dtype(section.reading.dtype, device)
    folders = dict(zip(section.reading.models, arguments.models, strict=True))
    names = [section.reading.sources[name].model for name in section.contrast]
    pair = [snapshots.load_model(folders[name].parent, device, dtype) for name in names]
    tokens = ModelTokens.of(artifacts.read(arguments.tokens), names[1])
    nats = detectors.token_divergence(pair, tokens, section.reading.batch_tokens)
    methods["token-kl"] = detectors.divergence(splits.test.metadata["token_index"].values, nats)
    return methods


def to_dataset(
    measured: dict[str, np.ndarray], test: dict[str, Labels], document: np.ndarray, confidence: float
) -> xr.Dataset:
    """Both measures of every method with their intervals over documents, and their resamples.

    Parameters
    ----------
    measured : {method: (2, replicates, rankings, behaviours)}
        The first replicate is the data itself.
    test : {behaviour: Labels}
    document : (tokens,)
    confidence : float
    """
    v, dims = artifacts.variable, ("detector", "ranking", "behaviour")
    dataset = xr.Dataset(
        coords={
            "detector": np.array(list(measured), dtype=object),
            "ranking": np.array(list(RANKINGS), dtype=object),
            "behaviour": np.array(list(test), dtype=object),
        }
    )
    labels = {"auc": "area under the ROC curve", "average_precision": "average precision"}
    for (name, label), values in zip(labels.items(), np.stack(list(measured.values()), axis=2), strict=True):
        low, high = bootstrap.interval(values[1:], confidence)
        dataset[name] = v(dims, values[0], label)
        dataset[f"{name}_low"] = v(dims, low, f"lower end of the interval over documents of the {label}")
        dataset[f"{name}_high"] = v(dims, high, f"upper end of the interval over documents of the {label}")
        dataset[f"{name}_replicate"] = v(("replicate", *dims), values[1:].astype(np.float32), f"{label} of resamples")
    counts = np.array([(of.positive.sum(), of.negative.sum()) for of in test.values()])
    dataset["positive_tokens"] = v("behaviour", counts[:, 0], "test tokens of the behaviour")
    dataset["negative_tokens"] = v("behaviour", counts[:, 1], "test tokens of no behaviour")
    documents = [len(np.unique(document[of.positive])) for of in test.values()]
    dataset["positive_documents"] = v("behaviour", documents, "test documents that show the behaviour")
    return dataset


def main(arguments) -> None:
    """Measure all methods on one setting."""
    section: DetectPlantedSection = arguments.settings
    torch.set_grad_enabled(False)
    normalisation = artifacts.read(arguments.normalisation)
    methods, quality = dictionaries(arguments, section, normalisation)
    splits = read(arguments, normalisation, section.contrast)
    methods |= baselines(arguments, section, splits)
    methods["random-latents"] = detectors.random_latents(
        splits, section.random_latents, section.random_active, section.seed
    )
    validation, test = (
        detection.labels(data.metadata["planted_behaviour"]) for data in (splits.validation, splits.test)
    )
    document = consecutive(splits.test.metadata["document"].values)
    drawn = bootstrap.resamples(int(document[-1]) + 1, section.bootstrap.bootstrap_replicates, section.bootstrap.seed)
    weights, progress = (
        np.vstack([np.ones((1, drawn.shape[1])), drawn]),
        stage.Progress("detect_planted", len(methods), "methods"),
    )
    measured, by_chance = {}, {}
    for name, method in methods.items():
        measured[name] = detection.measure(method, validation, test, section.best, document, weights)
        by_chance[name] = detection.measure_random(method, test, section.best, document, drawn, section.seed)
        progress.update(1)
    dataset = to_dataset(measured, test, document, section.bootstrap.confidence)
    chance = np.stack(list(by_chance.values()), axis=1).astype(np.float32)
    label = "area under the ROC curve of latents chosen by chance, on resamples"
    dataset["auc_random_replicate"] = artifacts.variable(("replicate", "detector", "behaviour"), chance, label)
    known = np.array([quality.get(name, (np.nan, np.nan)) for name in measured])
    dataset["fraction_variance_explained"] = artifacts.variable(
        "detector", known[:, 0], "of test tokens, mean of the sources"
    )
    dataset["l0"] = artifacts.variable("detector", known[:, 1], "active latents per test token")
    dataset.attrs = section.provenance(section.seed) | {
        "title": "detection of planted behaviours",
        "best": section.best,
    }
    artifacts.write(dataset, arguments.output)


if __name__ == "__main__":
    flags = ("normalisation", "tokens", "output")
    lists = ("crosscoders", "activations", "validation", "models")
    stage.run(main, stage.parser(DetectPlantedSection, __doc__, *flags, lists=lists).parse_args())
