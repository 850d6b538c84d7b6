#!/usr/bin/env python
"""Times the denoising step against batch, image size and devices, fits exponents, and times what
feeds it.

    python benchmarks/scaling.py [--batches=4,8,16,32] [--sides=16,32,64] [--repeats=5]
    [--dtypes=float32] [--json=FILE]

The network is that of the preset quick of configs/burgers.py; sizes that are not varied are its
own. One row a step: milliseconds, images a second, achieved GFLOP/s, megabytes that
the program needs beside its arguments, seconds of compilation. The exponent p of `ms ~ size^p` is
fitted by least squares in logarithms: 1 for the batch and 2 for the side where the machine is full.
Devices split one batch. The last line is the host's part: how long a batch takes from the data set
to the device, which runs beside the step before it, as a share of a step.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.measured import Rows, add_json
from benchmarks.train_step import Measured, step_of
from configs.burgers import get_config
from namm_jax.experiment import build, dataset
from namm_jax.experiment.config import override
from namm_jax.experiment.devices import make_mesh, put_batch

QUICK = get_config('quick')


def timed_step(config: ConfigDict, batch: int, devices: int, repeats: int) -> Measured:
    """Times the denoising step of a config on the first so many devices."""
    x = (
        np.random.default_rng(0)
        .normal(size=(batch, config.data.points, config.data.states, 1))
        .astype(np.float32)
    )
    task, parts = (
        build.denoising_task(config, 100, 0.0, 1.0),
        config.train.parts if batch % 2 == 0 else 1,
    )
    return step_of(task, {'x': x}, repeats, parts, devices)


def feeding(batch: int, side: int, repeats: int) -> float:
    """Returns the milliseconds that a batch takes from the data set to the device, the median over
    many.
    """
    data = np.zeros((4000, side, side, 1), np.float32)
    source, times = dataset.batches(data, seed=0, batch_size=batch, start=0, steps=20 * repeats), []
    mesh = make_mesh(jax.devices()[:1])
    for _ in range(20 * repeats):
        begun = time.perf_counter()
        jax.block_until_ready(put_batch(mesh, next(source)))
        times.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(times))


def exponent(sizes: list[int], milliseconds: list[float]) -> float:
    """Returns p of `milliseconds ~ size^p`, by least squares in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(milliseconds), 1)[0])


def series(rows: Rows, varied: str, sizes: list[int], dtype: str, repeats: int) -> list[float]:
    """Adds a row for each size of what is varied, batch, side or devices; returns the
    milliseconds.
    """
    found = []
    for size in sizes:
        of = {'batch': QUICK.score.batch_size, 'side': QUICK.data.points, 'devices': 1} | {
            varied: size
        }
        changes = {
            'data.points': of['side'],
            'data.states': of['side'],
            'train.compute_dtype': dtype,
        }
        step = timed_step(
            override(get_config('quick').unlock(), changes), of['batch'], of['devices'], repeats
        )
        found.append(step.milliseconds)
        rates = 1e3 * of['batch'] / step.milliseconds, 1e3 * step.gflop / step.milliseconds
        rows.add(
            *(varied, size, dtype, f'{step.milliseconds:.1f}', *(f'{rate:.0f}' for rate in rates)),
            *(f'{step.megabytes:.0f}', f'{step.compilation:.1f}'),
        )
    return found


def main() -> None:
    numbers = lambda text: [int(part) for part in text.split(',')]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--batches', type=numbers, default='4,8,16,32')
    parser.add_argument('--sides', type=numbers, default='16,32,64')
    parser.add_argument('--dtypes', default='float32', help='float32,bfloat16')
    parser.add_argument(
        '--repeats', type=int, default=5, help='timed calls of each step, after one to warm up'
    )
    add_json(parser)
    given = parser.parse_args()
    batch, side, count = QUICK.score.batch_size, QUICK.data.points, len(jax.devices())
    rows = Rows(
        *('varied', 'size', 'type', 'ms', 'images a second', 'GFLOP/s', 'temporaries, MB'),
        'compilation, s',
    )
    devices = [2**k for k in range(count.bit_length()) if batch % 2**k == 0]
    varied = {'batch': given.batches, 'side': given.sides, 'devices': devices}
    found = {
        (name, t): series(rows, name, sizes, t, given.repeats)
        for t in given.dtypes.split(',')
        for name, sizes in varied.items()
    }
    facts = [
        f'Milliseconds grow as the {name} to the power {exponent(varied[name], ms):.2f} ({t}).'
        for (name, t), ms in found.items()
        if len(ms) > 1
    ]
    fed = feeding(batch, side, given.repeats)
    step = next(ms for (name, _), ms in found.items() if name == 'devices')[0]
    facts.append(
        f'A batch takes {fed:.3f} ms from the data set to the device, {fed / step:.2%} of a step.'
    )
    rows.keep(given.json, *facts)


if __name__ == '__main__':
    main()
