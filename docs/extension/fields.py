"""Tables of what the code declares once: config fields, problems' parameters, flags, front door."""

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

import namm_jax
from extension.docstrings import MODULES, restructured
from namm_jax import problems
from namm_jax.experiment import cli, schema


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str) -> list[str]:
    """Returns a table in reStructuredText, without the columns that are empty."""
    rows = list(rows)
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    head, rows = [head[i] for i in used], [[row[i] for i in used] for row in rows]
    lines = ['.. list-table::', '   :header-rows: 1', f'   :class: {style}', '']
    for row in (head, *rows):
        for start, cell in zip(['   * - ', *['     - '] * len(row)], row, strict=False):
            lines.append(start + cell)
    return [*lines, '']


def _code(value: Any) -> str:
    """Returns a value as code; an empty text is two quotation marks."""
    text = value if isinstance(value, str) and value else repr(value)
    return f'``{text}``'


def _field_rows(fields: dict[str, schema.Field]) -> list[list[str]]:
    rows = []
    for name, field in fields.items():
        allowed = ' or '.join(f'``{part}``' for part in field.range.split(' | ') if part)
        meaning = _plain(field.meaning)
        rows.append([f'``{name}``', _code(field.default), allowed, field.unit, meaning])
    return rows


def _plain(meaning: str) -> str:
    """Returns a meaning with what would be markup made plain; its backticks stay code."""
    return meaning.replace('*', r'\*').replace('`', '``').replace('|', r'\|')


class _Generated(SphinxDirective):
    """A directive whose content is text in reStructuredText; in Markdown, inside `eval-rst`."""

    def text(self) -> list[str]:
        """Returns the lines of that text."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        lines = StringList(self.text(), source=f'<{self.name}>')
        node = nodes.Element()
        nested_parse_with_titles(self.state, lines, node)
        return node.children


class ConfigFields(_Generated):
    """The fields of a section of the configs, or of the data of each problem."""

    required_arguments = 1

    def text(self) -> list[str]:
        name = self.arguments[0]
        head = ('field', 'default', 'range', 'unit', 'meaning')
        if name == 'data':
            return [line for problem in problems.PROBLEMS for line in self._data(problem, head)]
        source = schema.fields('galaxies' if name == 'counter' else 'burgers')
        rows = {
            field: value
            for field, value in source.items()
            if (field.split('.')[0] if '.' in field else 'seed') == name
        }
        return _table(head, _field_rows(rows), 'fields')

    def _data(self, problem: str, head: Sequence[str]) -> list[str]:
        common = schema.FIELDS
        own = {
            field: value
            for field, value in schema.fields(problem).items()
            if field.split('.')[0] in ('data', 'constraint') and field not in common
        }
        return [f'Problem ``{problem}``:', '', *_table(head, _field_rows(own), 'fields')]


class CommonData(_Generated):
    """The fields of `data` and `constraint` that all problems have."""

    def text(self) -> list[str]:
        head = ('field', 'default', 'range', 'unit', 'meaning')
        common = {
            field: value
            for field, value in schema.FIELDS.items()
            if field.split('.')[0] in ('data', 'constraint')
        }
        common['data.problem'] = common['data.problem']._replace(default='')
        return _table(head, _field_rows(common), 'fields')


class Flags(_Generated):
    """The flags of the command line."""

    def text(self) -> list[str]:
        takes = {
            flag: [name for name, (_, needs, others) in cli.COMMANDS.items()
                   if flag in f'{needs} {others}'.split()]
            for flag in cli.FLAGS
        }  # fmt: skip
        rows = [
            [f'``--{flag}={metavar}``', ', '.join(takes[flag]), _plain(meaning)]
            for flag, (metavar, _, _, meaning) in cli.FLAGS.items()
        ]
        return _table(('flag', 'of', 'meaning'), rows, 'fields')


class ProblemClass(_Generated):
    """A problem: its class, what it is, and its parameters."""

    required_arguments = 1

    def text(self) -> list[str]:
        name = self.arguments[0]
        cls = getattr(problems, name)
        fields = [field for field in dataclasses.fields(cls) if 'meaning' in field.metadata]
        about = inspect.getmodule(cls).__doc__.strip().split('\n\n')[0]
        text = [f'.. py:class:: namm_jax.problems.{name}(**parameters)', '']
        body = [*restructured(about.split('\n')), '']
        body += [*restructured(inspect.getdoc(cls).split('\n\n')[0].split('\n')), '']
        own = {field.name: schema.Field(field.default, **field.metadata) for field in fields}
        head = ('parameter', 'default', 'range', 'unit', 'meaning')
        body += _table(head, _field_rows(own), 'fields')
        return text + [f'   {line}' if line else '' for line in body]


class FrontDoor(_Generated):
    """Every public name with the first sentence of its docstring."""

    def text(self) -> list[str]:
        """Returns the lines of the table, in the order of the package's own list."""
        rows = []
        for name in namm_jax._PLACES:
            value = getattr(namm_jax, name)
            about = (inspect.getdoc(value) or '').split('\n\n')[0]
            first = ' '.join(about.split()).split('. ')[0].split('; ')[0].rstrip('.:')
            module = name in MODULES
            target = value.__name__ if module else f'namm_jax.{name}'
            link = f':py:{"mod" if module else "obj"}:`{name} <{target}>`'
            rows.append([link, ''.join(restructured([first]))])
        return _table(('name', 'what it is'), rows, 'fields')


def register(app: Any) -> None:
    """Adds the directives."""
    app.add_directive('config-fields', ConfigFields)
    app.add_directive('common-data', CommonData)
    app.add_directive('flags', Flags)
    app.add_directive('problem-class', ProblemClass)
    app.add_directive('front-door', FrontDoor)
