"""Partial differential equations on periodic grids, and their time steppers.

Symbols: `u` a state `(..., n)`, space last, periodic over `n` points `dx` apart; `F(u)` the
right-hand side of `du/dt = F(u)`; `dt` the time step. A step is a function `u -> u`; steps compose
by `repeated` and `trajectory`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._checks import choose

State = Float[Array, '... n']
Stepper = Callable[
    [Array], Array
]  # u -> u, one step later; the same type as a right-hand side u -> F(u)


def burgers_rhs(u: State, *, mu: float, nu: float, dx: float) -> State:
    """Returns the right-hand side of Burgers' equation `u_t + mu u u_x = nu u_xx` by central
    differences.

    `F(u)_i = -mu u_i (u_{i+1} - u_{i-1}) / (2 dx) + nu (u_{i+1} - 2 u_i + u_{i-1}) / dx^2`, second
    order in space. Its sum over the period is zero, so every stepper conserves the mean.

    Args:
        u: States `(..., n)`, periodic.
        mu: Strength of advection.
        nu: Viscosity, >= 0.
        dx: Grid spacing, > 0.

    Returns:
        `F(u)`, shape `(..., n)`.
    """
    right, left = jnp.roll(u, -1, -1), jnp.roll(u, 1, -1)
    return -mu * u * (right - left) / (2 * dx) + nu * (right - 2 * u + left) / dx**2


def _thomas(lower: Array, diagonal: Array, upper: Array, rhs: Array) -> Array:
    """Solves a tridiagonal system along axis 0 by elimination without pivoting; the corner entries
    are not read.
    """

    def eliminate(
        carry: tuple[Array, ...], row: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        (ratio, value), (a, b, c, d) = carry, row
        scale = 1 / (b - a * ratio)
        carry = c * scale, (d - a * value) * scale
        return carry, carry

    def substitute(x: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        ratio, value = row
        x = value - ratio * x
        return x, x

    # Both ends start from zero, which drops the corner entries.
    zero = jnp.zeros_like(rhs[0])
    _, rows = jax.lax.scan(
        eliminate, (jnp.zeros_like(diagonal[0]), zero), (lower, diagonal, upper, rhs)
    )
    return jax.lax.scan(substitute, zero, rows, reverse=True)[1]


def cyclic_tridiagonal_solve(lower: State, diagonal: State, upper: State, rhs: State) -> State:
    """Returns `x` with `lower_i x_{i-1} + diagonal_i x_i + upper_i x_{i+1} = rhs_i`, indices modulo
    `n`.

    Elimination (Thomas) on the matrix less a rank-one term that holds both corners, put back by the
    Sherman-Morrison formula. There is no pivoting: it is safe where
    `|diagonal_i| > |lower_i| + |upper_i|`, which the modified matrix inherits. Serial along `n`,
    parallel over the batch; differentiable in all four arguments, in both modes.

    Args:
        lower: Coefficients of the left neighbour `(..., n)`; `lower[..., 0]` is that of `x_{n-1}`.
        diagonal: Coefficients of the point itself `(..., n)`, not zero.
        upper: Coefficients of the right neighbour `(..., n)`; `upper[..., -1]` is that of `x_0`.
        rhs: Right-hand sides `(..., n)`; all four broadcast against each other.

    Returns:
        The solution `x`, shape `(..., n)`.

    Raises:
        ValueError: If `n < 3`, where the two neighbours of a point are not distinct.

    Reference:
        Press et al., Numerical Recipes, 3rd edition, section 2.7.2.
    """
    if (n := rhs.shape[-1]) < 3:
        raise ValueError(
            f'Got n = {n} points, expected at least 3: a cyclic tridiagonal system needs two '
            'neighbours.'
        )
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
    """Solves the system of `cyclic_tridiagonal_solve`, all arguments of the same shape."""
    # Space first: each row of the recurrence is then contiguous over the batch.
    a, b, c, d = (jnp.moveaxis(v, -1, 0) for v in (lower, diagonal, upper, rhs))
    first, last, shift = a[0], c[-1], -b[0]
    b = b.at[0].add(-shift).at[-1].add(-first * last / shift)
    column = jnp.zeros_like(d).at[0].set(shift).at[-1].set(last)
    y, q = _thomas(a, b, c, jnp.stack([d, column], 1)).swapaxes(0, 1)
    factor = (y[0] + first / shift * y[-1]) / (1 + q[0] + first / shift * q[-1])
    return jnp.moveaxis(y - factor * q, 0, -1)


def _solve_nearest_neighbour(linear: Stepper, rhs: State) -> State:
    """Returns `x` with `linear(x) = rhs`, for a linear map that couples periodic nearest neighbours
    only.

    The bands are read by `m` indicator vectors, of the points `i = j mod m`: for `m >= 3` no point
    has two neighbours of the same `j`. `m` must divide `n` for this to hold across the wrap: the
    smallest such divisor is 4 for n = 32 or 64, 3 for 63, and n itself when n is prime.
    """
    n = rhs.shape[-1]
    m = next((m for m in range(3, n) if n % m == 0), n)
    colour = jnp.arange(n) % m
    probes = [
        linear(jnp.broadcast_to((colour == j).astype(rhs.dtype), rhs.shape)) for j in range(m)
    ]

    def band(offset: int) -> State:
        return sum(
            jnp.where((colour + offset) % m == j, probe, 0) for j, probe in enumerate(probes)
        )

    return cyclic_tridiagonal_solve(band(-1), band(0), band(1), rhs)


def forward_euler(rhs: Stepper, dt: float) -> Stepper:
    """Returns the explicit step `u -> u + dt F(u)`, first order in `dt`.

    Args:
        rhs: The right-hand side `F`.
        dt: Time step, > 0.

    Returns:
        A step `(..., n) -> (..., n)`.
    """
    return lambda u: u + dt * rhs(u)


def crank_nicolson(rhs: Stepper, dt: float, *, max_iterations: int = 10) -> Stepper:
    """Returns the implicit step `(v - u)/dt = (F(v) + F(u))/2` from `u` to `v`, second order in
    `dt`.

    Newton's method from `v = u`; each row stops on its own, so its result does not depend on the
    rest of the batch. It stops after an update below `sqrt(eps)` of its dtype, relative to
    `max(1, |v|)`: convergence is quadratic, so the error left is of the order of `eps`. For Burgers
    at unit amplitude that is one to three updates. The derivative, in either mode and of any order,
    is that of the solution (implicit function theorem), not of the iterations. The Jacobian
    `1 - dt/2 F'` must be diagonally dominant, which bounds `dt |u|/dx`.

    Args:
        rhs: The right-hand side `F`, coupling periodic nearest neighbours only.
        dt: Time step, > 0.
        max_iterations: Most Newton updates a step, >= 1. A row still moving after them is returned
            as it is.

    Returns:
        A step `(..., n) -> (..., n)`.

    Raises:
        ValueError: If `max_iterations < 1`.
    """
    if max_iterations < 1:
        raise ValueError(
            f'Got max_iterations = {max_iterations}, expected at least 1 Newton update.'
        )

    def step(u: State) -> State:
        explicit = u + dt / 2 * rhs(u)

        def residual(v: State) -> State:
            return v - dt / 2 * rhs(v) - explicit

        newton = functools.partial(_newton, max_iterations=max_iterations)
        return jax.lax.custom_root(residual, u, newton, _solve_nearest_neighbour)

    return step


def _newton(equation: Stepper, v: State, max_iterations: int) -> State:
    """Returns the root of `equation` near `v`, row by row, as `crank_nicolson` states."""
    tolerance = jnp.sqrt(jnp.finfo(v.dtype).eps)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < max_iterations) & jnp.any(carry[2])

    def update(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, v, moving = carry
        value, linear = jax.linearize(equation, v)
        delta = _solve_nearest_neighbour(linear, -value)
        v = jnp.where(moving, v + delta, v)
        size = jnp.maximum(1, jnp.max(jnp.abs(v), -1, keepdims=True))
        # A row of NaN compares false and stops.
        return (
            count + 1,
            v,
            moving & (jnp.max(jnp.abs(delta), -1, keepdims=True) > tolerance * size),
        )

    return jax.lax.while_loop(unfinished, update, (0, v, jnp.ones_like(v[..., :1], bool)))[1]


def repeated(step: Stepper, n: int) -> Stepper:
    """Returns the function that applies `step` `n` times, `u -> step(... step(u))`.

    Args:
        step: A step `(..., n) -> (..., n)`.
        n: Number of applications, >= 0.

    Returns:
        A step. It is differentiable in both modes where `step` is.
    """
    return lambda u: jax.lax.scan(lambda v, _: (step(v), None), u, length=n)[0]


def trajectory(step: Stepper, n: int) -> Stepper:
    """Returns the function that stacks the `n` states after a start,
    `u -> [step(u), step(step(u)), ...]`.

    Args:
        step: A step on states of shape `(..., n)`.
        n: Number of states, >= 0; the start itself is not among them.

    Returns:
        A function from a start `u` to states stacked along a new axis 0, the first being one step
        after the start.
    """

    def advance(v: Array, _: None) -> tuple[Array, Array]:
        v = step(v)
        return v, v

    return lambda u: jax.lax.scan(advance, u, length=n)[1]


# name -> (rhs, dt) -> step
STEPPERS: dict[str, Callable[..., Stepper]] = {
    'crank_nicolson': crank_nicolson,
    'forward_euler': forward_euler,
}


def burgers_stepper(name: str, *, mu: float, nu: float, dx: float, dt: float) -> Stepper:
    """Returns one time step of Burgers' equation `u_t + mu u u_x = nu u_xx`, periodic.

    Args:
        name: A key of `STEPPERS`.
        mu: Strength of advection.
        nu: Viscosity, >= 0.
        dx: Grid spacing, > 0.
        dt: Time step, > 0. `crank_nicolson` needs `dt |mu u| / dx` below about 1; `forward_euler`
            is stable only for `dt <= dx^2 / (2 nu)` and `dt mu^2 u^2 <= 2 nu`.

    Returns:
        A step `(..., n) -> (..., n)`.

    Raises:
        ValueError: If `name` is not in `STEPPERS`.
    """
    return choose('stepper', name, STEPPERS)(
        functools.partial(burgers_rhs, mu=mu, nu=nu, dx=dx), dt
    )


@dataclasses.dataclass(frozen=True)
class BurgersProblem:
    """The numbers that Burgers data and the Burgers constraint share.

    Attributes:
        points: Grid points, >= 3; best a multiple of 3, 4 or 5 (the implicit solver is slow for
            primes).
        states: Stored states of a trajectory, >= 2.
        inner_steps: Time steps between stored states, >= 1.
        dt: Time step, > 0.
        mu: Strength of advection.
        nu: Viscosity, >= 0.
        length: Distance from the first to the last grid point, > 0. The period is one `dx` longer.
        stepper: A key of `STEPPERS`.

    Raises:
        ValueError: If a number is out of its range or the stepper is unknown.
    """

    points: int = 64
    states: int = 64
    inner_steps: int = 5
    dt: float = 0.025
    mu: float = 1.0
    nu: float = 0.05
    length: float = 10.0
    stepper: str = 'crank_nicolson'

    def __post_init__(self) -> None:
        for name, least in (('points', 3), ('states', 2), ('inner_steps', 1), ('nu', 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f'Got {name} = {getattr(self, name)}, expected at least {least}.')
        if not (self.dt > 0 and self.length > 0):
            raise ValueError(
                f'Got dt = {self.dt} and length = {self.length}, expected positive numbers.'
            )
        self.step()

    @property
    def dx(self) -> float:
        """Grid spacing, `length / (points - 1)`."""
        return self.length / (self.points - 1)

    def step(self) -> Stepper:
        """Returns the step over one `dt`, `(..., n) -> (..., n)`."""
        return burgers_stepper(self.stepper, mu=self.mu, nu=self.nu, dx=self.dx, dt=self.dt)

    def interval(self) -> Stepper:
        """Returns the step from one stored state to the next, `inner_steps` times `dt`."""
        return repeated(self.step(), self.inner_steps)
