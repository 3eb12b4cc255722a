"""Stage html: an executed notebook as a page of its own, pictures inside; written whole or not at all."""

from __future__ import annotations

import nbformat
from nbconvert import HTMLExporter

from crosscoders import artifacts, stage
from crosscoders.report.sections import HtmlSection


def main(arguments) -> None:
    """Write one page, without the code of the notebook."""
    exporter = HTMLExporter(exclude_input=True, embed_images=True)
    notebook = nbformat.read(arguments.notebook, as_version=4)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": arguments.notebook.stem}})
    artifacts.atomic(arguments.output, lambda path: path.write_text(page, encoding="utf-8"), len(page))
    stage.say(f"html {arguments.output.name}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    stage.run(main, stage.parser(HtmlSection, __doc__, "notebook", "output").parse_args())
