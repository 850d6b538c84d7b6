"""Constraints that act while sampling: guidance and projection, as denoisers made of a denoiser.

Symbols: `D(x, sigma)` a denoiser in data units, `D'` the one returned, `l >= 0` the distance to the
set M. Every sampler draws with either, and its last act is `D'`: what that satisfies, a sample
satisfies.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Denoiser, axes, broadcast
from namm_jax.denoising.denoisers import known


def guided(
    denoiser: Denoiser,
    distance: Callable[[Array], Array],
    *,
    scale: ArrayLike,
    through: bool = False,
    limit: float | None = None,
) -> Denoiser:
    """Returns the denoiser guided towards M: `D' = D - scale l(D) / (grad l . d) d`.

    The direction `d` is `grad l(D)`, or what guides through the network, `J^T grad l(D)` with `J`
    the Jacobian of D in x. Diffusion posterior sampling and its kin take
    `D - w sigma^2 J^T grad l`, with a weight `w` whose unit and size differ by constraint, level
    and data. Here the length is that at which the linearised distance is 0 (Polyak), so `scale` is
    the part of the way to M: a pure number, 0 is D itself and 1 goes all the way. Where `l` is
    convex, `d = grad l` and `0 < scale < 2`, no point of M is farther from D' than from D. Where M
    is a hyperplane and l proportional to the distance to it, `scale = 1` is

    - `through=False`: the nearest point of M, the projection;
    - `through=True` with the exact denoiser of normal data: their exact denoiser given M, since
      `sigma^2 J` is the covariance of `x_0` given `x`.

    Where D is on M, or no step along `d` lowers the linearised distance (a gradient that is 0 or
    not finite), D' is D.

    Args:
        denoiser: D.
        distance: `(b, ...) -> (b,)`, >= 0 and 0 on M, differentiable.
        scale: >= 0; in (0, 1] as a rule. May be traced.
        through: Whether to guide through the network, which costs each call a backward pass of it
            as well. Without, a call costs one gradient of the distance.
        limit: Largest step before `scale`, as a root mean square over a sample's values, in data
            units; None is none. The standard deviation of the data holds back a distance that is
            nearly flat where it is large.

    Raises:
        ValueError: If `scale` or `limit` is out of its range.

    Reference: Chung et al. 2023, arXiv 2209.14687 (through the network); Huang et al. 2024, arXiv
        2406.17763 (residuals of equations); He et al. 2024, arXiv 2311.16424 (at the estimate);
        Polyak 1969, USSR Comput. Math. and Math. Phys. 9(3) (the length).
    """
    if limit is not None and not limit > 0:
        raise ValueError(f'limit: got {limit}, expected a positive number in data units, or None')
    if known(scale):
        if not 0 <= scale < math.inf:
            raise ValueError(
                f'scale: got {scale}, expected a finite number >= 0; 1 goes all the way to the '
                'constraint'
            )
        if scale == 0:
            return denoiser

    def denoise(x: Array, sigma: Array) -> Array:
        if through:
            x_0, pull_back = jax.vjp(lambda x: denoiser(x, sigma), x)
        else:
            x_0, pull_back = denoiser(x, sigma), lambda slope: (slope,)
        value, slopes = jax.vjp(distance, x_0)
        (slope,) = slopes(jnp.ones_like(value))
        step = _step_to_zero(
            value, slope, pull_back(slope)[0], math.inf if limit is None else limit
        )
        return (x_0 - scale * step).astype(x_0.dtype)

    return denoise


def projected(
    denoiser: Denoiser, project: Callable[[Array], Array], *, below: float | None = None
) -> Denoiser:
    """Returns the denoiser whose estimates are projected onto M:
    `D'(x, sigma) = project(D(x, sigma))`.

    The samples are projections, so they satisfy the constraint as well as those do. Their law is
    that of the data on M if M is affine, the projection the nearest point and the data isotropic
    and normal; else only nearly so. Projected diffusion models project the noisy state, after each
    step of Langevin dynamics; the estimate is projected here, which suits all samplers: a noisy
    state is off M by its noise, and an estimate is not.

    An iterative projection may diverge far from M. A sample whose projection is not finite keeps
    its estimate.

    Args:
        denoiser: D.
        project: `(b, ...) -> (b, ...)`, the identity on M; of a `restore`,
            `lambda x: restore(x)[0]`.
        below: Only noise levels below this are projected, > 0, data units; at others the projection
            is not computed. None is all levels.

    Raises:
        ValueError: If `below` is out of its range, or the projection returns something else than
            its argument's like.

    Reference: Christopher, Baek & Fioretto 2024, arXiv 2402.03559.
    """
    if below is not None and not below > 0:
        raise ValueError(
            f'below: got {below}, expected a positive noise level in data units, or None for all '
            'levels'
        )

    def onto(x_0: Array) -> Array:
        x = project(x_0)
        if not isinstance(x, jax.Array) or x.shape != x_0.shape:
            got = f'shape {x.shape}' if isinstance(x, jax.Array) else type(x).__name__
            raise ValueError(
                f'project: got {got}, expected an array of shape {x_0.shape}; '
                'a function that returns (x, info) is passed as lambda x: function(x)[0]'
            )
        finite = jnp.all(jnp.isfinite(x), axes(x), keepdims=True)
        return jnp.where(finite, x, x_0).astype(x_0.dtype)

    def denoise(x: Array, sigma: Array) -> Array:
        x_0 = denoiser(x, sigma)
        if below is None:
            return onto(x_0)
        near = jnp.asarray(sigma) < below
        return jnp.where(
            broadcast(near, x_0), jax.lax.cond(jnp.any(near), onto, lambda x_0: x_0, x_0), x_0
        )

    return denoise


def _step_to_zero(value: Array, slope: Array, direction: Array, limit: float) -> Array:
    """Returns `value / (slope . direction) direction`, no longer than `limit`; 0 where `value` does
    not fall that way.

    Args:
        value: `(b,)`, >= 0.
        slope: its gradient, `(b, ...)`.
        direction: like the slope, of any scale.
        limit: root mean square over a sample.
    """
    # Scaled to a largest entry of 1: in float32 the square of a slope below 1e-22 is 0.
    (slope, steepness), (direction, _) = _scaled(slope), _scaled(direction)
    value, rate = (
        broadcast(value, slope),
        steepness * jnp.sum(slope * direction, axes(slope), keepdims=True),
    )
    falls = (value > 0) & (rate > 0)
    size = jnp.sqrt(jnp.where(falls, jnp.mean(direction**2, axes(slope), keepdims=True), 1))
    length = jnp.minimum(value / jnp.where(falls, rate, 1), limit / size)
    return jnp.where(falls & jnp.isfinite(length), length * direction, 0)


def _scaled(v: Array) -> tuple[Array, Array]:
    """Returns `v (b, ...)` over its largest absolute entry, per sample, and that entry."""
    largest = jnp.max(jnp.abs(v), axes(v), keepdims=True)
    return v / jnp.where(largest > 0, largest, 1), largest
