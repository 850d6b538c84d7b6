"""What the site makes of the code: fields, flags, parameters, import arrows, and docstrings."""

from typing import Any

from extension import arrows, code, docstrings, fields, mathematics, tables


def setup(app: Any) -> dict[str, Any]:
    """Registers all parts with Sphinx."""
    for part in (mathematics, docstrings, fields, arrows, code, tables):
        part.register(app)
    return {'version': '1', 'parallel_read_safe': True}
