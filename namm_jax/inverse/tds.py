"""Twisted sequential Monte Carlo: guided particles whose weights and resampling correct the
guidance.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Denoiser, Gain, Key, Measure, Metrics, PerSample, axes, fold_in, normal
from namm_jax.denoising.denoisers import checked_std, conditional_variance, known
from namm_jax.denoising.sampling import VARIANCES
from namm_jax.inverse.shared import (
    Levels,
    checked,
    frozen,
    misfit,
    prior_start,
    split_keys,
)


def smc(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    particles: int,
    measure: Measure,
    y: Array,
    noise_std: ArrayLike,
    levels: Levels,
    prior_std: ArrayLike,
    prior_mean: ArrayLike = 0.0,
    gain: Gain = 1.0,
    guidance: ArrayLike = 1.0,
    below: float = 0.5,
) -> tuple[Array, Metrics]:
    """Returns posterior samples `(b, *shape)` by twisted sequential Monte Carlo, in groups of one
    measurement each.

    From level t to s, a particle moves by the ancestral step of the guided estimate
    `D + guidance t^2 grad_x log w`, with the twist
    `w(x, t) = N(y; A(D(x, t)), (s_y^2 + gain r^2) I)` and `s_y` the noise of y; its weight is
    multiplied by `p(x_s given x_t) w(x_s, s) / (q(x_s given x_t) w(x_t, t))`, `p` being the
    unguided step and `q` the guided one. A group whose effective number of particles falls below a
    part of it is resampled, systematically. In the end particles are denoised, weighted by
    `N(y; A(x_0), s_y^2 I)` and resampled.

    Whatever the twist, a group's law tends with its size to the posterior whose prior is what
    `sampling.ancestral` draws on these levels; so what is left is that sampler's own error, which
    falls with the number of levels, and the denoiser's. A poor twist costs effective particles, and
    in many dimensions few are left: samples of a group are then descendants of few, and alike.
    Groups of one particle are the guided sampler alone, without correction.

    The cost of a sample is a call of the network a level, differentiated at all but the last.

    Args:
        keys: `(b,)`, one a particle; `b` is measurements x particles, a group's particles side by
            side.
        denoiser: as of `daps`, as are all that are not listed here; differentiable.
        shape: of one sample.
        particles: number of a group, >= 1, a divisor of `b`.
        measure: A.
        y: measurements `(b, *m)`, one for each particle, the same within a group.
        noise_std: noise of y.
        levels: falling noise levels, the last of them below `noise_std / gain^(1/2)`, or the last
            weights are uneven.
        prior_std: tau.
        prior_mean: mean of the data.
        gain: about `|J|^2`, the square of how A scales what `x_0` given x may be; a scalar, or a
            function of sigma, as of `gains.gain_at`. It changes the twist alone.
        guidance: 0 moves particles without the measurement, which then acts by weights alone.
        below: part of a group's particles, in [0, 1]; 0 resamples in the end only, 1 at each level.

    Returns:
        Samples of equal weight in data units, and `effective (b / particles, n)`, the effective
        number of particles of each group at each level, and `lost (b / particles,)`, the most
        particles that were not finite at one level. Such have weight 0. A group of which none is
        left is NaN.

    Raises:
        ValueError: As of `daps`, or if `b` does not consist of groups of `particles`, or these
            differ in y.

    Reference: Wu et al. 2023, arXiv 2306.17775, algorithm 1.
    """
    levels, tau = checked(keys, shape, measure, y, noise_std, levels), checked_std(prior_std)
    _check_groups(particles, y, below)

    def twist(x: Array, sigma: Array) -> tuple[PerSample, Array]:
        x_0 = denoiser(x, sigma)
        return -misfit(measure, y, x_0) / (
            noise_std**2 + conditional_variance(sigma, tau, gain)
        ), x_0

    def level(
        carry: tuple[Array, PerSample], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, PerSample], tuple]:
        (x, log_weights), (index, t, s) = carry, now
        move, choose = split_keys(fold_in(keys, index), 2)
        log_twist, slopes, x_0 = jax.vjp(lambda x: twist(x, t), x, has_aux=True)
        (slope,) = slopes(jnp.ones_like(log_twist))
        log_weights = _alive(log_weights + log_twist, x)
        ancestors, again, effective = _ancestors(choose, log_weights, particles, below)
        seen = effective, _lost(log_weights, particles)
        x, x_0, slope, log_twist = (_taken(part, ancestors) for part in (x, x_0, slope, log_twist))
        log_weights = jnp.where(again, 0, log_weights)

        v, noise = VARIANCES['posterior'](t, s), normal(move, x)
        shift = guidance * (t**2 - s**2) * slope
        # log p - log q, written without a difference of like numbers.
        log_ratio = -jnp.sum(shift**2 / (2 * v) + shift * noise / jnp.sqrt(v), axes(x))
        x = (x_0 + (s / t) ** 2 * (x - x_0) + shift + jnp.sqrt(v) * noise).astype(x.dtype)
        return (x, log_weights + log_ratio - log_twist), seen

    x = prior_start(keys, shape, levels, prior_mean, tau)
    now = (jnp.arange(1, len(levels)), levels[:-1], levels[1:])
    (x, log_weights), (effective, lost) = jax.lax.scan(level, (x, jnp.zeros(len(x), x.dtype)), now)
    x_0 = denoiser(x, levels[-1])
    log_weights = _alive(log_weights - misfit(measure, y, x_0) / noise_std**2, x)
    ancestors, _, last = _ancestors(fold_in(keys, len(levels)), log_weights, particles, 2.0)
    lost = jnp.max(jnp.vstack([lost, _lost(log_weights, particles)]), 0)
    return _taken(frozen(x, x_0), ancestors), {
        'effective': jnp.vstack([effective, last]).T,
        'lost': lost,
    }


def _ancestors(
    keys: Key, log_weights: PerSample, particles: int, below: float
) -> tuple[Array, Array, Array]:
    """Returns whom each particle continues, `(groups, particles)`, who starts anew `(b,)`, and
    effective numbers.

    A group above the threshold, or without any weight, continues as it is.
    """
    log_weights, itself = log_weights.reshape(-1, particles), jnp.arange(particles)
    most = jnp.max(log_weights, 1, keepdims=True)
    weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(most), most, 0))
    total = jnp.sum(weights, 1)
    effective = total**2 / jnp.maximum(
        jnp.sum(weights**2, 1), 1
    )  # of a group with any weight, the sum is at least 1
    again = (effective < below * particles) & (total > 0)
    ancestors = jax.vmap(_systematic)(keys[::particles], weights)
    return jnp.where(again[:, None], ancestors, itself), jnp.repeat(again, particles), effective


def _systematic(key: Key, weights: Float[Array, ' p']) -> Array:
    """Returns indices `(p,)`, each as often as its weight says, to within one (Kitagawa 1996)."""
    n, total = len(weights), jnp.cumsum(weights)
    places = (jnp.arange(n) + jax.random.uniform(key, dtype=weights.dtype)) / n * total[-1]
    # To the right of a place, none without weight is chosen; and none by a place that rounding put
    # at the end.
    return jnp.minimum(
        jnp.searchsorted(total, places, side='right'), jnp.searchsorted(total, total[-1])
    )


def _taken(x: Array, ancestors: Array) -> Array:
    """Returns `x (b, ...)` of the ancestors `(groups, particles)`; groups stay on their devices."""
    groups = x.reshape(*ancestors.shape, *x.shape[1:])
    return jax.vmap(lambda group, index: group[index])(groups, ancestors).reshape(x.shape)


def _alive(log_weights: PerSample, x: Array) -> PerSample:
    return jnp.where(
        jnp.isfinite(log_weights) & jnp.all(jnp.isfinite(x), axes(x)), log_weights, -jnp.inf
    )


def _lost(log_weights: PerSample, particles: int) -> Array:
    return jnp.sum(jnp.isneginf(log_weights).reshape(-1, particles), 1)


def _check_groups(particles: int, y: Array, below: float) -> None:
    if particles < 1 or len(y) % particles or not 0 <= below <= 1:
        raise ValueError(
            f'got particles {particles}, below {below}, {len(y)} keys, expected particles >= 1 '
            'that divide the keys, and below in [0, 1]; pass measurements x particles keys'
        )
    if known(y) and not np.array_equal(y, np.repeat(np.asarray(y)[::particles], particles, 0)):
        raise ValueError(
            f'y: got groups of {particles} that differ within; use jnp.repeat(y, particles, 0)'
        )
