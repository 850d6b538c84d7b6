"""A program of the repository, folded away under its name."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class ShownCode(SphinxDirective):
    """The text of a file below docs/."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / self.arguments[0]
        self.env.note_dependency(str(path))
        code = nodes.literal_block(path.read_text(), path.read_text(), language='python')
        head = f'<details><summary>docs/{self.arguments[0]}</summary>'
        return [
            nodes.raw('', head, format='html'),
            code,
            nodes.raw('', '</details>', format='html'),
        ]


def register(app: Any) -> None:
    """Adds the directive."""
    app.add_directive('shown-code', ShownCode)
