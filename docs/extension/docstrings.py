"""The package's docstrings as reStructuredText, and signatures with annotations as written.

In the package a name or a piece of code stands between single backticks, and an indented block is
an equation or a table, shown as it stands.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import namm_jax

SECTIONS = ('Args', 'Attributes', 'Raises', 'Returns', 'References')
CODE = re.compile(r'(?<![`:\w])`([^`]+)`(?![`_])')
# Public modules by the name in `namm_jax`.
MODULES = {name for name in namm_jax.__all__ if inspect.ismodule(getattr(namm_jax, name))}


def _code(match: re.Match[str]) -> str:
    text = match[1]
    public = text in namm_jax.__all__ and text not in MODULES
    return f':py:obj:`{text} <namm_jax.{text}>`' if public else f'``{text}``'


def restructured(lines: list[str]) -> list[str]:
    """Returns the lines of a docstring as reStructuredText that napoleon reads."""
    text = CODE.sub(_code, '\n'.join(lines))
    text = re.sub(r'^(Args as of .*), and:$', r'\1, and those below.\n\nArgs:', text, flags=re.M)
    return list(_blocks(text.split('\n')))


def _blocks(lines: list[str]) -> Iterator[str]:
    """Yields the lines, indented blocks marked as literal and references as one paragraph."""
    literal = reference = False
    section = previous = ''
    for line in lines:
        indented = line.startswith('    ')
        if line and not indented:
            section = line.rstrip(':') if line.rstrip(':') in SECTIONS else ''
            literal = False
            reference = line.startswith(('Reference: ', 'References: '))
        if section == 'Attributes':  # of two names napoleon takes one for a type
            line = re.sub(r'^(    \w+), (\w+:)', r'\1/\2', line)
        if reference and indented:
            line = line.strip()
        elif indented and not section and not literal and not previous:
            literal = True
            yield from ('::', '')
        # Literal blocks keep what they say: no links, no double backticks.
        yield re.sub(r'``|:py:obj:|( <namm_jax\.\w+>)', '', line) if literal else line
        previous = line


def signature_of(function: Any) -> tuple[str, str] | None:
    """Returns arguments and result of a function as its source has them."""
    function = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    node = tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = node.args
    listed = (arguments.posonlyargs, arguments.args)
    for some in listed:
        if some and some[0].arg == 'self':
            del some[0]
    returns = ast.unparse(node.returns).strip('\'"') if node.returns else ''
    return f'({ast.unparse(arguments)})', returns


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def _signature(app: Any, what: str, name: str, obj: Any, options: Any, *old: Any) -> Any:
    return signature_of(obj) if what in ('function', 'method') else None


def _complete(app: Any, env: Any) -> None:
    """Raises an error unless every public name is documented."""
    objects = env.get_domain('py').objects
    names = {f'namm_jax.{name}' for name in namm_jax.__all__ if name not in MODULES}
    names |= {getattr(namm_jax, name).__name__ for name in MODULES}
    if missing := sorted(names - set(objects)):
        raise RuntimeError(f'docs/api: nothing about {", ".join(missing)}; add it to a page')


def register(app: Any) -> None:
    """Adds the hooks of autodoc: before napoleon, which is at 500."""
    app.connect('autodoc-process-docstring', _docstring, priority=400)
    app.connect('autodoc-process-signature', _signature)
    app.connect('env-check-consistency', _complete)
