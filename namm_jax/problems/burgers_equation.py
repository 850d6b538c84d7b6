"""Burgers' equation, `u_t + mu u u_x = nu u_xx`, periodic: trajectories from random starts.

Symbols: `u` a state `(..., n)` on points `dx` apart, `S` the step from one stored state to the
next, `x` a field: the image of a trajectory. Columns are time, forward from left to right; rows are
space, *upside down*: the first row is the last grid point.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, Key, matmul
from namm_jax._checks import check_keys
from namm_jax.problems import steppers
from namm_jax.problems.base import View, check_fields, parameter
from namm_jax.problems.steppers import State, Stepper, Trajectories

CORRELATION_LENGTH = 0.2  # of the grid's half width
JITTER = 1e-10  # added to the unit variance; enough in float64, and invisible in the sample


def burgers_rhs(u: State, *, mu: float, nu: float, dx: float) -> State:
    """Returns the right-hand side of Burgers' equation by central differences,

        F(u)_i = -mu u_i (u_{i+1} - u_{i-1}) / (2 dx) + nu (u_{i+1} - 2 u_i + u_{i-1}) / dx^2,

    second order in space. Its sum over the period is zero, so every stepper conserves the mean.

    Args:
        u: states `(..., n)`, periodic.
        mu: strength of advection.
        nu: viscosity, >= 0.
        dx: grid spacing, > 0.
    """
    right, left = jnp.roll(u, -1, -1), jnp.roll(u, 1, -1)
    return -mu * u * (right - left) / (2 * dx) + nu * (right - 2 * u + left) / dx**2


@functools.cache
def _matern_factor(points: int) -> np.ndarray:
    """Returns the Cholesky factor `(points, points)` of the start's covariance."""
    grid = np.linspace(-1, 1, points)
    r = np.sqrt(3) * np.abs(grid[:, None] - grid) / CORRELATION_LENGTH
    return np.linalg.cholesky((1 + r) * np.exp(-r) + JITTER * np.eye(points))


@dataclasses.dataclass(frozen=True)
class Burgers(Trajectories):
    """Trajectories of Burgers' equation as images `(b, points, states, 1)`. The starts are not
    periodic, so that data jump where the grid wraps.
    """

    # the implicit stepper is slow where no small number >= 3 divides the points
    points: int = parameter(64, "grid points in space, the image's height", least=3)
    states: int = parameter(64, "stored times, the image's width", least=2)
    inner_steps: int = parameter(5, 'time steps between stored times', least=1)
    dt: float = parameter(0.025, 'time step', above=0)
    length: float = parameter(10.0, 'distance between the first and last grid point', above=0)
    mu: float = parameter(1.0, 'advection coefficient')
    nu: float = parameter(0.05, 'viscosity', least=0)
    stepper: str = parameter('crank_nicolson', 'time stepper', choices=steppers.STEPPERS)

    name = 'burgers'
    rule_name = 'burgers'
    operator = 'first_states'
    periodic = (True, False)
    spatial_axes = (1,)
    view = View(('u', '|residual|'), ('space', 'time'))
    distance_words = {'burgers': 'mean absolute residual of one solver step'}

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(points, states, 1)`."""
        return self.points, self.states, 1

    @property
    def dx(self) -> float:
        """Grid spacing, `length / (points - 1)`; the period is one more than the length."""
        return self.length / (self.points - 1)

    def step(self) -> Stepper:
        """Returns the step over one `dt`, `(..., points)` to the same."""
        rhs = functools.partial(burgers_rhs, mu=self.mu, nu=self.nu, dx=self.dx)
        return steppers.STEPPERS[self.stepper](rhs, self.dt)

    def interval(self) -> Stepper:
        return steppers.repeated(self.step(), self.inner_steps)

    def to_states(self, x: Fields) -> Float[Array, 'b t n']:
        """Returns the trajectories of images, `u[b, t, i] = x[b, n - 1 - i, t, 0]`."""
        return jnp.swapaxes(check_fields(self, x)[:, ::-1, :, 0], 1, 2)

    def from_states(self, u: Float[Array, 'b t n']) -> Fields:
        """Returns images of trajectories of any length, the inverse of `to_states`."""
        return jnp.swapaxes(u, 1, 2)[:, ::-1, :, None]

    def starts(self, keys: Key) -> Float[Array, 'n points']:
        """Returns random starts `(n, points)`, float32, for typed keys `(n,)`: a Gaussian process
        with the Matern 3/2 covariance `k(r) = (1 + sqrt(3) r/l) exp(-sqrt(3) r/l)`, l = 0.2 on a
        grid over [-1, 1], then scaled, its least value exactly 0 and its greatest 1.
        """
        normal = functools.partial(jax.random.normal, shape=(self.points,), dtype=jnp.float32)
        factor = jnp.asarray(_matern_factor(self.points), jnp.float32)
        u = matmul(jax.vmap(normal)(keys), factor.T)
        low, high = u.min(-1, keepdims=True), u.max(-1, keepdims=True)
        return (u - low) / (high - low)

    def fields(self, keys: Key) -> Fields:
        """Returns fields `(n, points, states, 1)`, float32, within [0, 1] up to a few per cent of
        overshoot; the first state is one stored interval after the start.
        """
        check_keys(keys)
        u = steppers.trajectory(self.interval(), self.states)(self.starts(keys))
        return self.from_states(jnp.swapaxes(u, 0, 1))

    def features(self, x: Fields) -> Float[Array, 'b k']:
        """Returns the logarithms of the spectra of the first and last state, and the increments of
        the first, ordered by size.
        """
        first, last = (self.to_states(x)[:, t] for t in (0, -1))
        spectra = [jnp.log(jnp.abs(jnp.fft.rfft(u)) ** 2 + 1e-12) for u in (first, last)]
        return jnp.concatenate([*spectra, jnp.sort(jnp.abs(jnp.diff(first)), axis=1)], axis=1)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        return 0.0, self.states * self.inner_steps * self.dt, 0.0, self.points * self.dx

    def residual_map(self, constraint: Constraint, x: Fields) -> Float[Array, 'b H W']:
        """Returns images `(b, points, states - 1)` of the residual, oriented as fields are."""
        return self.from_states(constraint.residual(x))[..., 0]
