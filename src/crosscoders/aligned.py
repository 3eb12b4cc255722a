"""The aligned crosscoder: an encoder for every source, and every source rebuilt from every source's code.

z^s = act(W_enc^s x_s + b^s) and x̂_{s→t} = W_dec^t z^s + b_dec^t for all ordered pairs (s, t). Training together with a
term that draws the codes of a token towards each other makes separate encoders share one latent space (compare SPARC,
arXiv 2507.06265); sources may differ in width. Gradients are taken by hand, over the active pairs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, native, products, sparse
from crosscoders.ahead import Ahead
from crosscoders.crosscoder import keep_largest
from crosscoders.gradients import passes_over, stored
from crosscoders.members import ACTIVATIONS
from crosscoders.optimizer import Adam
from crosscoders.order import Order
from crosscoders.penalties import PENALTIES
from crosscoders.settings import AlignedSettings
from crosscoders.training import Schedule, norm


@dataclass
class Aligned:
    """Weights; S sources of widths d_s, m latents, D = Σ d_s.

    Attributes
    ----------
    encoders : per source, (m, d_s)
    encoder_bias : (S, m)
    decoder : (m, D)
    decoder_bias : (D,)
    thresholds : (S,)
        Score above which a latent of a source's code is on at inference (batchtopk).
    """

    encoders: list[torch.Tensor]
    encoder_bias: torch.Tensor
    decoder: torch.Tensor
    decoder_bias: torch.Tensor
    sources: list[str]
    widths: list[int]
    activation: str
    k: int | None
    thresholds: torch.Tensor

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All weights."""
        return [*self.encoders, self.encoder_bias, self.decoder, self.decoder_bias]

    def decoder_norms(self) -> torch.Tensor:
        """n_{j,s}, (m, S)."""
        return torch.stack([part.norm(dim=1) for part in self.decoder.split(self.widths, dim=1)], dim=1)

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """W_enc^s x_s + b^s of every source, (S, T, m)."""
        parts = zip(x.split(self.widths, dim=1), self.encoders, self.encoder_bias, strict=True)
        return torch.stack([torch.addmm(bias, part, encoder.T) for part, encoder, bias in parts])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes at inference, (S, T, m)."""
        f = self.preactivations(x).relu()
        score = f * self.decoder_norms().sum(1)
        if ACTIVATIONS[self.activation].ranked_over == "token":
            return torch.stack([keep_largest(one, rank, self.k) for one, rank in zip(f, score, strict=True)])
        return f * (score > self.thresholds[:, None, None])

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x̂_{s→t} for all s and t, (S, T, D), the targets side by side."""
        return z @ self.decoder + self.decoder_bias


def create(settings: AlignedSettings, sources: list[str], widths: list[int], seed: int) -> Aligned:
    """At the start: decoder vectors of the norm `decoder_norm`, each encoder the transpose of its source's decoder."""
    generator = torch.Generator().manual_seed(seed)
    shared = len(set(widths)) == 1
    draws = [torch.randn(settings.latents, width, generator=generator) for width in widths[: 1 if shared else None]]
    units = [draw / draw.norm(dim=1, keepdim=True) for draw in draws] * (len(widths) if shared else 1)
    decoder = torch.cat(units, dim=1) * settings.training.decoder_norm
    return Aligned(
        encoders=[part.clone() for part in decoder.split(widths, dim=1)],
        encoder_bias=torch.zeros(len(widths), settings.latents),
        decoder=decoder,
        decoder_bias=torch.zeros(sum(widths)),
        sources=list(sources),
        widths=list(widths),
        activation=settings.activation.kind,
        k=settings.activation.k,
        thresholds=torch.zeros(len(widths)),
    )


def select(f: torch.Tensor, score: torch.Tensor, activation: str, k: int | None) -> torch.Tensor:
    """The code of one source while training, from rectified pre-activations and scores, (T, m)."""
    over = ACTIVATIONS[activation].ranked_over
    if over == "token":
        return keep_largest(f, score, k)
    if over == "batch":
        lowest = score.detach().flatten().topk(k * len(f), sorted=False).values.min()
        return f * (score >= lowest)
    return f


def loss(
    coder: Aligned, x: torch.Tensor, settings: AlignedSettings, coefficient: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_{s,t} ‖x_t − x̂_{s→t}‖² + penalty + λ_align Σ_{s<t} ‖(z^s − z^t) N‖², mean over tokens; and the codes. For autograd.

    Codes are compared after multiplication by N_j = Σ_t n_{j,t}, so that rescaling a latent changes nothing and the
    term cannot be escaped by small codes and large decoders.
    """
    f = coder.preactivations(x).relu()
    norms = coder.decoder_norms()
    score = f * norms.sum(1)
    z = torch.stack([select(one, rank, coder.activation, coder.k) for one, rank in zip(f, score, strict=True)])
    total = (x - coder.decode(z)).square().sum() / len(x)
    contribution = z * norms.sum(1)
    for s in range(len(z)):
        for t in range(s + 1, len(z)):
            total = total + settings.alignment * (contribution[s] - contribution[t]).square().sum() / len(x)
    if settings.penalty.kind != "none":
        penalty = PENALTIES[settings.penalty.kind]
        pressed = z if penalty.presses_code else z.detach()
        total = total + coefficient * penalty.value(pressed * penalty.join(norms), settings.penalty.scale).sum() / len(
            x
        )
    return total, z


@dataclass
class _Encoder:
    """The encoder of one source, as :class:`crosscoders.sparse.Preactivations` takes it."""

    encoder: torch.Tensor
    encoder_bias: torch.Tensor

    @property
    def latents(self) -> int:
        return len(self.encoder)

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        return products.linear(x, self.encoder, self.encoder_bias)


def sparse_codes(
    coder: Aligned, parts: list[torch.Tensor], norms: torch.Tensor, selections: list[sparse.BatchTopK]
) -> list[sparse.Code]:
    """The code of every source while training, from its activations, (T, d_s); `selections` carry thresholds of batchtopk."""
    over, found = ACTIVATIONS[coder.activation].ranked_over, []
    for source, selection in enumerate(selections):
        whole = sparse.Preactivations(_Encoder(coder.encoders[source], coder.encoder_bias[source]), parts[source])
        if over == "batch":
            found.append(selection(whole, norms, coder.k)[0])
        elif over == "token":
            f = whole.whole.relu()
            found.append(sparse.of_dense(keep_largest(f, f * norms, coder.k)))
        else:
            found.append(sparse.from_flat(*whole.above(0.0), whole.size))
    return found


def compute(
    coder: Aligned, x: torch.Tensor, settings: AlignedSettings, coefficient: float, selections: list[sparse.BatchTopK]
) -> tuple[float, list[torch.Tensor | native.Gradient], float]:
    """Value of :func:`loss`, its gradients in the order of `Aligned.parameters`, and latents per token and source.

    The codes of all sources are passed over together, as one of S·T tokens.
    """
    tokens, sources, norms = len(x), len(coder.sources), coder.decoder_norms()
    parts = [part.contiguous() for part in x.split(coder.widths, dim=1)]
    codes = sparse_codes(coder, parts, norms.sum(1), selections)
    together = passes_over(sparse.joined(codes))
    # the mean is taken over S·T tokens there, over T here
    error, gradient, at_code = together.reconstruct(coder, x.repeat(sources, 1), torch.full_like(x[0], sources))
    value = float(error.square().sum()) / tokens
    f, at_norms = together.values, torch.zeros_like(norms)

    contribution = f * together.active(norms.sum(1))
    gap = sources * contribution - together.over_copies(contribution, sources)  # Σ_t (z^s − z^t) N
    value += settings.alignment * float((contribution * gap).sum()) / tokens
    slope = 2 * settings.alignment / tokens * gap
    at_code = at_code + slope * together.active(norms.sum(1))
    at_norms += together.total(f * slope)[:, None]

    if settings.penalty.kind != "none":
        penalty, rate = PENALTIES[settings.penalty.kind], coefficient / tokens
        size = penalty.join(norms)
        value += rate * float(penalty.value(f * together.active(size), settings.penalty.scale).sum())
        slope = rate * penalty.slope(f * together.active(size), settings.penalty.scale)
        at_norms += together.total(f * slope)[:, None] * penalty.share(norms)
        if penalty.presses_code:
            at_code = at_code + slope * together.active(size)

    decoder_gradient = stored(together.weight_gradient(f, gradient))
    by_source = zip(coder.decoder.split(coder.widths, dim=1), decoder_gradient.split(coder.widths, dim=1), strict=True)
    for s, (part, its_gradient) in enumerate(by_source):
        its_gradient.addcmul_(part, (at_norms[:, s] / norms[:, s].clamp_min(1e-30))[:, None])
    at_encoders, at_biases = [], []
    for part, (passes, values) in zip(parts, together.copies(at_code * (f > 0), sources), strict=True):
        at_encoders.append(passes.weight_gradient(values, part))
        at_biases.append(passes.total(values))
    gradients = [*at_encoders, torch.stack(at_biases), decoder_gradient, gradient.sum(0)]
    return value, gradients, float((f > 0).sum()) / (sources * tokens)


def fit(settings: AlignedSettings, data, held_out, seed: int, report: Callable[[int, float, float], None]) -> Aligned:
    """Train on `data`, fit thresholds on `held_out` (both as for :func:`crosscoders.training.fit`).

    `report` gets step, loss and latents per token and source.
    """
    options, schedule = settings.training, Schedule(settings)
    coder, order = create(settings, data.sources, data.widths, seed), Order(len(data), seed)
    optimizer, selections = (
        Adam(coder.parameters, (0.9, options.adam_beta2)),
        [sparse.BatchTopK() for _ in data.sources],
    )

    def index(step: int) -> np.ndarray:
        return order.take(step * options.batch_tokens, options.batch_tokens)

    with torch.no_grad(), Ahead(data, index, options.steps, options.batch_tokens) as batch:
        for step in range(options.steps):
            coefficient = settings.penalty.coefficient * schedule.ramp(step)
            value, gradients, l0 = compute(coder, batch(step), settings, coefficient, selections)
            if not math.isfinite(value):
                raise FloatingPointError(f"loss is {value} at step {step}")
            shrink = max(1.0, norm(gradients) / options.gradient_clip)
            optimizer.step(coder.parameters, gradients, schedule.learning_rate(step), shrink)
            report(step + 1, value, l0)
    if ACTIVATIONS[coder.activation].ranked_over == "batch":
        coder.thresholds = fit_thresholds(coder, held_out, coder.k)
    return coder


def fit_thresholds(coder: Aligned, held_out, k: int) -> torch.Tensor:
    """Per source, the score above which k latents per held-out token are active."""
    norms = coder.decoder_norms().sum(1)
    kept: list[list[torch.Tensor]] = [[] for _ in coder.sources]
    for _, x in held_out.batches(2048):
        for s, score in enumerate(coder.preactivations(x).relu() * norms):
            kept[s].append(score.flatten().topk(min(4 * k * len(x), score.numel()), sorted=False).values)
    joined = [torch.cat(parts) for parts in kept]
    return torch.stack([scores.topk(min(k * len(held_out) + 1, len(scores))).values[-1] for scores in joined])


@torch.no_grad()
def evaluate(coder: Aligned, data, document: np.ndarray, batch: int = 2048) -> dict[str, np.ndarray]:
    """Sums within documents of what every source's code says of every source.

    Parameters
    ----------
    document : (tokens,)
        Consecutive document numbers from 0.

    Returns
    -------
    dict
        `error` (documents, from source, to source) and `variance` about the split's mean (documents, 1, to source);
        `both` and `either` (documents, S, S), latents active in two sources' codes of a token, and in one of them;
        `active` (documents, S) and `tokens` (documents, 1).
    """
    documents, sources = int(document[-1]) + 1, len(coder.sources)
    mean = sum(x.double().sum(0) for _, x in data.batches(batch)) / len(data)
    sums = {name: np.zeros((documents, sources, sources)) for name in ("error", "both", "either")}
    sums |= {"variance": np.zeros((documents, 1, sources)), "active": np.zeros((documents, sources))}

    def add(name: str, place: tuple[int, ...], inside: np.ndarray, values: torch.Tensor) -> None:
        sums[name][(slice(None), *place)] += np.bincount(inside, values.double().numpy(), documents)

    for chosen, x in data.batches(batch):
        z, inside = coder.encode(x), document[chosen]
        squares = (x - coder.decode(z)).double().square()
        spread, on = (x.double() - mean).square().split(coder.widths, dim=1), z > 0
        for s in range(sources):
            add("variance", (0, s), inside, spread[s].sum(1))
            add("active", (s,), inside, on[s].sum(1))
            for t, part in enumerate(squares[s].split(coder.widths, dim=1)):
                add("error", (s, t), inside, part.sum(1))
                add("both", (s, t), inside, (on[s] & on[t]).sum(1))
                add("either", (s, t), inside, (on[s] | on[t]).sum(1))
    return {**sums, "tokens": np.bincount(document, minlength=documents).astype(float)[:, None]}


# -- as a dataset ------------------------------------------------------------------------------------------------------


def to_dataset(coder: Aligned, normalisation: xr.Dataset) -> xr.Dataset:
    """The weights, with the normalisation they need."""
    v = artifacts.variable
    found = normalisation[["scale", "sink_norm"] + [f"mean_{name}" for name in coder.sources]].sel(source=coder.sources)
    found.attrs = {"activation": coder.activation, "k": coder.k or 0}
    found["encoder_bias"] = v(("source", "latent"), coder.encoder_bias.numpy(), "encoder bias")
    found["threshold"] = v("source", coder.thresholds.numpy(), "score above which a latent is on at inference")
    decoders = coder.decoder.split(coder.widths, dim=1)
    biases = coder.decoder_bias.split(coder.widths)
    for name, encoder, decoder, bias in zip(coder.sources, coder.encoders, decoders, biases, strict=True):
        width = f"width_{name}"
        found[f"encoder_{name}"] = v(("latent", width), encoder.numpy(), f"encoder for {name}")
        found[f"decoder_{name}"] = v(("latent", width), decoder.numpy(), f"decoder for {name}")
        found[f"decoder_bias_{name}"] = v(width, bias.numpy(), f"decoder bias for {name}")
    return found


def from_dataset(dataset: xr.Dataset) -> Aligned:
    """The inverse of :func:`to_dataset`, without the normalisation."""
    sources = [str(name) for name in dataset["source"].values]

    def parts(name: str) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(dataset[f"{name}_{source}"].values)) for source in sources]

    encoders = parts("encoder")
    return Aligned(
        encoders=encoders,
        encoder_bias=torch.from_numpy(dataset["encoder_bias"].values.copy()),
        decoder=torch.cat(parts("decoder"), dim=1),
        decoder_bias=torch.cat(parts("decoder_bias")),
        sources=sources,
        widths=[encoder.shape[1] for encoder in encoders],
        activation=dataset.attrs["activation"],
        k=int(dataset.attrs["k"]) or None,
        thresholds=torch.from_numpy(dataset["threshold"].values.copy()),
    )
