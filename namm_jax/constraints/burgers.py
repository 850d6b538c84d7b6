"""The Burgers constraint: each state of a trajectory is the previous one, stepped on by the
solver.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics, PerSample
from namm_jax.problems import layout
from namm_jax.problems.steppers import BurgersProblem, trajectory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BurgersConstraint:
    """Trajectories of Burgers' equation, `x_{t+1} = S(x_t)` with S the step over one stored
    interval.

    Attributes:
        problem: Grid, time steps and coefficients; those of the data, the stepper too. Static under
            `jax.jit`.
    """

    problem: BurgersProblem = dataclasses.field(metadata={'static': True})

    def residual(self, x: Fields) -> Float[Array, 'b steps n']:
        """Returns `x_{t+1} - S(x_t)` for every pair of stored states, all pairs at once.

        Args:
            x: Fields `(b, points, states, 1)`, rows space upside down, columns time. Half precision
                is raised to float32, float64 kept.

        Returns:
            Residuals `(b, states - 1, points)`, space increasing along the last axis.

        Raises:
            ValueError: If the shape of `x` is not that of the problem.
        """
        states = self._states(x)
        return states[:, 1:] - self.problem.interval()(states[:, :-1])

    def _states(self, x: Fields) -> Float[Array, 'b t n']:
        expected = (self.problem.points, self.problem.states, 1)
        if x.ndim != 4 or x.shape[1:] != expected:
            raise ValueError(
                f'Got x of shape {x.shape}, expected (b, {", ".join(map(str, expected))}): '
                'build the constraint from the problem that the data were made with.'
            )
        return layout.image_to_states(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    def distance(self, x: Fields) -> PerSample:
        """Returns the mean over time and space of `|x_{t+1} - S(x_t)|`, shape `(b,)`."""
        return jnp.mean(jnp.abs(self.residual(x)), (1, 2))

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{'burgers': (b,)}`."""
        return {'burgers': self.distance(x)}

    @property
    def restores(self) -> Mapping[str, Callable[[Fields], tuple[Fields, Metrics]]]:
        """Ways back onto the set: `resolve` keeps the first state and solves again from it;
        feasible, not nearest.
        """
        return {'resolve': self.restore}

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the trajectory from the first state of `x`, all other states thrown away; nothing
        to report.
        """
        first = self._states(x)[:, 0]
        later = trajectory(self.problem.interval(), self.problem.states - 1)(first)
        return layout.states_to_image(jnp.swapaxes(jnp.concatenate([first[None], later]), 0, 1)), {}


def burgers(problem: BurgersProblem) -> BurgersConstraint:
    """Returns the constraint that trajectories solve Burgers' equation.

    Args:
        problem: Grid, time steps and coefficients of the data.

    Returns:
        A constraint on fields `(b, points, states, 1)`.
    """
    return BurgersConstraint(problem)
