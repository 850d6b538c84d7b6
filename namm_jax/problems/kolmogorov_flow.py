"""Kolmogorov flow: two-dimensional turbulence on a periodic square, solved by jax-cfd.

    dv/dt + (v . grad) v = -grad p / density + viscosity / density laplace v + f / density,
    div v = 0, f = forcing sin(forcing_wavenumber y) e_x + drag v,

on [0, 2 pi]^2. A velocity `v` is an array `(h, w, 2)`: rows are x, columns y, component 0 is along
x and component 1 along y. The grid is staggered: point `(i, j)` has component 0 at
`((i + 1) dx, (j + 1/2) dx)`, component 1 at `((i + 1/2) dx, (j + 1) dx)`, divergence and pressure
at the centre of its cell, `((i + 1/2) dx, (j + 1/2) dx)`, and vorticity at its corner,
`((i + 1) dx, (j + 1) dx)`. Functions of `v` take any number of axes before these three.

A step adds the van Leer advection, the viscosity and the force, each at the old velocity, and
projects onto the divergence-free fields. `S` is the step from one stored state to the next; a field
`x` holds the stored states `v_0, ..., v_{k-1}`, as `mosaics` says.

Reference: Kochkov et al., "Machine learning-accelerated computational fluid dynamics", PNAS
118(21), 2021.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax_cfd.base as cfd
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, Key, Metrics
from namm_jax._checks import check_keys
from namm_jax.constraints.base import Rule, rule
from namm_jax.problems import mosaics, steppers
from namm_jax.problems.base import View, check_fields, parameter
from namm_jax.problems.steppers import Stepper, Trajectories

# jax-cfd 0.2.1 calls jax.tree_map here, which JAX has removed.
cfd.equations.sum_fields = lambda *fields: jax.tree.map(lambda *terms: sum(terms), *fields)

Velocity = Float[Array, '... h w 2']
Scalar = Float[Array, '... h w']
States = Float[Array, 'b k n n 2']


def _grid(h: int, w: int) -> Any:
    return cfd.grids.Grid((h, w), domain=((0, 2 * math.pi), (0, 2 * math.pi)))


def _wrap(v: Float[Array, 'h w 2']) -> tuple[Any, ...]:
    """Returns the velocity as jax-cfd's variables, one a component."""
    grid = _grid(*v.shape[:2])
    periodic = cfd.boundaries.periodic_boundary_conditions(2)
    faces = enumerate(grid.cell_faces)
    arrays = (cfd.grids.GridArray(v[..., i], offset, grid) for i, offset in faces)
    return tuple(cfd.grids.GridVariable(array, periodic) for array in arrays)


def _unwrap(variables: tuple[Any, ...]) -> Float[Array, 'h w 2']:
    return jnp.stack([u.data for u in variables], -1)


def _apply(function: Callable[[tuple[Any, ...]], Array], v: Array, result: str) -> Array:
    """Returns `function` of jax-cfd's variables over all leading axes of v, `result` its axes."""
    if v.ndim < 3 or v.shape[-1] != 2:
        raise ValueError(
            f'Got v of shape {v.shape}, expected (..., h, w, 2): pass both components as the last '
            'axis.'
        )
    return jnp.vectorize(lambda v: function(_wrap(v)), signature=f'(h,w,c)->({result})')(v)


def divergence(v: Array) -> Scalar:
    """Returns the divergence that jax-cfd's solver keeps at zero, `(..., h, w)` at the centres of
    cells, `(u_{i,j} - u_{i-1,j}) / dx + (v_{i,j} - v_{i,j-1}) / dx` for components u along rows and
    v along columns; raises a ValueError if the velocities are not `(..., h, w, 2)`.
    """
    return _apply(lambda v: cfd.finite_differences.divergence(v).data, v, 'h,w')


def vorticity(v: Array) -> Scalar:
    """Returns the vorticity `dv/dx - du/dy` by forward differences, counterclockwise positive with
    x to the right, `(..., h, w)` at the corners of cells, for v as of `divergence`.
    """
    return _apply(lambda v: cfd.finite_differences.curl_2d(v).data, v, 'h,w')


def project(v: Array) -> Velocity:
    """Returns the divergence-free field nearest to v, of the same mean, for v as of `divergence`:
    `v - grad q` with `div grad q = div v`. Gradient and divergence are minus each other's
    transposes, so what is taken away is orthogonal to all divergence-free fields. The divergence
    falls to round-off, about 3e-7 of what it was in float32.
    """
    return _apply(lambda v: _unwrap(cfd.pressure.projection(v)), v, 'h,w,c')


@dataclasses.dataclass(frozen=True)
class Kolmogorov(Trajectories):
    """Trajectories of Kolmogorov flow, as channels `(b, points, points, 2 states)` or as mosaics.

    Two rules: `divergence`, `div v_j = 0` in the discrete sense of the solver, a linear subspace,
    and `kolmogorov`, `v_{j+1} = S(v_j)` from any first state. Lengths are radians. A ValueError is
    raised if the grid is too coarse for dt or the force.
    """

    points: int = parameter(64, 'grid points a side, on [0, 2 pi]^2', least=4)
    states: int = parameter(8, 'stored times: 1, 2, 3, or a multiple of 4')
    inner_steps: int = parameter(20, 'time steps between stored times', least=1)
    dt: float = parameter(0.01, 'time step; forced flows become 2 or 3 times as fast', above=0)
    reynolds: float = parameter(1000.0, 'inverse of the viscosity', above=0)
    density: float = parameter(1.0, 'density', above=0)
    max_velocity: float = parameter(3.0, 'largest speed of the random start', above=0)
    peak_wavenumber: float = parameter(4.0, "that of the start's largest amplitudes", above=0)
    forcing: float = parameter(1.0, 'amplitude of the constant force')
    forcing_wavenumber: int = parameter(4, 'periods of the constant force along y', least=1)
    drag: float = parameter(-0.1, 'of the force drag v, by which > 0 flows would run away', most=0)
    burn_in: float = parameter(3.0, 'time of the first stored state, a multiple of dt', least=0)
    layout: str = parameter(
        'packed', 'packed: a channel a component and state', choices=mosaics.LAYOUTS
    )

    name = 'kolmogorov'
    rule_name = 'divergence'
    operator = 'first_last'
    operator_options = {'channels_per_state': 2}
    periodic = (True, True)
    view = View(('vorticity', '|residual|'), ('x', 'y'), 'RdBu_r', centred=True)
    distance_words = {
        'divergence': 'mean absolute divergence of a cell',
        'kolmogorov': 'mean absolute residual of one solver step',
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        mosaics.tile_grid(self.states)
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
        burn_in = self.burn_in / self.dt
        if not (math.isfinite(burn_in) and abs(burn_in - round(burn_in)) < 1e-6):
            raise ValueError(
                f'Got burn_in = {self.burn_in}, expected a whole number of time steps {self.dt}.'
            )

    @property
    def viscosity(self) -> float:
        """`1 / reynolds`."""
        return 1 / self.reynolds

    @property
    def dx(self) -> float:
        """Grid spacing, `2 pi / points`."""
        return 2 * math.pi / self.points

    @property
    def file_shape(self) -> tuple[int, int, int]:
        """Of a mosaic of states, `(rows points, columns points, 2)`."""
        rows, columns = mosaics.tile_grid(self.states)
        return rows * self.points, columns * self.points, 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(points, points, 2 states)`, or `file_shape` where the layout is tiled."""
        packed = self.points, self.points, 2 * self.states
        return packed if self.layout == 'packed' else self.file_shape

    @property
    def cell(self) -> tuple[int, int]:
        """1 along rows, a period of the force along columns, but where states are side by side."""
        period = self.points // math.gcd(self.points, self.forcing_wavenumber)
        sides = zip(self.shape[:2], (1, period), strict=True)
        return tuple(cell if side == self.points else side for side, cell in sides)

    def to_states(self, x: Fields) -> States:
        """Returns the states `(b, states, points, points, 2)` of fields."""
        return mosaics.LAYOUTS[self.layout][0](check_fields(self, x), self.states)

    def from_states(self, states: States) -> Fields:
        """Returns fields `(b, *shape)`, the inverse of `to_states`."""
        return mosaics.LAYOUTS[self.layout][1](states)

    def pack(self, x: Float[Array, 'b H W 2']) -> Fields:
        """Returns fields in the problem's layout, of mosaics `(b, *file_shape)`."""
        return self.from_states(mosaics.tiled_to_states(x, self.states))

    def unpack(self, x: Fields) -> Float[Array, 'b H W 2']:
        """Returns mosaics `(b, *file_shape)`, the inverse of `pack`."""
        return mosaics.states_to_tiled(self.to_states(x))

    def seamless(self, x: Fields) -> Float[Array, 'b n n k']:
        """Returns the states as channels, `(b, points, points, 2 states)`."""
        return mosaics.states_to_packed(self.to_states(x))

    def image(self, x: Fields) -> Float[Array, 'b H W']:
        """Returns the vorticity of every state, a mosaic."""
        return mosaics.mosaic(vorticity(self.to_states(x)), self.states)

    def residual_map(self, constraint: Constraint, x: Fields) -> Float[Array, 'b H W']:
        """Returns mosaics of the size of the residual, for a sum of rules the sum of all sizes."""
        parts = getattr(constraint, 'parts', ())  # those of a single rule are functions
        parts = [part for part in parts if isinstance(part, Constraint)] or [constraint]
        return sum(jnp.abs(mosaics.mosaic(part.residual(x), self.states)) for part in parts)

    def steps(self, n: int) -> Stepper:
        """Returns the step over `n >= 0` time steps, `(..., points, points, 2)` to the same, by
        jax-cfd's solver.

        It keeps the dtype, is differentiable in both modes, and commutes with rolling along rows,
        and along columns by whole periods of the force. The mean velocity is multiplied by
        `1 + drag dt / density` in each time step.
        """
        grid = _grid(self.points, self.points)
        forcing = cfd.forcings.simple_turbulence_forcing(
            grid, self.forcing, self.forcing_wavenumber, self.drag, 'kolmogorov'
        )
        solver = cfd.equations.semi_implicit_navier_stokes(
            self.density, self.viscosity, self.dt, grid, forcing=forcing
        )

        def step(v: tuple[Any, ...]) -> tuple[Any, ...]:
            # Under jax_enable_x64 the solver's forces are double; the loop's carry may not change.
            return jax.tree.map(lambda new, old: new.astype(old.dtype), solver(v), v)

        # Backward, a step is taken again rather than its intermediates kept: faster, too.
        advance = steppers.repeated(jax.checkpoint(step), n)

        def advance_arrays(v: Array) -> Velocity:
            if v.shape[-3:] != (self.points, self.points, 2):
                raise ValueError(
                    f'Got v of shape {v.shape}, expected (..., {self.points}, {self.points}, 2): '
                    "step velocities on the problem's own grid."
                )
            return _apply(lambda v: _unwrap(advance(v)), v, 'h,w,c')

        return advance_arrays

    def interval(self) -> Stepper:
        return self.steps(self.inner_steps)

    def rollout(self, u_0: Array) -> Fields:
        """Returns `solve` of first states projected onto those without divergence."""
        return self.solve(project(u_0))

    def start(self, key: Key) -> Velocity:
        """Returns a random divergence-free velocity `(points, points, 2)`, before any time step:
        jax-cfd's filtered noise, float32, of mean 0 and largest speed `max_velocity`.
        """
        grid = _grid(self.points, self.points)
        noise = cfd.initial_conditions.filtered_velocity_field(
            key, grid, self.max_velocity, self.peak_wavenumber
        )
        return _unwrap(noise).astype(jnp.float32)

    def fields(self, keys: Key) -> Fields:
        """Returns flows `(n, *shape)`, float32, from random starts that run freely for the time
        `burn_in` first, until the force has shaped them; speeds are of the order of `max_velocity`.
        """
        check_keys(keys)
        burn_in = self.steps(round(self.burn_in / self.dt))
        return self.solve(burn_in(jax.vmap(self.start)(keys)))

    def divergence(self, x: Fields) -> Float[Array, 'b k n n']:
        """Returns the divergence of every state, at the centres of cells."""
        return divergence(self.to_states(x))

    def project(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the nearest fields without divergence, and no further information."""
        return self.from_states(project(self.to_states(x))), {}

    def rules(self) -> Mapping[str, Callable[..., Rule]]:
        """Returns `divergence`, the mean of `|div v|`, and `kolmogorov`, that of trajectories."""
        restores = {'projection': self.project}
        divergence_rule = functools.partial(rule, 'divergence', self.divergence, restores=restores)
        return {'divergence': divergence_rule, 'kolmogorov': self.rule}
