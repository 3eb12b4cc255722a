"""Problems of crosscoders, alone and on the sources of a setting."""

from __future__ import annotations

import math

from crosscoders.study.blocks import ACTIVATIONS, block_sizes, crosscoder_sources, group_sizes, groups
from crosscoders.study.settings.comparisons import PlantedSetting, Setting
from crosscoders.study.settings.crosscoders import AlignedSettings, CrosscoderSettings, PublishedSettings
from crosscoders.study.settings.study import Study
from crosscoders.study.validation.names import member_problem, path_problem, unknown_name


def _activation_problems(member: CrosscoderSettings | AlignedSettings) -> list[str]:
    """Problems of activation, penalty and schedule, common to all members."""
    problems = []
    activation, penalty, m = member.activation, member.penalty, member.latents
    ranked = ACTIVATIONS[activation.kind].ranked_over
    if ranked and activation.k is None:
        problems.append(f"activation.k: missing; {activation.kind} needs it")
    if not ranked and activation.k is not None:
        problems.append(
            f"activation.k: {activation.k} has no meaning for {activation.kind}; remove it or choose batchtopk"
        )
    if not ranked and penalty.kind in ("none", "decoder_sparsity"):
        problems.append(f"penalty.kind: {penalty.kind}; {activation.kind} needs a penalty to be sparse")
    for key in ("k", "initial_k"):
        value = getattr(activation, key)
        if value is not None and value > m:
            problems.append(f"activation.{key}: {value} exceeds latents = {m}")
    if penalty.target_l0 is not None and penalty.target_l0 > m:
        problems.append(f"penalty.target_l0: {penalty.target_l0} exceeds latents = {m}")
    if member.training.warmup_steps > member.training.steps:
        problems.append(f"training.warmup_steps: {member.training.warmup_steps} exceeds the steps")
    return problems


def aligned_problems(member: AlignedSettings) -> list[str]:
    """Problems of an aligned crosscoder."""
    problems = _activation_problems(member)
    if ACTIVATIONS[member.activation.kind].learns_threshold:
        problems.append(
            f"activation.kind: {member.activation.kind} is not available here; expected relu, topk or batchtopk"
        )
    if member.penalty.target_l0 is not None:
        problems.append("penalty.target_l0: the coefficient of an aligned crosscoder is not steered; remove it")
    if member.support == "global" and not ACTIVATIONS[member.activation.kind].ranked_over:
        problems.append(f"support: 'global', but {member.activation.kind} ranks no latents; expected topk or batchtopk")
    return problems


def crosscoder_problems(crosscoder: CrosscoderSettings) -> list[str]:
    """Problems of a crosscoder by itself, each as it stands under `crosscoders.NAME.`."""
    problems = _activation_problems(crosscoder) + _export_problems(crosscoder)
    total = math.fsum(block.share for block in crosscoder.blocks.values())
    if not crosscoder.blocks:
        problems.append("blocks: empty; expected at least one block")
    elif abs(total - 1) > 1e-9:
        problems.append(f"blocks: the shares sum to {total:g}; expected 1")
    for name, block in crosscoder.blocks.items():
        for key in ("reads", "writes"):
            if not getattr(block, key):
                problems.append(f"blocks.{name}.{key}: empty; expected sources or 'all'")
        if block.writes in ("each", "onward") and block.reads != "each":
            problems.append(f"blocks.{name}.writes: {block.writes!r} needs reads: each")
        if block.window is not None and block.writes != "onward":
            problems.append(f"blocks.{name}.window: {block.window} has no meaning without writes: onward")
    if crosscoder.nested is not None and sorted(crosscoder.nested) != sorted(crosscoder.blocks):
        problems.append(f"nested: {crosscoder.nested}; expected every block once: {', '.join(crosscoder.blocks)}")
    elif crosscoder.nested is not None and len(crosscoder.nested) < 2:
        problems.append(f"nested: {crosscoder.nested} is one block; expected two or more, whose prefixes reconstruct")
    return problems + _budget_problems(crosscoder)


def _budget_problems(crosscoder: CrosscoderSettings) -> list[str]:
    """Problems of blocks that rank their latents apart."""
    budgets, activation = {name: block.k for name, block in crosscoder.blocks.items()}, crosscoder.activation
    given = [k for k in budgets.values() if k is not None]
    if not given:
        return []
    problems = [
        f"blocks.{name}.k: missing; expected one for every block or for none"
        for name, k in budgets.items()
        if k is None
    ]
    if activation.kind != "batchtopk":
        problems.append(f"activation.kind: {activation.kind}, but blocks have a k of their own; expected batchtopk")
    elif not problems and activation.k is not None and sum(given) != activation.k:
        problems.append(f"blocks: their k sum to {sum(given)}; expected activation.k = {activation.k}")
    if activation.initial_k is not None:
        problems.append(
            f"activation.initial_k: {activation.initial_k} is not available where blocks have a k; remove it"
        )
    return problems


EXPRESSED = {
    "crosscoder_learning": ("relu", "batchtopk"),
    "sae-lens": ("relu", "topk", "batchtopk", "jumprelu"),
    "sparsify": ("topk",),
}
"""Formats that hold crosscoders whose latents all read and write every source, and the activations that they know."""


def _export_problems(crosscoder: CrosscoderSettings) -> list[str]:
    """Formats that cannot express a crosscoder, as far as its settings show it."""
    whole = all(block.reads == block.writes == "all" and not block.tied for block in crosscoder.blocks.values())
    problems = []
    for name in crosscoder.exports:
        kinds = EXPRESSED.get(name, (crosscoder.activation.kind,))
        if crosscoder.activation.kind not in kinds:
            known = ", ".join(kinds)
            problems.append(f"exports: {name} cannot express {crosscoder.activation.kind!r}; it has {known}")
        if name in EXPRESSED and not whole:
            problems.append(f"exports: {name} cannot express blocks; expected latents that read and write all sources")
    return problems


def published_problems(study: Study, crosscoder: PublishedSettings) -> list[str]:
    """Problems of a crosscoder that is read."""
    problems = path_problem("path", crosscoder.path) if crosscoder.path is not None else []
    if crosscoder.folder is not None:
        problems += [
            line.replace("file:", "folder:").replace("wheel", "repo") for line in member_problem(crosscoder.folder)
        ]
    return problems


def block_problems(where: str, crosscoder: CrosscoderSettings, setting: Setting | PlantedSetting) -> list[str]:
    """Problems of a crosscoder's blocks on the sources of a setting."""
    problems = []
    for name in crosscoder.sources or ():
        problems += unknown_name(f"{where}: sources", name, setting.sources)
    known = dict.fromkeys(crosscoder_sources(setting, crosscoder))
    for block_name, block in crosscoder.blocks.items():
        for key in ("reads", "writes"):
            names = getattr(block, key)
            for name in names if isinstance(names, list) else ():
                problems += unknown_name(f"{where}: blocks.{block_name}.{key}", name, known)
        if block.window is not None and block.window >= len(known):
            following = f"the {len(known) - 1} sources after the first"
            problems.append(f"{where}: blocks.{block_name}.window: {block.window} is longer than {following}")
    for name in crosscoder.source_weights:
        problems += unknown_name(f"{where}: source_weights", name, known)
    for name in crosscoder.delta.of if crosscoder.delta else ():
        problems += unknown_name(f"{where}: delta.of", name, known)
    for block_name, size in block_sizes(crosscoder, list(known)).items():
        k = crosscoder.blocks[block_name].k
        if k is not None and k > size:
            problems.append(f"{where}: blocks.{block_name}.k: {k} exceeds the block's {size} latents")
    return problems + _rank_problems(where, crosscoder, list(known))


def _rank_problems(where: str, crosscoder: CrosscoderSettings, sources: list[str]) -> list[str]:
    """Groups of latents that are too small to be shared among ranks."""
    shares, ranks = [group.share for group in groups(crosscoder.blocks, sources)], crosscoder.training.ranks
    smallest = min(group_sizes(crosscoder.latents, shares), default=0)
    if ranks == 1 or smallest >= ranks:
        return []
    return [
        f"{where}: training.ranks: {ranks}; expected at most {smallest}, the latents of the smallest group of a block"
    ]
