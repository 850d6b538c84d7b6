"""Projection onto any differentiable constraint, by Gauss-Newton steps towards the nearest point.

Symbols: `x_0` the point to project, `r(x)` the residual of the constraint, zero on the set M; `J`
its Jacobian at the iterate `x_k`, never formed; `lam` one multiplier for each entry of the
residual. All of it is per sample: a batch shares the array operations and nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from namm_jax._arrays import Fields, Metrics, PerSample, at_least_single, axes, broadcast
from namm_jax.constraints.base import mean_absolute

_Rows = Float[Array, 'b m']
_Map = Callable[[Array], Array]

REACH = 0.3  # longest move of `land`: root mean square over a field's entries


class _Iterate(NamedTuple):
    x: Fields
    residual: _Rows
    multipliers: _Rows
    iterations: Int[Array, ' b']


def gauss_newton_projection(
    residual: Any,
    x: Fields,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 20,
    cg_iterations: int = 100,
    cg_tolerance: float = 0.1,
) -> tuple[Fields, Metrics]:
    """Returns a point with `r(x) = 0` near `x_0 = x`, per sample, and how it got there.

    `x_{k+1} = x_0 + J^T lam`, with `(J J^T) lam = -(r(x_k) + J (x_0 - x_k))`: the point nearest to
    `x_0` at which the linearised residual vanishes. For a linear constraint that is the answer;
    otherwise a fixed point is a critical point of the distance to `x_0` on M, the nearest point
    where `x_0` is close to M compared with its curvature radius. A sample stops when
    `mean|r| <= tolerance`, so one already on M is returned to the bit; the result can be about
    `sqrt(tolerance)` short of the nearest point. There is no damping, and no promise far from M.

    Of one entry a sample, such as a distance, a step that does not lower `|r|` is replaced by that
    from the iterate, `x_k - r J^T / |J|^2`: it passes kinks, but does not end at the nearest point.

    Args:
        residual: `(b, h, w, c) -> (b, ...)`, by sample, differentiable in both modes; or a rule.
        x: points to project `(b, h, w, c)`. Half precision is raised to float32, float64 kept.
        tolerance: mean absolute residual to reach, > 0; in float32 well above 1e-7 times what the
            residual subtracts.
        max_iterations: most Gauss-Newton steps, >= 0; a sample still above `tolerance` is returned.
        cg_iterations: most conjugate-gradient steps in each, >= 1; one costs one `J` and one `J^T`.
        cg_tolerance: norm of the linearised residual to leave, relative to `r(x_k)`'s, in (0, 1).

    Returns:
        The points `(b, h, w, c)`, and per sample the Gauss-Newton `iterations` taken and the
        `residual`, mean absolute.

    Reference: Nocedal and Wright, Numerical Optimization, 2nd edition, sections 10.3 and 18.1.
    """
    if not (tolerance > 0 and 0 < cg_tolerance < 1 and max_iterations >= 0 and cg_iterations >= 1):
        raise ValueError(
            f'Got tolerance = {tolerance}, cg_tolerance = {cg_tolerance}, max_iterations = '
            f'{max_iterations}, cg_iterations = {cg_iterations}; expected > 0, within (0, 1), at '
            'least 0 and at least 1.'
        )
    residual = getattr(residual, 'residual', residual)
    x_0 = at_least_single(x)
    flat = lambda x: residual(x).reshape(x.shape[0], -1)

    def unfinished(carry: tuple[Array, _Iterate]) -> Array:
        count, now = carry
        return (count < max_iterations) & jnp.any(mean_absolute(now.residual) > tolerance)

    def improve(carry: tuple[Array, _Iterate]) -> tuple[Array, _Iterate]:
        count, now = carry
        active = mean_absolute(now.residual) > tolerance
        new = _gauss_newton_step(flat, x_0, now, active, cg_iterations, cg_tolerance)
        active &= jnp.isfinite(mean_absolute(new.residual))  # outside of its domain a rule is NaN
        return count + 1, jax.tree.map(lambda a, b: jnp.where(broadcast(active, a), a, b), new, now)

    r = flat(x_0)
    start = _Iterate(x_0, r, jnp.zeros_like(r), jnp.zeros(x.shape[0], jnp.int32))
    _, last = jax.lax.while_loop(unfinished, improve, (0, start))
    return last.x, {'iterations': last.iterations, 'residual': mean_absolute(last.residual)}


def land(constraint: Any, x: Fields, *, steps: int = 1, tolerance: float = 1e-6) -> Fields:
    """Returns x after a few steps towards the rule, the last layer of an inverse map.

    Each is a step of `gauss_newton_projection`, its linear system solved to 1 %; where the rule is
    a distance l alone it reads `x - l grad l / |grad l|^2`. A sample moves by `REACH` at most, and
    one whose residual would grow stays as it is. The derivative is the identity, in both modes:
    exact along M, and what lies across it the step takes away.

    Args:
        constraint: the rule, on fields whose standard deviation is of the order of 1, or its
            residual `(b, h, w, c) -> (b, ...)`.
        x: fields `(b, h, w, c)`.
        steps: number of steps, >= 0; none returns x.
        tolerance: mean absolute residual at which a sample stays as it is, > 0.

    Reference: Nocedal and Wright, Numerical Optimization, 2nd edition, section 10.3.
    """
    if not steps:
        return x
    residual = getattr(constraint, 'residual', constraint)
    start = jax.lax.stop_gradient(at_least_single(x))
    settings = dict(tolerance=tolerance, max_iterations=steps, cg_tolerance=0.01)
    step = gauss_newton_projection(residual, start, **settings)[0] - start
    length = jnp.sqrt(jnp.mean(step**2, axes(step), keepdims=True))
    step = step * jnp.where(length > REACH, REACH / length, 1)
    before, after = (mean_absolute(residual(point)) for point in (start, start + step))
    return x + jax.lax.stop_gradient(jnp.where(broadcast(after <= before, step), step, 0))


def _gauss_newton_step(
    flat: _Map, x_0: Fields, now: _Iterate, active: Array, cg_iterations: int, cg_tolerance: float
) -> _Iterate:
    """Returns the next iterate for the samples that are active; of others, anything."""
    value, jacobian, transpose = _linearised(flat, now.x)
    multipliers = _conjugate_gradients(
        lambda v: jacobian(transpose(v)),
        -(value + jacobian(x_0 - now.x)),
        now.multipliers,
        target=jnp.where(active, cg_tolerance * jnp.linalg.norm(value, axis=1), jnp.inf),
        # As many steps as there are unknowns are exact; rounding may ask for more.
        max_iterations=min(cg_iterations, 2 * value.shape[1]),
    )
    x = x_0 + transpose(multipliers)
    residual = flat(x)
    if value.shape[1] == 1:  # a distance, say, whose kinks send steps from x_0 to and fro
        stuck = jnp.abs(residual) >= jnp.abs(value)
        square = jnp.maximum(jacobian(transpose(jnp.ones_like(value))), jnp.finfo(x.dtype).tiny)
        x = jnp.where(broadcast(stuck[:, 0], x), now.x - transpose(value / square), x)
        residual = flat(x)
    return _Iterate(x, residual, multipliers, now.iterations + 1)


def _linearised(flat: _Map, x: Fields) -> tuple[_Rows, _Map, _Map]:
    """Returns `r(x)`, `dx -> J dx` and `v -> J^T v`; of one row a sample, J is found once."""
    value, pull = jax.vjp(flat, x)
    if value.shape[1] == 1:
        (row,) = pull(jnp.ones_like(value))
        along = lambda dx: jnp.sum(row * dx, axes(x))[:, None]
        return value, along, lambda v: broadcast(v[:, 0], row) * row
    value, jacobian = jax.linearize(flat, x)
    transposed = jax.linear_transpose(jacobian, x)
    return value, jacobian, lambda v: transposed(v)[0]


def _conjugate_gradients(
    apply: _Map, rhs: _Rows, v: _Rows, *, target: PerSample, max_iterations: int
) -> _Rows:
    """Returns `v` with `|rhs - apply(v)| <= target`, for a positive semidefinite `apply`."""
    square = lambda w: jnp.sum(w * w, 1, keepdims=True)

    def unfinished(carry: tuple[Array, ...]) -> Array:
        count, _, left, direction = carry
        return (count < max_iterations) & jnp.any((square(left) > goal) & (square(direction) > 0))

    def improve(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        count, v, left, direction = carry
        image = apply(direction)
        curvature = jnp.sum(direction * image, 1, keepdims=True)
        # Without curvature the residual does not depend on x this way, and the sample is done.
        active = (square(left) > goal) & (curvature > 0)
        length = jnp.where(active, square(left) / jnp.where(active, curvature, 1), 0)
        v = v + length * direction
        after = left - length * image
        turn = square(after) / jnp.where(active, square(left), 1)
        return count + 1, v, after, jnp.where(active, after + turn * direction, 0)

    goal = target[:, None] ** 2
    left = rhs - apply(v)
    return jax.lax.while_loop(unfinished, improve, (0, v, left, left))[1]
