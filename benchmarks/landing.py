#!/usr/bin/env python
"""Compares ways to train f with the steps that end it, on a finished run of Burgers' equation.

    python benchmarks/landing.py RUN [--steps=400]

Finetuning starts from the run's mirror map and mirror samples, the same number of steps for each
row: f alone; through a step of Gauss-Newton whose derivative is the identity (`straight`); through
one whose derivative is that of the projection onto the linearised rule (`implicit`). The loss sees
what comes out of the step, and with a weight what went in. Printed, and kept in
`results/landing.json`: the median distance of f alone, and after steps whose conjugate gradients
are cut at 10 or 20 iterations, or solved to 1 %, as `projection.land` does.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from namm_jax._arrays import Task
from namm_jax.constraints.projection import (
    _conjugate_gradients,
    _linearised,
    gauss_newton_projection,
)
from namm_jax.experiment import build
from namm_jax.experiment.experiment import Experiment, mirror_parameters
from namm_jax.experiment.open_run import open_run
from namm_jax.mirror import add_noise
from namm_jax.training.optimizers import per_network
from namm_jax.training.step import init_state, train_step

STEPS = {'10 iterations': (10, 0.1), '20 iterations': (20, 0.1), 'to 1 %': (100, 0.01)}


class Way(NamedTuple):
    """How f is trained: the derivative of the step, its conjugate-gradient iterations, and the
    weight of the distance of what went into it beside that of what comes out.
    """

    derivative: str
    iterations: int
    before: float


WAYS = [
    Way('none', 0, 0.0),
    Way('straight', 10, 0.1),
    Way('implicit', 10, 0.1),
    Way('implicit', 100, 1.0),
]


def gauss_newton(rule: Any, x: jax.Array, iterations: int, cg_tolerance: float = 0.1) -> jax.Array:
    settings = dict(tolerance=1e-7, max_iterations=1, cg_iterations=iterations)
    return gauss_newton_projection(rule, x, cg_tolerance=cg_tolerance, **settings)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def implicit(rule: Any, x: jax.Array, iterations: int) -> jax.Array:
    """A step whose derivative is `I - J^T (J J^T)^{-1} J`."""
    return gauss_newton(rule, x, iterations)


def _backward(iterations: int, kept: tuple, w: jax.Array) -> tuple:
    rule, x = kept
    flat = lambda x: rule.residual(x).reshape(len(x), -1)
    _, jacobian, transpose = _linearised(flat, x)
    right, start = jacobian(w), jnp.zeros((len(x), flat(x).shape[1]))
    target = 0.01 * jnp.linalg.norm(right, axis=1)
    normal = lambda v: jacobian(transpose(v))
    solve = functools.partial(_conjugate_gradients, normal, target=target)
    v = solve(right, start, max_iterations=iterations)
    return jax.tree.map(jnp.zeros_like, rule), w - transpose(v)


implicit.defvjp(lambda rule, x, n: (gauss_newton(rule, x, n), (rule, x)), _backward)


def straight(rule: Any, x: jax.Array, iterations: int) -> jax.Array:
    stop = jax.lax.stop_gradient
    return x + stop(gauss_newton(rule, stop(x), iterations) - x)


DERIVATIVES = {'none': lambda rule, x, _: x, 'straight': straight, 'implicit': implicit}


def task_of(experiment: Experiment, way: Way, steps: int) -> Task:
    """Returns the finetuning of f, from the mirror map's parameters."""
    section, params = experiment.config.finetune, mirror_parameters(experiment)
    mirror = build.make_mirror(experiment.config)
    law = dict(sigma_max=section.sigma_max, power=section.sigma_power)
    weight = section.lambda_constr / experiment.unit

    def loss(inverse: Any, frozen: Any, key: Any, batch: Any, *, train: bool) -> tuple:
        params, rule = frozen['params'] | inverse, frozen['constraint']
        z, _ = add_noise(key, batch['z'], **law)
        both = jnp.concatenate([mirror.forward(params, batch['x']), z])
        before = mirror.inverse(params, both)
        x_cycled, x = jnp.split(DERIVATIVES[way.derivative](rule, before, way.iterations), 2)
        cycle = (
            jnp.abs(x_cycled - batch['x']).mean() + jnp.abs(mirror.forward(params, x) - z).mean()
        )
        distance = rule.distance(x).mean()
        distance += way.before * rule.distance(jnp.split(before, 2)[1]).mean()
        return 0.5 * cycle + weight * distance, {}

    return Task(
        init=lambda key: {'inverse': jax.tree.map(jnp.copy, params['inverse'])},
        loss=loss,
        optimizer=per_network({'inverse': build.optimizer_of(section.optimizer, steps)}),
        frozen={'params': {'forward': params['forward']}, 'constraint': experiment.constraint},
    )


def measure(experiment: Experiment, way: Way, steps: int) -> dict[str, Any]:
    """Returns the median distances of f so trained."""
    task = task_of(experiment, way, steps)
    folder, size = experiment.run.directory, experiment.config.finetune.batch_size
    x, z = experiment.split('train'), np.load(folder / 'finetune' / 'mirror_samples.npy')
    state = init_state(task, jax.random.key(0))
    step = jax.jit(train_step(task, ema=0.99), donate_argnums=0)
    random, begun = np.random.default_rng(0), time.perf_counter()
    for _ in range(steps):
        batch = {name: a[random.integers(0, len(a), size)] for name, a in {'x': x, 'z': z}.items()}
        state, _ = step(state, task.frozen, jax.random.key(1), batch)
    jax.block_until_ready(state)
    found = way._asdict() | {'steps': steps, 'seconds': time.perf_counter() - begun}
    params = task.frozen['params'] | state.ema
    inverse = jax.jit(build.make_mirror(experiment.config).inverse)
    drawn = np.load(folder / 'sample' / 'mirror.npy')[:96]
    rule, x = experiment.constraint, inverse(params, jnp.asarray(drawn))
    median = jax.jit(lambda rule, x: jnp.median(rule.distance(x)))
    found['f alone'] = float(median(rule, x))
    for name, settings in STEPS.items():
        landed = jax.jit(gauss_newton, static_argnums=(2, 3))(rule, x, *settings)
        found[name] = float(median(rule, landed))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('run', metavar='RUN', type=Path)
    parser.add_argument('--steps', type=int, default=400, help='of finetuning')
    given = parser.parse_args()
    experiment = open_run(given.run)._experiment
    rows = []
    for way in WAYS:
        rows.append(measure(experiment, way, given.steps))
        print(json.dumps(rows[-1]), flush=True)
    path = Path(__file__).resolve().parent.parent / 'results' / 'landing.json'
    path.write_text(json.dumps({'rows': rows}, indent=1) + '\n')


if __name__ == '__main__':
    main()
