"""Cells of tables that are numbers line up and do not break; tables of many numbers are small."""

import re
from typing import Any

from docutils import nodes

NUMBER = re.compile(r'-?[\d.,]+(e-?\d+)?( ?%)?')


def _mark(app: Any, document: nodes.document) -> None:
    for table in document.findall(nodes.table):
        if 'fields' in table['classes']:
            continue
        numeric = 0
        for entry in table.findall(nodes.entry):
            if NUMBER.fullmatch(entry.astext()):
                entry['classes'].append('number')
                numeric += 1
        if numeric > len(list(table.findall(nodes.row))) * 3:
            table['classes'].append('dense')


def register(app: Any) -> None:
    """Marks them when a page has been read."""
    app.connect('doctree-read', _mark)
