"""The twisted diffusion sampler: guided particles, corrected by weights and resampling."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Denoiser, Gain, Key, Metrics, PerSample, axes, fold_in, normal
from namm_jax._checks import check_keys
from namm_jax.denoising.denoisers import conditional_variance, is_concrete, positive_std
from namm_jax.denoising.samplers import VARIANCES
from namm_jax.inverse.daps import Levels, falling_levels, finite_or_nan, prior_start, split_keys
from namm_jax.inverse.likelihood import Likelihood


def tds(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    particles: int,
    likelihood: Likelihood,
    levels: Levels,
    std: ArrayLike,
    mean: ArrayLike = 0.0,
    gain: Gain | None = None,
    guidance: ArrayLike = 1.0,
    below: float = 0.5,
) -> tuple[Array, Metrics]:
    """Returns posterior samples `(b, *shape)` by twisted sequential Monte Carlo, in groups of one
    measurement each.

    From level t to s, a particle moves by the ancestral step of the guided estimate
    `D + guidance t^2 grad_x log w`, with the twist `w(x, t) = N(r(D(x, t)); 0, (1 + gain v) I)`, r
    the residuals and v the variance of isotropic normal data given x; its weight is multiplied by
    `p(x_s given x_t) w(x_s, s) / (q(x_s given x_t) w(x_t, t))`, `p` being the unguided step and `q`
    the guided one. A group with few effective particles is resampled, systematically. In the end
    particles are denoised, weighted by `N(r(x_0); 0, I)` and resampled. The cost of a sample is a
    call of the network a level, differentiated at all but the last.

    Whatever the twist, a group's law tends with its size to the posterior whose prior is what
    `samplers.ancestral` draws on these levels. In many dimensions few effective particles are left,
    and samples of a group are alike. Groups of one particle are the guided sampler alone.

    Args as of `daps`, and:
        keys: `(b,)`, one a particle; `b` is measurements x particles, a group's side by side.
        particles: number of a group, >= 1, a divisor of `b`.
        likelihood: of `y (b, *m)`, one for each particle, the same within a group.
        levels: the last of them below `gain^(-1/2)`, or the last weights are uneven.
        gain: as of `dps.discrepancy`; None is that of selections. It changes the twist alone.
        guidance: 0 moves particles without the measurement, which then acts by weights alone.
        below: part of a group's particles, in [0, 1]; 0 resamples in the end only, 1 at each level.

    Returns:
        Samples of equal weight in data units, and `effective (b / particles, n)`, the effective
        number of particles of each group at each level, and `lost (b / particles,)`, the most
        particles that were not finite at one level. Such have weight 0. A group of which none is
        left is NaN.

    Raises:
        ValueError: as of `daps`, or if `b` is not of groups of `particles`, or these differ in y.

    Reference: Wu et al. 2023, arXiv 2306.17775, algorithm 1.
    """
    check_keys(keys)
    levels = falling_levels(levels)
    std = positive_std(std)
    gain = likelihood.precision() if gain is None else gain
    _check_groups(particles, len(keys), likelihood.y, below)

    def twist(x: Array, sigma: Array) -> tuple[PerSample, Array]:
        x_0 = denoiser(x, sigma)
        return likelihood.log_density(x_0) / (1 + conditional_variance(sigma, std, gain)), x_0

    def level(
        carry: tuple[Array, PerSample], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, PerSample], tuple]:
        (x, log_weights), (index, t, s) = carry, now
        move, choose = split_keys(fold_in(keys, index), 2)
        log_twist, slopes, x_0 = jax.vjp(lambda x: twist(x, t), x, has_aux=True)
        (slope,) = slopes(jnp.ones_like(log_twist))
        log_weights = _zero_if_lost(log_weights + log_twist, x)
        ancestors, again, effective = _ancestors(choose, log_weights, particles, below)
        seen = effective, _number_lost(log_weights, particles)
        x, x_0, slope, log_twist = (_at(ancestors, part) for part in (x, x_0, slope, log_twist))
        log_weights = jnp.where(again, 0, log_weights)

        v = VARIANCES['posterior'](t, s)
        noise = normal(move, x)
        shift = guidance * (t**2 - s**2) * slope
        # log p - log q, written without a difference of like numbers.
        log_ratio = -jnp.sum(shift**2 / (2 * v) + shift * noise / jnp.sqrt(v), axes(x))
        x = (x_0 + (s / t) ** 2 * (x - x_0) + shift + jnp.sqrt(v) * noise).astype(x.dtype)
        return (x, log_weights + log_ratio - log_twist), seen

    x = prior_start(keys, shape, levels, mean, std)
    now = jnp.arange(1, len(levels)), levels[:-1], levels[1:]
    (x, log_weights), (effective, lost) = jax.lax.scan(level, (x, jnp.zeros(len(x), x.dtype)), now)
    x_0 = denoiser(x, levels[-1])
    log_weights = _zero_if_lost(log_weights + likelihood.log_density(x_0), x)
    # In the end every group is resampled: no number of particles exceeds twice itself.
    ancestors, _, last = _ancestors(fold_in(keys, len(levels)), log_weights, particles, 2.0)
    lost = jnp.max(jnp.vstack([lost, _number_lost(log_weights, particles)]), 0)
    info = {'effective': jnp.vstack([effective, last]).T, 'lost': lost}
    return _at(ancestors, finite_or_nan(x, x_0)), info


def _ancestors(
    keys: Key, log_weights: PerSample, particles: int, below: float
) -> tuple[Array, Array, Array]:
    """Returns whom each particle continues, `(groups, particles)`, who starts anew `(b,)`, and
    effective numbers. A group above the threshold, or without weight, continues as it is.
    """
    log_weights = log_weights.reshape(-1, particles)
    most = jnp.max(log_weights, 1, keepdims=True)
    weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(most), most, 0))
    total = jnp.sum(weights, 1)
    # Of a group with any weight, the sum of squares is at least 1.
    effective = total**2 / jnp.maximum(jnp.sum(weights**2, 1), 1)
    again = (effective < below * particles) & (total > 0)
    ancestors = jax.vmap(_systematic)(keys[::particles], weights)
    ancestors = jnp.where(again[:, None], ancestors, jnp.arange(particles))
    return ancestors, jnp.repeat(again, particles), effective


def _systematic(key: Key, weights: Float[Array, ' p']) -> Array:
    """Returns indices `(p,)`, each as often as its weight says, to within one (Kitagawa 1996)."""
    n = len(weights)
    total = jnp.cumsum(weights)
    places = (jnp.arange(n) + jax.random.uniform(key, dtype=weights.dtype)) / n * total[-1]
    # To the right, none without weight is chosen; nor by a place that rounding put at the end.
    found = jnp.searchsorted(total, places, side='right')
    return jnp.minimum(found, jnp.searchsorted(total, total[-1]))


def _at(ancestors: Array, x: Array) -> Array:
    # By group, which stays on its devices.
    groups = x.reshape(*ancestors.shape, *x.shape[1:])
    return jax.vmap(lambda group, index: group[index])(groups, ancestors).reshape(x.shape)


def _zero_if_lost(log_weights: PerSample, x: Array) -> PerSample:
    alive = jnp.isfinite(log_weights) & jnp.all(jnp.isfinite(x), axes(x))
    return jnp.where(alive, log_weights, -jnp.inf)


def _number_lost(log_weights: PerSample, particles: int) -> Array:
    return jnp.sum(jnp.isneginf(log_weights).reshape(-1, particles), 1)


def _check_groups(particles: int, keys: int, y: Array, below: float) -> None:
    if particles < 1 or keys % particles or not 0 <= below <= 1:
        raise ValueError(
            f'got particles {particles}, below {below}, {keys} keys, expected particles >= 1 '
            'that divide the keys, and below in [0, 1]; pass measurements x particles keys'
        )
    if len(y) == keys and is_concrete(y):
        y = np.asarray(y)
        if not np.array_equal(y, np.repeat(y[::particles], particles, 0)):
            raise ValueError(
                f'y: got groups of {particles} that differ within; use jnp.repeat(y, particles, 0)'
            )
