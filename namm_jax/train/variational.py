"""4D-Var: L-BFGS with a line search, for a batch of samples that do not know of each other, and the
draw of its row.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from namm_jax._arrays import Key, Measure, Metrics, normal
from namm_jax.inverse import fourdvar as variational
from namm_jax.problems import flow_layout, layout
from namm_jax.train.experiment import Experiment


class _Search(NamedTuple):
    """Attributes: the best state so far and its cost; counts of iterations and of evaluations;
    whether it goes on.
    """

    u: Float[Array, '...']
    value: Float[Array, '']
    gradient: Float[Array, '...']
    memory: PyTree
    iterations: Int[Array, '']
    evaluations: Int[Array, '']
    falling: Bool[Array, '']


def minimise(cost: jax.tree_util.Partial, u_0: Array, *, iterations: int) -> tuple[Array, Metrics]:
    """Returns the best state that L-BFGS finds for each sample, and what that took.

    Each sample has a memory and a line search of its own, and stops at the first iteration that
    does not lower its cost: round-off is reached, or the cost is not finite. So its result depends
    on no other sample, and is finite where its start and its cost there are.

    Jit the function that builds the cost from a measurement and calls this one: then it is compiled
    once for all measurements of a shape.

    Args:
        cost: `(b, ...) -> (b,)`, as `variational.variational_cost` returns it: a pytree whose
            leaves have the batch first and are each sample's own; what the function closes over is
            shared by all.
        u_0: Where to start, `(b, ...)`, floating.
        iterations: Most iterations, >= 1. Each evaluates the cost and its gradient once or twice,
            at most 20 times.

    Returns:
        States like `u_0`, and `{'cost', 'gradient_norm', 'iterations', 'evaluations'}`, each
        `(b,)`: the first two at that state, the last how often the cost and its gradient were
        evaluated. A cost that is not finite at the start leaves the start as it is.

    Raises:
        ValueError: If `iterations < 1`, or the cost is no `Partial` or does not return one number
            for each sample.

    Reference:
        Liu & Nocedal, "On the limited memory BFGS method for large scale optimization", Math.
        Program. 45 (1989).
    """
    if iterations < 1:
        raise ValueError(f'iterations: got {iterations}, expected at least 1')
    if not isinstance(cost, jax.tree_util.Partial):
        raise ValueError(
            f'cost: got a {type(cost).__name__}, expected a jax.tree_util.Partial whose leaves are '
            "each sample's own: "
            'pass jax.tree_util.Partial(function, y) for function(y, u_0)'
        )
    found = jax.vmap(lambda cost, u: _lbfgs(_of_one(cost), u, iterations))(cost, u_0)
    norm = jnp.linalg.norm(found.gradient.reshape(len(u_0), -1), axis=1)
    counts = {'iterations': found.iterations, 'evaluations': found.evaluations}
    return found.u, {'cost': found.value, 'gradient_norm': norm, **counts}


def _of_one(cost: jax.tree_util.Partial) -> Callable[[Array], Array]:
    """Returns the cost of one sample, from the cost of a batch with the leaves of that sample."""
    batch_of_one = jax.tree.map(lambda leaf: leaf[None], cost)

    def of_one(u: Array) -> Array:
        value = batch_of_one(u[None])
        if value.shape != (1,):
            raise ValueError(
                f'cost: got shape {value.shape} for a batch of one state, expected (1,), one a '
                'sample'
            )
        return value[0]

    return of_one


def _lbfgs(cost: Callable[[Array], Array], u: Array, iterations: int) -> _Search:
    """Returns the search from the start `u` of one sample, at its end."""
    optimiser = optax.lbfgs()

    def goes_on(search: _Search) -> Array:
        return search.falling & (search.iterations < iterations)

    def iterate(search: _Search) -> _Search:
        # A sample that has stopped waits for the others: without a slope its line search is over at
        # once.
        slope = jnp.where(goes_on(search), search.gradient, 0)
        step, memory = optimiser.update(
            slope, search.memory, search.u, value=search.value, grad=slope, value_fn=cost
        )
        value, gradient, count = (
            optax.tree.get(memory, name) for name in ('value', 'grad', 'num_linesearch_steps')
        )
        lower = value < search.value  # false for NaN
        best = jax.tree.map(
            lambda new, old: jnp.where(lower, new, old),
            (search.u + step, value, gradient),
            (search.u, search.value, search.gradient),
        )
        return _Search(*best, memory, search.iterations + 1, search.evaluations + count, lower)

    value, gradient = jax.value_and_grad(cost)(u)
    none = jnp.zeros((), jnp.int32)
    start = _Search(u, value, gradient, optimiser.init(u), none, none + 1, jnp.isfinite(value))
    return jax.lax.while_loop(goes_on, iterate, start)


class Trajectories(NamedTuple):
    """A family whose fields are trajectories: `problem -> rollout`, and
    `(problem, x) -> first states`.
    """

    rollout: Callable[[Any], variational.Rollout]
    start: Callable[[Any, Array], Array]


TRAJECTORIES = {
    'burgers': Trajectories(
        variational.burgers_rollout, lambda problem, x: layout.image_to_states(x)[:, 0]
    ),
    'kolmogorov': Trajectories(
        variational.kolmogorov_rollout, lambda *x: flow_layout.to_states(*x)[:, 0]
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
        perturbed = y + section.noise_std * normal(noise, y)
        u_0 = variational.ensemble_background(starts)
        solve = lambda v: rollout(u_0(v))
        v_0 = normal(prior, jnp.zeros((len(keys), len(starts))))
        cost = variational.variational_cost(
            solve, operator, perturbed, section.noise_std, mean=v_0, std=1.0
        )
        return solve(minimise(cost, jnp.zeros_like(v_0), iterations=section.iterations)[0])

    return functools.partial(draw, operator, starts)
