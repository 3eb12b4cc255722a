"""Stage causal: how far each patch brings the chat model's lower half, replaced by base's, back to itself."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, bootstrap, crosscoder, models, patching, pick, stage
from crosscoders.chats import ROLES
from crosscoders.crosscoder import Crosscoder
from crosscoders.feed import Activations
from crosscoders.patching import Directions, Pair
from crosscoders.settings import Causal
from crosscoders.sites import forward
from crosscoders.windows import batches, padded, windows

BATCH = 2048


class Scale:
    """Means and scales of sources, as float32 tensors; how raw activations are normalised and back."""

    def __init__(self, normalisation: xr.Dataset, sources: list[str]):
        self.mean = {
            name: torch.from_numpy(normalisation[f"mean_{name}"].values.astype(np.float32)) for name in sources
        }
        self.scale = {name: float(normalisation["scale"].sel(source=name)) for name in sources}


def directions(coder: Crosscoder, scale: Scale, base: str, chat: str) -> tuple[Directions, torch.Tensor]:
    """What latents add to base's activation, and what is added to it at every token, (width,).

    A crosscoder of both models adds its decoder vectors alone; an SAE on their difference its whole reconstruction.
    """
    raw = {
        name: scale.scale[name] * coder.decoder[:, part]
        for name, part in zip(coder.sources, coder.columns, strict=True)
    }
    if base in raw and chat in raw:
        return Directions(raw[base], raw[chat]), torch.zeros(raw[base].shape[1])
    (name,) = coder.sources
    return Directions(torch.zeros_like(raw[name]), raw[name]), scale.mean[name] + scale.scale[name] * coder.decoder_bias


def sets(latents: xr.Dataset, settings: Causal) -> dict[str, np.ndarray]:
    """Named sets of latents: halves of the most chat-leaning ones, and random ones matched to the better half by Δ."""
    delta, density = latents["relative_norm"].values, latents["density"].values
    alive = (density > 0) & np.isfinite(delta)
    if alive.sum() < 2 * settings.candidates:
        return {}
    limit = json.loads(latents.attrs["settings"])["classification"]["chat_only_above"]
    chosen = patching.candidates(delta, alive, limit, settings.candidates)
    ranks = patching.rank_sum(chosen, latents["nu_reconstruction"].values, latents["nu_error"].values)
    found = {}
    for label, badness in (("Δ", -delta), ("ν", ranks)):
        found[f"best half by {label}"], found[f"worst half by {label}"] = patching.halves(chosen, badness)
    allowed = alive.copy()
    allowed[chosen] = False
    norm = latents["decoder_norm"].values.sum(1)
    drawn = patching.matched_sets(found["best half by Δ"], allowed, density, norm, settings.random_sets, settings.seed)
    return found | {f"random {i + 1}": one for i, one in enumerate(drawn)}


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


def patches(
    pair: Pair, kept: torch.Tensor, template: torch.Tensor, where: Directions, constant: torch.Tensor,
    named: dict[str, torch.Tensor], mean: torch.Tensor, principal: dict[int, torch.Tensor],
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The patched activations of every condition, (batch, position, width).

    `kept` and `template` are (batch, position) bool: tokens that crosscoders see, and template tokens.
    """
    at = kept[..., None]
    everything = pair.contribution(where.replace) + constant * at
    found = {
        "none": pair.base,
        "all": pair.base + everything,
        "error": pair.chat - everything,
        "all and error": pair.base + everything + (pair.chat - pair.base - everything),
        "template": torch.where(template[..., None], pair.chat, pair.base),
        "mean difference": pair.base + mean * at,
    }
    for name, members in named.items():
        found[name] = pair.base + pair.contribution(where.replace, members)
        if name.startswith("best"):
            found[f"{name}, added"] = pair.base + pair.contribution(where.chat, members)
    for count, axes in principal.items():
        centred = pair.chat - pair.base - mean
        found[f"components {count}"] = pair.base + (mean + centred @ axes.T @ axes) * at
    return found


def measure(
    folders: dict[str, Path], section: dict, coder: Crosscoder, scale: Scale, norms: dict[str, float],
    responses: xr.Dataset, named: dict[str, torch.Tensor], mean: torch.Tensor, principal: dict[int, torch.Tensor],
) -> dict[str, np.ndarray]:  # fmt: skip
    """KL of every response token under every condition, {condition: (response tokens,)}."""
    (base, chat), device = section["contrast"], pick.device(section["device"])
    site = (section["layer"], "resid_post")
    dtype = pick.dtype(section["dtype"], device)
    loaded = {
        name: models.load_model(folders[name].parent, device, dtype) for name in (section["base"], section["chat"])
    }
    where, constant = directions(coder, scale, base, chat)
    ids, place = responses["token_id"].values, responses["response_place"].values
    template = responses["role"].values == ROLES.index("template")
    found: dict[str, np.ndarray] = {}
    spans = windows(responses["position"].values)
    progress = stage.Progress(section["label"], len(ids))
    for group in batches(spans, section["batch_tokens"]):
        rows = padded(ids, group, int(responses.attrs["sink_token_id"]))
        inside, wanted, templated = (torch.zeros(rows.shape, dtype=torch.bool) for _ in range(3))
        for i, span in enumerate(group):
            length = span.stop - span.start
            inside[i, 1 : 1 + length] = True
            wanted[i, :length] = torch.from_numpy(place[span] >= 0)  # a token is predicted from the one before it
            templated[i, 1 : 1 + length] = torch.from_numpy(template[span])
        raw = {base: _read(loaded[section["base"]], site, rows), chat: _read(loaded[section["chat"]], site, rows)}
        kept = inside & (raw[base].norm(dim=-1) <= norms[base]) & (raw[chat].norm(dim=-1) <= norms[chat])
        parts = [raw[name] if name in raw else raw[chat] - raw[base] for name in coder.sources]
        code = patching.encode(coder, parts, [scale.mean[n] for n in coder.sources], [scale.scale[n] for n in coder.sources], kept)  # fmt: skip
        pair = Pair(raw[base], raw[chat], code)
        order = np.concatenate([span.start + np.flatnonzero(place[span] >= 0) for span in group])
        upper = partial(patching.log_probabilities, loaded[section["chat"]], site[0], ids=rows, wanted=wanted)
        reference = upper(pair.chat)
        for name, hidden in patches(pair, kept, templated, where, constant, named, mean, principal).items():
            column = found.setdefault(name, np.full(len(ids), np.nan))
            column[order] = patching.divergence(reference, upper(hidden))
        progress.update(sum(span.stop - span.start for span in group))
    chosen = place >= 0
    return {name: column[chosen] for name, column in found.items()}


def _read(model, site: tuple[int, str], rows: torch.Tensor) -> torch.Tensor:
    """Raw activations at the site, float32, (batch, position, width)."""
    return forward(model, [site], rows.to(model.device))[site].float().cpu()


def to_dataset(
    found: dict[str, np.ndarray], named: dict[str, np.ndarray], document: np.ndarray, place: np.ndarray, options: dict
) -> xr.Dataset:
    """Divergence by condition and segment of the response, and the share of the gap it closes, with intervals."""
    inside = patching.segments(place)
    documents = int(document.max()) + 1
    counts = np.stack([np.bincount(document, part, documents) for part in inside], axis=1)
    sums = np.stack([[np.bincount(document, values * part, documents) for part in inside] for values in found.values()])
    sums = sums.transpose(2, 0, 1)  # conversation, condition, segment
    weights = bootstrap.resamples(documents, options["bootstrap_replicates"], options["seed"])
    divergence = bootstrap.ratio_interval(
        sums, np.broadcast_to(counts[:, None], sums.shape), weights, options["confidence"]
    )
    none = sums[:, [list(found).index("none")]]
    left, low, high = bootstrap.ratio_interval(sums, np.broadcast_to(none, sums.shape), weights, options["confidence"])
    v, dims = artifacts.variable, ("condition", "segment")
    dataset = xr.Dataset(coords={"condition": np.array(list(found), dtype=object), "segment": np.array(patching.SEGMENTS, dtype=object)})  # fmt: skip
    for name, label, unit, values in (
        ("divergence", "KL of the patched from the chat model's next-token distribution", "nats", divergence),
        ("gap_closed", "share of the divergence of condition none that is gone", "1", (1 - left, 1 - high, 1 - low)),
    ):
        dataset[name] = v(dims, values[0], label, unit)
        dataset[f"{name}_low"] = v(dims, values[1], "lower end of its interval over conversations", unit)
        dataset[f"{name}_high"] = v(dims, values[2], "upper end of its interval over conversations", unit)
    dataset["segment_tokens"] = v("segment", counts.sum(0).astype(np.int64), "response tokens")
    dataset["set_latents"] = v("condition", np.array([len(named.get(name.removesuffix(", added"), ())) for name in found]), "latents of the patched set")  # fmt: skip
    return dataset


def main(arguments) -> None:
    """Patch one crosscoder's latents."""
    section = arguments.settings
    settings = Causal.model_validate(section["causal"])
    section["label"] = f"causal {section['setting_name']}/{section['crosscoder_name']}/seed-{section['seed']}"
    torch.set_grad_enabled(False)
    coder = crosscoder.from_dataset(artifacts.read(arguments.crosscoder))
    normalisation, responses = artifacts.read(arguments.normalisation), artifacts.read(arguments.responses)
    base, chat = section["contrast"]
    scale = Scale(normalisation, list(dict.fromkeys([base, chat, *coder.sources])))
    norms = {name: float(normalisation["sink_norm"].sel(source=name)) for name in (base, chat)}
    named = sets(artifacts.read(arguments.latents), settings)
    masks = {}
    for name, members in named.items():
        masks[name] = torch.zeros(coder.latents, dtype=torch.bool)
        masks[name][torch.from_numpy(members)] = True
    held_out = Activations(arguments.activations, normalisation, [base, chat])
    axes = components(held_out, scale, max(settings.components))
    mean = scale.mean[chat] - scale.mean[base]
    folders = dict(zip(section["models"], arguments.models, strict=True))
    principal = {count: axes[:count] for count in settings.components}
    found = measure(folders, section, coder, scale, norms, responses, masks, mean, principal)
    chosen = responses["response_place"].values >= 0
    dataset = to_dataset(found, named, responses["document"].values[chosen], responses["response_place"].values[chosen], section["bootstrap"])  # fmt: skip
    attributes = artifacts.provenance(section["study"], "causal", section, section["seed"])
    artifacts.write(dataset.assign_attrs(**attributes, title="causal patching"), arguments.output)
    closed = dataset["gap_closed"].sel(segment="all")
    shown = [name for name in ("all", "best half by Δ", "template", "mean difference") if name in closed["condition"]]
    stage.say("causal: gap closed by " + ", ".join(f"{name} {float(closed.sel(condition=name)):.2f}" for name in shown))


if __name__ == "__main__":
    flags = ("crosscoder", "latents", "responses", "normalisation", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations", "models")).parse_args())
