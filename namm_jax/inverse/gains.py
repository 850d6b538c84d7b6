"""The gain of a measurement: how much of a denoiser's error it sees, measured on data at each noise
level.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Denoiser, Key, Measure
from namm_jax.denoising.denoisers import conditional_variance


def measured_gain(
    keys: Key,
    denoiser: Denoiser,
    measure: Measure,
    x: Array,
    levels: Array,
    *,
    prior_std: ArrayLike,
) -> Array:
    """Returns `(n,)`, at each level `mean |A(x) - A(D(x + sigma noise, sigma))|^2 / v`.

    With `v = sigma^2 tau^2 / (sigma^2 + tau^2)`, the variance of isotropic normal data given a
    noisy point, `gain v` is the variance of a measured estimate as it is, and the target of
    `inverse_problems.discrepancy` the root mean square of the misfit along posterior trajectories,
    whatever the data: of isotropic normal data it is the mean squared norm of the rows of a linear
    A, of data near a surface of few dimensions much less.

    Args:
        keys: `(n,)`, one a level.
        denoiser: D, in data units.
        measure: A.
        x: data that D was not trained on, `(b, ...)`.
        levels: sigma > 0, `(n,)`.
        prior_std: tau, the standard deviation of the data.
    """
    y = measure(x)

    def at(now: tuple[Key, Array]) -> Array:
        key, sigma = now
        estimate = denoiser(x + sigma * jax.random.normal(key, x.shape, x.dtype), sigma)
        return jnp.mean((measure(estimate) - y) ** 2) / conditional_variance(sigma, prior_std)

    return jax.lax.map(at, (keys, levels))


def gain_at(levels: Array, gains: Array) -> Callable[[Array], Array]:
    """Returns `sigma -> gain` between levels `(n,)`, in any order, that have these gains > 0:
    linear in logarithms.
    """
    order = jnp.argsort(levels)
    x, y = jnp.log(levels[order]), jnp.log(gains[order])
    return lambda sigma: jnp.exp(jnp.interp(jnp.log(sigma), x, y))
