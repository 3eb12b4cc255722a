"""The aligned crosscoder: an encoder for every source, and every source reconstructed from every source's code.

z^s = act(W_enc^s x_s + b^s) and x̂_{s→t} = W_dec^t z^s + b_dec^t for all ordered pairs (s, t). Training together with a
term that draws the codes of a token towards each other makes separate encoders share one latent space (compare SPARC,
arXiv 2507.06265); sources may differ in width. T tokens, m latents, S sources of widths d_s, D = Σ d_s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from crosscoders.crosscoder.crosscoder import initial_directions, keep_largest
from crosscoders.crosscoder.penalties import PENALTIES
from crosscoders.study.blocks import ACTIVATIONS, Selection
from crosscoders.study.settings.crosscoders import AlignedSettings


@dataclass
class Aligned:
    """Weights of an aligned crosscoder.

    Attributes
    ----------
    encoders : per source, (m, d_s)
    encoder_bias : (S, m)
    decoder : (m, D)
    decoder_bias : (D,)
    sources, widths
        Names and widths of the sources, in column order.
    activation, k
        How pre-activations become a code, and how many latents per token and source are kept.
    thresholds : (S,)
        Score above which a latent of a source's code is on at inference (batchtopk).
    global_support : bool
        Whether all codes of a token have the same active latents, those of the largest scores summed over sources
        (Global TopK, arXiv 2507.06265); a latent that one of them writes with 0 is off in that code.
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
    global_support: bool = False

    @property
    def selection(self) -> Selection:
        """How active latents are chosen."""
        return ACTIVATIONS[self.activation]

    @property
    def latents(self) -> int:
        """Number of latents m."""
        return self.decoder.shape[0]

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Encoders, encoder biases, decoder, decoder bias."""
        return [*self.encoders, self.encoder_bias, self.decoder, self.decoder_bias]

    @property
    def latent_axes(self) -> list[int | None]:
        """The axis of every one of `parameters` along which latents lie."""
        return [*[0] * len(self.encoders), 1, 0, None]

    @property
    def parts(self) -> list[Aligned]:
        """The crosscoder itself, as that of :class:`crosscoders.crosscoder.crosscoder.Crosscoder`."""
        return [self]

    def over_latents(self, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Aligned:
        """A copy with other latents: `change` gets every tensor of latents and the axis along which they lie."""
        return replace(
            self,
            encoders=[change(encoder, 0) for encoder in self.encoders],
            encoder_bias=change(self.encoder_bias, 1),
            decoder=change(self.decoder, 0),
            decoder_bias=self.decoder_bias.cpu(),
            thresholds=self.thresholds.cpu(),
        )

    def to(self, device: str) -> Aligned:
        """A copy on another device, `cpu` or `cuda`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, encoders=[encoder.to(device) for encoder in self.encoders], **moved)

    def decoder_norms(self) -> torch.Tensor:
        """n_{j,s} = ‖W_dec,j^s‖₂, (m, S)."""
        return torch.stack([part.norm(dim=1) for part in self.decoder.split(self.widths, dim=1)], dim=1)

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """W_enc^s x_s + b^s of every source, (S, T, m), of normalised activations, (T, D)."""
        parts = zip(x.split(self.widths, dim=1), self.encoders, self.encoder_bias, strict=True)
        return torch.stack([torch.addmm(bias, part, encoder.T) for part, encoder, bias in parts])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes at inference, (S, T, m)."""
        f = self.preactivations(x).relu()
        score = self.ranked_scores(f * self.decoder_norms().sum(1))
        if self.selection.ranked_over == "token":
            return torch.stack([keep_largest(one, rank, self.k) for one, rank in zip(f, score, strict=True)])
        return f * (score > self.thresholds[:, None, None])

    def ranked_scores(self, score: torch.Tensor) -> torch.Tensor:
        """What decides which latents are on, (S, T, m): scores of every source, or their sum for all alike."""
        return score.sum(0).expand_as(score) if self.global_support else score

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x̂_{s→t} for all s and t, (S, T, D), the targets side by side."""
        return z @ self.decoder + self.decoder_bias


def create(
    settings: AlignedSettings,
    sources: list[str],
    widths: list[int],
    seed: int,
    dtype: torch.dtype = torch.float32,
    own: torch.Tensor | None = None,
) -> Aligned:
    """An aligned crosscoder at the start: each encoder is the transpose of its source's decoder.

    Parameters
    ----------
    settings : AlignedSettings
    sources : list of str
    widths : list of int
        d_s of every source.
    seed : int
        Of the decoder vectors (:func:`crosscoders.crosscoder.crosscoder.initial_directions`).
    dtype : torch.dtype
    own : (latents of this process,), optional
        The latents wanted, ascending; all where absent.

    Returns
    -------
    Aligned
        On the CPU.
    """
    decoder = initial_directions(settings.latents, widths, seed, settings.training.decoder_norm, dtype, own)
    return Aligned(
        encoders=[part.clone() for part in decoder.split(widths, dim=1)],
        encoder_bias=torch.zeros(len(widths), len(decoder), dtype=dtype),
        decoder=decoder,
        decoder_bias=torch.zeros(sum(widths), dtype=dtype),
        sources=list(sources),
        widths=list(widths),
        activation=settings.activation.kind,
        k=settings.activation.k,
        thresholds=torch.zeros(len(widths), dtype=dtype),
        global_support=settings.support == "global",
    )


def reference_loss(
    coder: Aligned, x: torch.Tensor, settings: AlignedSettings, coefficient: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss in plain operations, for autograd; the tests compare the fast path with it.

    Σ_{s,t} ‖x_t − x̂_{s→t}‖² + penalty + λ_align Σ_{s<t} ‖(z^s − z^t) N‖², mean over tokens. Codes are compared after
    multiplication by N_j = Σ_t n_{j,t}, so that rescaling a latent changes nothing and the term cannot be escaped by
    small codes and large decoders.

    Returns
    -------
    loss : scalar
    codes : (S, T, m)
    """
    f, norms = coder.preactivations(x).relu(), coder.decoder_norms()
    score = coder.ranked_scores(f * norms.sum(1))
    z = torch.stack([_selected(coder, one, rank) for one, rank in zip(f, score, strict=True)])
    total = (x - coder.decode(z)).square().sum() / len(x)
    contribution = z * norms.sum(1)
    for s in range(len(z)):
        for t in range(s + 1, len(z)):
            total = total + settings.alignment * (contribution[s] - contribution[t]).square().sum() / len(x)
    if settings.penalty.kind != "none":
        penalty = PENALTIES[settings.penalty.kind]
        penalised = z if penalty.penalises_code else z.detach()
        value = penalty.value(penalised * penalty.join(norms), settings.penalty.scale)
        total = total + coefficient * value.sum() / len(x)
    return total, z


def _selected(coder: Aligned, f: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """The code of one source while training, from rectified pre-activations and scores, (T, m)."""
    if coder.selection.ranked_over == "token":
        return keep_largest(f, score, coder.k)
    if coder.selection.ranked_over == "batch":
        return keep_largest(f.reshape(1, -1), score.reshape(1, -1), coder.k * len(f)).view_as(f)
    return f
