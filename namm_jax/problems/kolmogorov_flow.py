"""Kolmogorov flow: two-dimensional turbulence on a periodic square, solved by jax-cfd; no other
module imports it.

    dv/dt + (v . grad) v = -grad p / density + viscosity / density laplace v + f / density, div v =
    0, f = forcing sin(forcing_wavenumber y) e_x + drag v,

on [0, 2 pi]^2. A velocity `v` is an array `(h, w, 2)`: rows are x, columns y, component 0 is along
x and component 1 along y. The grid is staggered: point `(i, j)` has component 0 at
`((i + 1) dx, (j + 1/2) dx)`, component 1 at `((i + 1/2) dx, (j + 1) dx)`, divergence and pressure
at the centre of its cell, `((i + 1/2) dx, (j + 1/2) dx)`, and vorticity at its corner,
`((i + 1) dx, (j + 1) dx)`. Functions of `v` take any number of axes before these three.

A step adds the van Leer advection, the viscosity and the force, each at the old velocity, and
projects onto the divergence-free fields.

Reference: Kochkov et al., "Machine learning-accelerated computational fluid dynamics", PNAS
118(21), 2021.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax_cfd.base as cfd
from jaxtyping import Array, Float

from namm_jax._arrays import Key
from namm_jax._checks import choose
from namm_jax.problems import layout
from namm_jax.problems.steppers import Stepper, repeated, trajectory

# jax-cfd 0.2.1 calls jax.tree_map here, which JAX has removed; its forcings look this function up
# when they are called.
cfd.equations.sum_fields = lambda *fields: jax.tree.map(lambda *terms: sum(terms), *fields)

Velocity = Float[Array, '... h w 2']
Scalar = Float[Array, '... h w']
States = Float[Array, '... k h w 2']

LEAST = {'points': 4, 'inner_steps': 1, 'viscosity': 0, 'forcing_wavenumber': 1, 'burn_in': 0}
POSITIVE = 'dt', 'density', 'max_velocity', 'peak_wavenumber'


def _grid(h: int, w: int) -> Any:
    return cfd.grids.Grid((h, w), domain=((0, 2 * math.pi), (0, 2 * math.pi)))


def _wrap(v: Float[Array, 'h w 2']) -> tuple[Any, ...]:
    """Returns the velocity as jax-cfd's variables, one a component."""
    grid, periodic = _grid(*v.shape[:2]), cfd.boundaries.periodic_boundary_conditions(2)
    arrays = (
        cfd.grids.GridArray(v[..., i], offset, grid) for i, offset in enumerate(grid.cell_faces)
    )
    return tuple(cfd.grids.GridVariable(array, periodic) for array in arrays)


def _unwrap(variables: tuple[Any, ...]) -> Float[Array, 'h w 2']:
    return jnp.stack([u.data for u in variables], -1)


def _apply(function: Callable[[tuple[Any, ...]], Array], v: Velocity, result: str) -> Array:
    """Returns `function` of jax-cfd's variables, `result` the axes of what it returns, over all
    leading axes of v.
    """
    if v.ndim < 3 or v.shape[-1] != 2:
        raise ValueError(
            f'Got v of shape {v.shape}, expected (..., h, w, 2): pass both components as the last '
            'axis.'
        )
    return jnp.vectorize(lambda v: function(_wrap(v)), signature=f'(h,w,c)->({result})')(v)


def divergence(v: Velocity) -> Scalar:
    """Returns the divergence that jax-cfd's solver keeps at zero, by backward differences.

    `(u_{i,j} - u_{i-1,j}) / dx + (v_{i,j} - v_{i,j-1}) / dx` for components u along rows and v
    along columns.

    Args:
        v: Velocities `(..., h, w, 2)`.

    Returns:
        Divergences `(..., h, w)`, at the centres of cells.

    Raises:
        ValueError: If `v` has fewer than three axes or not two components.
    """
    return _apply(lambda v: cfd.finite_differences.divergence(v).data, v, 'h,w')


def vorticity(v: Velocity) -> Scalar:
    """Returns the vorticity `dv/dx - du/dy` by forward differences, counterclockwise positive with
    x to the right.

    Args:
        v: Velocities `(..., h, w, 2)`.

    Returns:
        Vorticities `(..., h, w)`, at the corners of cells.

    Raises:
        ValueError: If `v` has fewer than three axes or not two components.
    """
    return _apply(lambda v: cfd.finite_differences.curl_2d(v).data, v, 'h,w')


def project(v: Velocity) -> Velocity:
    """Returns the divergence-free field nearest to `v`, by jax-cfd's pressure projection.

    `v - grad q` with `div grad q = div v`: gradient and divergence are minus each other's
    transposes, so what is taken away is orthogonal to all divergence-free fields. The divergence
    falls to round-off, about 3e-7 of what it was in float32; a Poisson equation with the symbol of
    another discrete operator would not do that.

    Args:
        v: Velocities `(..., h, w, 2)`.

    Returns:
        Velocities `(..., h, w, 2)`, of the same mean.

    Raises:
        ValueError: If `v` has fewer than three axes or not two components.
    """
    return _apply(lambda v: _unwrap(cfd.pressure.projection(v)), v, 'h,w,c')


@dataclasses.dataclass(frozen=True)
class FlowProblem:
    """The numbers that flow data and the flow constraints share. Lengths are radians: the square's
    side is 2 pi.

    Attributes:
        points: Grid points a side, >= 4.
        states: Stored states of a trajectory: 1, 2, 3, or a multiple of 4.
        inner_steps: Time steps between stored states, >= 1.
        dt: Time step, > 0. The solver is explicit: `max_velocity dt / dx` and
            `4 viscosity / density dt / dx^2` are at most 1. Forced flows become faster than their
            start, so leave a margin of two or three.
        viscosity: Inverse of the Reynolds number, >= 0.
        density: Density, > 0.
        max_velocity: Largest speed of the random start, > 0.
        peak_wavenumber: Wavenumber of the random start's largest amplitudes, > 0.
        forcing: Amplitude of the constant force.
        forcing_wavenumber: Periods of the constant force along y, >= 1 and at most `points / 2`.
        drag: Coefficient of the force proportional to velocity, <= 0.
        burn_in: Time of the first stored state after the random start, >= 0, a whole number of
            `dt`.
        layout: How networks and constraints see a trajectory, a key of `layout.FLOW_LAYOUTS`.

    Raises:
        ValueError: If a number is out of its range or the layout is unknown.
    """

    points: int = 64
    states: int = 8
    inner_steps: int = 20
    dt: float = 0.01
    viscosity: float = 1e-3
    density: float = 1.0
    max_velocity: float = 3.0
    peak_wavenumber: float = 4.0
    forcing: float = 1.0
    forcing_wavenumber: int = 4
    drag: float = -0.1
    burn_in: float = 3.0
    layout: str = 'packed'

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f'Got {name} = {getattr(self, name)}, expected at least {least}.')
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f'Got {name} = {getattr(self, name)}, expected a positive number.')
        if not self.drag <= 0:
            raise ValueError(
                f'Got drag = {self.drag}, expected at most 0: a positive one drives the flow to '
                'infinity.'
            )
        self._check_resolution()
        layout.tile_grid(self.states)
        choose('layout', self.layout, layout.FLOW_LAYOUTS)

    def _check_resolution(self) -> None:
        if 2 * self.forcing_wavenumber > self.points:
            raise ValueError(
                f'Got forcing_wavenumber = {self.forcing_wavenumber}, expected at most points / 2 '
                f'= {self.points / 2}: the grid does not resolve the force.'
            )
        courant = self.max_velocity * self.dt / self.dx
        diffusion = 4 * self.viscosity / self.density * self.dt / self.dx**2
        if max(courant, diffusion) > 1:
            raise ValueError(
                f'Got dt = {self.dt} at {self.points} points: max_velocity dt / dx = {courant:.3g} '
                f'and 4 viscosity / density dt / dx^2 = {diffusion:.3g}, expected at most 1 each: '
                'take a smaller dt.'
            )
        if (
            not math.isfinite(self.burn_in / self.dt)
            or abs(self.burn_in - self.burn_in_steps * self.dt) > 1e-6 * self.dt
        ):
            raise ValueError(
                f'Got burn_in = {self.burn_in}, expected a whole number of time steps, dt = '
                f'{self.dt}.'
            )

    @property
    def dx(self) -> float:
        """Grid spacing, `2 pi / points`."""
        return 2 * math.pi / self.points

    @property
    def burn_in_steps(self) -> int:
        """Time steps from the random start to the first stored state."""
        return round(self.burn_in / self.dt)

    @property
    def tiled(self) -> tuple[int, int, int]:
        """Shape `(h, w, c)` of a trajectory in files, a mosaic of states."""
        return self._shape('tiled')

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape `(h, w, c)` of a trajectory in the layout."""
        return self._shape(self.layout)

    def _shape(self, name: str) -> tuple[int, int, int]:
        states = jax.ShapeDtypeStruct((1, self.states, self.points, self.points, 2), jnp.float32)
        return jax.eval_shape(layout.STATES_TO_LAYOUT[name], states).shape[1:]

    def steps(self, n: int) -> Stepper:
        """Returns the step over `n` time steps, `(..., points, points, 2)` to the same, by
        jax-cfd's solver.

        It keeps the dtype, is differentiable in both modes, and commutes with rolling along rows,
        and along columns by whole periods of the force. The mean velocity is multiplied by
        `1 + drag dt / density` in each time step.

        Args:
            n: Number of time steps, >= 0.
        """
        solver = _solver(self)

        def step(v: tuple[Any, ...]) -> tuple[Any, ...]:
            # The solver's forces are double under jax_enable_x64, whatever v is; the loop's carry
            # may not change.
            return jax.tree.map(lambda new, old: new.astype(old.dtype), solver(v), v)

        # Backward, a step is taken again rather than its intermediates kept: on a CPU 1.5 times
        # faster, too.
        advance = repeated(jax.checkpoint(step), n)

        def advance_arrays(v: Velocity) -> Velocity:
            if v.shape[-3:] != (expected := (self.points, self.points, 2)):
                raise ValueError(
                    f'Got v of shape {v.shape}, expected (..., {", ".join(map(str, expected))}): '
                    'step velocities on '
                    "the problem's own grid."
                )
            return _apply(lambda v: _unwrap(advance(v)), v, 'h,w,c')

        return advance_arrays

    def interval(self) -> Stepper:
        """Returns the step from one stored state to the next, `inner_steps` times `dt`."""
        return self.steps(self.inner_steps)

    def solve(self, v: Velocity) -> States:
        """Returns all stored states of the trajectory whose first stored state is `v`.

        Args:
            v: First states `(..., points, points, 2)`.

        Returns:
            States `(..., states, points, points, 2)`; the first is `v` itself, to the bit.

        Raises:
            ValueError: If `v` is not on the problem's grid.
        """
        later = trajectory(self.interval(), self.states - 1)(v)
        return jnp.moveaxis(jnp.concatenate([v[None], later]), 0, -4)


def _solver(problem: FlowProblem) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Returns jax-cfd's step over one `dt`, on its own variables."""
    grid = _grid(problem.points, problem.points)
    forcing = cfd.forcings.simple_turbulence_forcing(
        grid,
        constant_magnitude=problem.forcing,
        constant_wavenumber=problem.forcing_wavenumber,
        linear_coefficient=problem.drag,
        forcing_type='kolmogorov',
    )
    return cfd.equations.semi_implicit_navier_stokes(
        density=problem.density,
        viscosity=problem.viscosity,
        dt=problem.dt,
        grid=grid,
        forcing=forcing,
    )


def start(key: Key, *, problem: FlowProblem) -> Velocity:
    """Returns a random divergence-free velocity, before any time step: jax-cfd's filtered noise.

    Args:
        key: A typed PRNG key.
        problem: Grid, largest speed and peak wavenumber.

    Returns:
        A velocity `(points, points, 2)`, float32, of mean 0 and largest speed `max_velocity`.
    """
    grid = _grid(problem.points, problem.points)
    noise = cfd.initial_conditions.filtered_velocity_field(
        key, grid, problem.max_velocity, problem.peak_wavenumber
    )
    return _unwrap(noise).astype(jnp.float32)
