"""Stage causal: how far each patch restores the chat model's predictions where base's lower half replaces its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.analysis import bootstrap
from crosscoders.analysis.sections import ClassifyLatentsSection
from crosscoders.crosscoder.files import from_dataset
from crosscoders.data.chats import ROLES
from crosscoders.interventions import patching
from crosscoders.interventions.patching import Directions, Pair
from crosscoders.interventions.reading import Reader, Scale, directions, load_pair
from crosscoders.interventions.sections import CausalSection
from crosscoders.language_models.windows import batches, padded, windows
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.comparisons import Causal

BATCH = 2048


def sets(latents: xr.Dataset, settings: Causal) -> dict[str, np.ndarray]:
    """Named sets of latents: halves of the most chat-leaning ones, and random sets matched to the better half by Δ."""
    delta, density = latents["relative_norm"].values, latents["density"].values
    alive = (density > 0) & np.isfinite(delta)
    if alive.sum() < 2 * settings.candidates:
        return {}
    classified = ClassifyLatentsSection.model_validate_json(latents.attrs["settings"])
    limit = classified.classification.chat_only_above
    chosen = patching.candidates(delta, alive, limit, settings.candidates)
    ranks = patching.rank_sum(chosen, latents["nu_reconstruction"].values, latents["nu_error"].values)
    named = {}
    for label, badness in (("Δ", -delta), ("ν", ranks)):
        named[f"best half by {label}"], named[f"worst half by {label}"] = patching.halves(chosen, badness)
    allowed = alive.copy()
    allowed[chosen] = False
    norm = latents["decoder_norm"].values.sum(1)
    drawn = patching.matched_sets(named["best half by Δ"], allowed, density, norm, settings.random_sets, settings.seed)
    return named | {f"random {i + 1}": one for i, one in enumerate(drawn)}


def components(data: Activations, scale: Scale, count: int) -> torch.Tensor:
    """Leading principal components of chat − base, raw, over a split of the sources [base, chat], (count, width)."""
    width = data.widths[0]
    products, total = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for _, x in data.batches(BATCH):
        parts = zip(data.sources, x.double().split(data.widths, dim=1), strict=True)
        base, chat = (part * scale.scale[name] + scale.mean[name] for name, part in parts)
        gap = chat - base
        products += gap.T @ gap
        total += gap.sum(0)
    covariance = products / len(data) - torch.outer(total, total) / len(data) ** 2
    return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count].T.float()


@dataclass
class Patches:
    """What is patched into base's activations.

    Attributes
    ----------
    where : Directions
        What a latent adds.
    constant : (width,)
        What is added at every token besides.
    named : {name: (m,) bool}
        Sets of latents.
    mean : (width,)
        Mean difference of the models.
    principal : {count: (count, width)}
        Leading principal components of their difference.
    """

    where: Directions
    constant: torch.Tensor
    named: dict[str, torch.Tensor]
    mean: torch.Tensor
    principal: dict[int, torch.Tensor]

    def conditions(self, pair: Pair, kept: torch.Tensor, template: torch.Tensor) -> dict[str, torch.Tensor]:
        """The patched activations of every condition, (batch, position, width).

        Parameters
        ----------
        pair : Pair
        kept, template : (batch, position) bool
            Tokens that crosscoders see, and template tokens.
        """
        at = kept[..., None]
        everything = pair.contribution(self.where.replace) + self.constant * at
        patched = {
            "none": pair.base,
            "all": pair.base + everything,
            "error": pair.chat - everything,
            "all and error": pair.base + everything + (pair.chat - pair.base - everything),
            "template": torch.where(template[..., None], pair.chat, pair.base),
            "mean difference": pair.base + self.mean * at,
        }
        for name, members in self.named.items():
            patched[name] = pair.base + pair.contribution(self.where.replace, members)
            if name.startswith("best"):
                patched[f"{name}, added"] = pair.base + pair.contribution(self.where.chat, members)
        for count, axes in self.principal.items():
            centred = pair.chat - pair.base - self.mean
            patched[f"components {count}"] = pair.base + (self.mean + centred @ axes.T @ axes) * at
        return patched


def measure(
    reader: Reader, responses: xr.Dataset, patches: Patches, batch_tokens: int, label: str
) -> dict[str, np.ndarray]:
    """KL of every response token under every condition, {condition: (response tokens,)}.

    Parameters
    ----------
    reader : Reader
    responses : xarray.Dataset
        What `generate_responses` wrote.
    patches : Patches
    batch_tokens : int
        Tokens per forward pass.
    label : str
        For progress.
    """
    ids, place = responses["token_id"].values, responses["response_place"].values
    template = responses["role"].values == ROLES.index("template")
    divergences: dict[str, np.ndarray] = {}
    progress = stage.Progress(label, len(ids))
    for group in batches(windows(responses["position"].values), batch_tokens):
        rows = padded(ids, group, int(responses.attrs["sink_token_id"]))
        inside, wanted, templated = _masks(rows, group, place, template)
        pair, kept = reader.read(rows, inside)
        order = np.concatenate([span.start + np.flatnonzero(place[span] >= 0) for span in group])
        upper = partial(patching.log_probabilities, reader.chat, reader.layer, ids=rows, wanted=wanted)
        reference = upper(pair.chat)
        for name, hidden in patches.conditions(pair, kept, templated).items():
            column = divergences.setdefault(name, np.full(len(ids), np.nan))
            column[order] = patching.divergence(reference, upper(hidden))
        progress.update(sum(span.stop - span.start for span in group))
    return {name: column[place >= 0] for name, column in divergences.items()}


def _masks(
    rows: torch.Tensor, group: list[slice], place: np.ndarray, template: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions of padded windows that hold tokens, that predict response tokens, and that hold the template."""
    inside, wanted, templated = (torch.zeros(rows.shape, dtype=torch.bool) for _ in range(3))
    for i, span in enumerate(group):
        length = span.stop - span.start
        inside[i, 1 : 1 + length] = True
        wanted[i, :length] = torch.from_numpy(place[span] >= 0)  # a token is predicted from the one before it
        templated[i, 1 : 1 + length] = torch.from_numpy(template[span])
    return inside, wanted, templated


def to_dataset(
    divergences: dict[str, np.ndarray],
    named: dict[str, np.ndarray],
    document: np.ndarray,
    place: np.ndarray,
    options: Bootstrap,
) -> xr.Dataset:
    """Divergence by condition and segment of the response, and the share of the gap it closes, with intervals."""
    inside = patching.segments(place)
    documents = int(document.max()) + 1
    counts = np.stack([np.bincount(document, part, documents) for part in inside], axis=1)
    sums = np.stack(
        [[np.bincount(document, values * part, documents) for part in inside] for values in divergences.values()]
    )
    sums = sums.transpose(2, 0, 1)  # conversation, condition, segment
    weights = bootstrap.resamples(documents, options.bootstrap_replicates, options.seed)
    divergence = bootstrap.ratio_interval(
        sums, np.broadcast_to(counts[:, None], sums.shape), weights, options.confidence
    )
    none = sums[:, [list(divergences).index("none")]]
    left, low, high = bootstrap.ratio_interval(sums, np.broadcast_to(none, sums.shape), weights, options.confidence)
    v, dims = artifacts.variable, ("condition", "segment")
    dataset = xr.Dataset(
        coords={
            "condition": np.array(list(divergences), dtype=object),
            "segment": np.array(patching.SEGMENTS, dtype=object),
        }
    )
    for name, label, unit, values in (
        ("divergence", "KL of the patched from the chat model's next-token distribution", "nats", divergence),
        ("gap_closed", "share of the divergence of condition none that is gone", "1", (1 - left, 1 - high, 1 - low)),
    ):
        dataset[name] = v(dims, values[0], label, unit)
        dataset[f"{name}_low"] = v(dims, values[1], "lower end of its interval over conversations", unit)
        dataset[f"{name}_high"] = v(dims, values[2], "upper end of its interval over conversations", unit)
    dataset["segment_tokens"] = v("segment", counts.sum(0).astype(np.int64), "response tokens")
    dataset["set_latents"] = v(
        "condition",
        np.array([len(named.get(name.removesuffix(", added"), ())) for name in divergences]),
        "latents of the patched set",
    )
    return dataset


def main(arguments) -> None:
    """Patch one crosscoder's latents."""
    section: CausalSection = arguments.settings
    settings = section.causal
    torch.set_grad_enabled(False)
    trained = artifacts.read(arguments.crosscoder)
    coder = from_dataset(trained)
    normalisation, responses = artifacts.read(arguments.normalisation), artifacts.read(arguments.responses)
    base, chat = section.contrast
    scale = Scale(normalisation, list(dict.fromkeys([base, chat, *coder.sources])))
    norms = {name: float(normalisation["sink_norm"].sel(source=name)) for name in (base, chat)}
    named = sets(artifacts.read(arguments.latents), settings)
    masks = {}
    for name, members in named.items():
        masks[name] = torch.zeros(coder.latents, dtype=torch.bool)
        masks[name][torch.from_numpy(members)] = True
    held_out = Activations(arguments.activations, normalisation, [base, chat])
    axes = components(held_out, scale, max(settings.components))
    where, constant = directions(coder, scale, base, chat)
    principal = {count: axes[:count] for count in settings.components}
    patches = Patches(where, constant, masks, scale.mean[chat] - scale.mean[base], principal)
    loaded = load_pair(section, dict(zip(section.models, arguments.models, strict=True)))
    reader = Reader(*loaded, section.contrast, section.layer, coder, scale, norms)
    divergences = measure(reader, responses, patches, section.batch_tokens, f"causal {section.label}")
    chosen = responses["response_place"].values >= 0
    document, place = (responses[name].values[chosen] for name in ("document", "response_place"))
    dataset = to_dataset(divergences, named, document, place, section.bootstrap).merge(trained[["training_tokens"]])
    artifacts.write(dataset.assign_attrs(**section.provenance(), title="causal patching"), arguments.output)
    closed = dataset["gap_closed"].sel(segment="all")
    shown = [name for name in ("all", "best half by Δ", "template", "mean difference") if name in closed["condition"]]
    stage.say("causal: gap closed by " + ", ".join(f"{name} {float(closed.sel(condition=name)):.2f}" for name in shown))


if __name__ == "__main__":
    flags = ("crosscoder", "latents", "responses", "normalisation", "output")
    stage.run(main, stage.parser(CausalSection, __doc__, *flags, lists=("activations", "models")).parse_args())
