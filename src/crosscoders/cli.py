"""The command `crosscoders`: what users ask of a study outside of the workflow."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from crosscoders.errors import UserError
from crosscoders.home import show_all_letters
from crosscoders.library import commands as library
from crosscoders.report import verification
from crosscoders.study import facts, loading, new, surroundings
from crosscoders.study.queries import measurements, trainings
from crosscoders.workflow import plan


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; bad input ends it with one line per problem and exit status 1."""
    show_all_letters()
    given = parser().parse_args(arguments)
    try:
        given.run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))


def parser() -> argparse.ArgumentParser:
    """The arguments of `crosscoders` and of its subcommands."""
    parser = argparse.ArgumentParser(prog="crosscoders", description="Reproducible studies of crosscoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check study files: all mistakes at once, a line each")
    check.add_argument("studies", nargs="+", metavar="STUDY", help="a study file; later ones replace what earlier say")
    check.set_defaults(run=_check)
    verified = commands.add_parser("verify", help="compare every file of finished studies with their manifests")
    verified.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="a folder, as results/embedded")
    verified.set_defaults(run=_verify)
    planned = commands.add_parser("plan", help="say what a study will take: memory, disk, hours")
    planned.add_argument(
        "studies", nargs="+", metavar="STUDY", help="a study file; later ones replace what earlier say"
    )
    planned.add_argument("--device", choices=plan.DEVICES, default="cpu", help="what trains and extracts")
    planned.add_argument("--cores", type=int, help="processor cores; those of this machine if absent")
    planned.add_argument("--total", action="store_true", help="leave out the table of stages")
    planned.set_defaults(run=_plan)
    made = commands.add_parser("new", help="write a study of two models, or of several layers of one")
    made.add_argument(
        "models", nargs="+", metavar="MODEL", help="BASE CHAT, or one MODEL with --layers: folders or ids of the hub"
    )
    made.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="files, folders, or datasets of the hub")
    made.add_argument(
        "--layer", type=int, help="layer at which two models are compared, counted from 0; the middle if absent"
    )
    made.add_argument("--layers", type=_layers, help="layers of one model, as 4,8,12")
    made.add_argument("--study", help="name of the study and of its file in studies/")
    made.set_defaults(run=_new)
    library.add(commands)
    return parser


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers with commas between, as 4,8,12") from None


def _check(given: argparse.Namespace) -> None:
    study = loading.load(*given.studies)
    for line in [*measurements.left_out(study), *trainings.unequal_budgets(study), *surroundings.missing(study)]:
        print(f"warning: {line}")


def _plan(given: argparse.Namespace) -> None:
    if given.cores is not None and given.cores < 1:
        raise UserError(f"--cores: {given.cores}; expected a positive number")
    study = loading.load(*given.studies)
    table, problems = plan.account(study, plan.Where.here(given.device, given.cores))
    shown = table[table.index("") + 1 :] if given.total else table
    for line in [*shown, *(f"warning: {line}" for line in problems)]:
        print(line)


def _verify(given: argparse.Namespace) -> None:
    lines = [line for folder in given.results for line in verification.verify(folder)]
    if lines:
        raise UserError("\n".join(lines))
    for folder in given.results:
        print(f"{folder}: every file is as it was written")


def _new(given: argparse.Namespace) -> None:
    models = [facts.model_facts(place) for place in given.models]
    texts, machine = [facts.text_facts(place) for place in given.text], new.Machine.here()
    if len(models) == 2 and given.layers is None:
        name = given.study or f"{models[0].name}-vs-{models[1].name}"
        content = new.pair_study(*models, texts, given.layer, facts.name_of(name), machine)
    elif len(models) == 1 and given.layers is not None:
        name = given.study or f"{models[0].name}-layers"
        content = new.layers_study(models[0], given.layers, texts, facts.name_of(name), machine)
    else:
        raise UserError("new: expected two models (BASE CHAT), or one model with --layers 4,8,12")
    path = new.write(content, facts.name_of(name))
    print(f"{path} is written for {machine}. Look through it, then run:\n  snakemake --cores all --configfile {path}")


if __name__ == "__main__":
    main()
