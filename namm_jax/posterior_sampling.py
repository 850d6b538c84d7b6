"""Posterior samplers that are loops of their own: decoupled annealing, and sequential Monte Carlo.

Symbols: `y = A(x_0) + s noise` is measured, with `A` a function `measure` (in mirror space `A` after f) and `s` its
`noise_std`. `x = x_0 + sigma noise` is data seen at a noise level, `D(x, sigma)` the denoiser, all in data units; the
levels fall. `tau` is the standard deviation of the data (`prior_std`), and `r = sigma tau / (sigma^2 + tau^2)^(1/2)`
that of `x_0` given `x` if the data are normal and isotropic. Both start at `x ~ N(prior_mean, sigma_1^2 + tau^2)`.

`daps` never differentiates the network, and is as exact as its normal law of `x_0` given `x`. `smc` differentiates the
network once a level, and is exact for many particles, many levels and the exact denoiser.

Keys are one a sample. A sample of `daps` depends on its key alone, a group of particles of `smc` on its keys alone.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax.diffusion import checked_std, conditional_variance, known
from namm_jax.per_sample import axes, broadcast, fold_in, normal
from namm_jax.sampling import VARIANCES, check_keys
from namm_jax.types import Denoiser, Gain, Key, Measure, Metrics, PerSample

Levels = Float[Array, ' n']


def daps(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    measure: Measure,
    y: Array,
    noise_std: ArrayLike,
    levels: Levels,
    prior_std: ArrayLike,
    prior_mean: ArrayLike = 0.0,
    ode_steps: int = 1,
    langevin_steps: int = 20,
    step_size: float = 0.5,
    gain: ArrayLike | None = None,
    spread: ArrayLike = 1.0,
    denoise_last: bool = True,
) -> Array:
    """Returns posterior samples `(b, *shape)` by decoupled annealing.

    At each level: an estimate `x_0'` by `ode_steps` Euler steps of the probability-flow equation from x to zero noise;
    Langevin dynamics of the density `exp(-|x_0 - x_0'|^2 / (2 r^2) - |y - A(x_0)|^2 / (2 s^2))`; and `x_0` with the
    next level's noise. The cost of a sample is `ode_steps` calls of the network a level, none differentiated, and
    `langevin_steps` gradients of `measure` (which in mirror space holds f).

    Bias. One Euler step is D, the mean of `x_0` given x. With it, isotropic normal data and enough Langevin steps, each
    level is exact; other data have no isotropic normal law given x. Many steps, as published, end at a point that has
    the spread of the data already, and r adds it a second time. Without measurement and on many levels, isotropic
    normal data come out with `(1 + spread^2) / 2` of their variance for one step, `1 + spread^2` for many. A `spread`
    below 1 suits data near a thin surface, off which r is too much, and makes the measurement act more slowly.

    The Langevin steps are postprocessed: unlike Euler's, they have no error of the step size where `A` is linear, and
    one of second order elsewhere. They start in the law of no measurement, where unmeasured directions stay. Of a
    direction that `A` scales by `a`, `1 - step_size (1 / r^2 + a^2 / s^2) / (1 / r^2 + gain / s^2)` is left each step:
    those with `0 < a^2 << gain` come late, and more steps are for them.

    Args:
        keys: `(b,)`, one a sample, as of `sample_keys`.
        denoiser: D, of the data.
        shape: of one sample.
        measure: A, differentiable.
        y: measurements `(b, *m)`, real.
        noise_std: s > 0, a scalar in units of y.
        levels: falling noise levels `(n,)` > 0, data units, as `Sampler.levels` gives them.
        prior_std: tau > 0, a scalar, data units.
        prior_mean: mean of the data; broadcasts against a sample.
        ode_steps: >= 1, spaced from the level down to the last level as `edm_grid`.
        langevin_steps: >= 1.
        step_size: in (0, 2), in units of the inverse of the largest curvature; stable below 2 if `gain` is a bound.
        gain: bound of `|J|^2` with `J` the Jacobian of A, a scalar or `(b,)`, in (units of y / data units)^2; None
            measures it at each sample and level by `squared_gain`, for 20 more values and 10 gradients of `measure`.
        spread: factor of r, > 0; 1 for what is said of exactness.
        denoise_last: Whether the last `x_0` is denoised, with one more call, at the last level, whose noise it has in
            directions in which the data have less. It moves `x_0` by about that level, so let that be below s.

    Returns:
        Samples in data units. One that is not finite at any level is NaN.

    Raises:
        ValueError: If a number is out of its range, or y is not finite or not of the shape of A's values.

    Reference: Zhang et al. 2024, arXiv 2407.01521, algorithm 1 (there `r = sigma`, with Euler's Langevin steps from
        `x_0'`); Leimkuhler & Matthews 2013, AMRX 2013(1), and Vilmart 2015, SIAM J. Sci. Comput. 37(1) (the steps).
    """
    levels, tau = _checked(keys, shape, measure, y, noise_std, levels), checked_std(prior_std)
    if ode_steps < 1 or langevin_steps < 1 or not 0 < step_size < 2:
        raise ValueError(
            f'daps: got ode_steps {ode_steps}, langevin_steps {langevin_steps}, step_size {step_size}, '
            'expected at least one step of each and 0 < step_size < 2; 1, 20 and 0.5 are usual'
        )

    def level(x: Array, now: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, sigma, sigma_next = now
        start, langevin, renew, probe = _split(fold_in(keys, index), 4)
        estimate = _flow_to_zero(denoiser, x, sigma, levels[-1], ode_steps)
        r = spread * jnp.sqrt(conditional_variance(sigma, tau))
        bound = squared_gain(probe, measure, estimate, step=0.01 * tau) if gain is None else jnp.asarray(gain)
        eta = broadcast(step_size / (1 / r**2 + bound / noise_std**2), x)

        def potential(x_0: Array) -> Array:
            return jnp.sum((x_0 - estimate) ** 2) / (2 * r**2) + jnp.sum(_misfit(measure, y, x_0)) / noise_std**2

        # The law of `_langevin`'s state, before its postprocessing, where there is no measurement.
        x_0 = estimate + jnp.sqrt(r**2 - eta / 2) * normal(start, x)
        x_0 = _langevin(langevin, jax.grad(potential), x_0, eta, langevin_steps)
        return _frozen(x, x_0 + sigma_next * normal(renew, x)), None

    x = _start(keys, shape, levels, prior_mean, tau)
    x, _ = jax.lax.scan(level, x, (jnp.arange(1, len(levels) + 1), levels, jnp.append(levels[1:], 0)))
    return _frozen(x, denoiser(x, levels[-1])) if denoise_last else x


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
    """Returns posterior samples `(b, *shape)` by twisted sequential Monte Carlo, in groups of one measurement each.

    From level t to s, a particle moves by the ancestral step of the guided estimate `D + guidance t^2 grad_x log w`,
    with the twist `w(x, t) = N(y; A(D(x, t)), (s_y^2 + gain r^2) I)` and `s_y` the noise of y; its weight is multiplied
    by `p(x_s given x_t) w(x_s, s) / (q(x_s given x_t) w(x_t, t))`, `p` being the unguided step and `q` the guided one.
    A group whose effective number of particles falls below a part of it is resampled, systematically. In the end
    particles are denoised, weighted by `N(y; A(x_0), s_y^2 I)` and resampled.

    Whatever the twist, a group's law tends with its size to the posterior whose prior is what `sampling.ancestral`
    draws on these levels; so what is left is that sampler's own error, which falls with the number of levels, and the
    denoiser's. A poor twist costs effective particles, and in many dimensions few are left: samples of a group are then
    descendants of few, and alike. Groups of one particle are the guided sampler alone, without correction.

    The cost of a sample is a call of the network a level, differentiated at all but the last.

    Args:
        keys: `(b,)`, one a particle; `b` is measurements x particles, a group's particles side by side.
        denoiser: as of `daps`, as are all that are not listed here; differentiable.
        shape: of one sample.
        particles: number of a group, >= 1, a divisor of `b`.
        measure: A.
        y: measurements `(b, *m)`, one for each particle, the same within a group.
        noise_std: noise of y.
        levels: falling noise levels, the last of them below `noise_std / gain^(1/2)`, or the last weights are uneven.
        prior_std: tau.
        prior_mean: mean of the data.
        gain: about `|J|^2`, the square of how A scales what `x_0` given x may be; a scalar, or a function of sigma, as
            of `inverse_problems.gain_at`. It changes the twist alone.
        guidance: 0 moves particles without the measurement, which then acts by weights alone.
        below: part of a group's particles, in [0, 1]; 0 resamples in the end only, 1 at each level.

    Returns:
        Samples of equal weight in data units, and `effective (b / particles, n)`, the effective number of particles of
        each group at each level, and `lost (b / particles,)`, the most particles that were not finite at one level.
        Such have weight 0. A group of which none is left is NaN.

    Raises:
        ValueError: As of `daps`, or if `b` does not consist of groups of `particles`, or these differ in y.

    Reference: Wu et al. 2023, arXiv 2306.17775, algorithm 1.
    """
    levels, tau = _checked(keys, shape, measure, y, noise_std, levels), checked_std(prior_std)
    _check_groups(particles, y, below)

    def twist(x: Array, sigma: Array) -> tuple[PerSample, Array]:
        x_0 = denoiser(x, sigma)
        return -_misfit(measure, y, x_0) / (noise_std**2 + conditional_variance(sigma, tau, gain)), x_0

    def level(carry: tuple[Array, PerSample], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, PerSample], tuple]:
        (x, log_weights), (index, t, s) = carry, now
        move, choose = _split(fold_in(keys, index), 2)
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

    x = _start(keys, shape, levels, prior_mean, tau)
    now = (jnp.arange(1, len(levels)), levels[:-1], levels[1:])
    (x, log_weights), (effective, lost) = jax.lax.scan(level, (x, jnp.zeros(len(x), x.dtype)), now)
    x_0 = denoiser(x, levels[-1])
    log_weights = _alive(log_weights - _misfit(measure, y, x_0) / noise_std**2, x)
    ancestors, _, last = _ancestors(fold_in(keys, len(levels)), log_weights, particles, 2.0)
    lost = jnp.max(jnp.vstack([lost, _lost(log_weights, particles)]), 0)
    return _taken(_frozen(x, x_0), ancestors), {'effective': jnp.vstack([effective, last]).T, 'lost': lost}


def squared_gain(keys: Key, measure: Measure, x: Array, *, step: ArrayLike, iterations: int = 10) -> PerSample:
    """Returns `|J|^2 (b,)`, the largest eigenvalue of `J^T J` with `J` the Jacobian of `measure` at x, from below.

    By power iteration from a random direction: it comes closer with each of the `iterations >= 1`, and exceeds the mean
    eigenvalue after few; a step size should leave a factor of 2 for what is missing. 0 for a constant. Products with J
    are central differences, exact for quadratic functions: networks differentiate backwards, and slowly forwards.

    Args:
        keys: `(b,)`, one a sample.
        measure: A, differentiable.
        x: `(b, ...)`.
        step: half of the difference, > 0: its root mean square over a sample, in the unit of x.
        iterations: products with J and its transpose.
    """
    _, pull = jax.vjp(measure, x)

    def iterate(direction: Array, _: None) -> tuple[Array, PerSample]:
        size = jnp.sqrt(jnp.mean(direction**2, axes(x), keepdims=True))
        ahead = step * direction / jnp.where(size > 0, size, 1)
        image = (measure(x + ahead) - measure(x - ahead)) / (2 * step * math.prod(x.shape[1:]) ** 0.5)
        return pull(image)[0], jnp.sum(image**2, axes(image))

    _, gains = jax.lax.scan(iterate, normal(keys, x), None, length=iterations)
    return gains[-1]


def _flow_to_zero(denoiser: Denoiser, x: Array, sigma: Array, sigma_min: Array, steps: int, rho: float = 7.0) -> Array:
    """Returns the end of Euler's steps of `dx / dsigma = (x - D) / sigma`, from `sigma` by `sigma_min` to 0."""
    grid = jnp.append(jnp.linspace(sigma ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho, 0)

    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        x_0 = denoiser(x, now[0])
        return (x_0 + now[1] / now[0] * (x - x_0)).astype(x.dtype), None

    return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]


def _langevin(keys: Key, gradient: Callable[[Array], Array], x: Array, eta: Array, steps: int) -> Array:
    """Returns the state after `x <- x - eta gradient(x + h) + 2 h`, plus a last h; `h = (eta / 2)^(1/2) noise`.

    Of `N(m, 1 / c)` the state's stationary variance is `1 / c - eta / 2`, and with the last h exactly `1 / c`.
    """

    def step(x: Array, index: Array) -> tuple[Array, None]:
        half = jnp.sqrt(eta / 2) * normal(fold_in(keys, index), x)
        return x - eta * gradient(x + half) + 2 * half, None

    x, _ = jax.lax.scan(step, x, jnp.arange(steps))
    return x + jnp.sqrt(eta / 2) * normal(fold_in(keys, steps), x)


def _ancestors(keys: Key, log_weights: PerSample, particles: int, below: float) -> tuple[Array, Array, Array]:
    """Returns whom each particle continues, `(groups, particles)`, who starts anew `(b,)`, and effective numbers.

    A group above the threshold, or without any weight, continues as it is.
    """
    log_weights, itself = log_weights.reshape(-1, particles), jnp.arange(particles)
    most = jnp.max(log_weights, 1, keepdims=True)
    weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(most), most, 0))
    total = jnp.sum(weights, 1)
    effective = total**2 / jnp.maximum(jnp.sum(weights**2, 1), 1)  # of a group with any weight, the sum is at least 1
    again = (effective < below * particles) & (total > 0)
    ancestors = jax.vmap(_systematic)(keys[::particles], weights)
    return jnp.where(again[:, None], ancestors, itself), jnp.repeat(again, particles), effective


def _systematic(key: Key, weights: Float[Array, ' p']) -> Array:
    """Returns indices `(p,)`, each as often as its weight says, to within one (Kitagawa 1996)."""
    n, total = len(weights), jnp.cumsum(weights)
    places = (jnp.arange(n) + jax.random.uniform(key, dtype=weights.dtype)) / n * total[-1]
    # To the right of a place, none without weight is chosen; and none by a place that rounding put at the end.
    return jnp.minimum(jnp.searchsorted(total, places, side='right'), jnp.searchsorted(total, total[-1]))


def _taken(x: Array, ancestors: Array) -> Array:
    """Returns `x (b, ...)` of the ancestors `(groups, particles)`; groups stay on their devices."""
    groups = x.reshape(*ancestors.shape, *x.shape[1:])
    return jax.vmap(lambda group, index: group[index])(groups, ancestors).reshape(x.shape)


def _alive(log_weights: PerSample, x: Array) -> PerSample:
    return jnp.where(jnp.isfinite(log_weights) & jnp.all(jnp.isfinite(x), axes(x)), log_weights, -jnp.inf)


def _lost(log_weights: PerSample, particles: int) -> Array:
    return jnp.sum(jnp.isneginf(log_weights).reshape(-1, particles), 1)


def _frozen(x: Array, x_next: Array) -> Array:
    """Returns `x_next`, NaN in each sample that is not finite there or in x: a network may map NaN to numbers."""
    finite = jnp.all(jnp.isfinite(x) & jnp.isfinite(x_next), axes(x), keepdims=True)
    return jnp.where(finite, x_next, jnp.nan).astype(x.dtype)


def _misfit(measure: Measure, y: Array, x_0: Array) -> PerSample:
    """Returns `|y - A(x_0)|^2 / 2` of each sample."""
    return jnp.sum((y - measure(x_0)) ** 2, axes(y)) / 2


def _start(keys: Key, shape: tuple[int, ...], levels: Levels, mean: ArrayLike, tau: Array) -> Array:
    """Returns `x ~ N(mean, sigma^2 + tau^2)` at the first level: what the data give, if normal and isotropic."""
    noise = normal(fold_in(keys, 0), jnp.zeros((len(keys), *shape)))
    return jnp.asarray(mean) + jnp.sqrt(levels[0] ** 2 + tau**2) * noise


def _checked(
    keys: Key, shape: tuple[int, ...], measure: Measure, y: Array, noise_std: ArrayLike, levels: ArrayLike
) -> Levels:
    """Returns the levels as an array; of traced arrays, as inside a compiled function, only shapes are checked."""
    check_keys(keys)
    made = jax.eval_shape(measure, jax.ShapeDtypeStruct((len(keys), *shape), jnp.zeros(()).dtype))
    if made.shape != jnp.shape(y) or jnp.iscomplexobj(made) or jnp.iscomplexobj(y):
        raise ValueError(
            f'y: got {jnp.result_type(y)}{list(jnp.shape(y))}, expected real numbers of shape {list(made.shape)}, the '
            f"measure's values ({made.dtype}); repeat y for each key, and stack real and imaginary parts"
        )
    if known(y) and not np.all(np.isfinite(y)):
        raise ValueError(f'y: got {np.sum(~np.isfinite(y))} values that are not finite; leave them out of the measure')
    if jnp.ndim(noise_std) or known(noise_std) and not 0 < np.asarray(noise_std) < np.inf:
        raise ValueError(f'noise_std: got {noise_std}, expected one positive finite number in units of y')
    if jnp.ndim(levels) != 1 or known(levels) and not np.all(np.diff(np.append(levels, 0)) < 0):
        raise ValueError(f'levels: got {levels}, expected falling noise levels (n,) above 0; use Sampler.levels()')
    return jnp.asarray(levels)


def _check_groups(particles: int, y: Array, below: float) -> None:
    if particles < 1 or len(y) % particles or not 0 <= below <= 1:
        raise ValueError(
            f'got particles {particles}, below {below}, {len(y)} keys, expected particles >= 1 that divide the keys, '
            'and below in [0, 1]; pass measurements x particles keys'
        )
    if known(y) and not np.array_equal(y, np.repeat(np.asarray(y)[::particles], particles, 0)):
        raise ValueError(f'y: got groups of {particles} that differ within; use jnp.repeat(y, particles, 0)')


def _split(keys: Key, n: int) -> tuple[Key, ...]:
    """Returns `n` arrays of keys `(b,)`."""
    return tuple(jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys))
