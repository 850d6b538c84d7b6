#!/usr/bin/env python
"""Times a step of the guided posterior samplers of a finished run against its network calls alone,
in one process.

    python benchmarks/posterior.py --workdir=runs/burgers-quick [--samples=16]
    [--rows=dps,mirror_dps] [--repeats=5]

A step's time is the difference of two draws of different length, so that starts and ends cancel.
Beside it stand the times of what it needs of networks: the denoiser with its gradient in the input,
and f with its gradient, each compiled by itself. Medians of repeats, which alternate; compilation
is not timed. cg_dps differentiates the constraint too.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measured import Rows, add_json
from namm_jax.experiment.command import configure_jax

SAMPLERS = 'dps cg_dps few_steps smc mirror_dps mirror_few_steps mirror_smc'.split()
STEPS = (10, 30)  # of the two draws


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--workdir', required=True, help='a run folder with the stages up to dm finished'
    )
    parser.add_argument('--samples', type=int, default=16, help='posterior samples at a time')
    parser.add_argument('--rows', default=','.join(SAMPLERS), help='samplers, separated by commas')
    parser.add_argument('--repeats', type=int, default=5)
    add_json(parser)
    return parser.parse_args()


def medians(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Returns the median seconds of each call, the calls of a round one after another; the first
    round compiles.
    """
    import jax
    import numpy as np

    spent = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            spent[name].append(time.perf_counter() - begun)
    return {name: float(np.median(seconds[1:])) for name, seconds in spent.items()}


def networks(experiment: Any, samples: int) -> dict[str, Callable[[], Any]]:
    """Returns calls of the denoiser and of f, each with its gradient in the input, on a batch of
    samples.
    """
    import jax
    import jax.numpy as jnp

    from namm_jax.experiment import build
    from namm_jax.experiment.experiment import finetuned_parameters, score_parameters

    record = experiment.run.record('mdm')
    _, f = experiment.mirror.bind(finetuned_parameters(experiment))
    score = score_parameters(experiment, 'mdm')
    z = jax.random.normal(jax.random.key(0), (samples, *experiment.problem.shape))

    @jax.jit
    def denoise(score: Any, z: Any) -> Any:
        denoiser = build.make_denoiser(experiment.config, score, record['mean'], record['std'])
        x, pull = jax.vjp(lambda z: denoiser(z, jnp.float32(record['std'])), z)
        return x, pull(z)

    @jax.jit
    def invert(f: Any, z: Any) -> Any:
        x, pull = jax.vjp(f, z)
        return x, pull(z)

    return {'denoiser': lambda: denoise(score, z), 'f': lambda: invert(f, z)}


def draws(experiment: Any, row: str, samples: int) -> dict[Any, Callable[[], Any]]:
    """Returns a draw of each length of `STEPS` by a row of the table."""
    import jax
    import jax.numpy as jnp

    from namm_jax.experiment.posteriors import ROWS, draw_of, make_operator, measured_gains

    section, calls = experiment.config.assimilate, {}
    section.samples = samples
    operator = make_operator(experiment.config)
    y = operator(jnp.asarray(experiment.split('test')[:1]))
    gains = functools.cache(functools.partial(measured_gains, experiment, operator))
    inputs = jax.device_put((experiment.keys('posterior', 0, samples), jnp.repeat(y, samples, 0)))
    for steps in STEPS:
        section.steps = section.few_steps = steps
        draw = draw_of(experiment, ROWS[row], operator, gains)
        jax.block_until_ready(draw(*inputs))  # compiles with these numbers of steps
        calls[row, steps] = lambda draw=draw: draw(*inputs)
    return calls


def main() -> None:
    arguments = parse()
    configure_jax()
    from namm_jax.experiment.experiment import make_experiment
    from namm_jax.experiment.folder import Folder
    from namm_jax.experiment.posteriors import ROWS

    experiment = make_experiment(Folder(Path(arguments.workdir)))
    rows = Rows(
        *('sampler', 'ms a step', 'denoiser and gradient, ms', 'f and gradient, ms'),
        'step / networks',
    )
    alone = networks(experiment, arguments.samples)
    for row in arguments.rows.split(','):
        calls = alone | draws(experiment, row, arguments.samples)
        ms = {name: 1e3 * seconds for name, seconds in medians(calls, arguments.repeats).items()}
        step = (ms[row, STEPS[1]] - ms[row, STEPS[0]]) / (STEPS[1] - STEPS[0])
        inverse = ms['f'] if ROWS[row].prior == 'mdm' else 0.0
        ratio = step / (ms['denoiser'] + inverse)
        times = (f'{value:.1f}' for value in (step, ms['denoiser'], inverse))
        rows.add(f'`{row}`', *times, f'{ratio:.2f}')
    rows.keep(arguments.json)


if __name__ == '__main__':
    main()
