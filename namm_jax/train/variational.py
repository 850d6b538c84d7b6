"""The row of 4D-Var: its draw, for the families whose fields are trajectories of a solver."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from namm_jax._arrays import Key, Measure, normal
from namm_jax.inverse import fourdvar
from namm_jax.inverse.likelihood import likelihood
from namm_jax.problems import flow_layout, layout
from namm_jax.train.experiment import Experiment


class Trajectories(NamedTuple):
    """A family whose fields are trajectories: `problem -> rollout`, and
    `(problem, x) -> first states`.
    """

    rollout: Callable[[Any], fourdvar.Rollout]
    start: Callable[[Any, Array], Array]


TRAJECTORIES = {
    'burgers': Trajectories(
        fourdvar.burgers_rollout, lambda problem, x: layout.image_to_states(x)[:, 0]
    ),
    'kolmogorov': Trajectories(
        fourdvar.kolmogorov_rollout, lambda *x: flow_layout.to_states(*x)[:, 0]
    ),
}


def variational_draw(experiment: Experiment, operator: Measure) -> Callable[[Key, Array], Array]:
    """Returns 4D-Var's compiled `(keys (b,), y (b, *m)) -> samples (b, h, w, c)`, as networks see
    them.

    Each is the trajectory that best explains the measurement, perturbed by its noise, and a start
    drawn from the background, which has the mean and the covariance of the training data's first
    states.

    Args:
        experiment: one of a family in `TRAJECTORIES`, with its data.
        operator: A.
    """
    section, problem = experiment.config.assimilate, experiment.family.problem
    trajectories = TRAJECTORIES[experiment.config.data.family]
    starts = trajectories.start(problem, jnp.asarray(experiment.split('train')))
    rollout = trajectories.rollout(problem)

    @jax.jit
    def draw(operator: Any, starts: Array, keys: Key, y: Array) -> Array:
        noise, prior = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key))(keys), 1, 0)
        u_0 = fourdvar.ensemble_background(starts)
        solve = lambda v: rollout(u_0(v))
        v_0 = normal(prior, jnp.zeros((len(keys), len(starts))))
        of_y = likelihood(operator, y, section.noise_std)
        cost = fourdvar.cost(solve, of_y, mean=v_0, std=1.0, perturbation=normal(noise, y))
        v, _ = fourdvar.minimise(cost, jnp.zeros_like(v_0), iterations=section.iterations)
        return solve(v)

    return functools.partial(draw, operator, starts)
