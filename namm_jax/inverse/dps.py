"""Diffusion posterior sampling: each step of a sampler followed by a descent of the misfit.

Symbols: `r(x_0) (b, m)` the residuals of a measurement, as of `likelihood`; `D(x, sigma)` a
denoiser. A potential maps estimates `x_0 (b, ...)` to numbers `(b,)`, small where the data agree:
`Likelihood.misfit`, `||r||_2`, or another. A sample that is not finite once stays so, and touches
no other.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from namm_jax._arrays import Denoiser, Gain, Key, PerSample, Schedule, Step, axes, broadcast
from namm_jax._checks import check_within
from namm_jax.denoising.denoisers import conditional_variance, is_concrete, positive, positive_std
from namm_jax.denoising.samplers import Scheme, State, make_sampler
from namm_jax.denoising.schedules import estimate
from namm_jax.inverse.likelihood import Likelihood

Potential: TypeAlias = Callable[[Array], PerSample]  # x_0 (b, ...) -> (b,)

# (potential (b,), its gradient in x_t (b, ...), alpha_t, sigma_t) -> factor of the gradient, (b,)
Length: TypeAlias = Callable[[PerSample, Array, Array, Array], Array]


def with_constraint(
    potential: Potential, distance: Potential, weight: ArrayLike = 200.0
) -> Potential:
    """Returns the potential of constraint-guided DPS, `potential(x_0) + weight l(x_0)`.

    The gradient of the distance l has to be finite on the set too. `weight >= 0` is in units of the
    potential per unit of l; 200 is published.
    """
    if is_concrete(weight) and not 0 <= float(weight) < math.inf:
        raise ValueError(f'weight: got {weight}, expected a finite number >= 0; 200 is published')
    return lambda x_0: potential(x_0) + weight * distance(x_0)


def fixed(scale: ArrayLike) -> Length:
    """Returns the step length `scale >= 0`, a scalar or `(b,)`, as published; else a ValueError."""
    if is_concrete(scale) and not all(0 <= s < math.inf for s in np.ravel(np.asarray(scale))):
        raise ValueError(f'scale: got {scale}, expected finite numbers >= 0; 0.05 is published')
    return lambda value, gradient, alpha_t, sigma_t: jnp.asarray(scale)


def polyak(
    target: ArrayLike | Callable[[Array], Array], *, zeta: float = 1.0, limit: float = 1.0
) -> Length:
    """Returns the step length `zeta (potential - target)_+ / ||gradient||^2`, a sample at a time.

    With `zeta = 1` the linearised potential comes to the target. Below it there is no guidance, so
    the data are not fitted closer than their noise.

    Args:
        target: what the potential should come to, a number or a function of `sigma_t / alpha_t`.
        zeta: part of the way, in (0, 1].
        limit: largest step, > 0, as a root mean square over a sample in units of `sigma_t`: where
            the noise is large, the whole way would leave all that D was trained on.

    Reference: Polyak 1969, USSR Comput. Math. and Math. Phys. 9(3).
    """
    if not (0 < zeta <= 1 and 0 < limit < math.inf):
        raise ValueError(
            f'polyak: got zeta {zeta}, limit {limit}, expected 0 < zeta <= 1 and a finite limit > 0'
        )

    def length(value: PerSample, gradient: Array, alpha_t: Array, sigma_t: Array) -> PerSample:
        goal = target(sigma_t / alpha_t) if callable(target) else target
        # Scaled to a largest entry of 1: in float32 the square of a gradient below 1e-22 is 0.
        largest = jnp.max(jnp.abs(gradient), axes(gradient))
        flat = largest == 0
        largest = jnp.where(flat, 1, largest)
        square = jnp.sum((gradient / broadcast(largest, gradient)) ** 2, axes(gradient))
        square = jnp.where(flat, 1, square)
        size = jnp.sqrt(square / math.prod(gradient.shape[1:])) * largest
        whole = zeta * jnp.maximum(value - goal, 0) / (square * largest) / largest
        return jnp.where(flat, 0, jnp.minimum(whole, limit * sigma_t / size))

    return length


def discrepancy(count: int, *, std: ArrayLike, gain: Gain) -> Callable[[Array], Array]:
    """Returns the target of `polyak` by the discrepancy principle: the root mean square of the
    misfit along a posterior trajectory, `target(sigma) = (m (1 + gain v))^(1/2)`,
    `v = sigma^2 tau^2 / (sigma^2 + tau^2)`.

    Given `x_t`, the data differ from their estimate by their variance, v for isotropic normal data,
    and residuals from theirs by 1 besides. It falls to `sqrt(m)`, one noise standard deviation a
    value, as the level falls to 0.

    Args:
        count: m, the residuals of one measurement, >= 1.
        std: tau, of the data, > 0.
        gain: mean squared norm of the rows of the residuals' Jacobian, > 0, in 1 / (unit of x)^2:
            `1 / s^2` of selections with white noise s; or a function of sigma, `gain_at` of what
            `measured_gain` measures, where data are not isotropic.

    Reference: Morozov 1966, Soviet Math. Dokl. 7 (the principle).
    """
    check_within('[1, inf)', kinds='iu', count=count)
    std = positive_std(std)
    gain = gain if callable(gain) else positive('gain', gain)
    return lambda sigma: jnp.sqrt(count * (1 + conditional_variance(sigma, std, gain)))


def guided_step(step: Step, schedule: Schedule, potential: Potential, length: Length) -> Step:
    """Returns the step followed by a descent of the potential at the estimate:
    `x_s <- x_s - length grad potential`.

    The gradient is that of `x_t -> potential(D(x_t / alpha_t, sigma_t / alpha_t))`: one call of the
    denoiser, and one product with its transposed Jacobian. The last denoising of a sampler is no
    step: it is not guided.

    Args:
        step: any that calls its denoiser once, at `x_t` and t: all of `SAMPLERS` but `heun`. Not a
            guided one: add the potentials instead.
        schedule: the one the step was built with.
        potential: of estimates in the coordinates of the step, standardised in a `Sampler`.
        length: `fixed(scale)`, `polyak(target)`, or another function like them.

    Raises:
        ValueError: when called, if the step does not call its denoiser once, or the potential is
            not `(b,)`.
    """

    def advance(D: Denoiser, keys: Key, x: Array, memory: PyTree, t: Array, s: Array) -> State:
        x_0, pull_back = jax.vjp(lambda x: estimate(schedule, D, x, t), x)
        value, slopes = jax.vjp(potential, x_0)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f'potential: got shape {value.shape}, expected one number a sample, {x.shape[:1]}'
            )
        (gradient,) = pull_back(slopes(jnp.ones_like(value))[0])
        calls = []

        def same(u: Array, r: Array) -> Array:
            calls.append(r)
            return x_0

        x_s, memory = step(same, keys, x, memory, t, s)
        if len(calls) != 1:
            raise ValueError(
                f'step: it called its denoiser {len(calls)} times, expected once, at x_t; wrap '
                'another, such as ddim, or use measurement_guided'
            )
        size = jnp.asarray(length(value, gradient, schedule.alpha(t), schedule.sigma(t)))
        return (x_s - broadcast(size, x) * gradient).astype(x_s.dtype), memory

    return advance


def dps(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    likelihood: Likelihood,
    std: ArrayLike,
    mean: ArrayLike = 0.0,
    steps: int = 1000,
    length: Length | None = None,
    gain: Gain | None = None,
    distance: Potential | None = None,
    weight: ArrayLike = 200.0,
    step: str | Scheme = 'ancestral',
    **options: Any,
) -> Array:
    """Returns samples `(b, *shape)` of a sampler, each step of which is followed by a descent of
    the misfit, `x_s <- x_s - length grad_{x_t} ||r(x_0(x_t))||_2`.

    It is no posterior sampler: of normal data its mean and spread are nearly those of the posterior
    after 1,000 ancestral steps, and less so after few. By the published length, `fixed(0.05)`, the
    noise is fitted. What is not measured has its exact law.

    Args as of `daps` and `make_sampler`, and:
        denoiser: D, differentiable.
        length: of the descent, in data units; None is `polyak` to the `discrepancy`. As published
            is `fixed(0.05)`, with the options `variance='forward', denoise_last=False`.
        gain: as of `discrepancy`; None is that of selections.
        distance: of a rule, added to the misfit as of `with_constraint` (CG-DPS); None is none.
        weight: of the distance.
        step: as of `make_sampler`, with one call of its denoiser.
        **options: of `make_sampler`, and of the step.

    Raises:
        ValueError: if a number is out of its range, or the measurement is not of such samples.

    Reference: Chung et al. 2023, arXiv 2209.14687, algorithm 1.
    """
    sampler = make_sampler(step, steps=steps, mean=mean, std=std, **options)
    potential = likelihood.misfit
    if distance is not None:
        potential = with_constraint(potential, distance, weight)
    if length is None:
        x = jax.ShapeDtypeStruct((len(keys), *shape), jnp.float32)
        count = jax.eval_shape(likelihood.residual, x).shape[1]
        gain = likelihood.precision() if gain is None else gain
        length = polyak(discrepancy(count, std=std, gain=gain))

    # A step in u, x = mean + std u, is one in x over std, and so is a gradient in x of one in u.
    def length_of_u(value: PerSample, gradient: Array, alpha_t: Array, sigma_t: Array) -> Array:
        return length(value, gradient / std, alpha_t, std * sigma_t) / std**2

    of_u = lambda u_0: potential(mean + std * u_0)
    guided = guided_step(sampler.step, sampler.schedule, of_u, length_of_u)
    return sampler._replace(step=guided)(keys, denoiser, shape)


def measured_gain(
    keys: Key, denoiser: Denoiser, of: Likelihood, x: Array, levels: Array, *, std: ArrayLike
) -> Array:
    """Returns `(n,)`, at each level the mean square over v of the residuals of `y = A(x)` at the
    estimates `D(x + sigma noise, sigma)`, with v as of `discrepancy`.

    So `gain v` is the variance of a measured estimate, whatever the data: near a thin surface the
    gain is much less than that of isotropic normal data.

    Args:
        keys: `(n,)`, one a level.
        denoiser: D, in data units.
        of: gives A and the law of its noise.
        x: data that D was not trained on, `(b, ...)`.
        levels: sigma > 0, `(n,)`.
        std: tau, of the data.
    """
    of_truth = dataclasses.replace(of, y=of.measure(x))

    def at(now: tuple[Key, Array]) -> Array:
        key, sigma = now
        x_0 = denoiser(x + sigma * jax.random.normal(key, x.shape, x.dtype), sigma)
        return jnp.mean(of_truth.residual(x_0) ** 2) / conditional_variance(sigma, std)

    return jax.lax.map(at, (keys, levels))


def gain_at(levels: Array, gains: Array) -> Callable[[Array], Array]:
    """Returns `sigma -> gain` from gains > 0 at levels `(n,)` in any order, linear in logs."""
    order = jnp.argsort(levels)
    x, y = jnp.log(levels[order]), jnp.log(gains[order])
    return lambda sigma: jnp.exp(jnp.interp(jnp.log(sigma), x, y))
