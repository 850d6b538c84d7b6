"""The stage `tune`: what sigma_max and lambda_constr the experiment asks for, measured on its own
models.

It never changes the config. Its choice, and the evidence for it, are printed and kept in
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
from namm_jax.experiment.experiment import Experiment, mirror_parameters, score_parameters, train
from namm_jax.experiment.progress import say

COVERED = 0.95  # of the samples: sigma_max is the noise that is as large as their error


def off_the_mirror(experiment: Experiment, params: Params, z: np.ndarray) -> np.ndarray:
    """Returns how far mirror points lie off mirrored data: the root mean square of `z - g(f(z))`,
    per sample.

    Noise of level sigma is of that size too, if f takes it away: the two may be compared.

    Args:
        experiment: the experiment.
        params: of the mirror map.
        z: mirror points `(n, h, w, c)`.
    """
    g, f = experiment.mirror.bind(params)
    error = jax.jit(lambda z: jnp.sqrt(jnp.mean((z - g(f(z))) ** 2, (1, 2, 3))))
    return in_batches(error, z, min(len(z), 64), experiment.local_mesh)


def gradient_norms(
    experiment: Experiment, constraint: Constraint, params: Params, x: np.ndarray
) -> dict[str, float]:
    """Returns the norm of the gradient with respect to f of each term of the loss, before its
    weight.

    Args:
        experiment: the experiment.
        constraint: the set M.
        params: of the mirror map.
        x: training samples, a few batches of them.
    """
    size = experiment.config.mirror.batch_size
    loss = build.mirror_task(experiment.config, 1, constraint, experiment.unit).loss

    @functools.partial(jax.jit, static_argnames='name')
    def norm(constraint: Constraint, inverse: Params, key: Key, x: Array, name: str) -> Array:
        frozen = {'params': {'forward': params['forward']}, 'constraint': constraint}
        term = lambda inverse: loss({'inverse': inverse}, frozen, key, {'x': x}, train=False)[1][
            name
        ]
        return optax.tree.norm(jax.grad(term)(inverse))

    starts, terms = range(0, len(x) - size + 1, size), ('cycle_data', 'cycle_mirror', 'constraint')
    norms = {
        name: [
            norm(constraint, params['inverse'], experiment.key('evaluate'), x[i : i + size], name)
            for i in starts
        ]
        for name in terms
    }
    return {name: float(np.mean(values)) for name, values in norms.items()}


def tune(experiment: Experiment) -> dict[str, Any]:
    """Trains a short mirror diffusion model, and from its samples' errors and the loss's gradients
    makes its choice.

    `sigma_max` is the 95 % quantile over samples of their distance from the mirrored data.
    `lambda_constr` is the weight at which the constraint's gradient on f is as large as that of the
    cycle terms.
    """
    config, params, constraint = (
        experiment.config,
        mirror_parameters(experiment),
        experiment.standard_constraint,
    )
    g = Partial(jax.jit(experiment.mirror.forward), params)
    splits = (experiment.split(name) for name in ('train', 'validation'))
    z, held_out = (in_batches(g, split, 256, experiment.local_mesh) for split in splits)
    mean, std = float(z.mean()), float(z.std())
    train(
        experiment,
        'tune',
        build.denoising_task(config, steps_of(config, 'tune'), mean, std),
        {'x': z},
        {'x': held_out},
        batch_size=config.score.batch_size,
        optimizer=config.score.optimizer,
    )
    draw = functools.partial(
        make_draw(config, config.train.sample, mean, std), score_parameters(experiment, 'tune')
    )
    keys = experiment.keys('probe', 0, config.tune.samples)
    drawn = in_batches(draw, keys, min(len(keys), 64), experiment.local_mesh)
    errors = {'samples': off_the_mirror(experiment, params, drawn)}
    errors['mirrored_data'] = off_the_mirror(experiment, params, held_out[: len(drawn)])
    x = experiment.split('train')[: config.tune.batches * config.mirror.batch_size]
    norms = gradient_norms(experiment, constraint, params, x)
    cycle = 0.5 * config.mirror.lambda_cycle * (norms['cycle_data'] + norms['cycle_mirror'])
    chosen = {
        'sigma_max': float(np.quantile(errors['samples'], COVERED)),
        'lambda_constr': cycle / max(norms['constraint'], 1e-12),
    }
    evidence = {
        'steps': steps_of(config, 'tune'),
        'error': {name: _quantiles(values) for name, values in errors.items()},
        'gradient_norms': norms,
        'now': {name: config.mirror[name] for name in chosen},
    }
    experiment.run.merge_metrics({'tune': {'chosen': chosen} | evidence})
    _tell(chosen, evidence)
    return {}


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {
        'median': float(np.median(values)),
        'covered': float(np.quantile(values, COVERED)),
        'max': float(values.max()),
    }


def _tell(chosen: dict[str, float], evidence: dict[str, Any]) -> None:
    samples, data = (evidence['error'][name] for name in ('samples', 'mirrored_data'))
    say(
        f'tune: after {evidence["steps"]} steps, mirror samples lie {samples["median"]:.3g} '
        f'(median) to {samples["covered"]:.3g} (95 %) from mirrored data, which f and g themselves '
        f'leave at {data["median"]:.3g}'
    )
    norms = ', '.join(f'{name} {value:.3g}' for name, value in evidence['gradient_norms'].items())
    say(f'tune: norms of the gradients on f: {norms}')
    for name, value in chosen.items():
        say(
            f'tune: {name} = {value:.3g} is asked for; the config has mirror.{name} = '
            f'{evidence["now"][name]:g}'
        )
