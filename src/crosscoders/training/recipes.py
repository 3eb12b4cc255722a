"""How each kind of crosscoder is created, stepped and finished by the one training loop of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from crosscoders.crosscoder import aligned as aligned_crosscoder
from crosscoders.crosscoder.aligned import Aligned
from crosscoders.crosscoder.crosscoder import Crosscoder, DeltaLoss, create, equalise_rates
from crosscoders.crosscoder.encode import BatchTopK
from crosscoders.crosscoder.separate import Separate, separate
from crosscoders.kernels.interface import Backend
from crosscoders.kernels.mesh import ALONE, Alone
from crosscoders.study.blocks import group_sizes, groups
from crosscoders.study.settings.crosscoders import AlignedSettings, CrosscoderSettings
from crosscoders.training import aligned, gradients
from crosscoders.training.gradients import Objective, Result
from crosscoders.training.thresholds import ThresholdFit

Trainee = Crosscoder | Separate | Aligned
"""What a step trains."""


class Recipe(Protocol):
    """A kind of crosscoder as the loop sees it; `settings` has `training`, `penalty` and `activation`."""

    settings: CrosscoderSettings | AlignedSettings
    revives: bool
    """Whether AuxK revives dead latents."""

    @property
    def alignment(self) -> float:
        """λ_align; 0 where there is one code."""

    def groups(self, sources: list[str]) -> list[int]:
        """Sizes of the groups of latents that processes share evenly."""

    def create(
        self, sources: list[str], widths: list[int], seed: int, own: torch.Tensor | None = None
    ) -> Crosscoder | Aligned:
        """The crosscoder before training, on the CPU; of the latents `own` alone, where they are given."""

    def begin(self, coder: Crosscoder | Aligned, some_tokens: Callable[[], torch.Tensor]) -> Trainee:
        """What is trained, set up on tokens of the first batches, (tokens, D), which are read where needed."""

    def selections(self, trainee: Trainee) -> list[BatchTopK]:
        """Fresh thresholds to carry from batch to batch."""

    def reconstructions(self, trainee: Trainee) -> int:
        """Reconstructions of a token at a step."""

    def column_weights(self, trainee: Trainee) -> torch.Tensor:
        """Weight of every column's squared error, (D,)."""

    def compute(
        self, trainee: Trainee, x: torch.Tensor, objective: Objective, selections: list[BatchTopK], backend: Backend
    ) -> Result:
        """Loss and gradients of one step on normalised activations, (T, D)."""

    def finish(
        self, coder: Crosscoder | Aligned, trainee: Trainee, held_out: Iterable[torch.Tensor], mesh: Alone = ALONE
    ) -> None:
        """Put what was trained into the crosscoder and fit its thresholds on held-out batches, (T, D)."""


@dataclass
class CrosscoderRecipe:
    """A crosscoder of latent blocks; dictionaries that share no latent are trained apart."""

    settings: CrosscoderSettings
    alignment: ClassVar[float] = 0.0
    revives: ClassVar[bool] = True

    def groups(self, sources: list[str]) -> list[int]:
        """Sizes of the groups of latents that read and write the same sources."""
        return group_sizes(self.settings.latents, [one.share for one in groups(self.settings.blocks, sources)])

    def create(self, sources: list[str], widths: list[int], seed: int, own: torch.Tensor | None = None) -> Crosscoder:
        """The crosscoder before training."""
        return create(self.settings, sources, widths, seed, own=own)

    def begin(self, coder: Crosscoder, some_tokens: Callable[[], torch.Tensor]) -> Crosscoder | Separate:
        """The crosscoder itself, or its parts where they share nothing."""
        if self.settings.training.initial_l0:
            equalise_rates(coder, some_tokens(), self.settings.training.initial_l0, self.settings.latents)
        if self.settings.nested or self.settings.delta or self.budgets:
            return coder
        return separate(coder) or coder

    @property
    def budgets(self) -> list[int]:
        """The k of every block, where each ranks its latents apart; else empty."""
        return [block.k for block in self.settings.blocks.values() if block.k is not None]

    def delta(self, trainee: Crosscoder | Separate) -> DeltaLoss | None:
        """The loss on the difference of two sources, if any."""
        chosen = self.settings.delta
        if chosen is None:
            return None
        columns = dict(zip(trainee.sources, trainee.columns, strict=True))
        return DeltaLoss(chosen.coefficient, *(columns[name] for name in chosen.of))

    def selections(self, trainee: Crosscoder | Separate) -> list[BatchTopK]:
        """One threshold, or one per block where each ranks its latents apart."""
        return [BatchTopK() for _ in self.budgets or [None]]

    def reconstructions(self, trainee: Crosscoder | Separate) -> int:
        """One, or one per level where blocks are nested."""
        return len(self.settings.blocks) if self.settings.nested else 1

    def column_weights(self, trainee: Crosscoder | Separate) -> torch.Tensor:
        """w_s of every column, (D,)."""
        weights, chosen = [], self.settings.source_weights
        for part in trainee.parts:
            for name, columns in zip(part.sources, part.columns, strict=True):
                weights.append(torch.full_like(part.decoder_bias[columns], chosen.get(name, 1.0)))
        return torch.cat(weights)

    def compute(
        self,
        trainee: Crosscoder | Separate,
        x: torch.Tensor,
        objective: Objective,
        selections: list[BatchTopK],
        backend: Backend,
    ) -> Result:
        """Loss and gradients of one step."""
        objective = replace(objective, budgets=self.budgets, delta=self.delta(trainee))
        return gradients.compute(trainee, x, objective, selections, backend)

    def finish(
        self, coder: Crosscoder, trainee: Crosscoder | Separate, held_out: Iterable[torch.Tensor], mesh: Alone = ALONE
    ) -> None:
        """Join parts and fit the threshold of a ranked batch, or that of every block."""
        if isinstance(trainee, Separate):
            trainee.join(coder)
        if coder.selection.ranked_over == "batch":
            coder.threshold = (
                fit_block_thresholds(coder, held_out, self.budgets, mesh)
                if self.budgets
                else fit_threshold(coder, held_out, coder.k, mesh)
            )


@dataclass
class AlignedRecipe:
    """The aligned crosscoder: every source has an encoder, a selection and a threshold of its own."""

    settings: AlignedSettings
    revives: ClassVar[bool] = False

    @property
    def alignment(self) -> float:
        """λ_align."""
        return self.settings.alignment

    def groups(self, sources: list[str]) -> list[int]:
        """All latents, as one group."""
        return [self.settings.latents]

    def create(self, sources: list[str], widths: list[int], seed: int, own: torch.Tensor | None = None) -> Aligned:
        """The crosscoder before training."""
        return aligned_crosscoder.create(self.settings, sources, widths, seed, own=own)

    def begin(self, coder: Aligned, some_tokens: Callable[[], torch.Tensor]) -> Aligned:
        """The crosscoder itself."""
        return coder

    def selections(self, trainee: Aligned) -> list[BatchTopK]:
        """One threshold per source, or one where all have the same support."""
        return [BatchTopK() for _ in trainee.sources[: 1 if trainee.global_support else None]]

    def reconstructions(self, trainee: Aligned) -> int:
        """One from the code of every source."""
        return len(trainee.sources)

    def column_weights(self, trainee: Aligned) -> torch.Tensor:
        """One everywhere, (D,)."""
        return torch.ones_like(trainee.decoder_bias)

    def compute(
        self, trainee: Aligned, x: torch.Tensor, objective: Objective, selections: list[BatchTopK], backend: Backend
    ) -> Result:
        """Loss and gradients of one step."""
        return aligned.compute(trainee, x, objective, selections, backend)

    def finish(self, coder: Aligned, trainee: Aligned, held_out: Iterable[torch.Tensor], mesh: Alone = ALONE) -> None:
        """Fit the threshold of every source where batches are ranked."""
        if coder.selection.ranked_over != "batch":
            return
        norms, fits = coder.decoder_norms().sum(1), [ThresholdFit(coder.k, mesh) for _ in coder.sources]
        for x in held_out:
            for fit, scores in zip(fits, coder.ranked_scores(coder.preactivations(x).relu() * norms), strict=True):
                fit.add(scores)
        values = torch.tensor([fit.value() for fit in fits], dtype=coder.thresholds.dtype)
        coder.thresholds = values.to(coder.thresholds.device)


def fit_threshold(coder: Crosscoder, held_out: Iterable[torch.Tensor], k: int, mesh: Alone = ALONE) -> float:
    """The score above which, over held-out batches, (T, D), k latents per token are on."""
    norms, fit = coder.decoder_norms().sum(1), ThresholdFit(k, mesh)
    for x in held_out:
        fit.add(coder.preactivations(x).relu() * norms)
    return fit.value()


def fit_block_thresholds(
    coder: Crosscoder, held_out: Iterable[torch.Tensor], budgets: list[int], mesh: Alone = ALONE
) -> torch.Tensor:
    """For every latent, (m,), the score above which the latents of its block are on, k of the block per token."""
    norms, fits = coder.decoder_norms().sum(1), [ThresholdFit(k, mesh) for k in budgets]
    for x in held_out:
        scores = coder.preactivations(x).relu() * norms
        for fit, rows in zip(fits, coder.block_rows, strict=True):
            fit.add(scores[:, rows])
    return norms.new_tensor([fit.value() for fit in fits])[coder.block]
