"""Burgers data: trajectories of `u_t + mu u u_x = nu u_xx` from random starts, as images of space
against time.

The start is a Gaussian process with the Matern 3/2 covariance
`k(r) = (1 + sqrt(3) r/l) exp(-sqrt(3) r/l)`, l = 0.2 on [-1, 1], scaled per sample to [0, 1]. The
process is not periodic, so the start jumps where the grid wraps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Key
from namm_jax.problems import checked_keys, layout
from namm_jax.problems.steppers import BurgersProblem, trajectory

CORRELATION_LENGTH = 0.2  # of the grid's half width
JITTER = 1e-10  # added to the unit variance; enough in float64, and invisible in the sample


@functools.cache
def _matern_factor(points: int) -> np.ndarray:
    """Returns the Cholesky factor `(points, points)` of the start's covariance."""
    grid = np.linspace(-1, 1, points)
    r = np.sqrt(3) * np.abs(grid[:, None] - grid) / CORRELATION_LENGTH
    return np.linalg.cholesky((1 + r) * np.exp(-r) + JITTER * np.eye(points))


def sample_starts(keys: Key, *, problem: BurgersProblem) -> Float[Array, 'n points']:
    """Returns random starts in [0, 1], before any time step.

    Args:
        keys: Typed PRNG keys `(n,)`, one a sample.
        problem: The grid.

    Returns:
        Starts `(n, points)`, float32, the smallest value of each exactly 0 and the largest 1.
    """
    draw = functools.partial(jax.random.normal, shape=(problem.points,), dtype=jnp.float32)
    factor = jnp.asarray(_matern_factor(problem.points), jnp.float32)
    # Full precision: accelerators would otherwise round the factor to 10 bits or fewer.
    u = jnp.matmul(jax.vmap(draw)(keys), factor.T, precision=jax.lax.Precision.HIGHEST)
    low, high = u.min(-1, keepdims=True), u.max(-1, keepdims=True)
    return (u - low) / (high - low)


def sample_burgers(keys: Key, *, problem: BurgersProblem) -> Fields:
    """Returns Burgers trajectories as images; the first stored state is one stored interval after
    the start.

    Field i depends on `keys[i]` alone, so a set can be drawn in chunks, on any number of hosts, and
    extended.

    Args:
        keys: Typed PRNG keys `(n,)`, one a sample.
        problem: Grid, time steps and coefficients. Draw with the problem that the constraint gets.

    Returns:
        Fields `(n, points, states, 1)`, float32, within [0, 1] up to a few per cent of overshoot.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    states = trajectory(problem.interval(), problem.states)(
        sample_starts(checked_keys(keys), problem=problem)
    )
    return layout.states_to_image(jnp.swapaxes(states, 0, 1))
