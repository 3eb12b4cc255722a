"""Stage html: an executed notebook as a page of its own, pictures inside; written whole or not at all."""

from __future__ import annotations

import nbformat
from nbconvert import HTMLExporter

from crosscoders import stage, storage
from crosscoders.report.sections import HtmlSection


def main(arguments) -> None:
    """Write one page, without the code of the notebook."""
    exporter = HTMLExporter(exclude_input=True, embed_images=True)
    storage.verify(arguments.notebook)
    notebook = nbformat.read(arguments.notebook, as_version=4)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": arguments.notebook.stem}})
    storage.write_sealed(page, arguments.output)
    stage.say(f"html {arguments.output.name}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    stage.run(main, stage.parser(HtmlSection, __doc__, "notebook", "output").parse_args())
