"""The heat equation, `u_t = nu u_xx`, periodic: waves of random phase that decay at random rates.

Symbols: `u(x, t) = sin(x + phi) exp(-nu t)` for x on [0, 2 pi) and t on [0, 1], `m(t)` its mass,
the integral of u over x. Of a field rows are x, columns t.

Reference: Utkarsh et al. 2025, NeurIPS, arXiv 2506.04171 (physics-constrained flow matching).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Key, Metrics
from namm_jax._checks import check_keys
from namm_jax.constraints.base import Rule, rule
from namm_jax.problems.base import Problem, View, check_fields, parameter


@dataclasses.dataclass(frozen=True)
class Heat(Problem):
    """Decaying waves as images `(b, points, states, 1)`; mass is conserved."""

    points: int = parameter(100, "grid points in space, the image's height", least=4)
    states: int = parameter(100, "stored times from 0 to 1, the image's width", least=2)
    least_nu: float = parameter(1.0, 'of the random rate of decay', least=0)
    most_nu: float = parameter(5.0, 'of the random rate of decay', least=0)

    name = 'heat'
    rule_name = 'heat'
    operator = 'first_states'
    operator_options = {'k': 1}
    periodic = (True, False)
    spatial_axes = (1,)
    view = View(('u', '|mass - first mass|'), ('x', 't'), 'RdBu_r', centred=True)
    distance_words = {'heat': 'mean absolute change of the mass since the first state'}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least_nu > self.most_nu:
            raise ValueError(f'least_nu: got {self.least_nu}, expected at most {self.most_nu}')

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(points, states, 1)`."""
        return self.points, self.states, 1

    def solve(self, phi: Float[Array, ' n'], nu: Float[Array, ' n']) -> Fields:
        """Returns the exact solutions of these phases and rates, `(n, points, states, 1)`."""
        t = jnp.linspace(0, 1, self.states)
        waves = jnp.sin(self._x() + phi[:, None])[:, :, None]
        return (waves * jnp.exp(-nu[:, None] * t)[:, None])[..., None]

    def fields(self, keys: Key) -> Fields:
        """Returns fields `(n, *shape)`, `nu ~ U(least_nu, most_nu)` and `phi ~ U(0, pi)`."""
        check_keys(keys)
        u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        return self.solve(math.pi * u[:, 0], self._rate(u[:, 1]))

    def continuations(self, keys: Key, u_0: Float[Array, ' points']) -> Fields:
        """Returns fields `(n, *shape)` of the first state `u_0 = sin(x + phi)`, at random rates."""
        x = self._x()
        phi = jnp.arctan2(jnp.mean(u_0 * jnp.cos(x)), jnp.mean(u_0 * jnp.sin(x)))
        rates = self._rate(jax.vmap(jax.random.uniform)(keys))
        return self.solve(jnp.broadcast_to(phi, rates.shape), rates)

    def _x(self) -> Float[Array, ' points']:
        return 2 * math.pi / self.points * jnp.arange(self.points)

    def _rate(self, u: Array) -> Array:
        return self.least_nu + (self.most_nu - self.least_nu) * u

    def mass(self, x: Fields) -> Float[Array, 'b t']:
        """Returns m at each stored time."""
        return 2 * math.pi * jnp.mean(check_fields(self, x), (1, 3))

    def residual(self, x: Fields) -> Float[Array, 'b t']:
        """Returns `m(t) - m(0)`, t > 0."""
        m = self.mass(x)
        return m[:, 1:] - m[:, :1]

    def shift(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the nearest fields with the mass of their first state, and nothing to report."""
        x = check_fields(self, x)
        m = self.mass(x)
        return x - ((m - m[:, :1]) / (2 * math.pi))[:, None, :, None], {}

    def rule(self) -> Rule:
        """Returns the rule that mass is conserved, of distance `mean |m(t) - m(0)|`."""
        return rule('heat', self.residual, restores={'shift': self.shift})

    def residual_map(self, constraint: Rule, x: Fields) -> Float[Array, 'b H W']:
        """Returns images of the mass gained at each time."""
        change = jnp.pad(jnp.abs(self.residual(x)), ((0, 0), (1, 0)))
        return jnp.broadcast_to(change[:, None], x.shape[:3])
