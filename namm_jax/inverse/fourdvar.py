"""4D-Var: the trajectory of the solver that best explains a measurement, found through its initial
state.

    J(u_0) = 1/2 |r(S(u_0))|^2 + weight/2 |(u_0 - mean) / std|^2

Symbols: `u_0` initial states `(b, ...)`, `S` the rollout to fields `x (b, h, w, c)`, `r` the
residuals of the measurement. S obeys the solver whatever u_0 is, so the constraint holds by
construction; what is left is a smooth problem without constraint. With weight 1 a minimum is the
most probable start under a normal prior.

Reference: Talagrand & Courtier, "Variational assimilation of meteorological observations with the
adjoint vorticity equation. I: Theory", Q. J. R. Meteorol. Soc. 113 (1987).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from namm_jax._arrays import Fields, Metrics, PerSample, axes
from namm_jax.inverse.likelihood import Likelihood

# u_0 (b, ...) -> x, a trajectory in the data's layout
Rollout: TypeAlias = Callable[[Array], Fields]


def cost(
    rollout: Rollout,
    likelihood: Likelihood,
    *,
    mean: ArrayLike,
    std: ArrayLike,
    weight: ArrayLike = 1.0,
    perturbation: Array | None = None,
) -> Partial:
    """Returns the cost `J` of initial states, as the module states it; sums over all values of a
    sample.

    To draw samples instead of one best fit, perturb residuals by a standard normal draw and `mean`
    by `std` times another, sample by sample: where `r` and `S` are linear the minima are exact
    draws of the posterior.

    Args:
        rollout: S.
        likelihood: of `y (b, *m)`, one for each initial state.
        mean: of the initial states before the measurement; a number, or one for each sample, like
            u_0 `(b, ...)`.
        std: their standard deviation, > 0; a number, or what broadcasts to one initial state.
        weight: of the background term, >= 0; 0 is the misfit alone, which few measurements do not
            determine.
        perturbation: what is added to the residuals, `(b, ...)` of as many values; None is nothing.

    Returns:
        A function from initial states `(b, ...)` to costs `(b,)`, without unit. It is a pytree,
        whose leaves have the batch first: what is a sample's own.

    Raises:
        ValueError: if a number is out of its range, or `mean` is neither; by the cost, if `y` has
            not the shape of what is measured.

    Reference:
        Bardsley et al., "Randomize-then-optimize", SIAM J. Sci. Comput. 36 (2014) (samples by
        perturbation).
    """
    _check_numbers('std', std, np.greater, 'finite and > 0')
    _check_numbers('weight', weight, np.greater_equal, 'finite and >= 0')
    mean = jnp.asarray(mean)
    b = len(likelihood.y)
    if mean.ndim and len(mean) != b:
        raise ValueError(
            f'mean: got shape {mean.shape}, expected a number or (b, ...) for the b = {b} of y'
        )
    added = jnp.zeros((b, 1)) if perturbation is None else perturbation.reshape(b, -1)

    def of_states(y: Array, mean: Array, added: Array, u_0: Array) -> PerSample:
        r = dataclasses.replace(likelihood, y=y).residual(rollout(u_0)) + added
        mean = mean.reshape(mean.shape + (1,) * (u_0.ndim - mean.ndim))
        return _half_squares(r) + weight * _half_squares((u_0 - mean) / std)

    mean = mean if mean.ndim else jnp.full(b, mean)
    return Partial(of_states, likelihood.y, mean, added)


def ensemble_background(
    ensemble: Float[Array, 'n *s'],
) -> Callable[[Float[Array, 'b n']], Float[Array, 'b *s']]:
    """Returns `v -> u_0`, initial states of which standard normal v have the mean and the
    covariance of an ensemble:

        u_0 = m + sum_i v_i (e_i - m) / sqrt(n - 1),    m = mean_i e_i.

    `cost` of `S(u_0(v))`, with mean 0 and std 1, has this background, without its
    matrix or its inverse.

    Args:
        ensemble: Initial states `e_i`, n >= 2.

    Raises:
        ValueError: If there are fewer than two.

    Reference:
        Liu, Xiao & Wang, "An ensemble-based four-dimensional variational data assimilation scheme.
        Part I", Mon. Weather Rev. 136 (2008).
    """
    if len(ensemble) < 2:
        raise ValueError(f'ensemble: got {len(ensemble)} states, expected at least 2')
    mean = ensemble.mean(0)
    deviations = (ensemble - mean) / (len(ensemble) - 1) ** 0.5
    return lambda v: mean + jnp.tensordot(v, deviations, 1)


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
        cost: `(b, ...) -> (b,)`, as `cost` returns it: a pytree whose
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


def _half_squares(v: Array) -> PerSample:
    return jnp.sum(v**2, axes(v)) / 2


def _check_numbers(
    name: str, value: ArrayLike, holds: Callable[..., np.ndarray], expected: str
) -> None:
    # NumPy, which also computes while JAX traces; what is traced itself has no value to check.
    if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value) & holds(value, 0)):
        raise ValueError(f'{name}: got {value}, expected {expected}')
