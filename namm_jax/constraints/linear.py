"""Rules on linear functions of a field, and on its order, each with its exact projection where
there is one, and rules of one sample.

Fields are `(b, h, w, c)`; half precision is raised to float32, float64 kept. Numbers must be
finite: all functions that build a rule raise a ValueError for others.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics, at_least_single, einsum
from namm_jax.constraints.base import Rule, rule
from namm_jax.constraints.sets import half_spaces

RANK = 1e-6  # singular values below this part of the largest are 0


def equal(A: ArrayLike, b: ArrayLike) -> Rule:
    """Returns the set `A x = b`; the distance is the mean of `|A x - b|`, and `nearest` its
    Euclidean projection, `x - A^+ (A x - b)`.

    Args:
        A: `(m, h, w, c)`, a field to multiply with, and sum, for each equation.
        b: `(m,)`, or a number for all.

    Raises:
        ValueError: if the shapes do not fit, or the equations contradict each other.
    """
    A, b = _equations(A, b)
    U, s, V = np.linalg.svd(A.reshape(len(A), -1), full_matrices=False)
    kept = s > RANK * s[0]
    values = (U.T @ b)[kept]
    if np.abs(U[:, kept] @ values - b).max() > 1e-5 * max(1e-30, np.abs(b).max()):
        raise ValueError('equal: got equations that contradict each other, expected some x = A^+ b')
    normals = V[kept].reshape(-1, *A.shape[1:])
    residual = Partial(_gap, jnp.asarray(A), jnp.asarray(b))
    onto = Partial(_onto, jnp.asarray(normals), jnp.asarray(values / s[kept]), residual)
    return rule('equal', residual, restores={'nearest': onto})


def _equations(A: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    A, b = np.asarray(A, np.float64), np.asarray(b, np.float64)
    fit = A.ndim == 4 and A.size and b.shape in ((), A.shape[:1])
    if not (fit and np.isfinite(A).all() and np.isfinite(b).all() and A.any()):
        raise ValueError(
            f'Got A of shape {A.shape} and b of shape {b.shape}, expected finite ones, '
            '(m, h, w, c) and (m,): a field, not all 0, and a number for each.'
        )
    return A, np.broadcast_to(b, len(A))


def _gap(A: Float[Array, 'm h w c'], b: Float[Array, ' m'], x: Fields) -> Float[Array, 'b m']:
    return einsum('bhwc,mhwc->bm', at_least_single(x), A) - b


def _onto(
    normals: Array, values: Array, residual: Callable[[Fields], Array], x: Fields
) -> tuple[Fields, Metrics]:
    x = moved = at_least_single(x)
    for _ in range(2):  # the second takes off what rounding has left
        gap = _gap(normals, values, moved)
        moved = moved - einsum('bm,mhwc->bhwc', gap, normals)
    return jnp.where((residual(x) == 0).all(1)[:, None, None, None], x, moved), {}


def at_most(A: ArrayLike, b: ArrayLike) -> Rule:
    """Returns the set `A x <= b`, that of `half_spaces`, A and b as of `equal`; it has `nearest`
    where the rows of A are at right angles to each other.
    """
    return half_spaces(*_equations(A, b))


def sum_to(total: ArrayLike, axis: int | Sequence[int] = (1, 2, 3)) -> Rule:
    """Returns the set of fields whose sum over axes, of all pixels unless given, is `total`; the
    distance is the mean of `|sum - total|`, and `nearest` adds the same to all that are summed.

    Args:
        total: a number, or one for each sum, in a shape that broadcasts against
            `x.sum(axis, keepdims=True)`.
        axis: of a batch of fields, from 1 to 3: 2 for the sum of each row.
    """
    axes = tuple(np.atleast_1d(axis).tolist())
    if not axes or not set(axes) <= {1, 2, 3} or not np.isfinite(total).all():
        got = f'axis {axis} and total {total}'
        raise ValueError(f'sum_to: got {got}, expected axes from 1 to 3 and finite numbers')
    gap = Partial(functools.partial(_sum_gap, axes), jnp.asarray(total))
    return rule('sum', gap, restores={'nearest': Partial(_spread, gap)})


def _sum_gap(axes: Any, total: Array, x: Fields) -> Array:
    return jnp.sum(at_least_single(x), axes, keepdims=True) - total


def _spread(gap: Callable[[Fields], Array], x: Fields) -> tuple[Fields, Metrics]:
    x = at_least_single(x)
    excess = gap(x)
    return x - excess * (excess[0].size / x[0].size), {}


def monotone(axis: int = 1, *, increasing: bool = True) -> Rule:
    """Returns the set of fields that never fall along an axis, or never rise; the distance is the
    mean of the violations between neighbours, and `nearest` the isotonic regression of each line,
    `max_{j <= i} min_{k >= i} mean(x_j, ..., x_k)`, of memory n^2 a line of n pixels.

    Args:
        axis: of a batch of fields, from 1 to 3.
        increasing: False for fields that never rise.

    Reference: Robertson, Wright & Dykstra, Order Restricted Statistical Inference (1988), 1.4.
    """
    if axis not in (1, 2, 3):
        raise ValueError(f'monotone: got axis {axis}, expected 1, 2 or 3 of fields (b, h, w, c)')
    sign = 1 if increasing else -1
    nearest = functools.partial(_isotonic, axis, sign)
    return rule('monotone', functools.partial(_falls, axis, sign), restores={'nearest': nearest})


def _falls(axis: int, sign: int, x: Fields) -> Array:
    x = at_least_single(x)
    return jax.nn.relu(-sign * jnp.diff(x, axis=axis))


def _isotonic(axis: int, sign: int, x: Fields) -> tuple[Fields, Metrics]:
    x = at_least_single(x)
    lines = jnp.moveaxis(sign * x, axis, -1)
    centre = lines.mean(-1, keepdims=True)  # small sums are exact ones
    moved = jax.lax.map(_regression, lines - centre) + centre
    moved = sign * jnp.moveaxis(moved, -1, axis)
    obeys = (_falls(axis, sign, x) == 0).all((1, 2, 3), keepdims=True)
    return jnp.where(obeys, x, moved), {}


def _regression(lines: Float[Array, '*m n']) -> Float[Array, '*m n']:
    n = lines.shape[-1]
    sums = jnp.pad(jnp.cumsum(lines, -1), [(0, 0)] * (lines.ndim - 1) + [(1, 0)])
    j, k = jnp.arange(n)[:, None], jnp.arange(n)
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / jnp.maximum(k - j + 1, 1)
    least = jax.lax.cummin(jnp.where(k >= j, means, jnp.inf), lines.ndim, reverse=True)
    return jnp.max(jnp.where(k >= j, least, -jnp.inf), -2)


def each(function: Callable[[Array], Array]) -> Callable[[Fields], Array]:
    """Returns a rule of one sample, `(h, w, c) -> ()` or `(...)`, as one of a batch of them."""
    return jax.vmap(function)
