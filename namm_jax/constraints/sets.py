"""Sets given by inequalities, as rules: box, ball, simplex, half-spaces, and mass below a limit.

Each residual is the violation, zero inside and on the border, so no derivative pulls a point that
satisfies the set; `relu` and the norms here have the derivative 0 where they have a corner. Every
set has one way back, `nearest`, to its Euclidean-nearest point, half-spaces if their normals are at
right angles to each other. Fields are `(b, h, w, c)` of any size; half precision is raised to
float32, float64 kept. Numbers must be finite: all functions that build a set raise a ValueError for
others.
"""

import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics, PerSample, at_least_single, einsum, root
from namm_jax.constraints.base import Rule, rule

_PIXELS = (1, 2, 3)


def box(low: float | int, high: float | int) -> Rule:
    """Returns the set of fields with every pixel in `[low, high]`, low < high; the distance is the
    mean of the violations, `relu(low - x) + relu(x - high)`.
    """
    if not -math.inf < low < high < math.inf:
        raise ValueError(f'Got low = {low}, high = {high}, expected finite ones with low < high.')
    nearest = Partial(_clipped, low, high)
    return rule('box', Partial(_outside, low, high), restores={'nearest': nearest})


def _outside(low: ArrayLike, high: ArrayLike, x: Fields) -> Fields:
    x = _raised(x)
    return jax.nn.relu(low - x) + jax.nn.relu(x - high)


def _clipped(low: ArrayLike, high: ArrayLike, x: Fields) -> tuple[Fields, Metrics]:
    return jnp.clip(_raised(x), low, high), {}


def ball(radius: float | int, center: float | int = 0.0) -> Rule:
    """Returns the set `|x - center| <= radius`, radius > 0, norm over all pixels, every pixel of
    the centre alike; the distance is the excess norm.
    """
    _check('radius', radius, above=0)
    _check('center', center)
    nearest = Partial(_inward, radius, center)
    return rule('ball', Partial(_excess_norm, radius, center), restores={'nearest': nearest})


def _excess_norm(radius: ArrayLike, center: ArrayLike, x: Fields) -> Float[Array, 'b 1']:
    return jax.nn.relu(_norm(_raised(x) - center) - radius)


def _inward(radius: ArrayLike, center: ArrayLike, x: Fields) -> tuple[Fields, Metrics]:
    x = _raised(x)
    norm = _norm(x - center)
    # Outside, the norm is at least the radius: no division by 0, no cancellation however far x is.
    share = (radius / jnp.maximum(norm, radius))[..., None, None]
    return jnp.where((norm > radius)[..., None, None], center + share * (x - center), x), {}


def simplex(total: float | int) -> Rule:
    """Returns the set of fields with no negative pixel and the sum `total` > 0; the distance is
    `|sum(x) - total|` plus the sum of what is negative, two terms.
    """
    _check('total', total, above=0)
    terms = {'total': Partial(_total_gap, total), 'negative': Partial(_negative_sum, total)}
    nearest = Partial(_onto_simplex, total)
    residual = Partial(_gap_and_negatives, total)
    return rule('simplex', residual, terms=terms, restores={'nearest': nearest})


def _gap_and_negatives(total: ArrayLike, x: Fields) -> Float[Array, 'b m']:
    x = _raised(x)
    return jnp.concatenate([_total(x) - total, jax.nn.relu(-x).reshape(x.shape[0], -1)], 1)


def _total_gap(total: ArrayLike, x: Fields) -> PerSample:
    return jnp.abs(_gap_and_negatives(total, x)[:, 0])


def _negative_sum(total: ArrayLike, x: Fields) -> PerSample:
    return jnp.sum(_gap_and_negatives(total, x)[:, 1:], 1)


def _onto_simplex(total: ArrayLike, x: Fields) -> tuple[Fields, Metrics]:
    return project_simplex(_raised(x), total), {}


def project_simplex(x: Fields, total: ArrayLike) -> Fields:
    """Returns the fields nearest to `x (b, h, w, c)`, float32 or float64, without negative pixels
    and with the sum `total` > 0, `max(x - tau, 0)`.

    The threshold `tau` is found by sorting, then moved by one Newton step on
    `sum max(x - tau, 0) = total`, so that the sum is right to round-off.

    Reference: Held, Wolfe & Crowder, Mathematical Programming 6 (1974) 62; Duchi et al., ICML 2008.
    """
    flat = x.reshape(x.shape[0], -1)
    # A constant changes nothing, and tau is then of the total's size.
    flat = flat - jnp.max(flat, 1, keepdims=True)
    largest = -jnp.sort(-flat, axis=1)
    count = jnp.arange(1, flat.shape[1] + 1, dtype=x.dtype)
    thresholds = (jnp.cumsum(largest, 1) - total) / count  # tau, if just the first ones stay above
    above = jnp.sum(largest > thresholds, 1, keepdims=True)
    tau = jnp.take_along_axis(thresholds, above - 1, 1)
    left = jnp.maximum(flat - tau, 0)
    tau = tau + (left.sum(1, keepdims=True) - total) / jnp.sum(left > 0, 1, keepdims=True)
    return jnp.maximum(flat - tau, 0).reshape(x.shape)


def mass_below(limit: float | int) -> Rule:
    """Returns the set of fields whose sum is at most `limit`, negative pixels allowed; the distance
    is the excess.
    """
    _check('limit', limit)
    nearest = Partial(_lowered, limit)
    return rule('mass', Partial(_excess_mass, limit), restores={'nearest': nearest})


def _excess_mass(limit: ArrayLike, x: Fields) -> Float[Array, 'b 1']:
    return jax.nn.relu(_total(_raised(x)) - limit)


def _lowered(limit: ArrayLike, x: Fields) -> tuple[Fields, Metrics]:
    x = _raised(x)
    return x - (_excess_mass(limit, x) / math.prod(x.shape[1:]))[..., None, None], {}


def half_spaces(normals: ArrayLike, offsets: ArrayLike) -> Rule:
    """Returns the set `<normal_k, x> <= offset_k` for every k; the distance is the mean of those to
    the half-spaces, `relu(<normal_k, x> - offset_k)`.

    Args:
        normals: `(k, h, w, c)`, none zero; kept as unit vectors, the offsets scaled alike.
        offsets: `(k,)`.
    """
    normals = jnp.asarray(normals)
    offsets = jnp.asarray(offsets)
    if normals.ndim != 4 or not normals.size or offsets.shape != normals.shape[:1]:
        raise ValueError(
            f'Got normals of shape {normals.shape} and offsets of shape {offsets.shape}, expected '
            '(k, h, w, c) and (k,): a normal, shaped like a field, and a number each.'
        )
    normals = _raised(normals)
    norm = _norm(normals)
    if not (jnp.all(jnp.isfinite(norm) & (norm > 0)) and jnp.all(jnp.isfinite(offsets))):
        raise ValueError(
            f'Got normals of norm {norm[:, 0]} and offsets {offsets}, expected finite ones, norms '
            '> 0.'
        )
    unit = normals / norm[..., None, None]
    beyond = Partial(_beyond, unit, offsets / norm[:, 0])
    angles = einsum('khwc,lhwc->kl', unit, unit)
    apart = jnp.abs(angles - jnp.eye(len(unit))).max() < 1e-6
    restores = {'nearest': Partial(_back, beyond)} if apart else {}
    return rule('half_spaces', beyond, restores=restores)


def _back(beyond: Partial, x: Fields) -> tuple[Fields, Metrics]:
    x = _raised(x)
    return x - jnp.einsum('bk,khwc->bhwc', beyond(x), beyond.args[0]), {}


def _beyond(
    normals: Float[Array, 'k h w c'], offsets: Float[Array, ' k'], x: Array
) -> Float[Array, 'b k']:
    x = _raised(x)
    if x.shape[1:] != normals.shape[1:]:
        expected = ', '.join(map(str, normals.shape[1:]))
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, {expected}): one pixel for each of a normal.'
        )
    return jax.nn.relu(einsum('bhwc,khwc->bk', x, normals) - offsets)


def _raised(x: Array) -> Array:
    if x.ndim != 4:
        raise ValueError(f'Got x of shape {x.shape}, expected (b, h, w, c): a batch of fields.')
    return at_least_single(x)


def _total(x: Fields) -> Float[Array, 'b 1']:
    return jnp.sum(x, _PIXELS)[:, None]


def _norm(x: Fields) -> Float[Array, 'b 1']:
    """Returns the norm of each field, with the derivative 0 at 0 in place of infinity."""
    return root(_total(x * x))


def _check(name: str, value: float | int, above: float | int = -math.inf) -> None:
    if not above < value < math.inf:
        kind = 'a positive finite' if above == 0 else 'a finite'
        raise ValueError(f'Got {name} = {value}, expected {kind} number.')
