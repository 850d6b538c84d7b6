"""The stage `tune`: what sigma_max and lambda_constr the experiment asks for, measured on its own
models. It never changes the config: its choice, and the evidence, are printed and kept in
`metrics.json`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array

from namm_jax._arrays import Constraint, Key, Params
from namm_jax.experiment import build
from namm_jax.experiment.config import steps_of
from namm_jax.experiment.drawing import in_batches, make_draw
from namm_jax.experiment.experiment import (
    Experiment,
    mirror_parameters,
    score_parameters,
    splits,
    train,
)
from namm_jax.experiment.progress import say

COVERED = 0.95  # of the samples: sigma_max is the noise that is as large as their error


def off_the_mirror(experiment: Experiment, params: Params, z: np.ndarray) -> np.ndarray:
    """Returns how far mirror points `(n, h, w, c)` lie off mirrored data: the root mean square of
    `z - g(f(z))`, `(n,)`. Noise of level sigma is of that size too, if f takes it away.
    """
    g, f = experiment.mirror.bind(params)
    error = jax.jit(lambda z: jnp.sqrt(jnp.mean((z - g(f(z))) ** 2, (1, 2, 3))))
    return in_batches(error, z, min(len(z), 64), experiment.local_mesh)


def gradient_norms(
    experiment: Experiment, constraint: Constraint, params: Params, x: np.ndarray
) -> dict[str, float]:
    """Returns the mean norm, over batches of x, of the gradient with respect to f of each term of
    the loss, before its weight.
    """
    size = experiment.config.mirror.batch_size
    loss = build.mirror_task(experiment.config, 1, constraint, experiment.unit).loss

    @functools.partial(jax.jit, static_argnames='name')
    def norm(constraint: Constraint, inverse: Params, key: Key, x: Array, name: str) -> Array:
        frozen = {'params': {'forward': params['forward']}, 'constraint': constraint}

        def term(inverse: Params) -> Array:
            _, terms = loss({'inverse': inverse}, frozen, key, {'x': x}, train=False)
            return terms[name]

        return optax.tree.norm(jax.grad(term)(inverse))

    key = experiment.key('evaluate')
    batches = [x[i : i + size] for i in range(0, len(x) - size + 1, size)]
    of = lambda name: [norm(constraint, params['inverse'], key, x, name) for x in batches]
    return {name: float(np.mean(of(name))) for name in ('cycle_data', 'cycle_mirror', 'constraint')}


def tune(experiment: Experiment) -> dict[str, Any]:
    """Trains a short mirror diffusion model, and makes its choice.

    `sigma_max` is the 95 % quantile over samples of their distance from the mirrored data.
    `lambda_constr` is the weight at which the constraint's gradient on f is as large as that of the
    cycle terms.
    """
    config = experiment.config
    steps = steps_of(config, 'tune')
    params = mirror_parameters(experiment)
    g = Partial(jax.jit(experiment.mirror.forward), params)
    z, held_out = splits(experiment, g)
    moments = float(z.mean()), float(z.std())
    task = build.denoising_task(config, steps, *moments)
    train(experiment, 'tune', task, {'x': z}, {'x': held_out}, config.score)
    draw = make_draw(config, config.train.sample, *moments)
    draw = functools.partial(draw, score_parameters(experiment, 'tune'))
    keys = experiment.keys('probe', 0, config.tune.samples)
    samples = in_batches(draw, keys, min(len(keys), 64), experiment.local_mesh)
    errors = off_the_mirror(experiment, params, samples)
    floor = off_the_mirror(experiment, params, held_out[: len(samples)])
    x = experiment.split('train')[: config.tune.batches * config.mirror.batch_size]
    norms = gradient_norms(experiment, experiment.standard_constraint, params, x)
    cycle = 0.5 * config.mirror.lambda_cycle * (norms['cycle_data'] + norms['cycle_mirror'])
    choice = {
        'sigma_max': float(np.quantile(errors, COVERED)),
        'lambda_constr': cycle / max(norms['constraint'], 1e-12),
    }
    evidence = {
        'steps': steps,
        'error': {'samples': _quantiles(errors), 'mirrored_data': _quantiles(floor)},
        'gradient_norms': norms,
        'now': {name: config.mirror[name] for name in choice},
    }
    experiment.run.merge_metrics({'tune': {'chosen': choice} | evidence})
    _say(choice, evidence)
    return {}


def _quantiles(values: np.ndarray) -> dict[str, float]:
    covered = float(np.quantile(values, COVERED))
    return {'median': float(np.median(values)), 'covered': covered, 'max': float(values.max())}


def _say(choice: dict[str, float], evidence: dict[str, Any]) -> None:
    samples, data = evidence['error'].values()
    say(
        f'tune: after {evidence["steps"]} steps, mirror samples lie {samples["median"]:.3g} '
        f'(median) to {samples["covered"]:.3g} (95 %) from mirrored data, which f and g themselves '
        f'leave at {data["median"]:.3g}'
    )
    norms = ', '.join(f'{name} {value:.3g}' for name, value in evidence['gradient_norms'].items())
    say(f'tune: norms of the gradients on f: {norms}')
    for name, value in choice.items():
        now = evidence['now'][name]
        say(f'tune: {name} = {value:.3g} is asked for; the config has mirror.{name} = {now:g}')
