"""What acts on a denoiser while it draws: a rule, a projection, a measurement.

Symbols: `D(x, sigma)` a denoiser in data units, `J` its Jacobian in x, `D'` the denoiser returned.
Every sampler draws with either, and its last act is `D'`: what that satisfies, a sample satisfies.
`l >= 0` is the distance to a set M; `r (b, m)` are the residuals of a measurement, of unit variance
at the truth, as of `inverse.likelihood`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Denoiser, Gain, Key, PerSample, axes, broadcast, fold_in, normal
from namm_jax._checks import check_function, check_within
from namm_jax.denoising.denoisers import conditional_variance, is_concrete, positive, positive_std


def guided(
    denoiser: Denoiser,
    distance: Callable[[Array], PerSample],
    *,
    scale: ArrayLike,
    through: bool = False,
    limit: float | None = None,
) -> Denoiser:
    """Returns the denoiser guided towards M: `D' = D - scale l(D) / (grad l(D) . d) d`.

    The direction `d` is `grad l(D)`, or `J^T grad l(D)` where the rule guides through the network.
    The length is that at which the linearised distance is 0 (Polyak), so `scale` is the part of the
    way to M. Where M is a hyperplane and l proportional to the distance to it, `scale = 1` is the
    nearest point of M; through the exact denoiser of normal data it is their exact denoiser given
    M, since `sigma^2 J` is the covariance of `x_0` given x. Where D is on M, or the distance does
    not fall along `-d`, D' is D.

    Args:
        distance: l, `(b, ...) -> (b,)`, >= 0 and 0 on M, differentiable.
        scale: >= 0; in (0, 1] as a rule. May be traced.
        through: whether to guide through the network, at the cost of a backward pass a call.
        limit: largest step before `scale`, as a root mean square over a sample's values, in data
            units, such as the data's standard deviation; None is none.

    Reference: Huang et al. 2024, arXiv 2406.17763, and He et al. 2024, arXiv 2311.16424; Chung et
        al. 2023, arXiv 2209.14687 (through the network); Polyak 1969, USSR Comput. Math. and Math.
        Phys. 9(3) (the length).
    """
    if limit is not None and not limit > 0:
        raise ValueError(f'limit: got {limit}, expected a positive number in data units, or None')
    if is_concrete(scale):
        check_within('[0, inf)', scale=scale)
        if scale == 0:
            return denoiser

    def denoise(x: Array, sigma: Array) -> Array:
        if through:
            x_0, pull_back = jax.vjp(lambda x: denoiser(x, sigma), x)
        else:
            x_0, pull_back = denoiser(x, sigma), lambda slope: (slope,)
        value, slopes = jax.vjp(distance, x_0)
        (slope,) = slopes(jnp.ones_like(value))
        (direction,) = pull_back(slope)
        step = _step_to_zero(value, slope, direction, math.inf if limit is None else limit)
        return (x_0 - scale * step).astype(x_0.dtype)

    return denoise


def projected(denoiser: Denoiser, project: Callable[[Array], Array]) -> Denoiser:
    """Returns the denoiser whose estimates are projected onto M:
    `D'(x, sigma) = project(D(x, sigma))`.

    The samples are projections. Their law is that of the data on M if M is affine, the projection
    the nearest point and the data isotropic and normal; else only nearly so. A sample whose
    projection is not finite keeps its estimate.

    `project: (b, ...) -> (b, ...)` is the identity on M; a ValueError is raised when the denoiser
    is called unless it returns an array like x.

    Reference: Christopher, Baek & Fioretto 2024, arXiv 2402.03559 (of noisy states).
    """
    expected = 'fields like x; of a function that returns (x, info) give lambda x: function(x)[0]'

    def denoise(x: Array, sigma: Array) -> Array:
        x_0 = denoiser(x, sigma)
        check_function('project', project, expected, x_0)
        x = project(x_0)
        finite = jnp.all(jnp.isfinite(x), axes(x), keepdims=True)
        return jnp.where(finite, x, x_0).astype(x_0.dtype)

    return denoise


def classifier_free(conditional: Denoiser, unconditional: Denoiser, weight: ArrayLike) -> Denoiser:
    """Returns the denoiser away from what has no condition, `D' = D_0 + weight (D - D_0)`, at the
    cost of both: `weight` 0 is the unconditional D_0, 1 the conditional D, more goes beyond it.

    Reference: Ho & Salimans 2022, arXiv 2207.12598, whose scale w is `weight - 1`.
    """

    def denoise(x: Array, sigma: Array) -> Array:
        plain = unconditional(x, sigma)
        return plain + weight * (conditional(x, sigma) - plain)

    return denoise


def renoised(denoiser: Denoiser, keys: Key, *, rounds: int = 2) -> Denoiser:
    """Returns the denoiser whose estimates take noise of their level and are estimated again:
    `D'(x, sigma) = x_M`, with `x_0 = D(x, sigma)` and `x_m = D(x_{m-1} + sigma noise, sigma)`.

    Of a projected denoiser each round is a projection more, between which the model mends what the
    one before has broken. The samples scatter less than those of D. A call costs `rounds + 1` of D.

    Args:
        keys: `(b,)`, one a sample; the noise of a sample is a function of its key, sigma and m.
        rounds: M >= 0; 0 is D itself.
    """
    check_within('[0, inf)', kinds='iu', rounds=rounds)

    def denoise(x: Array, sigma: Array) -> Array:
        # A denoiser is not told the step that it is called in, which its level tells apart.
        level = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), x.shape[:1])
        of_level = jax.vmap(jax.random.fold_in)(keys, level.view(jnp.uint32))

        def once(m: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            x_0 = denoiser(now[0], sigma).astype(x.dtype)
            return x_0 + broadcast(sigma, x) * normal(fold_in(of_level, m), x), x_0

        return jax.lax.fori_loop(0, rounds + 1, once, (x, jnp.zeros_like(x)))[1]

    return denoise


def measurement_guided(
    denoiser: Denoiser,
    residual: Callable[[Array], Array],
    *,
    std: ArrayLike,
    gain: Gain,
    limit: ArrayLike | None = None,
    iterations: int = 0,
) -> Denoiser:
    """Returns the denoiser given a measurement, `D' = D - sigma^2 J^T J_r^T C^-1 r(D(x))`.

    `C = I + v J_r J_r^T` is the covariance of the residuals, of their noise and of the estimate,
    `J_r` the Jacobian of r, and `v = sigma^2 tau^2 / (sigma^2 + tau^2)` the variance of isotropic
    normal data given x. C is `1 + gain v` times the identity, or solved by conjugate gradients. For
    data `N(mean, tau^2 I)` and residuals `W (y - B x)` D' is the exact denoiser of the posterior:
    by the gain where `W B B^T W^T = gain I`, such as white noise and B of orthonormal rows, by
    enough iterations whatever W and B. Else it is an approximation. A call costs one of D, one
    product with its transposed Jacobian, and as many pairs of those with J_r as iterations.

    Args:
        residual: r, `x_0 (b, ...) -> (b, m)`.
        std: tau, of the data, a positive scalar in their unit.
        gain: as of `inverse.dps.discrepancy`.
        limit: largest root mean square of `D' - D` over a sample's values, in data units, such as
            the data's standard deviation; None is none.
        iterations: of conjugate gradients; 0 takes the gain in their place.

    Reference: Song et al. 2023, ICLR, Pseudoinverse-guided diffusion models for inverse problems.
    """
    if limit is not None and is_concrete(limit) and not limit > 0:
        raise ValueError(f'limit: got {limit}, expected a positive number in data units, or None')
    std = positive_std(std)
    gain = gain if callable(gain) else positive('gain', gain)

    def denoise(x: Array, sigma: Array) -> Array:
        x_0, pull_back = jax.vjp(lambda x: denoiser(x, sigma), x)
        r, transpose = jax.vjp(residual, x_0)
        level = jnp.asarray(sigma)
        if iterations:
            v = broadcast(conditional_variance(level, std), r)
            C = lambda a: a + v * jax.jvp(residual, (x_0,), transpose(a))[1]
            r, _ = jax.scipy.sparse.linalg.cg(C, r, maxiter=iterations)
            weight = level**2
        else:
            weight = level**2 / (1 + conditional_variance(level, std, gain))
        (towards,) = pull_back(transpose(-r)[0])
        shift = broadcast(weight, x) * towards
        square = 0 if limit is None else jnp.mean((shift / limit) ** 2, axes(x), keepdims=True)
        return (x_0 + shift / jnp.sqrt(jnp.maximum(square, 1))).astype(x_0.dtype)

    return denoise


def _step_to_zero(value: PerSample, slope: Array, direction: Array, limit: float) -> Array:
    """Returns `value / (slope . direction) direction` of values >= 0 with gradients `slope`, its
    root mean square no more than `limit`; 0 where the value does not fall that way.
    """
    # Scaled to a largest entry of 1: in float32 the square of a slope below 1e-22 is 0.
    slope, steepness = _unit_and_size(slope)
    direction, _ = _unit_and_size(direction)
    value = broadcast(value, slope)
    rate = steepness * jnp.sum(slope * direction, axes(slope), keepdims=True)
    falls = (value > 0) & (rate > 0)
    size = jnp.sqrt(jnp.where(falls, jnp.mean(direction**2, axes(slope), keepdims=True), 1))
    length = jnp.minimum(value / jnp.where(falls, rate, 1), limit / size)
    return jnp.where(falls & jnp.isfinite(length), length * direction, 0)


def _unit_and_size(v: Array) -> tuple[Array, Array]:
    """Returns `v (b, ...)` over its largest absolute entry, per sample, and that entry."""
    largest = jnp.max(jnp.abs(v), axes(v), keepdims=True)
    return v / jnp.where(largest > 0, largest, 1), largest
