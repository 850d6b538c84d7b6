"""4D-Var: the trajectory of the solver that best explains a measurement, found through its initial
state.

    J(u_0) = 1/2 |(y - A(S(u_0))) / s|^2 + weight/2 |(u_0 - mean) / std|^2

Symbols: `u_0` initial states `(b, ...)`, `S` the rollout to fields `x (b, h, w, c)`, `A` the
measurement, `s` the noise's standard deviation. S obeys the solver whatever u_0 is, so the
constraint holds by construction; what is left is a smooth problem without constraint. With weight 1
a minimum is the most probable start under a normal prior.

Reference: Talagrand & Courtier, "Variational assimilation of meteorological observations with the
adjoint vorticity equation. I: Theory", Q. J. R. Meteorol. Soc. 113 (1987).
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, PerSample
from namm_jax.problems import flow_layout, layout
from namm_jax.problems import kolmogorov_flow as flows
from namm_jax.problems.kolmogorov_flow import FlowProblem
from namm_jax.problems.steppers import BurgersProblem, Stepper, trajectory

Rollout: TypeAlias = Callable[
    [Array], Fields
]  # u_0 (b, ...) -> x, a trajectory in the data's layout
Cost: TypeAlias = jax.tree_util.Partial  # u_0 (b, ...) -> J (b,), each sample's own


def burgers_rollout(problem: BurgersProblem) -> Rollout:
    """Returns `S`, from first stored states `(b, points)` to Burgers images.

    Args:
        problem: Grid, time steps and coefficients of the data.

    Returns:
        A function from `u_0 (b, points)`, space increasing along the last axis, to fields
        `(b, points, states, 1)`, whose first column is `u_0` itself, upside down. Differentiable in
        both modes.
    """
    solve = _solver(problem.interval(), problem.states)

    def rollout(u_0: Float[Array, 'b n']) -> Fields:
        _check_start(u_0, (problem.points,))
        return layout.states_to_image(jnp.swapaxes(solve(u_0), 0, 1))

    return rollout


def kolmogorov_rollout(problem: FlowProblem) -> Rollout:
    """Returns `S`, from first stored states `(b, points, points, 2)` to Kolmogorov flows.

    The start is projected onto the fields without divergence, so every `u_0` is admissible: the
    cost does not see what the projection removes, but for its background term.

    Args:
        problem: Grid, time steps, force and layout of the data.

    Returns:
        A function from velocities `u_0 (b, points, points, 2)` to fields `(b, *problem.shape)`,
        whose first state is `flows.project(u_0)`. Differentiable in both modes.
    """
    solve = _solver(problem.interval(), problem.states)

    def rollout(u_0: Float[Array, 'b n n 2']) -> Fields:
        _check_start(u_0, (problem.points, problem.points, 2))
        return flow_layout.from_states(problem, jnp.swapaxes(solve(flows.project(u_0)), 0, 1))

    return rollout


def ensemble_background(
    ensemble: Float[Array, 'n *s'],
) -> Callable[[Float[Array, 'b n']], Float[Array, 'b *s']]:
    """Returns `v -> u_0`, initial states of which standard normal v have the mean and the
    covariance of an ensemble:

        u_0 = m + sum_i v_i (e_i - m) / sqrt(n - 1),    m = mean_i e_i.

    `variational_cost` of `S(u_0(v))`, with mean 0 and std 1, has this background, without its
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


def variational_cost(
    rollout: Rollout,
    measure: Callable[[Fields], Array],
    y: Array,
    noise_std: ArrayLike,
    *,
    mean: ArrayLike,
    std: ArrayLike,
    weight: ArrayLike = 1.0,
) -> Cost:
    """Returns the cost `J` of initial states, as the module states it; sums over all values of a
    sample.

    To draw samples instead of one best fit, perturb `y` by the noise and `mean` by `std` times a
    standard normal draw, sample by sample: where `A` and `S` are linear the minima are exact draws
    of the posterior.

    Args:
        rollout: S.
        measure: A, fields to measurements `(b, *m)`, linear or not; real or complex.
        y: Measurements `(b, *m)`, one for each initial state.
        noise_std: s > 0, in the unit of y.
        mean: Mean of the initial states before the measurement; a number, or one for each sample,
            like u_0 `(b, ...)`.
        std: Their standard deviation, > 0; a number, or what broadcasts to one initial state.
        weight: Of the background term, >= 0; 0 is the misfit alone, which few measurements do not
            determine.

    Returns:
        A function from initial states `(b, ...)` to costs `(b,)`, without unit. It is a pytree,
        whose leaves `y` and `mean` have the batch first: what is a sample's own.

    Raises:
        ValueError: If a number is out of its range, or `mean` is neither; by the cost, if `y` has
            not the shape of what A measures.

    Reference:
        Bardsley et al., "Randomize-then-optimize", SIAM J. Sci. Comput. 36 (2014) (samples by
        perturbation).
    """
    _check_number('noise_std', noise_std, np.greater, 'finite and > 0')
    _check_number('std', std, np.greater, 'finite and > 0')
    _check_number('weight', weight, np.greater_equal, 'finite and >= 0')
    mean = jnp.asarray(mean)
    if mean.ndim and len(mean) != len(y):
        raise ValueError(
            f'mean: got shape {mean.shape}, expected a number or (b, ...) for the b = {len(y)} of y'
        )

    def cost(y: Array, mean: Array, u_0: Array) -> PerSample:
        measured = measure(rollout(u_0))
        if measured.shape != y.shape:
            raise ValueError(
                f'y: got shape {y.shape}, expected {measured.shape}, that of what is measured of '
                f'{len(u_0)} initial states; pass one measurement for each'
            )
        mean = mean.reshape(mean.shape + (1,) * (u_0.ndim - mean.ndim))
        return _half_squares((y - measured) / noise_std) + weight * _half_squares(
            (u_0 - mean) / std
        )

    return jax.tree_util.Partial(cost, y, mean if mean.ndim else jnp.full(len(y), mean))


def _solver(interval: Stepper, states: int) -> Callable[[Array], Array]:
    """Returns the function from first states to all stored states, `(b, ...)` to
    `(states, b, ...)`.
    """
    # Reverse mode would keep what every time step computes; so it keeps the stored states, and
    # computes the rest again.
    later = trajectory(jax.checkpoint(interval), states - 1)
    return lambda u: jnp.concatenate([u[None], later(u)])


def _half_squares(v: Array) -> PerSample:
    """Returns half the sum of `|v|^2`, `(b, ...)` to `(b,)`; also of complex numbers, without a
    square root.
    """
    return jnp.sum(jnp.real(v * jnp.conj(v)), tuple(range(1, v.ndim))) / 2


def _check_start(u_0: Array, expected: tuple[int, ...]) -> None:
    if u_0.shape[1:] != expected or u_0.ndim != len(expected) + 1:
        raise ValueError(
            f'u_0: got shape {u_0.shape}, expected (b, {", ".join(map(str, expected))}): pass a '
            'batch of initial '
            "states on the problem's own grid"
        )


def _check_number(
    name: str, value: ArrayLike, holds: Callable[..., np.ndarray], expected: str
) -> None:
    # NumPy, which also computes while JAX traces; what is traced itself has no value to check.
    if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value) & holds(value, 0)):
        raise ValueError(f'{name}: got {value}, expected {expected}')
