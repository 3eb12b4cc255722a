"""Stage manifest: SHA-256 of every file of a finished study, with the versions and the settings that made them."""

from __future__ import annotations

from crosscoders import provenance, stage, storage
from crosscoders.report.sections import ManifestSection
from crosscoders.report.verification import is_document, listing


def main(arguments) -> None:
    """Write the manifest."""
    section: ManifestSection = arguments.settings
    folder = arguments.output.parent
    digests = listing(folder)
    documents = {path: digest for path, digest in digests.items() if is_document(path)}
    content = {
        "study": section.study,
        "settings_sha256": section.settings_sha256,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "artifacts": {path: digest for path, digest in digests.items() if path not in documents},
        "documents": documents,
    }
    storage.write_sealed_json(content, arguments.output)
    stage.say(f"manifest: {len(content['artifacts'])} artifacts, {len(documents)} documents")


if __name__ == "__main__":
    stage.run(main, stage.parser(ManifestSection, __doc__, "output").parse_args())
