"""Stage extract_window: the activations of one segment of a window, which are deleted once all trainings have read them.

A window's segments are the shards of the training split in order, pass after pass.
"""

from __future__ import annotations

from crosscoders import stage
from crosscoders.activations.extraction import extract_shard
from crosscoders.activations.sections import ExtractWindowSection


def main(arguments) -> None:
    """Extract one segment."""
    section: ExtractWindowSection = arguments.settings
    extract_shard(section, arguments.tokens, arguments.models, arguments.output)


if __name__ == "__main__":
    stage.run(main, stage.parser(ExtractWindowSection, __doc__, "tokens", "output", lists=("models",)).parse_args())
