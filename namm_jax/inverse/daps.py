"""Decoupled annealing: Langevin dynamics at each noise level, the network never differentiated."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Denoiser, Key, Measure, PerSample, axes, broadcast, fold_in, normal
from namm_jax._checks import check_keys
from namm_jax.denoising.denoisers import conditional_variance, is_concrete, positive_std
from namm_jax.denoising.samplers import edm_grid
from namm_jax.inverse.likelihood import Likelihood

Levels = Float[Array, ' n']


def daps(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    likelihood: Likelihood,
    levels: Levels,
    std: ArrayLike,
    mean: ArrayLike = 0.0,
    ode_steps: int = 1,
    langevin_steps: int = 20,
    step_size: float = 0.5,
    gain: ArrayLike | None = None,
    spread: ArrayLike = 1.0,
    denoise_last: bool = True,
) -> Array:
    """Returns posterior samples `(b, *shape)` by decoupled annealing, data units; one that is not
    finite at any level is NaN.

    At each level: an estimate `x_0'` by `ode_steps` Euler steps of the probability-flow equation
    from x to zero noise; Langevin dynamics of the density
    `exp(-|x_0 - x_0'|^2 / (2 v) - |r(x_0)|^2 / 2)` with r the residuals of the measurement and v
    `spread^2` times the variance of isotropic normal data given x; and `x_0` with the next level's
    noise. The cost is `ode_steps` calls of the network a level, none differentiated, and
    `langevin_steps` gradients of r.

    One Euler step is D, the mean of `x_0` given x. With it, isotropic normal data and enough
    Langevin steps, each level is exact. Many steps, as published, end at a point that has the
    spread of the data already, and v adds it again: without measurement, isotropic normal data come
    out with `(1 + spread^2) / 2` of their variance for one step, `1 + spread^2` for many. A
    `spread` below 1 suits data near a thin surface, and makes the measurement act more slowly.

    The Langevin steps have no error of their size where r is linear, and one of second order
    elsewhere. They start in the law of no measurement. Of a direction that r scales by `a`,
    `1 - step_size (1 / v + a^2) / (1 / v + gain)` is left each step: more steps are for those with
    `0 < a^2 << gain`.

    Args:
        keys: `(b,)`, one a sample, as of `sample_keys`.
        denoiser: D, of the data.
        shape: of one sample.
        likelihood: the measurement, as of `likelihood`; `operator.after(f)` in mirror space.
        levels: falling noise levels `(n,)` > 0, data units, as `Sampler.levels` gives them.
        std: of the data, a positive scalar.
        mean: of the data; broadcasts against a sample.
        ode_steps: >= 1, spaced from the level down to the last level as `edm_grid`.
        langevin_steps: >= 1.
        step_size: in (0, 2), in units of the inverse of the largest curvature; stable below 2 if
            `gain` is a bound.
        gain: bound of `|J|^2` with `J` the Jacobian of r, a scalar or `(b,)`, in 1 / (data
            units)^2; None measures it at each sample and level by `squared_gain`.
        spread: > 0; 1 for what is said of exactness.
        denoise_last: whether the last `x_0` is denoised, with one more call, at the last level. It
            moves `x_0` by about that level, so let that be below the measurement's noise.

    Raises:
        ValueError: if a number is out of its range, or the measurement is not of such samples.

    Reference: Zhang et al. 2024, arXiv 2407.01521, algorithm 1 (there `v = sigma^2`, with Euler's
        Langevin steps from `x_0'`); Leimkuhler & Matthews 2013, AMRX 2013(1), and Vilmart 2015,
        SIAM J. Sci. Comput. 37(1) (the steps).
    """
    check_keys(keys)
    levels = falling_levels(levels)
    std = positive_std(std)
    if ode_steps < 1 or langevin_steps < 1 or not 0 < step_size < 2:
        raise ValueError(
            f'daps: got ode_steps {ode_steps}, langevin_steps {langevin_steps}, step_size '
            f'{step_size}, expected steps >= 1 and 0 < step_size < 2; 1, 20 and 0.5 are usual'
        )

    def level(x: Array, now: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, sigma, sigma_next = now
        start, langevin, renew, probe = split_keys(fold_in(keys, index), 4)
        estimate = _flow_to_zero(denoiser, x, sigma, levels[-1], ode_steps)
        v = spread**2 * conditional_variance(sigma, std)
        bound = gain
        if gain is None:
            bound = squared_gain(probe, likelihood.residual, estimate, step=0.01 * std)
        eta = broadcast(step_size / (1 / v + jnp.asarray(bound)), x)

        def potential(x_0: Array) -> Array:
            misfit = -jnp.sum(likelihood.log_density(x_0))
            return jnp.sum((x_0 - estimate) ** 2) / (2 * v) + misfit

        # The law of `_langevin`'s state, before its postprocessing, where there is no measurement.
        x_0 = estimate + jnp.sqrt(v - eta / 2) * normal(start, x)
        x_0 = _langevin(langevin, jax.grad(potential), x_0, eta, langevin_steps)
        return finite_or_nan(x, x_0 + sigma_next * normal(renew, x)), None

    x = prior_start(keys, shape, levels, mean, std)
    steps = jnp.arange(1, len(levels) + 1), levels, jnp.append(levels[1:], 0)
    x, _ = jax.lax.scan(level, x, steps)
    return finite_or_nan(x, denoiser(x, levels[-1])) if denoise_last else x


def squared_gain(
    keys: Key, measure: Measure, x: Array, *, step: ArrayLike, iterations: int = 10
) -> PerSample:
    """Returns `|J|^2 (b,)`, the largest eigenvalue of `J^T J` with `J` the Jacobian of
    `measure: (b, ...) -> (b, *m)` at x, from below.

    By `iterations >= 1` of power iteration from a random direction, keys `(b,)`: a step size should
    leave a factor of 2 for what is missing. Products with J are central differences, exact for
    quadratic functions, as networks differentiate slowly forwards; `step > 0` is half of the
    difference, as a root mean square over a sample in the unit of x.
    """
    _, pull = jax.vjp(measure, x)
    width = 2 * step * math.prod(x.shape[1:]) ** 0.5

    def iterate(direction: Array, _: None) -> tuple[Array, PerSample]:
        size = jnp.sqrt(jnp.mean(direction**2, axes(x), keepdims=True))
        ahead = step * direction / jnp.where(size > 0, size, 1)
        image = (measure(x + ahead) - measure(x - ahead)) / width
        return pull(image)[0], jnp.sum(image**2, axes(image))

    _, gains = jax.lax.scan(iterate, normal(keys, x), None, length=iterations)
    return gains[-1]


def falling_levels(levels: ArrayLike) -> Levels:
    """Returns noise levels as an array; a ValueError unless they are `(n,)`, falling, above 0."""
    steps = np.diff(np.append(levels, 0)) if is_concrete(levels) else -1
    if jnp.ndim(levels) != 1 or not np.all(steps < 0):
        raise ValueError(
            f'levels: got {levels}, expected falling levels (n,) above 0; use Sampler.levels()'
        )
    return jnp.asarray(levels)


def prior_start(
    keys: Key, shape: tuple[int, ...], levels: Levels, mean: ArrayLike, std: Array
) -> Array:
    """Returns `x ~ N(mean, sigma^2 + std^2)` at the first level, that of isotropic normal data."""
    noise = normal(fold_in(keys, 0), jnp.zeros((len(keys), *shape)))
    return jnp.asarray(mean) + jnp.sqrt(levels[0] ** 2 + std**2) * noise


def finite_or_nan(x: Array, x_next: Array) -> Array:
    """Returns `x_next`, NaN in each sample not finite there or in x: networks may map NaN to
    numbers.
    """
    finite = jnp.all(jnp.isfinite(x) & jnp.isfinite(x_next), axes(x), keepdims=True)
    return jnp.where(finite, x_next, jnp.nan).astype(x.dtype)


def split_keys(keys: Key, n: int) -> tuple[Key, ...]:
    """Returns `n` arrays of keys `(b,)`."""
    return tuple(jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys))


def _flow_to_zero(
    denoiser: Denoiser, x: Array, sigma: Array, sigma_min: Array, steps: int
) -> Array:
    """Returns Euler's solution at 0 of `dx / dsigma = (x - D) / sigma`, by `sigma_min`."""
    grid = jnp.append(edm_grid(steps, sigma, sigma_min), 0)

    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        x_0 = denoiser(x, now[0])
        return (x_0 + now[1] / now[0] * (x - x_0)).astype(x.dtype), None

    return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]


def _langevin(
    keys: Key, gradient: Callable[[Array], Array], x: Array, eta: Array, steps: int
) -> Array:
    """Returns the state after `x <- x - eta gradient(x + h) + 2 h`, plus a last h, where
    `h = (eta / 2)^(1/2) noise`: of `N(m, 1 / c)` its variance is `1 / c - eta / 2`, and with the
    last h exactly `1 / c`.
    """

    def step(x: Array, index: Array) -> tuple[Array, None]:
        half = jnp.sqrt(eta / 2) * normal(fold_in(keys, index), x)
        return x - eta * gradient(x + half) + 2 * half, None

    x, _ = jax.lax.scan(step, x, jnp.arange(steps))
    return x + jnp.sqrt(eta / 2) * normal(fold_in(keys, steps), x)
