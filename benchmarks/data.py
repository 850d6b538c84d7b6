#!/usr/bin/env python
"""Times the generation of data at the paper's sizes, and Kolmogorov flow beside jax-cfd's own
solver.

    python benchmarks/data.py [--problems=burgers,kolmogorov,black_holes,textures,galaxies]
        [--json=FILE]

Prints a row a problem: fields a second, the median of three calls after one to compile; for
Kolmogorov flow also the time of as many steps of jax-cfd's solver, called directly on as many flows
at once.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks.measured import Rows, add_json
from namm_jax import problems
from namm_jax.problems.base import Problem
from namm_jax.report.table import three_digits

# problem -> fields a call, at the paper's size
CALLS = {'burgers': 500, 'kolmogorov': 8, 'black_holes': 100, 'textures': 2000, 'galaxies': 100}


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the median seconds of three calls after one to compile."""
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begun)
    return float(np.median(times[1:]))


def jax_cfd_seconds(problem: Problem, n: int) -> float:
    """Returns the seconds of jax-cfd's solver for all steps of `n` flows, called directly."""
    import jax_cfd.base as cfd

    grid = cfd.grids.Grid((problem.points,) * 2, domain=((0, 2 * np.pi),) * 2)
    forcing = cfd.forcings.simple_turbulence_forcing(
        grid,
        constant_magnitude=problem.forcing,
        constant_wavenumber=problem.forcing_wavenumber,
        linear_coefficient=problem.drag,
        forcing_type='kolmogorov',
    )
    step = cfd.equations.semi_implicit_navier_stokes(
        density=problem.density,
        viscosity=problem.viscosity,
        dt=problem.dt,
        grid=grid,
        forcing=forcing,
    )
    start = lambda key: cfd.initial_conditions.filtered_velocity_field(
        key, grid, problem.max_velocity, problem.peak_wavenumber
    )
    steps = round(problem.burn_in / problem.dt) + (problem.states - 1) * problem.inner_steps
    advance = cfd.funcutils.repeated(step, steps)
    run = jax.jit(jax.vmap(lambda key: tuple(u.data for u in advance(start(key)))))
    return seconds_of(run, jax.random.split(jax.random.key(0), n))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--problems', default=','.join(CALLS))
    add_json(parser)
    given = parser.parse_args()
    rows = Rows('problem', 'fields a second', 'time beside jax-cfd called directly')
    for name in given.problems.split(','):
        problem, n = getattr(problems, name)(), CALLS[name]
        draw = jax.jit(problem.fields)
        seconds = seconds_of(draw, jax.random.split(jax.random.key(0), n))
        beside = f'{seconds / jax_cfd_seconds(problem, n):.2f}' if name == 'kolmogorov' else ''
        rows.add(name, three_digits(n / seconds), beside)
    rows.keep(given.json)


if __name__ == '__main__':
    main()
