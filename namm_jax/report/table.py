"""The end table: every row of the comparison on one screen.

It reads the `rows` of `metrics.json`. A number may be absent, `None` (not finite) or, over several
seeds, `{'mean', 'std', 'n'}`, of which the mean is shown.
"""

import io
import math
from collections.abc import Mapping, Sequence
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
_VARIANTS = {'dm_restored_': ROW_NAMES['dm_restored'] + ' by ', 'mdm_': 'closed-form mirror map '}
COLUMNS = (
    'distance\nmean',
    'median',
    'max',
    'two-sample\narea (z)',
    'spectrum\n(z)',
    'sliced W1\n(z)',
    'MMD²\n(z)',
    'calls',
    's /\nsample',
    'training\n(m:ss)',
    'training\n(TFLOP)',
    'n',
)
ASSIMILATION_COLUMNS = (
    'distance\nmean',
    'median',
    'misfit\n(noise std)',
    'RMSE\n(mean)',
    'CRPS',
    'spread /\nskill',
    'calls',
    's /\nsample',
    'diver-\nged',
    'n',
)
# Of both, what a narrow terminal goes without, first to last.
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


def row_name(row: str) -> str:
    """Returns the name of a row for people, such as 'mirror diffusion model, finetuned' for
    `mdm_finetuned`; a key that is not in the contract is its own name.
    """
    if row in ROW_NAMES:
        return ROW_NAMES[row]
    for prefix, name in _VARIANTS.items():
        if row.startswith(prefix):
            return name + row.removeprefix(prefix).replace('_', ' ')
    return row


def in_order(rows: Sequence[str]) -> list[str]:
    """Returns row keys in the order of the contract: data, diffusion models, mirror diffusion
    models; variants (`dm_restored_<variant>`) follow the row they vary, and unknown keys come last.
    """
    order = list(ROW_NAMES)

    def place(row: str) -> float:
        if row in order:
            return float(order.index(row))
        after = {'dm_restored_': order.index('dm_restored') + 0.5, 'mdm_': float(len(order))}
        return next(
            (index for prefix, index in after.items() if row.startswith(prefix)), len(order) + 1.0
        )

    return sorted(rows, key=place)


def summary_table(rows: Mapping[str, Mapping[str, Any]], width: float = math.inf) -> Table:
    """Returns the table at the end of a run: constraint distance, distribution distances and cost
    of every row of `metrics.json`, with the ratio of the medians below. It goes without columns of
    `LEAST` that a width has no room for.
    """
    texts = {row: cells(rows[row]) for row in in_order(list(rows))}
    return _table('row', COLUMNS, texts, width, ratio_of_medians(rows))


def assimilation_table(entries: Mapping[str, Mapping[str, Any]], width: float = math.inf) -> Table:
    """Returns the table of the posterior samplers of one measurement operator, whose entry
    `assimilation` in `metrics.json` is sampler -> numbers; the width as of `summary_table`.
    """
    texts = {name: assimilation_cells(entry) for name, entry in entries.items()}
    return _table('sampler', ASSIMILATION_COLUMNS, texts, width)


def assimilation_cells(entry: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a posterior sampler under `ASSIMILATION_COLUMNS`, as `cells`."""
    distances = [three_digits(entry.get('distance', {}).get(name)) for name in ('mean', 'median')]
    scalars = dict.fromkeys(('misfit', 'rmse', 'crps', 'spread_skill'), three_digits)
    costs = {'calls': _whole, 'seconds_per_sample': three_digits, 'diverged': _whole, 'n': _whole}
    return distances + [form(entry.get(name)) for name, form in (scalars | costs).items()]


def _table(
    first: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    width: float,
    caption: str | None = None,
) -> Table:
    texts = {name: [row[i] for row in rows.values()] for i, name in enumerate(columns)}
    lines = lambda *texts: (line for text in texts for line in text.split('\n'))
    size = {name: 1 + max(map(len, lines(name, *of))) for name, of in texts.items()}
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
    for i, row in enumerate(rows):  # Text: brackets are no markup
        table.add_row(row, *(Text(texts[name][i]) for name in size))
    return table


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a row under `COLUMNS`: 3 significant digits, '-' for what is absent."""
    distance, distribution = row.get('distance', {}), row.get('distribution', {})
    metrics = ('two_sample', 'spectrum', 'sliced_wasserstein', 'mmd')
    return [
        *(three_digits(distance.get(name)) for name in ('mean', 'median', 'max')),
        *(_against_floor(distribution.get(name, {})) for name in metrics),
        _whole(row.get('calls')),
        three_digits(row.get('seconds_per_sample')),
        _minutes(row.get('training_seconds')),
        three_digits(_number(row.get('training_flops'), 1e-12)),
        _whole(row.get('n')),
    ]


def _against_floor(metric: Mapping[str, Any]) -> str:
    """Returns a distribution metric as 'value (z)', that of the row `data` as 'value ± std'."""
    value, z, std = (three_digits(metric.get(name)) for name in ('value', 'z', 'std'))
    if z != '-':
        return f'{value} ({_number(metric["z"]):+.1f})'
    return value if std == '-' else f'{value} ± {std}'


def _median(rows: Mapping[str, Mapping[str, Any]], row: str) -> float | None:
    return _number(rows.get(row, {}).get('distance', {}).get('median'))


def ratio_of_medians(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns what the table comes down to: the median distance of the finetuned samples over that
    of the diffusion model; None where one of the two is absent.
    """
    finetuned, dm = (_median(rows, row) for row in ('mdm_finetuned', 'dm'))
    if finetuned is None or not dm:
        return None
    return f'median distance, mdm_finetuned / dm: {three_digits(finetuned / dm)}'


def headline(rows: Mapping[str, Mapping[str, Any]], distance: str = "the rule's own") -> str:
    """Returns the same in words, with what the distance is; empty where a row is absent."""
    dm, ours = (_median(rows, row) for row in ('dm', 'mdm_finetuned'))
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


def _number(value: Any, unit: float = 1.0) -> float | None:
    if isinstance(value, Mapping):
        value = value.get('mean')
    return unit * value if value is not None and math.isfinite(value) else None


def _whole(value: Any) -> str:
    number = _number(value)
    return '-' if number is None else f'{number:.0f}'


def _minutes(value: Any) -> str:
    number = _number(value)
    return '-' if number is None else '{}:{:02d}'.format(*divmod(round(number), 60))
