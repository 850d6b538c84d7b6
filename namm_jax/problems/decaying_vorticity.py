"""Decaying two-dimensional flow on a periodic square, by its vorticity.

    dw/dt + v . grad w = viscosity laplace w, v = (d psi/dy, -d psi/dx), -laplace psi = w.

Symbols: `w` a vorticity `(..., n, n)`, rows x and columns y, of mean 0; `k` its wavenumbers;
`N(w) = -v . grad w`, by Fourier series of wavenumbers below n / 3, so that no product folds back.

A step is Heun's of second order, between which viscosity acts exactly:
`E = exp(-viscosity k^2 dt)`, `w* = E (w + dt N(w))`, `w' = E (w + dt/2 N(w)) + dt/2 N(w*)`.

Reference: Osaka, Takeishi & Yairi 2026, arXiv 2608.26748 (the data and the rule).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, Key
from namm_jax._checks import check_keys
from namm_jax.problems import mosaics, steppers
from namm_jax.problems.base import View, check_fields, parameter
from namm_jax.problems.steppers import Stepper, Trajectories

Vorticity = Float[Array, '... n n']


@dataclasses.dataclass(frozen=True)
class DecayingFlow(Trajectories):
    """Trajectories of decaying flow, a channel a state, `(b, points, points, states)`.

    The rule is that all states follow from the first one; its residual is theirs less what they
    should be. A ValueError is raised if dt is too large for the grid.
    """

    points: int = parameter(64, 'grid points a side', least=4)
    states: int = parameter(4, 'stored times: 2, 3, or a multiple of 4', least=2)
    inner_steps: int = parameter(20, 'time steps between stored times', least=1)
    dt: float = parameter(0.05, 'time step', above=0)
    length: float = parameter(5.0, 'of a side', above=0)
    viscosity: float = parameter(1.5e-2, 'viscosity', least=0)
    max_velocity: float = parameter(0.4, 'largest speed of the random start', above=0)
    peak_wavenumber: float = parameter(3.0, "waves a side of the start's largest ones", above=0)

    name = 'decaying_flow'
    rule_name = 'decaying_flow'
    operator = 'first_last'
    operator_options = {'channels_per_state': 1}
    periodic = (True, True)
    cell = (1, 1)
    view = View(('vorticity', '|residual|'), ('x', 'y'), 'RdBu_r', centred=True)
    distance_words = {'decaying_flow': "mean absolute deviation from the first state's trajectory"}

    def __post_init__(self) -> None:
        super().__post_init__()
        mosaics.tile_grid(self.states)
        courant = self.max_velocity * self.dt * self.points / self.length
        if courant > 1:
            raise ValueError(
                f'dt: got {self.dt} at {self.points} points: max_velocity dt / dx = {courant:.3g}, '
                'expected at most 1; take a smaller dt'
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(points, points, states)`."""
        return self.points, self.points, self.states

    def to_states(self, x: Fields) -> Float[Array, 'b k n n']:
        """Returns the vorticity of each state."""
        return jnp.moveaxis(check_fields(self, x), 3, 1)

    def from_states(self, w: Float[Array, 'b k n n']) -> Fields:
        """Returns fields, the inverse of `to_states`."""
        return jnp.moveaxis(w, 1, 3)

    def _waves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the wavenumbers along both axes, `(n, 1)` and `(1, n // 2 + 1)`, in radians a
        length, and the square of both, infinite for the mean.
        """
        unit = 2 * math.pi / self.length
        k_x = unit * np.fft.fftfreq(self.points, 1 / self.points)[:, None]
        k_y = unit * np.fft.rfftfreq(self.points, 1 / self.points)[None]
        square = k_x**2 + k_y**2
        return k_x, k_y, np.where(square > 0, square, np.inf)

    def _kept(self) -> np.ndarray:
        """Returns which waves have less than a third of the points' number along both axes."""
        k_x, k_y, _ = self._waves()
        return np.maximum(abs(k_x), k_y) * self.length / (2 * math.pi) < self.points / 3

    def velocity(self, w: Vorticity) -> tuple[Array, Array]:
        """Returns both components of v."""
        k_x, k_y, square = self._waves()
        return _filtered(1j * k_y / square, w), _filtered(-1j * k_x / square, w)

    def advection(self, w: Vorticity) -> Vorticity:
        """Returns N(w), of what w has of the waves that are kept."""
        k_x, k_y, _ = self._waves()
        w = _filtered(self._kept(), w)
        v_x, v_y = self.velocity(w)
        return -_filtered(self._kept(), v_x * _filtered(1j * k_x, w) + v_y * _filtered(1j * k_y, w))

    def step(self) -> Stepper:
        """Returns the step over one `dt`, `(..., points, points)` to the same."""
        k_x, k_y, _ = self._waves()
        E = functools.partial(_filtered, np.exp(-self.viscosity * self.dt * (k_x**2 + k_y**2)))

        def advance(w: Array) -> Array:
            rate = self.advection(w)
            euler = E(w + self.dt * rate)
            return E(w + self.dt / 2 * rate) + self.dt / 2 * self.advection(euler)

        return advance

    def interval(self) -> Stepper:
        return steppers.repeated(jax.checkpoint(self.step()), self.inner_steps)

    def starts(self, keys: Key) -> Vorticity:
        """Returns random starts `(n, points, points)`, float32: Gaussian noise whose amplitudes go
        with `k^2 exp(-k^2 / peak_wavenumber^2)`, scaled to the largest speed.
        """
        k_x, k_y, _ = self._waves()
        square = (k_x**2 + k_y**2) * (self.length / (2 * math.pi * self.peak_wavenumber)) ** 2
        noise = lambda key: jax.random.normal(key, (self.points, self.points))
        w = _filtered(self._kept() * square * np.exp(-square), jax.vmap(noise)(keys))
        speed = jnp.hypot(*self.velocity(w)).max((-2, -1), keepdims=True)
        return (self.max_velocity / speed * w).astype(jnp.float32)

    def fields(self, keys: Key) -> Fields:
        """Returns flows `(n, *shape)`, float32, from random starts."""
        check_keys(keys)
        return self.solve(self.starts(keys))

    def residual(self, x: Fields) -> Float[Array, 'b steps n n']:
        """Returns the states but the first less those of the trajectory from the first."""
        return (self.to_states(x) - self.to_states(self.resolve(x)[0]))[:, 1:]

    def image(self, x: Fields) -> Float[Array, 'b H W']:
        """Returns every state, a mosaic."""
        return mosaics.mosaic(self.to_states(x), self.states)

    def residual_map(self, constraint: Constraint, x: Fields) -> Float[Array, 'b H W']:
        """Returns mosaics of the size of the residual."""
        return jnp.abs(mosaics.mosaic(constraint.residual(x), self.states))


def _filtered(factor: np.ndarray, w: Vorticity) -> Vorticity:
    """Returns w with its Fourier coefficients times factors."""
    W = jnp.fft.rfft2(w)
    return jnp.fft.irfft2(jnp.asarray(factor, W.dtype) * W, w.shape[-2:])
