"""Stage manifest: SHA-256 of every file of a finished study, with the versions and the settings that made them."""

from __future__ import annotations

from crosscoders import artifacts, stage
from crosscoders.report.sections import ManifestSection
from crosscoders.report.verification import content_sha256, is_document, listing


def main(arguments) -> None:
    """Write the manifest."""
    section: ManifestSection = arguments.settings
    folder = arguments.output.parent
    digests = listing(folder)
    documents = {path: digest for path, digest in digests.items() if is_document(path)}
    content = {
        "study": section.study,
        "settings_sha256": section.settings_sha256,
        "commit": artifacts.commit(),
        "versions": artifacts.versions(),
        "artifacts": {path: digest for path, digest in digests.items() if path not in documents},
        "documents": documents,
    }
    artifacts.write_json({**content, "content_sha256": content_sha256(content)}, arguments.output)
    stage.say(f"manifest: {len(content['artifacts'])} artifacts, {len(documents)} documents")


if __name__ == "__main__":
    stage.run(main, stage.parser(ManifestSection, __doc__, "output").parse_args())
