"""The picture of the import arrows, drawn from the table that `tests/test_layering.py` checks."""

import ast
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

TABLE = Path(__file__).resolve().parents[2] / 'tests' / 'test_layering.py'
FILES = 'experiment.files'  # with `records` and `config`: what the report may read
# Rows of the picture, from what imports most to what imports nothing.
ROWS = (
    ('configs', 'launch'),
    ('experiment',),
    ('report',),
    (FILES, 'training'),
    ('mirror', 'problems', 'inverse'),
    ('networks', 'denoising', 'metrics'),
    ('constraints',),
)
WIDTH, HEIGHT, BOX, TALL = 190, 84, 158, 34


def _of(table: Path = TABLE) -> dict[str, set[str]]:
    """Returns package -> those that it may import, files of one package taken together."""
    (allowed,) = (
        node.value
        for node in ast.parse(table.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == 'ALLOWED'
    )
    found: dict[str, set[str]] = {}
    for key, value in zip(allowed.keys, allowed.values, strict=True):
        name = ast.literal_eval(key).removeprefix('namm_jax').lstrip('.')
        text = ast.literal_eval(value.elts[0])
        part = _package(name)
        if part and not part.startswith('_'):
            found.setdefault(part, set()).update(map(_package, text.split()))
    return {name: {other for other in others if other not in (name, '')}
            for name, others in found.items()}  # fmt: skip


def _package(name: str) -> str:
    first, _, rest = name.partition('.')
    if first == 'experiment' and rest in ('files', 'records', 'config', 'presets'):
        return FILES
    return '' if first.startswith('__') else first


def picture() -> str:
    """Returns the picture as SVG."""
    width = max(map(len, ROWS)) * WIDTH
    place = {}
    for y, row in enumerate(ROWS):
        for i, name in enumerate(row):
            place[name] = (width * (i + 0.5) / len(row), HEIGHT * (y + 0.5))
    found = _of()
    unplaced = set(found) | {other for others in found.values() for other in others}
    if unplaced := unplaced - set(place):
        raise RuntimeError(f'docs/extension/arrows.py: no place for {", ".join(sorted(unplaced))}')
    lines = []
    for name, others in found.items():
        for other in sorted(others):
            lines.append(_arrow(*place[name], *place[other]))
    for name, (x, y) in place.items():
        shown = 'experiment: files' if name == FILES else name
        lines.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - TALL / 2:.0f}" width="{BOX}" height="{TALL}" '
            f'rx="6"/><text x="{x:.0f}" y="{y + 5:.0f}">{shown}</text>'
        )
    size = f'viewBox="0 0 {width} {HEIGHT * len(ROWS)}"'
    label = 'Packages as boxes, and an arrow from each to those that it may import'
    return (
        f'<div class="arrows"><svg {size} role="img" aria-label="{label}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg></div>'
    )


def _arrow(x: float, y: float, x_to: float, y_to: float) -> str:
    """Returns a curve from the bottom of a box to the top of another, or along one row."""
    if y == y_to:
        side = 1 if x_to > x else -1
        x, x_to = x + side * BOX / 2, x_to - side * BOX / 2
        head = f'M{x_to:.0f} {y:.0f}l{-7 * side} -4v8z'
        return (
            f'<path class="arrow" d="M{x:.0f} {y:.0f}H{x_to:.0f}"/><path class="head" d="{head}"/>'
        )
    y, y_to = y + TALL / 2, y_to - TALL / 2
    x_to = x_to + max(-BOX / 3, min(BOX / 3, (x - x_to) / 6))
    bend = (y_to - y) * 0.5
    bends = f'{x:.0f} {y + bend:.0f} {x_to:.0f} {y_to - bend:.0f}'
    curve = f'M{x:.0f} {y:.0f}C{bends} {x_to:.0f} {y_to - 6:.0f}'
    head = f'M{x_to:.0f} {y_to:.0f}l-4 -7h8z'
    return f'<path class="arrow" d="{curve}"/><path class="head" d="{head}"/>'


class Arrows(SphinxDirective):
    """The picture."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw('', picture(), format='html')]


def register(app: Any) -> None:
    """Adds the directive."""
    app.add_directive('import-arrows', Arrows)
