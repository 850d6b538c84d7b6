"""Noising paths `x_t = alpha_t x_0 + sigma_t noise`, and what a denoiser says of them.

A denoiser sees `x_t` divided by `alpha_t`: `x = x_0 + sigma noise` with the noise level
`sigma = sigma_t / alpha_t`, and returns `D(x, sigma) = E[x_0 given x]`. Both are in data units.

Reference: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Denoiser, Schedule, broadcast
from namm_jax._checks import check_within


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Returns the variance-preserving schedule: `alpha_t^2 + sigma_t^2 = 1`, t in [0, 1].

    `alpha_t^2 = exp(-B(t))`, `B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`: the rate of
    noising rises from `beta_min` to `beta_max`. A ValueError unless `0 < beta_min <= beta_max`.

    Reference: Song et al. 2021, eq. 33.
    """
    check_within('(0, inf)', beta_min=beta_min)
    check_within(f'[{beta_min}, inf)', beta_max=beta_max)
    rate = lambda t: beta_min * t + (beta_max - beta_min) * t**2 / 2
    # expm1: 1 - exp(-B) would lose all digits at small t.
    return Schedule(
        alpha=lambda t: jnp.exp(-rate(t) / 2), sigma=lambda t: jnp.sqrt(-jnp.expm1(-rate(t)))
    )


def vp_time(sigma: ArrayLike, beta_min: float = 0.1, beta_max: float = 20.0) -> Array:
    """Returns the t at which `vp` has the noise level sigma > 0, of any shape; above 152, t > 1.

    The root of the quadratic equation `B(t) = log(1 + sigma^2)`, written without a difference of
    like numbers.
    """
    rate = jnp.log1p(jnp.asarray(sigma) ** 2)
    return 2 * rate / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * rate))


def edm() -> Schedule:
    """Returns the schedule whose time is the noise level: `alpha_t = 1`, `sigma_t = t`, t > 0."""
    return Schedule(alpha=jnp.ones_like, sigma=jnp.asarray)


class Path(NamedTuple):
    """A schedule, its time `sigma -> t` of a noise level, and the usual ends of a grid on it."""

    schedule: Callable[[], Schedule]
    time: Callable[[float], ArrayLike]
    t_max: float
    t_min: float


PATHS: dict[str, Path] = {'edm': Path(edm, float, 80.0, 0.002), 'vp': Path(vp, vp_time, 1.0, 1e-3)}


def noise_level(schedule: Schedule, t: Array) -> Array:
    """Returns `sigma_t / alpha_t`."""
    return schedule.sigma(t) / schedule.alpha(t)


def estimate(schedule: Schedule, denoiser: Denoiser, x_t: Array, t: Array) -> Array:
    """Returns the denoiser's estimate of `x_0`, `D(x_t / alpha_t, sigma_t / alpha_t)`."""
    return denoiser(x_t / schedule.alpha(t), noise_level(schedule, t))


def denoiser_to_score(schedule: Schedule, x_0: Array, x_t: Array, t: Array) -> Array:
    """Returns the score `grad log p_t(x_t) = (alpha_t x_0 - x_t) / sigma_t^2` that the estimate
    `x_0` says (Tweedie); t a scalar or `(b,)`.
    """
    alpha = broadcast(schedule.alpha(t), x_t)
    sigma = broadcast(schedule.sigma(t), x_t)
    return (alpha * x_0 - x_t) / sigma**2
