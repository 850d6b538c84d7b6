"""Equations as MathML, which browsers draw by themselves, by the converter of docutils."""

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def _drawn(tex: str, *, block: bool) -> str:
    return latex2mathml.tex2mathml(tex, as_block=block).strip()


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_drawn(node.astext(), block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_drawn(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def register(app: Any) -> None:
    """Adds the renderer `mathml`."""
    app.add_html_math_renderer('mathml', (_inline, None), (_block, None))
