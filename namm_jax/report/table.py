"""The end table: every row of the comparison on one screen.

It reads the `rows` of `metrics.json`. A number may be absent, `None` (not finite) or, over several
seeds, `{'mean', 'std', 'n'}`, of which the mean is shown.
"""

import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

ROW_NAMES = {
    'data': 'true data',
    'dm': 'diffusion model',
    'dm_guided': 'diffusion model, guided',
    'dm_restored': 'diffusion model, restored',
    'dm_projected': 'diffusion model, projected',
    'dm_landed': 'diffusion model, then the steps that end f',
    'dm_restored_sampling': 'diffusion model, restored while sampling',
    'dm_projected_sampling': 'diffusion model, projected while sampling',
    'dm_ppr': 'diffusion model, projected and renoised while sampling',
    'dm_residual_conditioned': 'diffusion model, conditioned on distance 0',
    'dm_rejected': 'diffusion model, drawn until it obeys as data do',
    'dm_mapped': 'diffusion model, through f(g(x))',
    'dm_mapped_finetuned': 'diffusion model, through finetuned f(g(x))',
    'mdm': 'mirror diffusion model',
    'mdm_finetuned': 'mirror diffusion model, finetuned',
    'mdm_unlanded': 'mirror diffusion model, finetuned, f without these steps',
}
# Of other rows, how the key begins -> how the name does.
_VARIANTS = {'dm_restored_': ROW_NAMES['dm_restored'] + ' by ', 'mdm_': 'closed-form mirror map '}
# What a narrow terminal goes without, first to last.
LEAST = (
    'MMD²\n(z)',
    'sliced W1\n(z)',
    'max',
    'n',
    'calls',
    'training\n(TFLOP)',
    'distance\nmean',
    'CRPS',
    's /\nsample',
    'diver-\nged',
    'spectrum\n(z)',
)


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get('mean')
    return value if value is not None and math.isfinite(value) else None


def _text(form: Callable[[float], str], value: Any) -> str:
    number = _number(value)
    return '-' if number is None else form(number)


def three_digits(value: Any) -> str:
    """Returns a number in 3 significant digits, in at most 8 characters: '0.0123', '1.23e-5'; '-'
    for None and what is not finite; of `{'mean', 'std', 'n'}` the mean.
    """
    number = _number(value)
    if number is None:
        return '-'
    if number == 0:
        return '0'
    if not 1e-3 <= abs(number) < 1e4:
        mantissa, exponent = f'{number:.2e}'.split('e')
        return f'{mantissa}e{int(exponent)}'
    return f'{number:.0f}' if abs(number) >= 999.5 else f'{number:#.3g}'.rstrip('.')


def _against_floor(metric: Mapping[str, Any]) -> str:
    """Returns a distribution metric as 'value (z)', that of the row `data` as 'value ± std'."""
    value, z, std = (three_digits(metric.get(name)) for name in ('value', 'z', 'std'))
    if z != '-':
        return f'{value} ({_number(metric["z"]):+.1f})'
    return value if std == '-' else f'{value} ± {std}'


_whole = functools.partial(_text, '{:.0f}'.format)
_minutes = functools.partial(_text, lambda number: '{}:{:02d}'.format(*divmod(round(number), 60)))
_tera = functools.partial(_text, lambda number: three_digits(1e-12 * number))

# Heading of a column -> where its number is in an entry of `metrics.json`, and how it is written.
Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
COLUMNS: Columns = {
    'distance\nmean': ('distance.mean', three_digits),
    'median': ('distance.median', three_digits),
    'max': ('distance.max', three_digits),
    'two-sample\narea (z)': ('distribution.two_sample', _against_floor),
    'spectrum\n(z)': ('distribution.spectrum', _against_floor),
    'sliced W1\n(z)': ('distribution.sliced_wasserstein', _against_floor),
    'MMD²\n(z)': ('distribution.mmd', _against_floor),
    'calls': ('calls', _whole),
    's /\nsample': ('seconds_per_sample', three_digits),
    'training\n(m:ss)': ('training_seconds', _minutes),
    'training\n(TFLOP)': ('training_flops', _tera),
    'n': ('n', _whole),
}
ASSIMILATION_COLUMNS: Columns = {
    'distance\nmean': ('distance.mean', three_digits),
    'median': ('distance.median', three_digits),
    'misfit\n(noise std)': ('misfit', three_digits),
    'RMSE\n(mean)': ('rmse', three_digits),
    'CRPS': ('crps', three_digits),
    'spread /\nskill': ('spread_skill', three_digits),
    'calls': ('calls', _whole),
    's /\nsample': ('seconds_per_sample', three_digits),
    'diver-\nged': ('diverged', _whole),
    'n': ('n', _whole),
}


def _at(entry: Mapping[str, Any], path: str) -> Any:
    """Returns what is at a dotted place; {} where there is nothing."""
    return functools.reduce(lambda tree, name: tree.get(name, {}), path.split('.'), entry)


def cells(entry: Mapping[str, Any], columns: Columns = COLUMNS) -> list[str]:
    """Returns the cells of a row: 3 significant digits, '-' for what is absent."""
    return [form(_at(entry, path)) for path, form in columns.values()]


def _variant_of(row: str) -> str:
    """Returns the beginning of a variant's key, of `_VARIANTS`; '' for any other row."""
    found = (prefix for prefix in _VARIANTS if row.startswith(prefix))
    return '' if row in ROW_NAMES else next(found, '')


def row_name(row: str) -> str:
    """Returns the name of a row for people, such as 'mirror diffusion model, finetuned' for
    `mdm_finetuned`; a key that is not in the contract is its own name.
    """
    if prefix := _variant_of(row):
        return _VARIANTS[prefix] + row.removeprefix(prefix).replace('_', ' ')
    return ROW_NAMES.get(row, row)


def in_order(rows: Iterable[str]) -> list[str]:
    """Returns row keys in the order of the contract: data, diffusion models, mirror diffusion
    models; variants (`dm_restored_<variant>`) follow the row they vary, and unknown keys come last.
    """
    order = [*ROW_NAMES, 'mdm_', '']
    order.insert(order.index('dm_restored') + 1, 'dm_restored_')
    return sorted(rows, key=lambda row: order.index(row if row in order else _variant_of(row)))


def summary_table(rows: Mapping[str, Mapping[str, Any]], width: float = math.inf) -> Table:
    """Returns the table at the end of a run: constraint distance, distribution distances and cost
    of every row of `metrics.json`, with the ratio of the medians below. It goes without columns of
    `LEAST` that a width has no room for.
    """
    dm, finetuned = _medians(rows)
    ratio = None
    if dm and finetuned is not None:
        ratio = f'median distance, mdm_finetuned / dm: {three_digits(finetuned / dm)}'
    return _table('row', COLUMNS, {row: rows[row] for row in in_order(rows)}, width, ratio)


def assimilation_table(entries: Mapping[str, Mapping[str, Any]], width: float = math.inf) -> Table:
    """Returns the table of the posterior samplers of one measurement operator, whose entry
    `assimilation` in `metrics.json` is sampler -> numbers; the width as of `summary_table`.
    """
    return _table('sampler', ASSIMILATION_COLUMNS, entries, width)


def _table(
    first: str,
    columns: Columns,
    rows: Mapping[str, Mapping[str, Any]],
    width: float,
    caption: str | None = None,
) -> Table:
    texts = {row: dict(zip(columns, cells(rows[row], columns), strict=True)) for row in rows}
    lines = lambda name: '\n'.join([name, *(of[name] for of in texts.values())]).split('\n')
    size = {name: 1 + max(map(len, lines(name))) for name in columns}
    for name in LEAST:
        if max(map(len, (first, *rows))) + sum(size.values()) > width:
            size.pop(name, None)
    table = Table(
        box=rich.box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        caption=caption,
        caption_justify='left',
    )
    table.add_column(first, no_wrap=True, vertical='bottom')
    for name in size:
        table.add_column(name, justify='right', no_wrap=True, vertical='bottom')
    for row, of in texts.items():  # Text: brackets are no markup
        table.add_row(row, *(Text(of[name]) for name in size))
    return table


def _medians(rows: Mapping[str, Mapping[str, Any]]) -> list[float | None]:
    """Returns the median distances of the diffusion model and of the finetuned samples."""
    return [_number(_at(rows, f'{row}.distance.median')) for row in ('dm', 'mdm_finetuned')]


def headline(rows: Mapping[str, Mapping[str, Any]], distance: str = "the rule's own") -> str:
    """Returns what the table comes down to in words, with what the distance is; empty where a row
    is absent.
    """
    dm, ours = _medians(rows)
    if not dm or not ours:
        return ''
    factor, way = (dm / ours, 'closer to') if ours < dm else (ours / dm, 'farther from')
    return (
        f'Samples of the mirror model are {three_digits(factor)} times {way} the rule than the '
        f"diffusion model's, by the median distance: {distance}. Lower is better."
    )


def render(table: Table) -> str:
    """Returns a table as plain text."""
    console = Console(file=io.StringIO(), width=10**4, color_system=None)
    console.print(table)
    return '\n'.join(line.rstrip() for line in console.file.getvalue().splitlines())
