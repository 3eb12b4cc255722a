"""Stage fetch_text: one corpus as documents made of segments with roles and planted behaviours."""

from __future__ import annotations

from pathlib import Path

from crosscoders import artifacts, provenance, stage
from crosscoders.data.chats import write_chats
from crosscoders.data.corpora import from_dataset, from_file, from_hub, from_wheel, to_dataset
from crosscoders.data.records import Counts
from crosscoders.data.sections import FetchTextSection
from crosscoders.errors import UserError
from crosscoders.study.settings.corpora import FileCorpus, PlantedChats, WheelCorpus


def main(arguments) -> None:
    """Make one corpus; chats are written from the articles given with `--articles`."""
    section: FetchTextSection = arguments.settings
    corpus, counts = section.corpus, Counts()
    if isinstance(corpus, PlantedChats):
        documents = write_chats(from_dataset(artifacts.read(arguments.articles)), corpus)
    elif isinstance(corpus, WheelCorpus):
        documents = from_wheel(corpus, counts)
    elif isinstance(corpus, FileCorpus):
        documents = from_file(corpus, counts)
    else:
        documents = from_hub(corpus, counts)
    if not documents:
        reasons = "; ".join(counts.lines()) or "it holds no record"
        raise UserError(f"corpora.{section.name}: no document found ({reasons}); expected at least one")
    dataset = to_dataset(documents).assign_attrs(section.provenance())
    dataset.attrs["title"] = f"corpus {section.name}"
    dataset.attrs["licence"] = "as the articles" if isinstance(corpus, PlantedChats) else corpus.licence
    dataset.attrs["dropped"] = provenance.json_text(dict(counts.dropped))
    dataset.attrs["changed"] = provenance.json_text(dict(counts.changed))
    artifacts.write(dataset, arguments.output)
    for line in counts.lines():
        stage.say(f"fetch_text {section.name}: {line}")
    stage.say(f"fetch_text {section.name}: {len(documents):,} documents")


if __name__ == "__main__":
    flags = stage.parser(FetchTextSection, __doc__, "output")
    flags.add_argument("--articles", type=Path)
    stage.run(main, flags.parse_args())
