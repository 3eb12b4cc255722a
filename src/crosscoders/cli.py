"""The command `crosscoders`: what users ask of a study outside of the workflow."""

from __future__ import annotations

import argparse
import sys

from crosscoders.errors import UserError
from crosscoders.study import loading


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; bad input ends it with one line per problem and exit status 1."""
    parser = argparse.ArgumentParser(prog="crosscoders", description="Reproducible studies of crosscoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check study files: all mistakes at once, a line each")
    check.add_argument("studies", nargs="+", metavar="STUDY", help="a study file; later ones replace what earlier say")
    check.set_defaults(run=lambda given: loading.load(*given.studies))
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))


if __name__ == "__main__":
    main()
