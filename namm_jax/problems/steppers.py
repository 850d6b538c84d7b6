"""Time steppers of partial differential equations on periodic grids, and problems of trajectories.

Symbols: `u` a state `(..., n)`, space last, periodic over `n` points; `F(u)` the right-hand side of
`du/dt = F(u)`; `dt` the time step. A step is a function `u -> u`; steps compose by `repeated`,
`trajectory` and `rollout`, whatever the shape of a state.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics
from namm_jax.constraints.base import Rule, rule
from namm_jax.problems.base import Problem

State = Float[Array, '... n']
_Rows = tuple[Array, ...]
Stepper = Callable[[Array], Array]  # u -> u, one step later; also a right-hand side u -> F(u)
MAX_UPDATES = 10  # of Newton's method in a step


def _thomas(lower: Array, diagonal: Array, upper: Array, rhs: Array) -> Array:
    """Solves a tridiagonal system along axis 0 by elimination, the corner entries not read."""

    def eliminate(carry: _Rows, row: _Rows) -> tuple[_Rows, _Rows]:
        (ratio, value), (a, b, c, d) = carry, row
        scale = 1 / (b - a * ratio)
        carry = c * scale, (d - a * value) * scale
        return carry, carry

    def substitute(x: Array, row: _Rows) -> tuple[Array, Array]:
        ratio, value = row
        x = value - ratio * x
        return x, x

    # Both ends start from zero, which drops the corner entries.
    zero = jnp.zeros_like(rhs[0])
    ends = jnp.zeros_like(diagonal[0]), zero
    _, rows = jax.lax.scan(eliminate, ends, (lower, diagonal, upper, rhs))
    return jax.lax.scan(substitute, zero, rows, reverse=True)[1]


def cyclic_tridiagonal_solve(lower: State, diagonal: State, upper: State, rhs: State) -> State:
    """Returns `x` with `lower_i x_{i-1} + diagonal_i x_i + upper_i x_{i+1} = rhs_i`, indices modulo
    `n >= 3`, differentiable in all four arguments, in both modes.

    Elimination (Thomas) on the matrix less a rank-one term that holds both corners, put back by the
    Sherman-Morrison formula. There is no pivoting: it is safe where
    `|diagonal_i| > |lower_i| + |upper_i|`, which the modified matrix inherits.

    Args:
        lower, diagonal, upper: coefficients of the left neighbour, the point itself (not zero) and
            the right neighbour, `(..., n)`.
        rhs: right-hand sides `(..., n)`; all four broadcast against each other.

    Reference: Press et al., Numerical Recipes, 3rd edition, section 2.7.2.
    """
    lower, diagonal, upper, rhs = jnp.broadcast_arrays(lower, diagonal, upper, rhs)

    def apply(x: State) -> State:
        return lower * jnp.roll(x, 1, -1) + diagonal * x + upper * jnp.roll(x, -1, -1)

    def solve(_: Stepper, b: State) -> State:
        return _sherman_morrison(lower, diagonal, upper, b)

    def transpose_solve(_: Stepper, b: State) -> State:
        return _sherman_morrison(jnp.roll(upper, 1, -1), diagonal, jnp.roll(lower, -1, -1), b)

    # Derivatives solve again with the same bands. Differentiating the recurrences instead keeps all
    # their rows, which is many times slower once this solve is inside a scan over time.
    return jax.lax.custom_linear_solve(apply, rhs, solve, transpose_solve)


def _sherman_morrison(lower: State, diagonal: State, upper: State, rhs: State) -> State:
    """Solves that system, all arguments of the same shape."""
    # Space first: each row of the recurrence is then contiguous over the batch.
    a, b, c, d = (jnp.moveaxis(v, -1, 0) for v in (lower, diagonal, upper, rhs))
    first, last, shift = a[0], c[-1], -b[0]
    b = b.at[0].add(-shift).at[-1].add(-first * last / shift)
    column = jnp.zeros_like(d).at[0].set(shift).at[-1].set(last)
    y, q = _thomas(a, b, c, jnp.stack([d, column], 1)).swapaxes(0, 1)
    factor = (y[0] + first / shift * y[-1]) / (1 + q[0] + first / shift * q[-1])
    return jnp.moveaxis(y - factor * q, 0, -1)


def _solve_nearest_neighbour(linear: Stepper, rhs: State) -> State:
    """Returns `x` with `linear(x) = rhs`, where `linear` couples periodic nearest neighbours only.

    The bands are read by `m` indicator vectors, of the points `i = j mod m`: for `m >= 3` no point
    has two neighbours of the same `j`, across the wrap where m divides n.
    """
    n = rhs.shape[-1]
    m = next((m for m in range(3, n) if n % m == 0), n)
    colour = jnp.arange(n) % m
    indicators = ((colour == j).astype(rhs.dtype) for j in range(m))
    probes = [linear(jnp.broadcast_to(indicator, rhs.shape)) for indicator in indicators]

    def band(offset: int) -> State:
        return sum(jnp.where((colour + offset) % m == j, probes[j], 0) for j in range(m))

    return cyclic_tridiagonal_solve(band(-1), band(0), band(1), rhs)


def forward_euler(rhs: Stepper, dt: ArrayLike) -> Stepper:
    """Returns the explicit step `u -> u + dt F(u)` of the right-hand side F, first order in `dt`:
    stable with diffusion `nu u_xx` for `dt <= dx^2 / (2 nu)`, and with advection `mu u u_x` beside
    it for `dt mu^2 u^2 <= 2 nu`.
    """
    return lambda u: u + dt * rhs(u)


def crank_nicolson(rhs: Stepper, dt: ArrayLike) -> Stepper:
    """Returns the implicit step `(v - u)/dt = (F(v) + F(u))/2` from `u` to `v`, second order in
    `dt`.

    Newton's method from `v = u`; each row stops on its own, so its result does not depend on the
    rest of the batch. It stops after an update below `sqrt(eps)` of its dtype, relative to
    `max(1, |v|)`, which leaves an error of the order of `eps`; a row still moving after 10 updates
    is returned as it is. The derivative, in either mode and of any order, is that of the solution
    (implicit function theorem), not of the iterations. The Jacobian `1 - dt/2 F'` must be
    diagonally dominant, which bounds `dt |mu u| / dx` by about 1; F, `rhs`, may couple periodic
    nearest neighbours only.
    """

    def step(u: State) -> State:
        explicit = u + dt / 2 * rhs(u)
        residual = lambda v: v - dt / 2 * rhs(v) - explicit
        return jax.lax.custom_root(residual, u, _newton, _solve_nearest_neighbour)

    return step


def _newton(equation: Stepper, v: State) -> State:
    """Returns the root of `equation` near `v`, row by row, as `crank_nicolson` states."""
    tolerance = jnp.sqrt(jnp.finfo(v.dtype).eps)

    def unfinished(carry: _Rows) -> Array:
        return (carry[0] < MAX_UPDATES) & jnp.any(carry[2])

    def update(carry: _Rows) -> _Rows:
        count, v, moving = carry
        value, linear = jax.linearize(equation, v)
        delta = _solve_nearest_neighbour(linear, -value)
        v = jnp.where(moving, v + delta, v)
        size = jnp.maximum(1, jnp.max(jnp.abs(v), -1, keepdims=True))
        # A row of NaN compares false and stops.
        far = jnp.max(jnp.abs(delta), -1, keepdims=True) > tolerance * size
        return count + 1, v, moving & far

    return jax.lax.while_loop(unfinished, update, (0, v, jnp.ones_like(v[..., :1], bool)))[1]


# name -> (rhs, dt) -> step
STEPPERS = {'crank_nicolson': crank_nicolson, 'forward_euler': forward_euler}


def repeated(step: Stepper, n: int) -> Stepper:
    """Returns the function that applies a step `n >= 0` times, `u -> step(... step(u))`."""
    return lambda u: jax.lax.scan(lambda v, _: (step(v), None), u, length=n)[0]


def trajectory(step: Stepper, n: int) -> Stepper:
    """Returns the function from a start to the `n >= 0` states after it, along a new first axis."""

    def advance(v: Array, _: None) -> tuple[Array, Array]:
        v = step(v)
        return v, v

    return lambda u: jax.lax.scan(advance, u, length=n)[1]


def rollout(step: Stepper, n: int) -> Callable[[Array], Array]:
    """Returns the function from first states `u_0 (b, ...)` to `n >= 1` states `(b, n, ...)`, the
    first `u_0` itself to the bit. In reverse mode it keeps the states, and computes again what is
    between them.
    """
    later = trajectory(jax.checkpoint(step), n - 1)
    return lambda u_0: jnp.swapaxes(jnp.concatenate([u_0[None], later(u_0)]), 0, 1)


class Trajectories(Problem):
    """Data that are trajectories of `states` states, each the one before stepped on by a solver.

    Attributes:
        interval: `() -> S`, the step from one stored state to the next, `inner_steps` times `dt`.
        to_states: fields `-> (b, states, ...)`, half precision raised to float32; raises a
            ValueError if they are not `(b, *shape)`.
        from_states: the inverse, of trajectories of any length.
    """

    states: int
    interval: Callable[[], Stepper]
    to_states: Callable[[Fields], Array]
    from_states: Callable[[Array], Fields]

    def solve(self, u_0: Array) -> Fields:
        """Returns the trajectories whose first states are `u_0 (b, ...)`, to the bit; raises a
        ValueError if they are of another shape. Differentiable in both modes.
        """
        x = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        shape = jax.eval_shape(self.first_states, x).shape[1:]
        if u_0.shape[1:] != shape:
            raise ValueError(
                f'u_0: got shape {u_0.shape}, expected (b, {", ".join(map(str, shape))}): pass a '
                "batch of states on the problem's own grid"
            )
        return self.from_states(rollout(self.interval(), self.states)(u_0))

    def rollout(self, u_0: Array) -> Fields:
        """Returns `solve` of first states, or of the nearest admissible ones: any `u_0` will do."""
        return self.solve(u_0)

    def first_states(self, x: Fields) -> Float[Array, 'b *n']:
        """Returns the first states of fields, from which `rollout` starts."""
        return self.to_states(x)[:, 0]

    def residual(self, x: Fields) -> Float[Array, 'b steps *n']:
        """Returns `x_{t+1} - S(x_t)` for every pair of stored states, all pairs at once."""
        u = self.to_states(x)
        return u[:, 1:] - self.interval()(u[:, :-1])

    def resolve(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the trajectory from the first state of x, and nothing to report."""
        return self.solve(self.first_states(x)), {}

    def rule(self) -> Rule:
        """Returns the rule `x_{t+1} = S(x_t)`, whose distance is the mean of `|x_{t+1} - S(x_t)|`;
        raises a ValueError if there is a single state.
        """
        if self.states < 2:
            raise ValueError(
                f'Got states = {self.states}, expected at least 2: the residual compares pairs.'
            )
        return rule(self.name, self.residual, restores={'resolve': self.resolve})
