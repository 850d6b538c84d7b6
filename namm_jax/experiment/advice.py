"""Which way to take for a rule: two sentences, made of the table of a run and nothing else."""

import math
from collections.abc import Mapping
from typing import Any

from namm_jax.report.table import three_digits

SAMPLES = 1000  # that a way's cost counts, beside its training
CLEAR = 2.0  # factor by which a distance or a time is another one
TOLD_APART = 0.99  # two-sample area from which on the test compares no rows
THROUGH_MAP = ('mdm', 'dm_mapped')  # how the rows that need a mirror map begin


def advise(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns which row of a table to take, as `text`, `nearest`, `cheapest` and `mirror_map`.

    A row keeps the distribution if its two-sample area is no more than a standard deviation of the
    floor's above that of `dm`. Of those, `nearest` has the least median distance, one below the
    floor of the data counting as the floor, the cheaper first; `cheapest` is the cheapest, by its
    training and 1,000 samples, of those whose distance is half of `dm`'s or less. A row that needs
    a mirror map is the cheaper one where it costs less than half. `mirror_map` says whether the map
    is worth its training: its nearest row is at half of `dm`'s distance or less, and no other row
    is at most twice as far, or none of these is cheaper. Where `dm` itself has an area near 1, the
    text says that it is to be trained longer.

    Args:
        rows: of `metrics.json`, or of its means over seeds, of which a row counts that all have; {}
            is returned where there is too little.
    """
    value = lambda row, *path: _number(rows.get(row, {}), *path)
    area = lambda row: value(row, 'distribution', 'two_sample', 'value')
    limit = area('dm') + value('data', 'distribution', 'two_sample', 'std')
    floor = value('data', 'distance', 'median')
    near = {row: max(value(row, 'distance', 'median'), floor) for row in rows if row != 'data'}
    draw = {row: value(row, 'seconds_per_sample') for row in near}
    train = {row: value(row, 'training_seconds') for row in near}
    mapped = {row for row in near if row.startswith(THROUGH_MAP)}
    cost = {row: train[row] + SAMPLES * draw[row] for row in near}
    price = {row: cost[row] * (CLEAR if row in mapped else 1) for row in near}
    kept = [row for row in near if area(row) <= limit and math.isfinite(near[row] + cost[row])]
    kept = [row for row in kept if _seeds(rows[row]) == _seeds(rows['data'])]
    if 'dm' not in kept:
        return {}
    best = lambda names: min(names, key=lambda row: (near[row], price[row]), default='')
    nearest = best(kept)
    better = [row for row in kept if CLEAR * near[row] <= near['dm'] != near[row]]
    cheapest = min(better, key=price.get, default='dm')
    cheapest = min([nearest] * bool(better) + [cheapest], key=cost.get)
    shown = lambda row: f'{row} (median distance {three_digits(near[row])})'
    first = f'Take {shown(nearest)}: nearest to the rule, as like the data as dm'
    if not better:
        nearest = 'dm'
        first = f'Take {shown("dm")}: no row as like the data is clearly nearer'
    elif cheapest == nearest:
        first += ', and cheapest'
    else:
        part = three_digits(cost[cheapest] / cost[nearest])
        first += f'; {shown(cheapest)} is cheapest, at {part} of the time for 1,000 samples'
    mirror = best([row for row in kept if row in mapped])
    others = [row for row in kept if row not in mapped]
    worth, why = False, 'all its rows lose distribution'
    if mirror:
        rivals = [row for row in others if near[row] <= CLEAR * near[mirror]]
        other = min(rivals, key=price.get) if rivals else best(others)
        worth = mirror in better and (not rivals or price[mirror] <= price[other])
        why = f'{shown(mirror)} against {shown(other)} without it'
        if worth and rivals and draw[mirror] < draw[other]:
            least = max(0.0, train[mirror] - train[other]) / (draw[other] - draw[mirror])
            why += f', and faster to draw: it pays from {math.ceil(least):,} samples on'
    text = f'{first}.'
    if mapped:
        verdict = 'worth' if worth else 'not worth'
        text += f' The mirror map is {verdict} its training here: {why}.'
    if area('dm') >= TOLD_APART:
        text += (
            ' But dm itself is told from the data every time: train it longer before you choose.'
        )
    return {'text': text, 'nearest': nearest, 'cheapest': cheapest, 'mirror_map': worth}


def _seeds(row: Mapping[str, Any]) -> int:
    """Returns how many seeds have a row."""
    median = row['distance']['median']
    return median['n'] if isinstance(median, Mapping) else 1


def _number(tree: Any, *path: str) -> float:
    """Returns a number in a table, or its mean over seeds; NaN where there is none."""
    for name in (*path, 'mean'):
        tree = tree.get(name) if isinstance(tree, Mapping) else tree
    return math.nan if tree is None or isinstance(tree, Mapping) else float(tree)
