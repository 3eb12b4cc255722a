"""Stage extract_activations: activations at several sites of several models, over one shard of a split."""

from __future__ import annotations

from crosscoders import stage
from crosscoders.activations.extraction import extract_shard
from crosscoders.activations.sections import ExtractActivationsSection


def main(arguments) -> None:
    """Extract one shard."""
    section: ExtractActivationsSection = arguments.settings
    extract_shard(section, arguments.tokens, arguments.models, arguments.output)


if __name__ == "__main__":
    stage.run(
        main, stage.parser(ExtractActivationsSection, __doc__, "tokens", "output", lists=("models",)).parse_args()
    )
