"""Reaction and diffusion, `u_t = nu u_xx + rho u (1 - u)` on [0, 1], fed through both ends.

Symbols: `u` averages over cells of width `dx`, `g` the inflow through the left and the right end,
`R(u)` the integral of `rho u (1 - u)`, `m(t)` the mass, the integral of u. Of a field rows are x,
columns t. In each step of the solver `m` grows by `dt` times both inflows and the mean of R before
and after it: a balance to round-off, and not linear in u.

Reference: Utkarsh et al. 2025, NeurIPS, arXiv 2506.04171 (physics-constrained flow matching).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Key, Metrics
from namm_jax._checks import check_keys
from namm_jax.constraints.base import Rule, rule
from namm_jax.problems import steppers
from namm_jax.problems.base import Problem, View, check_fields, parameter
from namm_jax.problems.steppers import State, Stepper

WAVENUMBERS = 3  # of the random start, from 1 on


@dataclasses.dataclass(frozen=True)
class ReactionDiffusion(Problem):
    """Reacting and diffusing concentrations as images `(b, points, states, 1)`."""

    points: int = parameter(128, "cells, the image's height", least=3)
    states: int = parameter(100, "stored times, the image's width", least=3)
    dt: float = parameter(0.01, 'between stored times, a step each', above=0)
    rho: float = parameter(0.01, 'rate of the reaction', least=0)
    nu: float = parameter(0.005, 'diffusivity', least=0)
    most_inflow: float = parameter(0.05, 'of the random inflow through an end', least=0)

    name = 'reaction_diffusion'
    rule_name = 'reaction_diffusion'
    operator = 'first_states'
    operator_options = {'k': 1}
    spatial_axes = (1,)
    view = View(('u', '|mass out of balance|'), ('x', 't'))
    distance_words = {'reaction_diffusion': 'mean absolute mass that no constant inflow explains'}

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(points, states, 1)`."""
        return self.points, self.states, 1

    def rhs(self, u: State, g: Float[Array, '... 2']) -> State:
        """Returns the rate of change of u by finite volumes, second order in dx."""
        inner = -self.nu * self.points * jnp.diff(u)
        flux = jnp.concatenate([g[..., :1], inner, -g[..., 1:]], -1)
        return self.rho * u * (1 - u) - self.points * jnp.diff(flux)

    def interval(self, g: Float[Array, '... 2']) -> Stepper:
        """Returns the Crank-Nicolson step from one stored state to the next."""
        return steppers.crank_nicolson(lambda u: self.rhs(u, g), self.dt)

    def solve(self, u_0: Float[Array, 'n points'], g: Float[Array, 'n 2']) -> Fields:
        """Returns the solutions from first states with constant inflows, `(n, *shape)`."""
        u = steppers.rollout(self.interval(g), self.states)(u_0)
        return jnp.swapaxes(u, 1, 2)[..., None]

    def starts(self, keys: Key) -> Float[Array, 'n points']:
        """Returns random starts: two waves of wavenumbers in 1..3, of random amplitude and phase,
        then scaled, their least value 0 and their greatest 1.
        """

        def start(key: Key) -> Array:
            key_k, key_amplitude, key_phase = jax.random.split(key, 3)
            k = jax.random.randint(key_k, (2, 1), 1, WAVENUMBERS + 1)
            amplitude = jax.random.uniform(key_amplitude, (2, 1), minval=0.05)
            phase = jax.random.uniform(key_phase, (2, 1))
            x = (np.arange(self.points) + 0.5) / self.points
            u = jnp.sum(amplitude * jnp.sin(2 * jnp.pi * (k * x + phase)), 0)
            return (u - u.min()) / (u.max() - u.min())

        return jax.vmap(start)(keys)

    def fields(self, keys: Key) -> Fields:
        """Returns fields `(n, *shape)` from `starts`, inflows uniform from 0 to `most_inflow`."""
        check_keys(keys)
        return self.solve(self.starts(keys), self._inflows(keys))

    def continuations(self, keys: Key, u_0: Float[Array, ' points']) -> Fields:
        """Returns fields `(n, *shape)` from one first state, at random inflows."""
        return self.solve(jnp.broadcast_to(u_0, (len(keys), self.points)), self._inflows(keys))

    def _inflows(self, keys: Key) -> Float[Array, 'n 2']:
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (2,))
        return self.most_inflow * jax.vmap(draw)(keys)

    def _reaction(self, u: Array) -> Array:
        return self.rho * jnp.mean(u * (1 - u), 1)

    def gain(self, x: Fields) -> Float[Array, 'b t']:
        """Returns the mass that came through the ends since t = 0, at t > 0."""
        u = check_fields(self, x)[..., 0]
        m, R = jnp.mean(u, 1), self._reaction(u)
        made = jnp.cumsum((R[:, 1:] + R[:, :-1]) / 2 * self.dt, 1)
        return m[:, 1:] - m[:, :1] - made

    def residual(self, x: Fields) -> Float[Array, 'b t']:
        """Returns the gain less that of a constant inflow, the mean one, at inner times."""
        gain = self.gain(x)
        part = jnp.arange(1, self.states) / (self.states - 1)
        return (gain - part * gain[:, -1:])[:, :-1]

    def balance(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns fields whose states are shifted, the first one not, so that their gain is that of
        the mean inflow, and nothing to report.

        The shift c of a state solves a quadratic equation, `R(u + c)` being
        `R(u) + rho c (1 - 2 m) - rho c^2`.
        """
        u = check_fields(self, x)[..., 0]
        inflow = self.gain(x)[:, -1] / (self.states - 1)
        half = self.dt / 2

        def shift(before: tuple[Array, Array], now: Array) -> tuple[Any, Array]:
            m_before, R_before = before
            m, R = jnp.mean(now, 1), self._reaction(now)
            a = half * self.rho
            b = 1 - a * (1 - 2 * m)
            d = m - half * (R + R_before) - m_before - inflow
            c = -2 * d / (b + jnp.sqrt(b**2 - 4 * a * d))
            now = now + c[:, None]
            return (jnp.mean(now, 1), self._reaction(now)), now

        first = jnp.mean(u[..., 0], 1), self._reaction(u[..., 0])
        _, later = jax.lax.scan(shift, first, jnp.moveaxis(u[..., 1:], 2, 0))
        return jnp.concatenate([u[..., :1], jnp.moveaxis(later, 0, 2)], 2)[..., None], {}

    def rule(self) -> Rule:
        """Returns the rule that a constant inflow explains the mass, of distance `mean |r|`."""
        return rule(self.name, self.residual, restores={'balance': self.balance})
