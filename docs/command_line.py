"""Puts the help of every command of `crosscoders` into its page when the site is built."""

import argparse

from crosscoders import cli

MARK = "<!-- the help of every command -->"


def on_page_markdown(markdown: str, **_) -> str:
    """The text of a page, with the help where it is marked."""
    return markdown.replace(MARK, _help()) if MARK in markdown else markdown


def _help() -> str:
    chosen = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return "\n".join(
        f"## `crosscoders {name}`\n\n```text\n{command.format_help().strip()}\n```\n"
        for name, command in chosen.choices.items()
    )
