"""4D-Var: the trajectory of the solver that best explains a measurement, by its initial state.

    J(u_0) = 1/2 |r(S(u_0))|^2 + weight/2 |(u_0 - mean) / std|^2

Symbols: `u_0` initial states `(b, ...)`, `S` the rollout to fields `x (b, h, w, c)`, `r` the
residuals of the measurement. S obeys the solver whatever u_0 is, so the constraint holds by
construction. With weight 1 a minimum is the most probable start under a normal prior.

Reference: Talagrand & Courtier 1987, Q. J. R. Meteorol. Soc. 113.
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
from namm_jax.denoising.denoisers import is_concrete
from namm_jax.inverse.likelihood import Likelihood

Rollout: TypeAlias = Callable[[Array], Fields]  # u_0 (b, ...) -> a trajectory x


def cost(
    rollout: Rollout,
    likelihood: Likelihood,
    *,
    mean: ArrayLike,
    std: ArrayLike,
    weight: ArrayLike = 1.0,
    perturbation: Array | None = None,
) -> Partial:
    """Returns the cost `J`, `u_0 (b, ...) -> (b,)` without unit, a pytree whose leaves have the
    batch first; sums are over all values of a sample.

    To draw samples, perturb residuals by a standard normal draw and `mean` by `std` times another,
    sample by sample: where `r` and `S` are linear the minima are exact draws of the posterior.

    Args:
        rollout: S.
        likelihood: of `y (b, *m)`, one for each initial state.
        mean: of initial states before the measurement; a number, or one for each sample `(b, ...)`.
        std: their standard deviation, > 0; a number, or what broadcasts to one initial state.
        weight: of the background term, >= 0; few measurements do not determine the misfit's
            minimum.
        perturbation: what is added to the residuals, `(b, ...)` of as many values; None is nothing.

    Raises:
        ValueError: if a number is out of its range, or `mean` is neither; by the cost, if `y` has
            not the shape of what is measured.

    Reference: Bardsley et al. 2014, SIAM J. Sci. Comput. 36 (samples by perturbation).
    """
    # NumPy, which also computes while JAX traces.
    if is_concrete(std) and not np.all(np.isfinite(std) & (np.asarray(std) > 0)):
        raise ValueError(f'std: got {std}, expected finite and > 0')
    if is_concrete(weight) and not 0 <= float(weight) < np.inf:
        raise ValueError(f'weight: got {weight}, expected finite and >= 0')
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
    """Returns `v -> u_0`, of which standard normal v have the mean and the covariance of an
    ensemble of initial states `e_i`, at least 2, or a ValueError is raised:

        u_0 = m + sum_i v_i (e_i - m) / sqrt(n - 1),    m = mean_i e_i.

    `cost` of `S(u_0(v))`, with mean 0 and std 1, has this background, without its matrix.

    Reference: Liu, Xiao & Wang 2008, Mon. Weather Rev. 136.
    """
    if len(ensemble) < 2:
        raise ValueError(f'ensemble: got {len(ensemble)} states, expected at least 2')
    mean = ensemble.mean(0)
    deviations = (ensemble - mean) / (len(ensemble) - 1) ** 0.5
    return lambda v: mean + jnp.tensordot(v, deviations, 1)


class _Search(NamedTuple):
    u: Array  # the best state so far
    value: Float[Array, '']  # its cost
    gradient: Array
    memory: PyTree
    iterations: Int[Array, '']
    evaluations: Int[Array, '']
    falling: Bool[Array, '']  # whether the last iteration lowered the cost


def minimise(cost: Partial, u_0: Array, *, iterations: int) -> tuple[Array, Metrics]:
    """Returns the best state that L-BFGS finds for each sample, like `u_0`, and `(b,)` each: its
    `cost` and `gradient_norm`, and numbers of `iterations` and of `evaluations`.

    Each sample has a memory and a line search of its own, and stops at the first iteration that
    does not lower its cost: round-off is reached, or the cost is not finite. So its result depends
    on no other sample, and is finite where its start is. Jit the function that builds the cost from
    a measurement and calls this one: it is compiled once for all measurements of a shape.

    Args:
        cost: `(b, ...) -> (b,)`, as of `cost`: a pytree whose leaves have the batch first and are
            each sample's own; what the function closes over is shared by all.
        u_0: where to start, `(b, ...)`, floating.
        iterations: most iterations, >= 1, each of one or two evaluations of the cost and its
            gradient, at most 20.

    Raises:
        ValueError: if `iterations < 1`, or the cost is no `Partial`.

    Reference: Liu & Nocedal 1989, Math. Program. 45.
    """
    if iterations < 1:
        raise ValueError(f'iterations: got {iterations}, expected at least 1')
    if not isinstance(cost, Partial):
        raise ValueError(
            f'cost: got a {type(cost).__name__}, expected a jax.tree_util.Partial whose leaves are '
            "each sample's own: pass jax.tree_util.Partial(function, y) for function(y, u_0)"
        )

    def search(cost: Partial, u: Array) -> _Search:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], cost)
        return _lbfgs(lambda u: batch_of_one(u[None])[0], u, iterations)

    found = jax.vmap(search)(cost, u_0)
    norm = jnp.linalg.norm(found.gradient.reshape(len(u_0), -1), axis=1)
    counts = {'iterations': found.iterations, 'evaluations': found.evaluations}
    return found.u, {'cost': found.value, 'gradient_norm': norm, **counts}


def _lbfgs(cost: Callable[[Array], Array], u: Array, iterations: int) -> _Search:
    """Returns the search of one sample from `u`, at its end."""
    optimiser = optax.lbfgs()

    def goes_on(search: _Search) -> Array:
        return search.falling & (search.iterations < iterations)

    def iterate(search: _Search) -> _Search:
        # Without a slope, the line search of a sample that has stopped is over at once.
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
        evaluations = search.evaluations + count.astype(jnp.int32)
        return _Search(*best, memory, search.iterations + 1, evaluations, lower)

    value, gradient = jax.value_and_grad(cost)(u)
    none = jnp.zeros((), jnp.int32)
    start = _Search(u, value, gradient, optimiser.init(u), none, none + 1, jnp.isfinite(value))
    return jax.lax.while_loop(goes_on, iterate, start)


def _half_squares(v: Array) -> PerSample:
    return jnp.sum(v**2, axes(v)) / 2
