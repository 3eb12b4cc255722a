"""Stage trial: one member of the family trained and judged on synthetic sources whose concepts are known."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.analysis import bootstrap, classification, traces
from crosscoders.analysis.reconstruction import reconstruction
from crosscoders.analysis.simplex import simplex_dataset, subset_of
from crosscoders.analysis.traces import Presence
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.errors import explain_divergence
from crosscoders.planted import concepts
from crosscoders.planted.concepts import PLANTED_CLASSES, PRESENT, Sample, World
from crosscoders.planted.sections import TrialSection
from crosscoders.study.contrasts import SEVERAL
from crosscoders.study.settings.analysis import Classification
from crosscoders.training import loop
from crosscoders.training.recipes import CrosscoderRecipe

RULES = ("norm", "norm and scaling")
COURSE = {
    "onset_accuracy": "share of concepts begun in the right source",
    "ending_accuracy": "share of concepts ended in the right source",
    "rotation_error": "mean absolute error of the cosine between consecutive sources",
}


def calls(geometry: xr.Dataset, specific: xr.Dataset) -> dict[str, np.ndarray]:
    """What each rule calls every latent: its class by norm, or that class only where latent scaling confirms it."""
    by_norm = np.array(classification.NORM_CLASSES)[geometry["norm_class"].values]
    by_scaling = np.array(classification.SPECIFIC)[specific["specific"].values]
    confirmed = ((by_norm == "chat-only") & (by_scaling == "chat")) | (
        (by_norm == "base-only") & (by_scaling == "base")
    )
    return dict(zip(RULES, (by_norm, np.where(confirmed, by_norm, "other")), strict=True))


def course(
    truth: World, decoders: list[np.ndarray], known: list[int], cosine: np.ndarray, alive: np.ndarray, threshold: float
) -> dict[str, float]:
    """How well the best latents of recovered concepts show where concepts begin and end, and how they turn.

    Parameters
    ----------
    truth : World
    decoders : per source of the crosscoder, (m, width)
    known : list of int
        Indices of those sources among the planted ones, in order.
    cosine : (concepts, m)
        Of every concept with every latent.
    alive : (m,) bool
    threshold : float
        Absolute cosine above which a latent stands for a concept.

    Returns
    -------
    {name: float}
        `onset_accuracy` and `ending_accuracy`: shares of spanning concepts whose latent has half its largest decoder norm
        first, and last, in the source where the concept begins, and ends. `rotation_error`: mean absolute difference
        between the cosines of a latent's and of its concept's directions in consecutive sources in which the concept
        lives. NaN where nothing can be said.
    """
    nothing = dict.fromkeys(("onset_accuracy", "ending_accuracy", "rotation_error"), np.nan)
    cosine = np.where(alive, cosine, 0)
    concept = np.flatnonzero(cosine.max(1) > threshold)
    best, spanning = cosine.argmax(1)[concept], truth.is_class("spanning")[concept]
    if not spanning.any() or known != list(range(truth.gain.shape[1])):
        return nothing
    presence = Presence.of(np.stack([np.linalg.norm(decoder[best], axis=1) for decoder in decoders], axis=1))
    ends = np.where(presence.vanishes_after < 0, len(known) - 1, presence.vanishes_after)
    found = {
        "onset_accuracy": float((presence.emerges_at == truth.first[concept])[spanning].mean()),
        "ending_accuracy": float((ends == truth.last[concept])[spanning].mean()),
    }
    if len({decoder.shape[1] for decoder in decoders}) > 1:
        return nothing | found
    turned, _ = traces.rotation([torch.from_numpy(decoder[best]).double() for decoder in decoders])
    planted, _ = traces.rotation([torch.from_numpy(directions[concept]) for directions in truth.directions])
    both, _ = traces.present_in_both(truth.gain[concept] >= 0.5)
    difference = np.abs(turned - planted)[both]
    return nothing | found | {"rotation_error": float(np.nanmean(difference)) if len(difference) else np.nan}


def judged_subsets(
    truth: World, compared: xr.Dataset, lives: np.ndarray, best: np.ndarray, recovered: np.ndarray
) -> xr.Dataset:
    """How well subset classes agree with the sources in which concepts live, and ν between sources for every concept.

    Parameters
    ----------
    truth : World
    compared : xarray.Dataset
        What :func:`crosscoders.analysis.simplex.simplex_dataset` says of the latents.
    lives : (concepts, n) bool
        Sources of the contrast in which a concept lives.
    best : (concepts,)
        Latent nearest to each concept.
    recovered : (concepts,) bool
        Whether it stands for the concept.

    Returns
    -------
    xarray.Dataset
        Over `planted_class`: `subset_agreement`, the share of recovered concepts whose latent is written to exactly the
        sources in which the concept lives, and `subset_called` (planted × subset). Over `concept`: the latent's ν of the
        error and of the reconstruction from every source to every other.
    """
    names = [name for name in truth.classes if truth.is_class(name).any()]
    called, planted = compared["subset_class"].values[best], subset_of(lives)
    subsets = np.arange(1, compared.sizes["subset"] + 1)
    agreement, table = [], []
    for name in names:
        chosen = truth.is_class(name) & recovered
        agreement.append(concepts.share(called == planted, chosen))
        table.append([concepts.share(called == subset, chosen) for subset in subsets])
    v, pair = artifacts.variable, ("concept", "from_source", "to_source")
    variables = {
        "subset_agreement": v(
            "planted_class", agreement, "share of recovered concepts in the subset in which they live"
        ),
        "subset_called": v(("planted_class", "subset"), table, "share of recovered concepts by subset of the latent"),
    }
    for target in ("error", "reconstruction"):
        name = f"nu_{target}_pair"
        values, attributes = compared[name].values[best], compared[name].attrs
        variables[f"concept_{name}"] = v(
            pair, np.where(recovered[:, None, None], values, np.nan), attributes["long_name"]
        )
    return xr.Dataset(variables, coords={dim: compared[dim] for dim in ("subset", "from_source", "to_source")})


def quality(coder: Crosscoder, sums: dict[str, np.ndarray]) -> dict[str, xr.Variable]:
    """How well a crosscoder reconstructs, how sparse it is and how much of it is alive, from sums over test tokens."""
    v, explained = artifacts.variable, 1 - sums["error"].sum(0) / sums["variance"].sum(0)
    return {
        "fraction_variance_explained": v("source", explained, "fraction of variance explained"),
        "l0": v((), sums["active"].sum() / sums["tokens"].sum(), "active latents per token at inference"),
        "dead_fraction": v((), 1 - (sums["fired"] > 0).mean(), "share of latents that fire on no test token"),
        "latents": v((), np.int64(coder.latents), "latents of the dictionary"),
    }


def score(
    truth: World,
    coder: Crosscoder,
    data: Sample,
    held_out: Sample,
    parts: list[list[int]],
    contrast: tuple[int, ...],
    settings: Classification,
    threshold: float,
) -> xr.Dataset:
    """Reconstruction, classes and the judgement of one crosscoder on test tokens `data`.

    Latent scaling is fitted on the validation tokens `held_out`. `parts` holds, per source, the planted sources that it
    is made of: one, or the two of a difference. No rule judges concepts that span layers, for which there is `course`, and a
    contrast of three sources or more, for which there are subsets.
    """
    weights = bootstrap.resamples(int(data.document[-1]) + 1, settings.bootstrap_replicates, settings.seed)
    sums = reconstruction(coder, data, data.document)
    scaling, _ = classification.scan(coder, data, data.document, contrast, weights)
    geometry = classification.geometry_dataset(coder, contrast, settings)
    validation, _ = classification.scan(coder, held_out, held_out.document, contrast)
    specific = classification.scaling_dataset(scaling, validation, geometry["relative_norm"].values, settings)
    alive = sums["fired"] > 0
    made_of = [
        (coder.decoder[:, columns].numpy(), s) for columns, part in zip(coder.columns, parts, strict=True) for s in part
    ]
    decoders, known = [decoder for decoder, _ in made_of], [s for _, s in made_of]
    cosine, concept = concepts.match(truth, decoders, known, threshold)
    pair = len(contrast) == 2 and not truth.is_class("spanning", *truth.classes[len(PLANTED_CLASSES) :]).any()
    called = calls(geometry, specific) if pair else {}
    judged = concepts.judge(truth, cosine, concept, alive, called, threshold)
    v, best = artifacts.variable, np.where(alive, cosine, 0).argmax(1)
    how = course(truth, decoders, known, cosine, alive, threshold)
    judged = judged.assign(
        **quality(coder, sums),
        **{name: v((), how[name], label) for name, label in COURSE.items()},
        concept_class=artifacts.flags("concept", truth.planted_class, truth.classes, "class of the concept"),
        concept_cosine=v("concept", cosine[np.arange(len(cosine)), best], "cosine of the concept with its best latent"),
        concept_relative_norm=v("concept", geometry["relative_norm"].values[best], "relative norm of that latent"),
        concept_nu_error=v("concept", specific["nu_error"].values[best], "ν of the error of that latent"),
        concept_nu_reconstruction=v("concept", specific["nu_reconstruction"].values[best], "ν of its reconstruction"),
    )
    if len(contrast) >= SEVERAL:
        norms, names = geometry["decoder_norm"].values[:, list(contrast)], [coder.sources[s] for s in contrast]
        compared = simplex_dataset(norms, names, scaling, validation, settings)
        lives = truth.gain[:, [parts[s][0] for s in contrast]] >= PRESENT
        judged = judged.merge(
            judged_subsets(truth, compared, lives, best, np.where(alive, cosine, 0).max(1) > threshold)
        )
    return judged.assign_coords(source=("source", np.array(coder.sources, dtype=object)))


def main(arguments) -> None:
    """Plant concepts, train one crosscoder on them, judge it, and save the judgement."""
    section: TrialSection = arguments.settings
    synthetic, options, member = section.synthetic, section.synthetic.planted, section.crosscoder
    stored, seed = list(synthetic.widths), section.seed
    torch.set_grad_enabled(False)
    truth = concepts.world(options, synthetic.widths, seed)
    drawn, _ = concepts.samples(truth, options, stored, synthetic.differences, synthetic.tokens, seed)
    chosen = {split: sample.only(section.sources) for split, sample in drawn.items()}
    name = f"trial {section.label}"
    progress = stage.Progress(name, member.training.steps, "steps")
    report = lambda state: progress.reach(state.step, loss=state.history["loss"][-1], l0=state.history["l0"][-1])  # noqa: E731
    with explain_divergence(f"crosscoders.{section.crosscoder_name}"):
        state = loop.fit(CrosscoderRecipe(member), chosen["train"], chosen["validation"], seed, report=report)
    coder = state.crosscoder
    contrast = classification.compared_sources(coder, section.contrast)
    parts = [[stored.index(part) for part in synthetic.differences.get(source, [source])] for source in coder.sources]
    settings = section.classification
    dataset = score(
        truth, coder, chosen["test"], chosen["validation"], parts, contrast, settings, options.recovered_above
    )
    dataset["training_tokens"] = artifacts.variable((), np.int64(member.training.tokens), "tokens seen in training")
    dataset.attrs = section.provenance() | {"title": name}
    artifacts.write(dataset, arguments.output)
    recovered = ", ".join(
        f"{kind} {float(value):.2f}"
        for kind, value in zip(dataset["planted_class"].values, dataset["recovered"].values, strict=True)
    )
    stage.say(f"{name}: L0 {float(dataset['l0']):.1f}, recovered: {recovered}")


if __name__ == "__main__":
    stage.run(main, stage.parser(TrialSection, __doc__, "output").parse_args())
