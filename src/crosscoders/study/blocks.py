"""What settings say of a crosscoder before it has weights.

This is how it chooses active latents, which sources its groups of latents read and write, and which sources a setting
offers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from crosscoders.study.settings.comparisons import Difference, PlantedSetting, Setting, Source, SyntheticSource
from crosscoders.study.settings.crosscoders import Block, CrosscoderSettings, PublishedSettings


@dataclass(frozen=True)
class Selection:
    """How an activation chooses active latents: the largest scores of a token or a batch, or all above a threshold."""

    ranked_over: str | None = None
    """What the k largest scores per token are taken over while training: "token", "batch", or nothing."""
    learns_threshold: bool = False


ACTIVATIONS = {
    "relu": Selection(),
    "topk": Selection("token"),
    "batchtopk": Selection("batch"),  # at inference a threshold fitted to held-out data [B24]
    "jumprelu": Selection(learns_threshold=True),
}


@dataclass(frozen=True)
class Group:
    """Latents that read and write the same sources: a block, or one source's part of a block that has one per source."""

    block: str
    share: float
    reads: tuple[bool, ...]
    writes: tuple[bool, ...]


def groups(blocks: dict[str, Block], sources: list[str]) -> list[Group]:
    """The groups of latents that blocks mean over given sources, in order.

    Parameters
    ----------
    blocks : dict of Block
    sources : list of str
        Names of the S sources, in order.

    Returns
    -------
    list of Group
        One for each block, or S for a block with latents of each source; `reads` and `writes` have one entry per source.
    """
    made, count = [], len(sources)
    for name, block in blocks.items():
        if block.reads != "each":
            writes = tuple(block.writes == "all" or source in block.writes for source in sources)
            reads = tuple(block.reads == "all" or source in block.reads for source in sources)
            made.append(Group(name, block.share, reads, writes))
            continue
        for s in range(count):
            last = {"each": s, "onward": count - 1 if block.window is None else s + block.window}
            first, end = (0, count - 1) if block.writes == "all" else (s, last[block.writes])
            reads = tuple(i == s for i in range(count))
            made.append(Group(name, block.share / count, reads, tuple(first <= i <= end for i in range(count))))
    return made


def group_sizes(latents: int, shares: list[float]) -> list[int]:
    """Latents of each group: the shares of `latents`, rounded so that they sum to it (largest remainder).

    Parameters
    ----------
    latents : int
        Latents of all groups together, m.
    shares : list of float
        Share of each group; they sum to 1.

    Returns
    -------
    list of int
        As long as `shares`; sums to m.
    """
    exact = [latents * share for share in shares]
    sizes = [math.floor(value + 1e-9) for value in exact]
    for i in sorted(range(len(exact)), key=lambda i: sizes[i] - exact[i])[: latents - sum(sizes)]:
        sizes[i] += 1
    return sizes


def block_sizes(settings: CrosscoderSettings, sources: list[str]) -> dict[str, int]:
    """Latents of every block, which lie side by side in the dictionary, in the order of the blocks.

    Parameters
    ----------
    settings : CrosscoderSettings
    sources : list of str
        Names of the crosscoder's sources, in order.

    Returns
    -------
    dict of int
        They sum to m.
    """
    made, sizes = groups(settings.blocks, sources), dict.fromkeys(settings.blocks, 0)
    for group, size in zip(made, group_sizes(settings.latents, [one.share for one in made]), strict=True):
        sizes[group.block] += size
    return sizes


def stored_sources(setting: Setting | PlantedSetting) -> dict[str, Source | SyntheticSource]:
    """Sources that are extracted or drawn, in order; differences are made from them on reading.

    Parameters
    ----------
    setting : Setting or PlantedSetting

    Returns
    -------
    dict
        Name of each source to its settings.
    """
    return {name: source for name, source in setting.sources.items() if not isinstance(source, Difference)}


def differences(setting: Setting | PlantedSetting) -> dict[str, list[str]]:
    """Sources that are the difference of two others.

    Parameters
    ----------
    setting : Setting or PlantedSetting

    Returns
    -------
    dict of list of str
        Name of each such source to the names [minuend, subtrahend].
    """
    return {name: source.of for name, source in setting.sources.items() if isinstance(source, Difference)}


def crosscoder_sources(
    setting: Setting | PlantedSetting, crosscoder: CrosscoderSettings | PublishedSettings
) -> list[str]:
    """Sources that a crosscoder of a setting is trained on.

    Parameters
    ----------
    setting : Setting or PlantedSetting
    crosscoder : CrosscoderSettings or PublishedSettings

    Returns
    -------
    list of str
        Names, in order: those that the crosscoder asks for, else all stored sources of the setting.
    """
    return crosscoder.sources or list(stored_sources(setting))
