#!/usr/bin/env python
"""What the distribution metrics of the table can tell: true fields, and fields made worse.

    python benchmarks/power.py [burgers periodic ...]  # names of configs

Of each problem's `quick` data, sets of n fields against the test set of 1,000: true ones (mean and
standard deviation over 20 sets), the same mixed with 5 % of their neighbours along the spatial
axes, and those of half of the data, the half with the smaller first principal component. Writes
`results/power.json`; the values' z are in standard deviations of true sets.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from namm_jax import metrics
from namm_jax.experiment.comparison import against, comparison, floors
from namm_jax.experiment.problem import make_problem

RESULTS = Path(__file__).resolve().parent.parent / 'results' / 'power.json'
CONFIGS = ('burgers', 'periodic', 'total_brightness', 'count:images')


def smooth(x: np.ndarray, axes: tuple[int, ...], part: float) -> np.ndarray:
    """Returns fields of which a part is the mean of the neighbours."""
    neighbours = [np.roll(x, shift, axis) for axis in axes for shift in (-1, 1)]
    return (1 - part) * x + part * np.mean(neighbours, axis=0)


def power(name: str, n: int) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the metrics of true sets, of smoothed ones and of half of the data."""
    name, _, preset = name.partition(':')
    config = importlib.import_module(f'configs.{name}').get_config(preset or 'quick')
    config = config.copy_and_resolve_references()
    problem = make_problem(config)
    total = config.data.train + config.data.validation + config.data.test
    x = np.asarray(problem.sample(jax.random.key(config.data.seed + 1), min(total, 4000)))
    reference, test, rest = x[:500], x[500:1500], x[1500:]
    compare = comparison(problem, reference, test, jax.random.key(0), projections=128)
    floor = floors(compare, rest, n, sets=20, seed=0)
    mean, axes = metrics.principal_axes(reference, 1)
    scores = (rest.reshape(len(rest), -1) - np.asarray(mean)) @ np.asarray(axes)[:, 0]
    half = rest[scores < np.median(scores)][:n]
    worse = {'smoothed by 5 %': smooth(rest[:n], problem.spatial_axes, 0.05), 'half of it': half}
    found = {what: against(floor, compare(fields)) for what, fields in worse.items()}
    return {'true': floor} | found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*')
    parser.add_argument('--n', type=int, default=256)
    given = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in given.configs or CONFIGS:
        found[name] = power(name, given.n)
        RESULTS.write_text(json.dumps(found, indent=1) + '\n')
        print(name, json.dumps(found[name], indent=1))


if __name__ == '__main__':
    main()
