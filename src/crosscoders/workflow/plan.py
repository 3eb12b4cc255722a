"""What a study will take, told before it runs: `crosscoders plan STUDY`."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosscoders.errors import UserError
from crosscoders.study import sizes
from crosscoders.study.queries import comparisons, lineage, measurements, trainings
from crosscoders.study.settings.comparisons import DoseSeries, PlantedSetting, Setting
from crosscoders.study.settings.corpora import PlantedChats
from crosscoders.study.settings.models import FineTunedModel, NoisedModel, RoundedModel, SnapshotModel, TrainedModel
from crosscoders.study.settings.study import Study
from crosscoders.workflow.costs import estimates
from crosscoders.workflow.costs.estimates import GPU_RULES
from crosscoders.workflow.costs.terms import GB, Cost, Rates

GPUS = {
    "a100": (Rates(forward=0.4 * 312e12, products=0.4 * 156e12, memory=0.7 * 2.0e12, start=5.0), 80 * GB),
    "h100": (Rates(forward=0.4 * 990e12, products=0.4 * 495e12, memory=0.7 * 3.35e12, start=5.0), 80 * GB),
    "h200": (Rates(forward=0.4 * 990e12, products=0.4 * 495e12, memory=0.7 * 4.8e12, start=5.0), 141 * GB),
}
"""Rates and memory by GPU: NVIDIA's data sheets (dense bfloat16, TF32, memory; SXM), of which 40% and 70% are counted on."""
DEVICES = ("cpu", *GPUS)


@dataclass(frozen=True)
class Job:
    """One job of a study: its rule and its wildcards."""

    rule: str
    wildcards: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, rule: str, **wildcards: object) -> Job:
        """A job of a rule."""
        return cls(rule, tuple((name, str(value)) for name, value in wildcards.items()))

    def cost(self, study: Study) -> Cost:
        """What it takes."""
        return estimates.cost(study, self.rule, **dict(self.wildcards))


def jobs(study: Study) -> list[Job]:
    """Every job that Snakemake runs for a study of which nothing has been made yet.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Job
        Each once, in about the order in which they run.
    """
    reached = comparisons.reported_settings(study)
    each = itertools.chain(
        _inputs(study, reached), *(_of_setting(study, name) for name in reached), _report(study, reached)
    )
    return list(dict.fromkeys(each))


def _data_settings(study: Study, reached: list[str]) -> list[str]:
    """Settings whose tokens and activations are needed."""
    needed = {part(study, name) for name in reached for part in (comparisons.data_setting, comparisons.trained_setting)}
    needed |= {cell.setting for name in reached for cell in comparisons.cells_of(study, name)}
    return [name for name in study.settings if name in needed and isinstance(study.settings[name], Setting)]


def _inputs(study: Study, reached: list[str]) -> Iterator[Job]:
    """Models and text."""
    data = _data_settings(study, reached)
    models = {name for one in data for name in lineage.setting_models(study, one)}
    models |= set(measurements.labellers(study))
    models = {origin for name in models for origin in lineage.with_origins(study, name)}
    corpora = {name for one in data for name in lineage.setting_corpora(study, one)}
    for name in models:
        if isinstance(model := study.models[name], FineTunedModel):
            corpora |= {model.corpus, *lineage.plain_chats(study, name)}
        elif isinstance(model, TrainedModel):
            corpora |= set(model.corpora)
    corpora |= {study.corpora[name].articles for name in corpora if isinstance(study.corpora[name], PlantedChats)}
    yield from (Job.of("fetch_text", corpus=name) for name in sorted(corpora))
    rules = {FineTunedModel: "fine_tune", TrainedModel: "pretrain", NoisedModel: "perturb", RoundedModel: "perturb"}
    rules |= {SnapshotModel: "take_snapshot"}
    yield from (Job.of(rules.get(type(study.models[name]), "fetch_model"), model=name) for name in sorted(models))


def _of_setting(study: Study, name: str) -> Iterator[Job]:
    """Jobs of one setting, but for those of its notebook."""
    if isinstance(study.settings[name], PlantedSetting):
        yield from _trials(study, name)
        return
    if isinstance(study.settings[name], DoseSeries):
        yield from _series(study, name)
        return
    for data in (
        comparisons.data_setting(study, name),
        comparisons.data_setting(study, comparisons.trained_setting(study, name)),
    ):
        yield from _activations(study, data)
    yield from _trainings(study, name)
    yield from _validation(study, name)
    yield Job.of("collate", setting=name)


def _trials(study: Study, name: str) -> Iterator[Job]:
    for crosscoder, seed in itertools.product(study.settings[name].crosscoders, study.seeds):
        yield Job.of("trial", setting=name, crosscoder=crosscoder, seed=seed)
    if chosen := measurements.circuits_of(study, name):
        for seed in study.seeds:
            yield Job.of("circuit_trial", setting=name, crosscoder=chosen.crosscoder, seed=seed)
    yield Job.of("collate_trials", setting=name)


def _series(study: Study, name: str) -> Iterator[Job]:
    """Jobs of the repetitions of a series."""
    for cell in comparisons.cells_of(study, name):
        yield from _activations(study, cell.setting)
        for crosscoder, seed in itertools.product(study.settings[cell.setting].crosscoders, study.seeds):
            yield from _training(study, cell.setting, crosscoder, seed)
        yield from (Job.of("detect_planted", setting=cell.setting, seed=seed) for seed in study.seeds)
        if study.behaviours and cell.seed == study.settings[name].seeds[0]:
            yield Job.of("measure_behaviours", model=cell.model)
    yield Job.of("summarise_power", setting=name)


def _activations(study: Study, data: str) -> Iterator[Job]:
    yield Job.of("tokenize", setting=data)
    for split, count in study.settings[data].shards.items():
        windowed = split == "train" and trainings.windowed(study, data)
        for shard in range(0 if windowed else count):
            yield Job.of("extract_activations", setting=data, split=split, shard=f"{shard:03d}")
    if trainings.windowed(study, data):
        for segment in range(trainings.segments(study, data)):
            yield Job.of("extract_window", setting=data, segment=f"{segment:04d}")
    yield Job.of("fit_normalisation", setting=data)


def _trainings(study: Study, name: str) -> Iterator[Job]:
    trained, matched = comparisons.trained_setting(study, name), trainings.repeated(study, name)
    for crosscoder, seed in trainings.with_seeds(study, study.settings[name].crosscoders):
        named = {"crosscoder": crosscoder, "seed": seed}
        yield from _training(study, trained, **named)
        yield Job.of("evaluate", setting=name, **named)
        yield Job.of("classify_latents", setting=name, **named)
        if (crosscoder, seed) in matched:
            yield Job.of("match_seeds", setting=name, **named)
    for aligned, seed in itertools.product(trainings.aligned_of(study, name), study.seeds):
        yield Job.of("train_aligned", setting=trained, aligned=aligned, seed=seed)
        yield Job.of("evaluate_aligned", setting=name, aligned=aligned, seed=seed)


def _training(study: Study, setting: str, crosscoder: str, seed: int) -> Iterator[Job]:
    """The job or the jobs that train one crosscoder."""
    named = {"setting": setting, "crosscoder": crosscoder, "seed": seed}
    if crosscoder in trainings.published(study):
        yield Job.of("import_crosscoder", **named)
        return
    if not trainings.windowed(study, setting):
        yield Job.of("train_crosscoder", **named)
        return
    for segment in range(trainings.segments(study, comparisons.data_setting(study, setting))):
        yield Job.of("train_segment", **named, segment=f"{segment:04d}")
    yield Job.of("finish_training", **named)


def _validation(study: Study, name: str) -> Iterator[Job]:
    chosen = study.settings[name]
    if measurements.spliced(study, name):
        yield Job.of("measure_ablations", setting=name)
    if measurements.diverging(study, name):
        yield Job.of("measure_divergence", setting=name)
    if measurements.patched(study, name):
        yield Job.of("generate_responses", setting=name)
        for crosscoder, seed in trainings.with_seeds(study, chosen.crosscoders):
            yield Job.of("causal", setting=name, crosscoder=crosscoder, seed=seed)
    for crosscoder, seed in trainings.with_seeds(study, measurements.steered(study, name)):
        yield Job.of("steer", setting=name, crosscoder=crosscoder, seed=seed)
    for crosscoder, seed in trainings.with_seeds(study, measurements.compared(study, name)):
        yield Job.of("compare_effects", setting=name, crosscoder=crosscoder, seed=seed)
    for crosscoder, seed in itertools.product(measurements.traced(study, name), study.seeds):
        yield Job.of("trace_latents", setting=name, crosscoder=crosscoder, seed=seed)
    if circuits := measurements.circuits_of(study, name):
        for seed in study.seeds:
            yield Job.of("circuits", setting=name, crosscoder=circuits.crosscoder, seed=seed)
            yield from _training(study, name, circuits.saes, seed)


def _report(study: Study, reached: list[str]) -> Iterator[Job]:
    drawn = [name for name in reached if name in comparisons.drawn_settings(study)]
    for name in drawn:
        if isinstance(study.settings[name], Setting):
            yield Job.of("measure_similarity", setting=name)
            pair = lineage.planted_pair(study, name) if study.behaviours else None
            if pair:
                yield Job.of("measure_behaviours", model=pair[1])
    for name in comparisons.paged(study):
        for crosscoder, seed in trainings.with_seeds(study, study.settings[name].crosscoders):
            yield Job.of("latent_page", setting=name, crosscoder=crosscoder, seed=seed)
    for name in measurements.explained(study):
        for crosscoder, seed in trainings.with_seeds(study, study.settings[name].crosscoders):
            yield Job.of("explain_latents", setting=name, crosscoder=crosscoder, seed=seed)
    for name, crosscoder, seed, form in trainings.exports(study):
        yield Job.of("export", setting=name, crosscoder=crosscoder, seed=seed, format_name=form)
    for name in drawn:
        yield Job.of("notebook", setting=name)
        yield Job.of("html", setting=name, notebook=study.settings[name].notebook)
    yield from (Job.of("report"), Job.of("index"), Job.of("manifest"))


# -- rates of this machine ---------------------------------------------------------------------------------------------


def measured() -> Rates:
    """Rates of one core of this machine, from products, copies and imports that another process measures in some seconds.

    Returns
    -------
    Rates

    Raises
    ------
    UserError
        The other process failed.
    """
    done = subprocess.run([sys.executable, "-m", "crosscoders.kernels.rates"], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"plan: the rates of this machine cannot be measured ({reason})")
    return Rates(**json.loads(done.stdout))


# -- the account -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Where:
    """What a study is planned for: a device, and the processors, the memory and the free disk beside it."""

    device: str
    cores: int
    memory: float
    disk: float
    rates: Rates

    @classmethod
    def here(cls, device: str, cores: int | None = None) -> Where:
        """The machine of this process, with a GPU where one is named."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            device, cores or os.cpu_count() or 1, memory, shutil.disk_usage(_existing(Path("results"))).free, measured()
        )

    def seconds(self, job: Job, cost: Cost) -> tuple[float, float]:
        """Seconds of a job on the processors, one core, and on the GPU."""
        if self.device == "cpu" or job.rule not in GPU_RULES:
            return cost.seconds(self.rates), 0.0
        gpu, _ = GPUS[self.device]
        return 0.0, cost.seconds(gpu)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def account(study: Study, where: Where) -> tuple[list[str], list[str]]:
    """A table of what every stage takes, the totals, and what does not fit.

    Parameters
    ----------
    study : Study
    where : Where

    Returns
    -------
    table, problems : list of str
        A line each.
    """
    rows: dict[str, list[tuple[Job, Cost]]] = {}
    for job in jobs(study):
        rows.setdefault(job.rule, []).append((job, job.cost(study)))
    head = ("stage", "jobs", "tokens", "operations", "writes", "memory", "GPU memory", "time")
    table = [head]
    for rule, made in rows.items():
        each = [cost for _, cost in made]
        taken = sum(sum(where.seconds(job, cost)) for job, cost in made)
        on_gpu = where.device != "cpu" and rule in GPU_RULES
        table.append(
            (
                rule,
                f"{len(made)}",
                _short(sum(cost.tokens for cost in each)),
                _short(sum(cost.flops for cost in each)),
                _bytes(sum(cost.disk for cost in each)),
                _bytes(max(cost.memory for cost in each)),
                _bytes(max(cost.device for cost in each)) if on_gpu else "–",
                f"{duration(taken)}{' on the GPU' if on_gpu else ''}",
            )
        )
    flat = [entry for made in rows.values() for entry in made]
    return [*_aligned(table), "", *_totals(study, where, flat)], _problems(study, where, flat)


def hours(study: Study, where: Where, made: list[tuple[Job, Cost]] | None = None) -> float:
    """Hours from the first job to the last: the processors' work shared out among the cores, and the GPU's beside it."""
    made = made if made is not None else [(job, job.cost(study)) for job in jobs(study)]
    processor, gpu = np.sum([where.seconds(job, cost) for job, cost in made], axis=0)
    return max(processor / where.cores, gpu) / 3600


def duration(seconds: float) -> str:
    """A time in the unit in which a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds" if seconds >= 1.5 else "1 second"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"


def _totals(study: Study, where: Where, made: list[tuple[Job, Cost]]) -> list[str]:
    written, activations = _peak(study, made), sum(cost.disk for job, cost in made if job.rule == "extract_activations")
    device = f"one {where.device} and {where.cores} cores" if where.device != "cpu" else f"{where.cores} cores"
    return [
        f"in all: {len(made)} jobs, about {duration(3600 * hours(study, where, made))} on {device}",
        f"disk: {_bytes(written)} at most, of which {_bytes(activations)} are activations, which can be deleted "
        "when nothing will be trained or measured again",
        f"memory: {_bytes(max(cost.memory for _, cost in made))} for the largest job",
    ]


def _peak(study: Study, made: list[tuple[Job, Cost]]) -> float:
    """Bytes on disk at most: what is deleted after use counts as much as lies there at once."""
    kept = sum(cost.disk for job, cost in made if job.rule not in ("extract_window", "train_segment"))
    shards, states = {}, {}
    for job, cost in made:
        wildcards = dict(job.wildcards)
        if job.rule == "extract_window":
            window = study.settings[wildcards["setting"]].activations.window
            shards[wildcards["setting"]] = cost.disk * min(window, trainings.segments(study, wildcards["setting"]))
        elif job.rule == "train_segment":
            states[wildcards["setting"], wildcards["crosscoder"], wildcards["seed"]] = 2 * cost.disk
    return kept + sum(shards.values()) + sum(states.values())


def _problems(study: Study, where: Where, made: list[tuple[Job, Cost]]) -> list[str]:
    lines = []
    written, (largest, cost) = _peak(study, made), max(made, key=lambda entry: entry[1].memory)
    if written > where.disk:
        lines.append(f"disk: the study writes {_bytes(written)}; {_bytes(where.disk)} are free in results/")
    if cost.memory > where.memory:
        lines.append(f"memory: {largest.rule} needs {_bytes(cost.memory)}; this machine has {_bytes(where.memory)}")
    if where.device in GPUS:
        needed = max(((cost.device, job.rule) for job, cost in made if job.rule in GPU_RULES), default=(0.0, ""))
        if needed[0] > GPUS[where.device][1]:
            there = _bytes(GPUS[where.device][1])
            lines.append(f"GPU memory: {needed[1]} needs {_bytes(needed[0])}; one {where.device} has {there}")
    for name in sizes.unstated(study):
        size = sizes.model_size(study, name)
        lines.append(
            f"models.{name}.size: not stated, so {_short(size.parameters)} weights are guessed from its depth; expected "
            "{parameters, width, vocabulary}"
        )
    return lines


def _short(value: float) -> str:
    """A number in thousands, millions and so on."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g}{unit}" if value else "0"
        value /= 1000
    return f"{value:.3g}E"


def _bytes(value: float) -> str:
    return f"{_short(value)}B".replace("kB", " kB").replace("MB", " MB").replace("GB", " GB").replace("TB", " TB")


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    """Rows with their columns below each other; numbers to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
