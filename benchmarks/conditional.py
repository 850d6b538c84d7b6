"""Fields given their first state, without noise: which way holds it, at which cost.

    python benchmarks/conditional.py runs/heat-quick [--measurements 4] [--samples 64] [--json FILE]

Of a run of `heat` or `reaction_diffusion`: samples of its diffusion model given the first state of
test fields, by the measurement alone at falling noise, by projection onto both rules after and
while sampling, and by the mirror model. For each the largest error of the first state, the mean
distance from the problem's own rule, MMSE and SMSE, the mean squared errors of the ensemble's mean
and standard deviation against those of the solver's own ensemble, and seconds a sample.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import namm_jax as nj
from benchmarks.measured import Rows, add_json
from namm_jax.problems.base import given_first_state
from namm_jax.report.table import three_digits


def errors(x: jax.Array, truth: jax.Array) -> dict[str, float]:
    """Returns MMSE and SMSE of an ensemble `(k, h, w, c)` against another."""
    mean = jnp.mean((x.mean(0) - truth.mean(0)) ** 2)
    return {'mmse': float(mean), 'smse': float(jnp.mean((x.std(0) - truth.std(0)) ** 2))}


def ways(run: Any, x: jax.Array, noises: tuple[float, ...]) -> dict[str, Callable]:
    """Returns samplers `(key, n) -> fields` given the first state of a field, by name."""
    rule, operator = given_first_state(run.problem, x[0, :, 0, 0]), run.problem.measurement()
    onto = lambda x: rule.restore(x)[0]
    y, least = operator(x), min(noises)
    given = {s: functools.partial(nj.sample, nj.given(run.dm, operator, y, s)) for s in noises}
    mirrored = nj.given(run.mdm, operator.after(run.f), y, least)
    mirror = lambda key, n: run.f(nj.sample(mirrored, key, n))
    both = nj.projected(nj.given(run.dm, operator, y, least), onto)
    return {f'given, noise {s:g}': draw for s, draw in given.items()} | {
        'given, then projected': lambda key, n: onto(given[least](key, n)),
        'projected while sampling': functools.partial(nj.sample, nj.projected(run.dm, onto)),
        'given, projected while sampling': functools.partial(nj.sample, both),
        'mirror model, given': mirror,
        'mirror model, given, then projected': lambda key, n: onto(
            run.f(nj.sample(mirrored, key, n))
        ),
    }


def measure(run: Any, samples: int, measurements: int, noises: tuple[float, ...]) -> dict[str, Any]:
    """Returns the numbers of each way, means over test fields but for the largest error."""
    found = {}
    key = jax.random.key(0)
    for i, x in enumerate(jnp.asarray(run.data('test')[:measurements, None])):
        keys = jax.random.split(jax.random.fold_in(key, i), samples)
        truth = run.problem.continuations(keys, x[0, :, 0, 0])
        for name, draw in ways(run, x, noises).items():
            jax.block_until_ready(draw(key, samples))  # compiles
            begun = time.perf_counter()
            drawn = jax.block_until_ready(draw(jax.random.fold_in(key, i), samples))
            seconds = (time.perf_counter() - begun) / samples
            first = float(jnp.abs(drawn - x)[:, :, 0].max())
            rule = float(run.problem.distance(drawn).mean())
            row = {'first_state': first, 'rule': rule, **errors(drawn, truth), 'seconds': seconds}
            found.setdefault(name, []).append(row)
    reduce = lambda name, values: max(values) if name == 'first_state' else statistics.mean(values)
    over = lambda rows: {name: reduce(name, [row[name] for row in rows]) for name in rows[0]}
    return {name: over(rows) for name, rows in found.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder')
    parser.add_argument('--measurements', type=int, default=4)
    parser.add_argument('--samples', type=int, default=64)
    parser.add_argument('--noises', type=float, nargs='+', default=[1e-1, 1e-3, 1e-5])
    add_json(parser)
    given = parser.parse_args()
    run = nj.open_run(given.folder)
    found = measure(run, given.samples, given.measurements, tuple(given.noises))
    columns = {'way': '', 'first state, largest error': 'first_state', 'distance': 'rule'}
    columns |= {'MMSE': 'mmse', 'SMSE': 'smse', 's a sample': 'seconds'}
    rows = Rows(*columns)
    for way, row in found.items():
        rows.add(way, *(three_digits(row[name]) for name in columns.values() if name))
    rows.keep(given.json, f'{given.measurements} measurements, {given.samples} samples of each.')


if __name__ == '__main__':
    main()
