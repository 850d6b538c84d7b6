"""Posterior sampling: misfits to a measurement, and guidance by them that wraps a step or a
denoiser.

Symbols: `y = A(x_0) + s noise` a measurement, `A` the function `measure`, `s` its noise;
`D(x, sigma)` a denoiser and `J` its Jacobian in x; `m` the number of values in one measurement. A
potential maps estimates `x_0 (b, ...)` to numbers `(b,)`, small where the data agree; it is built
of functions alone, so a mirror map f is `measure` after f, and the coordinates
`u = (x - mean) / std` of a `Sampler` are `lambda u_0: potential(mean + std * u_0)`.

A sample whose state, measurement or gradient is not finite stays not finite to the end and touches
no other.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from namm_jax._arrays import (
    Denoiser,
    Gain,
    Key,
    Measure,
    Measurement,
    PerSample,
    Schedule,
    Step,
    axes,
    broadcast,
)
from namm_jax.denoising.denoisers import conditional_variance, known

Potential: TypeAlias = Callable[[Array], PerSample]  # x_0 (b, ...) -> (b,)

# (potential (b,), its gradient in x_t (b, ...), alpha_t, sigma_t) -> what multiplies the gradient:
# (b,) or a scalar.
Length: TypeAlias = Callable[[PerSample, Array, Array, Array], Array]


def misfit(measure: Measure, y: Measurement, noise_std: ArrayLike) -> Potential:
    """Returns the potential `x_0 -> ||(y - A(x_0)) / s||_2`: not squared, over all values of a
    sample's measurement.

    About `sqrt(m)` at the truth. Its gradient is 0 where it is 0.

    Args:
        measure: A; returns real floating-point numbers.
        y: `(b, *m)` finite, one measurement a sample, or `(1, *m)`, one for all.
        noise_std: s, a positive scalar in the unit of y.

    Raises:
        ValueError: If y or `noise_std` is not as above; when the potential is called, if A gives
            another shape than y.

    Reference: Chung et al. 2023, arXiv 2209.14687, algorithm 1.
    """
    residual = _residual(measure, y, noise_std)

    def potential(x_0: Array) -> PerSample:
        square = jnp.sum(residual(x_0) ** 2, -1)
        exact = square == 0  # and not `square > 0`, which would make 0 of NaN
        return jnp.where(exact, 0, jnp.sqrt(jnp.where(exact, 1, square)))

    return potential


def misfit_per_value(measure: Measure, y: Measurement, noise_std: ArrayLike) -> Potential:
    """Returns `misfit / sqrt(m)`, the root mean square of `(y - A(x_0)) / s`: about 1 at the truth;
    the same Args.
    """
    potential, count = misfit(measure, y, noise_std), math.prod(jnp.shape(y)[1:])
    return lambda x_0: potential(x_0) / math.sqrt(count)


def with_constraint(
    potential: Potential, distance: Potential, weight: ArrayLike = 200.0
) -> Potential:
    """Returns the potential of constraint-guided DPS, `potential(x_0) + weight l(x_0)`.

    Args:
        potential: as of `misfit`.
        distance: l, >= 0 and 0 on the set; its gradient has to be finite there too.
        weight: >= 0, in units of the potential per unit of l; 200 is published.

    Raises:
        ValueError: If the weight is out of its range.
    """
    if known(weight) and not 0 <= float(weight) < math.inf:
        raise ValueError(f'weight: got {weight}, expected a finite number >= 0; 200 is published')
    return lambda x_0: potential(x_0) + weight * distance(x_0)


def fixed(scale: ArrayLike) -> Length:
    """Returns the step length that is `scale` always, as published: >= 0, a scalar or `(b,)`; else
    a ValueError.
    """
    if known(scale) and not all(0 <= entry < math.inf for entry in np.ravel(np.asarray(scale))):
        raise ValueError(f'scale: got {scale}, expected finite numbers >= 0; 0.05 is published')
    return lambda value, gradient, alpha_t, sigma_t: jnp.asarray(scale)


def polyak(
    target: ArrayLike | Callable[[Array], Array], *, zeta: float = 1.0, limit: float = 1.0
) -> Length:
    """Returns the step length `zeta (potential - target)_+ / ||gradient||^2`, a sample at a time.

    With `zeta = 1` the linearised potential comes to the target (Polyak), and a potential convex in
    `x_t` to no less. Below the target there is no guidance, so the data are not fitted closer than
    their noise. Unlike a fixed scale, it depends on the unit of neither x nor the potential. A
    constraint's distance, 0 at the truth, adds nothing to it.

    Args:
        target: what the potential should come to, or, as `discrepancy`, that as a function of
            `sigma_t / alpha_t`.
        zeta: part of the way, in (0, 1].
        limit: largest step, > 0, as a root mean square over a sample in units of `sigma_t`. Where
            the noise is large, estimates hardly depend on the state, and the whole way would leave
            all that D was trained on.

    Raises:
        ValueError: If `zeta` or `limit` is out of its range.

    Reference: Polyak 1969, USSR Comput. Math. and Math. Phys. 9(3).
    """
    if not (0 < zeta <= 1 and 0 < limit < math.inf):
        raise ValueError(
            f'polyak: got zeta {zeta}, limit {limit}, expected zeta in (0, 1] and a finite limit > '
            '0'
        )

    def length(value: PerSample, gradient: Array, alpha_t: Array, sigma_t: Array) -> PerSample:
        goal = target(sigma_t / alpha_t) if callable(target) else target
        # Scaled to a largest entry of 1: in float32 the square of a gradient below 1e-22 is 0.
        largest = jnp.max(jnp.abs(gradient), axes(gradient))
        flat = largest == 0
        largest = jnp.where(flat, 1, largest)
        square = jnp.where(
            flat, 1, jnp.sum((gradient / broadcast(largest, gradient)) ** 2, axes(gradient))
        )
        size = jnp.sqrt(square / math.prod(gradient.shape[1:])) * largest
        whole = zeta * jnp.maximum(value - goal, 0) / (square * largest) / largest
        return jnp.where(flat, 0, jnp.minimum(whole, limit * sigma_t / size))

    return length


def discrepancy(
    count: int, *, noise_std: ArrayLike, prior_std: ArrayLike = 1.0, gain: Gain = 1.0
) -> Callable[[Array], Array]:
    """Returns the target of `polyak` by the discrepancy principle: what `misfit` is at a draw from
    the posterior.

    `target(r) = (m (1 + gain v / s^2))^(1/2)`, `v = r^2 tau^2 / (r^2 + tau^2)`, at noise level
    `r = sigma_t / alpha_t`. Given `x_t`, the data differ from their estimate by their variance,
    which is v for isotropic normal data, and the measurement from theirs by s besides: the root
    mean square of the misfit along a posterior trajectory. It falls to `sqrt(m)`, one noise
    standard deviation a value, as the level falls to 0; `sqrt(m)` from the start fits too closely
    where the level is large. In the example of `dps` this guidance has a mean 0.995 times and a
    standard deviation 0.98 times those of the posterior, in 100 `ddim` steps 0.96 and 0.94 times.

    Args:
        count: m, the values in one measurement, >= 1.
        noise_std: s, in the unit of y.
        prior_std: tau, the data's standard deviation in the coordinates of the step: 1 if they are
            standardised.
        gain: mean squared norm of the rows of A in these coordinates: 1 of selections, `std^2`
            after `mean + std u`; or a function of r, `gains.gain_at` of what `measured_gain` there
            measures, where data are not isotropic.

    Raises:
        ValueError: If a number is not positive.

    Reference: Morozov 1966, Soviet Math. Dokl. 7 (the principle).
    """
    if count < 1:
        raise ValueError(
            f'count: got {count}, expected at least 1, the number of values in one measurement'
        )
    excess = _excess(noise_std, prior_std, gain)
    return lambda r: jnp.sqrt(count * (1 + excess(r)))


def guided_step(step: Step, schedule: Schedule, potential: Potential, length: Length) -> Step:
    """Returns the step followed by a descent of the potential at the estimate:
    `x_s <- x_s - length grad potential`.

    The gradient is that of `x_t -> potential(D(x_t / alpha_t, sigma_t / alpha_t))`, through the
    denoiser. One call of the denoiser and one product with its transposed Jacobian: the wrapped
    step is given the estimate. The last denoising of `sample` is no step: it is not guided.

    Args:
        step: any that calls its denoiser once, at `x_t` and t: all of `SAMPLERS` but `heun`.
            Wrapping a guided step does not add up, as its estimate then no longer depends on x: add
            the potentials instead.
        schedule: the one the step was built with.
        potential: of estimates in the coordinates of the step, which are standardised in a
            `Sampler`.
        length: `fixed(scale)`, `polyak(target)`, or another function like them.

    Raises:
        ValueError: When called, if the step does not call its denoiser once, or the potential is
            not `(b,)`.
    """

    def advance(
        denoiser: Denoiser, keys: Key, x: Array, memory: PyTree, t: Array, s: Array
    ) -> tuple[Array, PyTree]:
        alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
        x_0, pull_back = jax.vjp(lambda x: denoiser(x / alpha_t, sigma_t / alpha_t), x)
        value, slopes = jax.vjp(potential, x_0)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f'potential: got shape {value.shape}, expected one number a sample, {x.shape[:1]}'
            )
        (gradient,) = pull_back(slopes(jnp.ones_like(value))[0])
        asked = []
        # A list's `append` returns None, so the answer is x_0.
        x_s, memory = step(lambda u, r: asked.append(r) or x_0, keys, x, memory, t, s)
        if len(asked) != 1:
            raise ValueError(
                f'step: it called its denoiser {len(asked)} times, expected once, at x_t; wrap '
                'another, such as ddim, or use weighted_guidance, which suits all'
            )
        size = jnp.asarray(length(value, gradient, alpha_t, sigma_t))
        return (x_s - broadcast(size, x) * gradient).astype(x_s.dtype), memory

    return advance


def dps(step: Step, schedule: Schedule, potential: Potential, *, scale: ArrayLike) -> Step:
    """Returns the step of diffusion posterior sampling,
    `x_s <- x_s - scale grad_{x_t} potential(x_0(x_t))`.

    With `misfit` it is DPS, with `with_constraint` CG-DPS, with a measurement after f mirror DPS.
    `scale` 0 is the step itself. It is `guided_step` with `fixed(scale)`, and has its arguments and
    errors.

    The published scale is 0.05, on data in their own unit. In the coordinates u of
    `x = mean + std u` the same descent has the scale `scale / std^2`: `grad_u = std grad_x`, and a
    step in u is one in x over std.

    It is no posterior sampler. Of 16 independent standard normal values, all measured with noise
    0.2, 1,000 ancestral steps of scale 0.05 give a mean that is the measurement itself (1.04 times
    the posterior's) and a standard deviation 0.17 times the posterior's (0.032 for 0.196), so a
    misfit a value of 0.16 for 0.98: the noise is fitted. Of 8 measured ones of the 16 it is 0.24
    times; those not measured have their exact law.

    Reference: Chung et al. 2023, arXiv 2209.14687, algorithm 1.
    """
    length = fixed(scale)
    return (
        step
        if known(scale) and not np.asarray(scale).any()
        else guided_step(step, schedule, potential, length)
    )


def weighted_guidance(
    denoiser: Denoiser,
    measure: Measure,
    y: Measurement,
    *,
    noise_std: ArrayLike,
    prior_std: ArrayLike,
    gain: Gain = 1.0,
    limit: ArrayLike | None = None,
) -> Denoiser:
    """Returns the denoiser given a measurement, `D' = D + sigma^2 grad_x log N(y; A(D(x)), (s^2 +
    gain v) I)`.

    `v = sigma^2 tau^2 / (sigma^2 + tau^2)` is the variance of isotropic normal data given x, held
    constant in the gradient; `sigma^2 grad = sigma^2 J^T A^T (y - A(D)) / (s^2 + gain v)` with A^T
    that of its linearisation. Every sampler draws with it, in few steps, and its last act is D'.
    For data `N(mean, tau^2 I)` and A with orthonormal rows, D' is the exact denoiser of the
    posterior; else it is an approximation. A call costs one of D, and one product with its
    transposed Jacobian.

    Args:
        denoiser: D.
        measure: A, of fields in data units; as of `misfit`, as is y.
        y: `(b, *m)` or `(1, *m)`.
        noise_std: s, a positive scalar in the unit of y.
        prior_std: tau, the standard deviation of the data, a positive scalar in their unit.
        gain: mean squared norm of the rows of A, > 0: 1 for selections; or a function of sigma, as
            of `discrepancy`.
        limit: Largest root mean square of `D' - D` over a sample's values, in data units; None is
            none. The data's standard deviation holds back a network whose Jacobian does not fall as
            `1 / sigma^2` at large levels.

    Raises:
        ValueError: If a number is out of its range or y is not finite; when called, if A gives
            another shape than y.

    Reference: Song et al. 2023, ICLR, Pseudoinverse-guided diffusion models for inverse problems.
    """
    if limit is not None and known(limit) and not limit > 0:
        raise ValueError(f'limit: got {limit}, expected a positive number in data units, or None')
    residual, excess = _residual(measure, y, noise_std), _excess(noise_std, prior_std, gain)

    def denoise(x: Array, sigma: Array) -> Array:
        x_0, pull_back = jax.vjp(lambda x: denoiser(x, sigma), x)
        difference, transpose = jax.vjp(residual, x_0)
        (towards,) = pull_back(transpose(-difference)[0])  # -J^T A^T (A(D) - y) / s^2
        weight = jnp.asarray(sigma) ** 2 / (1 + excess(jnp.asarray(sigma)))
        return (x_0 + _shortened(broadcast(weight, x) * towards, limit)).astype(x_0.dtype)

    return denoise


def _residual(
    measure: Measure, y: Measurement, noise_std: ArrayLike
) -> Callable[[Array], Float[Array, 'b m']]:
    """Returns `x_0 -> (y - A(x_0)) / s`, flattened, after checking what is known of the
    arguments.
    """
    if known(y) and not np.isfinite(np.asarray(y)).all():
        raise ValueError(
            'y: got values that are not finite, expected all finite; mask them out of A and y'
        )
    noise_std, y = _positive('noise_std', noise_std), jnp.asarray(y)
    if y.ndim < 2 or not y.size or not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f'y: got {y.dtype}{list(y.shape)}, expected real floating-point measurements (b, *m)'
        )

    def residual(x_0: Array) -> Float[Array, 'b m']:
        predicted = measure(x_0)
        if predicted.shape != (len(x_0), *y.shape[1:]) or len(y) not in (1, len(x_0)):
            raise ValueError(
                f'measure: got shape {predicted.shape} of fields {x_0.shape}, but y has shape '
                f'{y.shape}; expected (b, *m) of both, or y (1, *m) for one measurement of all'
            )
        if not jnp.issubdtype(predicted.dtype, jnp.floating):
            raise ValueError(
                f'measure: got {predicted.dtype}, expected real floating-point numbers: others '
                'have no slope'
            )
        return ((y - predicted) / noise_std).reshape(len(x_0), -1)

    return residual


def _excess(noise_std: ArrayLike, prior_std: ArrayLike, gain: Gain) -> Callable[[Array], Array]:
    """Returns `sigma -> gain v / s^2`, the variance of a measured estimate over that of the
    noise.
    """
    noise_std, prior_std = _positive('noise_std', noise_std), _positive('prior_std', prior_std)
    gain = gain if callable(gain) else _positive('gain', gain)
    return lambda sigma: conditional_variance(sigma, prior_std, gain) / noise_std**2


def _shortened(shift: Array, limit: ArrayLike | None) -> Array:
    """Returns `shift (b, ...)`, scaled down where its root mean square over a sample exceeds the
    limit.
    """
    square = 0 if limit is None else jnp.mean((shift / limit) ** 2, axes(shift), keepdims=True)
    return shift / jnp.sqrt(jnp.maximum(square, 1))


def _positive(name: str, value: ArrayLike) -> Array:
    """Returns a positive scalar as an array; of a traced one, only the shape is checked."""
    if jnp.ndim(value) or (known(value) and not 0 < float(value) < math.inf):
        raise ValueError(
            f'{name}: got {value} of shape {jnp.shape(value)}, expected one finite positive number'
        )
    return jnp.asarray(value)
