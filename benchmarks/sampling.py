#!/usr/bin/env python
"""Times the samplers of a finished run with the same network, in one process.

    python benchmarks/sampling.py --workdir=runs/burgers-quick [--n=128]
    [--samplers=heun:18,ddim:40] [--json=FILE]

Prints one row a sampler: network calls and seconds a sample, its time over that of as many calls of
the denoiser alone (the median of five, on a batch as large), and the constraint
distance of the samples after f (the finetuned inverse map). The initial noise is the same for all.
Compilation is not timed.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measured import Rows, add_json
from namm_jax.experiment.command import configure_jax

DEFAULTS = 'sde_dpm_solver_pp_2m:40,dpm_solver_pp_2m:20,heun:18,euler_maruyama:1000'


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--workdir', required=True, help='a run folder with the stages up to finetune finished'
    )
    parser.add_argument('--n', type=int, default=128, help='fields to draw')
    parser.add_argument('--samplers', default=DEFAULTS, help='name:steps, separated by commas')
    add_json(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    configure_jax()
    import jax
    import numpy as np

    from benchmarks.train_step import measured
    from namm_jax.experiment import build
    from namm_jax.experiment.devices import batch_sharding
    from namm_jax.experiment.drawing import make_draw, sampler_of
    from namm_jax.experiment.experiment import (
        finetuned_parameters,
        make_experiment,
        score_parameters,
    )
    from namm_jax.experiment.folder import Folder
    from namm_jax.report.table import three_digits

    experiment = make_experiment(Folder(Path(arguments.workdir)))
    config, record = experiment.config, experiment.run.record('mdm')
    score = score_parameters(experiment, 'mdm')
    _, f = experiment.mirror.bind(finetuned_parameters(experiment))
    distance = jax.jit(lambda z: experiment.constraint.distance(f(z)))
    keys = jax.device_put(
        experiment.keys('sample', 0, arguments.n), batch_sharding(experiment.local_mesh)
    )
    moments, sigma = (record['mean'], record['std']), np.float32(record['std'])
    call = jax.jit(lambda score, z: build.make_denoiser(config, score, *moments)(z, sigma))
    noise = jax.random.normal(jax.random.key(0), (arguments.n, *experiment.problem.shape))
    noise = jax.device_put(noise, batch_sharding(experiment.local_mesh))
    alone = measured(call, score, noise, images=arguments.n, repeats=5).milliseconds
    rows = Rows(
        *('sampler: steps', 'calls a sample', 'ms a sample', 'time / its calls alone'),
        *('distance: mean', 'median'),
    )
    for choice in arguments.samplers.split(','):
        name, steps = choice.split(':')
        config.sample.sampler, config.sample.steps = name, int(steps)
        draw = jax.jit(make_draw(config, config.sample, *moments)).lower(score, keys).compile()
        calls = sampler_of(config.sample, *moments).calls
        begun = time.perf_counter()
        z = jax.block_until_ready(draw(score, keys))
        spent = 1e3 * (time.perf_counter() - begun)
        distances = np.asarray(distance(z))
        rows.add(
            *(choice.replace(':', ': '), calls, f'{spent / arguments.n:.1f}'),
            f'{spent / calls / alone:.2f}',
            *(three_digits(float(of(distances))) for of in (np.mean, np.median)),
        )
    rows.keep(arguments.json)


if __name__ == '__main__':
    main()
