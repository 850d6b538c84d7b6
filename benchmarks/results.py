#!/usr/bin/env python
"""Keeps the numbers of finished runs under `results/`, and writes all tables of texts from them.

    python benchmarks/results.py RUN [RUN ...]     # a run folder, or a folder with one a seed
    python benchmarks/results.py --readme # the tables between <!-- table: NAME --> and <!-- end -->

NAME is `<config>-<preset>[-<label>]`; its table has the mean and the standard deviation over the
files `results/NAME-seed<k>.json`. `--label=budget3` puts a label into the name of what is kept;
`--untimed` leaves out what the clock measured, of a run on a machine that did other work as well.
`NAME+LABEL` has the further rows of `NAME-LABEL` too, and `NAME:OPERATOR` the posterior samplers of
a measurement operator. Of all constraints at preset quick, `front` and `summary` have a line a
constraint, its mean or its median distances; `methods:WHAT` a line a method, of `distance`,
`distribution` or `seconds`; `others` the inverse problems without a table of their own.
`ablations:CONFIG` has a line a file of it whose label begins with `ablation`; `power` is of
`benchmarks/power.py`, and `measured:FILE` of a benchmark that has written `results/FILE.json`. The
texts are README.md, results/README.md and the pages under docs/.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measured import head, line, processor
from namm_jax.experiment.config import flatten
from namm_jax.experiment.posteriors import ROWS
from namm_jax.report.reading import Results, find_runs, read_run
from namm_jax.report.table import in_order, row_name, three_digits

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end -->)', re.DOTALL)
COLUMNS = {
    'median distance': ('distance', 'median'),
    'mean': ('distance', 'mean'),
    'max': ('distance', 'max'),
    'exact, classical': ('counts', 'classical', 'exact'),
    'exact, second network': ('counts', 'second', 'exact'),
    "error, constraint's network": ('counts', 'counter', 'error'),
    'two-sample area': ('distribution', 'two_sample', 'value'),
    'its z': ('distribution', 'two_sample', 'z'),
    'spectrum distance': ('distribution', 'spectrum', 'value'),
    'z of spectrum': ('distribution', 'spectrum', 'z'),
    'sliced W1': ('distribution', 'sliced_wasserstein', 'value'),
    'z of W1': ('distribution', 'sliced_wasserstein', 'z'),
    'nearest training / held-out': ('memorisation',),
    's a sample': ('seconds_per_sample',),
    'training, s': ('training_seconds',),
    'training, FLOP': ('training_flops',),
}

POSTERIOR_COLUMNS = {
    'median distance': ('distance', 'median'),
    'mean': ('distance', 'mean'),
    'its noise floor': ('noise_floor', 'median'),
    'misfit': ('misfit',),
    'RMSE of the mean': ('rmse',),
    'its error': ('error', 'rmse'),
    'CRPS': ('crps',),
    'error of CRPS': ('error', 'crps'),
    'spread / skill': ('spread_skill',),
    'calls': ('calls',),
    's a sample': ('seconds_per_sample',),
    'samples': ('n',),
    'diverged': ('diverged',),
}


# What the table `front` calls the data and their rule.
RULES = {
    'burgers': ("Burgers' equation", 'a column is one solver step after the one before'),
    'divergence': ('Kolmogorov flow', 'no divergence'),
    'kolmogorov': ('Kolmogorov flow', 'a state is the one before it, stepped on'),
    'total_brightness': ('black holes', 'the sum of the pixels'),
    'periodic': ('binary textures', 'all tiles are equal'),
    'count': ('galaxies and a map', 'the map sums to eight sources'),
    'decaying_flow': ('decaying flow', 'all states follow from the first'),
    'heat': ('decaying waves', 'mass is conserved'),
    'reaction_diffusion': ('reaction and diffusion', 'a constant inflow explains the mass'),
}
# Config, preset and operator of the inverse problems of the table `others` -> what they are called.
INVERSE = {
    ('total_brightness-quick', 'sparse_fourier'): 'black hole from sparse Fourier samples',
    ('periodic-quick', 'occluded_box'): 'texture with an occluded box',
    ('count-images', 'downsampling'): 'galaxies, blurred and decimated',
}
# Ways to obey a rule: row of a run -> what it is called.
WAYS = {
    'dm_guided': 'guided',
    'dm_restored': 'restored',
    'dm_projected': 'projected',
    'dm_landed': 'landed',
    'dm_restored_sampling': 'restored while sampling',
    'dm_projected_sampling': 'projected while sampling',
    'dm_ppr': 'projected and renoised while sampling',
    'dm_residual_conditioned': 'conditioned on distance 0',
    'dm_rejected': 'drawn until as near as data',
    'dm_mapped': 'through f(g(x))',
    'dm_mapped_finetuned': 'through finetuned f(g(x))',
    'mdm_finetuned': 'mirror map, finetuned',
    'mdm_unlanded': 'mirror map, finetuned, f alone',
}


def kept(results: Results) -> dict[str, Any]:
    """Returns what is kept of a run: its numbers, and where they come from."""
    preset, config = flatten(results.preset), flatten(results.config)
    origin, commands = results.provenance[-1], []
    for opening in results.provenance:
        command = ['python', *map(_portable, opening['command'])]
        commands += [command] if opening['command'] and command not in commands else []
    return {
        'experiment': results.experiment,
        'seed': results.config['seed'],
        'changed': {
            name: value
            for name, value in config.items()
            if name != 'seed' and value != preset.get(name)
        },
        'command': commands[0],
        'commands': commands,
        'git': origin['git'],
        'time': origin['time'],
        'machine': processor(),
        'versions': origin['versions'] | {'python': origin['python']},
        'counter': results.stages.get('counter', {}).get('mean_absolute_error'),
    } | results.metrics


def _portable(argument: str) -> str:
    """Returns an argument of a command line without the folders of this machine."""
    name, equals, value = argument.partition('=')
    return f'{name}=runs/{Path(value).name}' if equals and name.endswith('workdir') else argument


def keep(folders: list[Path], label: str | None, into: Path, *, untimed: bool = False) -> None:
    """Writes one file a run."""
    for folder in find_runs(folders).values():
        results = read_run(folder)
        name = '-'.join([*results.experiment.split(':'), *filter(None, [label])])
        path = into / f'{name}-seed{results.config["seed"]}.json'
        numbers = _untimed(kept(results)) if untimed else kept(results)
        path.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + '\n')
        print(path)


def _untimed(tree: Any) -> Any:
    """Returns a tree of numbers without those of the clock."""
    if not isinstance(tree, dict):
        return tree
    clock = ('training_seconds', 'seconds_per_sample')
    return {name: _untimed(of) for name, of in tree.items() if name not in clock}


def cell(rows: list[dict[str, Any]], path: tuple[str, ...]) -> str:
    """Returns the mean of a number over seeds, with its standard deviation where there are
    several, and of how many of them it is where some have none.
    """
    values = rows
    for name in path:
        values = [value.get(name) for value in values if value]
    values = [value for value in values if value is not None]
    few = f' ({len(values)} of {len(rows)})' if len(values) < len(rows) else ''
    return _mean_and_spread(values) + few if values else ''


def _mean_and_spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0
    short = f' ± {float(f"{spread:.1g}"):.3g}'.replace('e-0', 'e-').replace('e+0', 'e')
    return three_digits(statistics.mean(values)) + (short if spread else '')


def table(name: str, folder: Path = ROOT / 'results') -> str:
    """Returns the table of all seeds of a name, in Markdown."""
    name, *labels = name.split('+')
    runs = _runs(name, folder)
    for label in labels:
        more = {run['seed']: run['rows'] for run in _runs(f'{name}-{label}', folder)}
        runs = [run | {'rows': more.get(run['seed'], {}) | run['rows']} for run in runs]
    seeds = ', '.join(str(run['seed']) for run in runs)
    rows = dict.fromkeys(row for run in runs for row in run['rows'])
    names = {row: row_name(row) for row in in_order(list(rows))}
    lines = _lines('row', COLUMNS, names, [run['rows'] for run in runs])
    ratios = [
        _median(run['rows'], 'mdm_finetuned') / _median(run['rows'], 'dm')
        for run in runs
        if 'mdm_finetuned' in run['rows']
    ]
    ratio = ''
    if ratios:
        mean = three_digits(statistics.mean(ratios))
        each = f' ({", ".join(map(three_digits, ratios))})' if len(ratios) > 1 else ''
        ratio = f'Ratio of medians, finetuned over DM: **{mean}**{each}. '
    plural = 's' if len(runs) > 1 else ''
    lines += ['', f'{ratio}Seed{plural} {seeds}; {_origin(runs)}.']
    return '\n'.join(lines) + '\n'


def posterior_table(name: str, operator: str, folder: Path = ROOT / 'results') -> str:
    """Returns the table of the posterior samplers of an operator, in Markdown."""
    files = [run for run in _runs(name, folder) if operator in run.get('assimilation', {})]
    runs = [run['assimilation'][operator] for run in files]
    lines = _lines(
        'sampler', POSTERIOR_COLUMNS, {row: f'`{row}`' for row in ROWS if row in runs[0]}, runs
    )
    of = lambda row, path: statistics.mean(_at(run[row], path) for run in runs)
    best = lambda path: min(of(row, path) for row in ('dps', 'cg_dps'))
    ratios = [of('mirror_dps', path) / best(path) for path in (('distance', 'median'), ('rmse',))]
    told = 'median distance **{}** times, RMSE **{}** times'.format(*map(three_digits, ratios))
    lines += [
        '',
        f'`mirror_dps` over the better of `dps` and `cg_dps`: {told}. '
        f'{_origin(files, "assimilate")}.',
    ]
    return '\n'.join(lines) + '\n'


def _runs(name: str, folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f'{name}-seed*.json'))
    if not paths:
        raise SystemExit(
            f'error: {folder}: got no {name}-seed<k>.json, expected at least one; keep a run first'
        )
    return [json.loads(path.read_text()) for path in paths]


def _lines(
    first: str,
    columns: dict[str, tuple[str, ...]],
    names: dict[str, str],
    runs: list[dict[str, Any]],
) -> list[str]:
    """Returns the lines of a table of `names`, row key -> title, over runs, row key -> entry."""
    of = {row: [run.get(row, {}) for run in runs] for row in names}
    cells = {name: {row: cell(of[row], path) for row in names} for name, path in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column.values())}
    lines = head([first, *cells])
    for row, title in names.items():
        lines.append(line([title, *(column[row] for column in cells.values())]))
    return lines


def _origin(runs: list[dict[str, Any]], stage: str = '') -> str:
    """Returns the first run's command and date, and the machines of all: of the commands that name
    the stage the last that made stages anew by other settings, or else ran all stages, or else the
    first.
    """
    run, machines = runs[0], ', '.join(dict.fromkeys(run['machine'] for run in runs))
    has = lambda command, text: text in ' '.join(command)
    named = [parts for parts in run.get('commands', [run['command']]) if has(parts, stage)]
    anew = [parts for parts in named if has(parts, '--redo=') and has(parts, '--config.')]
    whole = [parts for parts in named if not has(parts, '--stages=')]
    parts = [named[0], *whole, *anew][-1]
    command = ' '.join(f'`{part}`' if ' ' in part else part for part in parts)
    return f'`{command}`; {machines}; {run["time"][:10]}'


def _at(entry: dict[str, Any], path: tuple[str, ...]) -> float:
    for name in path:
        entry = entry[name]
    return entry


def summary(folder: Path = ROOT / 'results') -> str:
    """Returns a line a constraint: median distances of most rows, and the ratio of finetuned to
    DM.
    """
    few = ('dm_ppr', 'dm_residual_conditioned', 'dm_rejected', 'dm_mapped')  # on the pages alone
    names = {'dm': 'diffusion model', 'mdm': 'mirror map'}
    names |= {row: WAYS[row] for row in WAYS if row not in few}
    columns = ['constraint', 'true data', *names.values(), 'finetuned / DM', 'two-sample area, DM']
    columns += ['two-sample area, finetuned']
    lines = head(columns)
    for config, runs in _quick(folder).items():
        column = lambda row, name, runs=runs: cell([run.get(row) for run in runs], COLUMNS[name])
        medians = [column(row, 'median distance') for row in ('data', *names)]
        ratios = [_median(run, 'mdm_finetuned') / _median(run, 'dm') for run in runs]
        areas = [column(row, 'two-sample area') for row in ('dm', 'mdm_finetuned')]
        cells = [config, *medians, f'**{_mean_and_spread(ratios)}**', *areas]
        lines.append(line(cells))
    return '\n'.join(lines) + '\n'


def _with_best_restore(rows: dict[str, Any]) -> dict[str, Any]:
    """Returns rows, of the exact ways back onto the rule the nearest as `dm_restored`."""
    restores = [
        row for row in rows if row.startswith('dm_restored') and not row.endswith('sampling')
    ]
    best = min(restores, key=lambda row: _at(rows[row], COLUMNS['mean']), default=None)
    return rows | ({'dm_restored': rows[best]} if best else {})


def _quick(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of each seed of each config at preset quick."""
    runs = {config: _runs(f'{config}-quick', folder) for config in RULES}
    return {config: [_with_best_restore(run['rows']) for run in runs[config]] for config in runs}


def front(folder: Path = ROOT / 'results') -> str:
    """Returns a line a config: the mean distances of true data, of the diffusion model, of its best
    rival without a mirror map, and of the finetuned mirror diffusion model; and the areas of the
    two-sample test.
    """
    columns = ['data', 'rule', 'seeds', 'true data', 'diffusion model', 'best without a mirror map']
    columns += ['ours', 'area, true data', 'area, diffusion model', 'area, ours']
    lines = head(columns)
    for config, runs in _quick(folder).items():
        column = lambda row, name='mean', runs=runs: cell([run[row] for run in runs], COLUMNS[name])
        rivals = [row for row in WAYS if row.startswith('dm') and 'mapped' not in row]
        rivals = [row for row in rivals if all(row in run for run in runs)]
        best = min(
            rivals, key=lambda row, runs=runs: sum(_at(run[row], COLUMNS['mean']) for run in runs)
        )
        cells = [str(len(runs)), column('data'), column('dm'), f'{column(best)}, {WAYS[best]}']
        cells += [column('mdm_finetuned')]
        cells += [column(row, 'two-sample area') for row in ('data', 'dm', 'mdm_finetuned')]
        lines.append(line([*RULES[config], *cells]))
    return '\n'.join(lines) + '\n'


def methods(what: str, folder: Path = ROOT / 'results') -> str:
    """Returns a line a way to obey a rule and a column a config: mean distance, area of the
    two-sample test, or seconds a sample.
    """
    runs = _quick(folder)
    paths = {'distance': 'mean', 'distribution': 'two-sample area', 'seconds': 's a sample'}
    lines = head(['way', *(f'`{name}`' for name in runs)])
    for way, title in {'dm': 'diffusion model alone', **WAYS}.items():
        cells = [
            cell([rows.get(way) for rows in seeds], COLUMNS[paths[what]]) for seeds in runs.values()
        ]
        if any(cells):
            lines.append(line([title, *cells]))
    return '\n'.join(lines) + '\n'


def others(folder: Path = ROOT / 'results') -> str:
    """Returns a line an inverse problem without a table of its own: median distance, RMSE, CRPS of
    four samplers.
    """
    samplers = ('dps', 'mirror_dps', 'few_steps', 'mirror_few_steps')
    columns = ['problem', *(f'`{name}`' for name in samplers)]
    lines = head(columns)
    for (name, operator), title in INVERSE.items():
        paths = (folder / f'{name}{of}-seed0.json' for of in ('-posteriors', ''))
        run = json.loads(next(path for path in paths if path.exists()).read_text())
        entries = [run['assimilation'][operator][sampler] for sampler in samplers]
        numbers = (('distance', 'median'), ('rmse',), ('crps',))
        cells = [', '.join(three_digits(_at(entry, of)) for of in numbers) for entry in entries]
        lines.append(line([title, *cells]))
    return '\n'.join(lines) + '\n'


def power(folder: Path = ROOT / 'results') -> str:
    """Returns a line a problem and what was done to its data: the z of each distribution metric."""
    metrics = {'two_sample': 'two-sample area', 'spectrum': 'spectrum'}
    metrics |= {'sliced_wasserstein': 'sliced W1', 'mmd': 'MMD²'}
    columns = ['problem', 'done to the data', *metrics.values(), 'true data, two-sample area']
    lines = head(columns)
    for config, of in json.loads((folder / 'power.json').read_text()).items():
        area = of.pop('true')['two_sample']
        for what, values in of.items():
            cells = [f'{values[name]["z"]:.1f}' for name in metrics]
            floor = f'{area["value"]:.3f} ± {area["std"]:.3f}'
            lines.append(line([f'`{config}`', what, *cells, floor]))
    return '\n'.join(lines) + '\n'


def measured(name: str, folder: Path = ROOT / 'results') -> str:
    """Returns the rows that a benchmark kept in `<name>.json`, its facts, command and machine."""
    kept = json.loads((folder / f'{name}.json').read_text())
    origin = f'`{kept["command"]}`; {kept["machine"]}; JAX {kept["jax"]}; {kept["time"]}'
    lines = [*head(kept['columns']), *map(line, kept['rows']), '']
    return '\n'.join([*lines, ' '.join([*kept['facts'], f'{origin}.'])]) + '\n'


def ablations(config: str, folder: Path = ROOT / 'results') -> str:
    """Returns a line a run: what was changed, median distances, and how the finetuned samples
    compare with the DM's.
    """
    columns = [
        'changed',
        'MDM',
        'finetuned',
        'DM',
        'finetuned / DM',
        'sliced W1, MDM / DM',
        'sliced W1, finetuned / DM',
    ]
    lines = head(columns)
    for path in sorted(folder.glob(f'{config}-quick-ablation*-seed*.json')):
        run = json.loads(path.read_text())
        changed = {
            name: value
            for name, value in run['changed'].items()
            if not name.startswith(('train.', 'sample.'))
        }
        told = ', '.join(f'`{name}` {value}' for name, value in changed.items()) or 'nothing'
        medians = {row: _median(run['rows'], row) for row in ('mdm', 'mdm_finetuned', 'dm')}
        wasserstein = {row: _at(run['rows'][row], COLUMNS['sliced W1']) for row in medians}
        ratios = [medians['mdm_finetuned'] / medians['dm']]
        ratios += [wasserstein[row] / wasserstein['dm'] for row in ('mdm', 'mdm_finetuned')]
        lines.append(line([told, *map(three_digits, [*medians.values(), *ratios])]))
    return '\n'.join(lines) + '\n'


def _median(rows: dict[str, Any], row: str) -> float:
    return _at(rows[row], ('distance', 'median'))


def with_tables(text: str) -> str:
    """Returns a text with its tables written anew."""

    def made(name: str) -> str:
        name, _, of = name.partition(':')
        special = {'summary': lambda _: summary(), 'front': lambda _: front()}
        special |= {'power': lambda _: power()}
        special |= {
            'ablations': ablations,
            'methods': methods,
            'measured': measured,
            'others': lambda _: others(),
        }
        if name in special:
            return special[name](of)
        return posterior_table(name, of) if of else table(name)

    return TABLE.sub(lambda match: match[1] + made(match[2]) + match[3], text)


def pages() -> list[Path]:
    """Returns the texts that hold tables of results."""
    places = [ROOT / 'README.md', ROOT / 'results' / 'README.md', *ROOT.glob('docs/**/*.md')]
    return [path for path in places if TABLE.search(path.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', metavar='RUN', nargs='*', type=Path)
    parser.add_argument('--label', help='put into the name of what is kept, such as budget3')
    parser.add_argument('--untimed', action='store_true', help='leave out seconds')
    parser.add_argument('--into', type=Path, default=ROOT / 'results', help='results unless given')
    parser.add_argument('--readme', action='store_true', help='write the tables of all texts')
    given = parser.parse_args()
    keep(given.runs, given.label, given.into, untimed=given.untimed)
    if given.readme:
        for path in pages():
            path.write_text(with_tables(path.read_text()))


if __name__ == '__main__':
    main()
