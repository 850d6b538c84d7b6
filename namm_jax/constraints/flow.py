"""The flow constraints: states without divergence, and states that the Navier-Stokes solver leads
from one to the next.

Symbols as in `flows`: fields hold states `v_0, ..., v_{k-1}` in the problem's layout; `S` is the
step from one stored state to the next. The sum of both constraints asks for a trajectory from a
divergence-free start.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics, PerSample
from namm_jax.problems import flow_layout
from namm_jax.problems import kolmogorov_flow as flows
from namm_jax.problems.kolmogorov_flow import FlowProblem

Restore = Callable[[Fields], tuple[Fields, Metrics]]


def _states(problem: FlowProblem, x: Fields) -> Float[Array, 'b k n n 2']:
    """Returns the states of `x`, half precision raised to float32."""
    return flow_layout.to_states(problem, x.astype(jnp.promote_types(x.dtype, jnp.float32)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DivergenceConstraint:
    """Flows whose every state has no divergence, `div v_j = 0` in the discrete sense of the solver:
    a linear subspace.

    Symmetries: rolling a state along either axis by any number of pixels, each state on its own;
    permuting the states; any real factor is a factor of the distance.

    Attributes:
        problem: Grid, number of states and layout. Static under `jax.jit`.
    """

    problem: FlowProblem = dataclasses.field(metadata={'static': True})

    def residual(self, x: Fields) -> Float[Array, 'b k n n']:
        """Returns the divergence of every state, at the centres of cells.

        Args:
            x: Fields `(b, *problem.shape)`. Half precision is raised to float32, float64 kept.

        Returns:
            Divergences `(b, states, points, points)`.

        Raises:
            ValueError: If the shape of `x` is not that of the problem.
        """
        return flows.divergence(_states(self.problem, x))

    def distance(self, x: Fields) -> PerSample:
        """Returns the mean over states and pixels of `|div v|`, shape `(b,)`."""
        return jnp.mean(jnp.abs(self.residual(x)), (1, 2, 3))

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{'divergence': (b,)}`."""
        return {'divergence': self.distance(x)}

    @property
    def restores(self) -> Mapping[str, Restore]:
        """Ways back onto the set: `projection`, the pressure projection of each state, is the
        nearest point.
        """
        return {'projection': self._project}

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the nearest fields without divergence, and no further information."""
        return self._project(x)

    def _project(self, x: Fields) -> tuple[Fields, Metrics]:
        return flow_layout.from_states(self.problem, flows.project(_states(self.problem, x))), {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NavierStokesConstraint:
    """Trajectories of the solver, `v_{j+1} = S(v_j)`, from any first state.

    Symmetries: rolling all states together along rows (x, along which the force is constant) by any
    number of pixels, and along columns by whole periods of the force, `points / forcing_wavenumber`
    pixels where that is an integer.

    Attributes:
        problem: Grid, time steps, force and layout; those of the data. Static under `jax.jit`.

    Raises:
        ValueError: If the problem has a single state.
    """

    problem: FlowProblem = dataclasses.field(metadata={'static': True})

    def __post_init__(self) -> None:
        if self.problem.states < 2:
            raise ValueError(
                f'Got states = {self.problem.states}, expected at least 2: the residual compares '
                'pairs.'
            )

    def residual(self, x: Fields) -> Float[Array, 'b steps n n 2']:
        """Returns `v_{j+1} - S(v_j)` for every pair of stored states, all pairs at once.

        Args:
            x: Fields `(b, *problem.shape)`. Half precision is raised to float32, float64 kept.

        Returns:
            Residuals `(b, states - 1, points, points, 2)`.

        Raises:
            ValueError: If the shape of `x` is not that of the problem.
        """
        states = _states(self.problem, x)
        return states[:, 1:] - self.problem.interval()(states[:, :-1])

    def distance(self, x: Fields) -> PerSample:
        """Returns the mean over pairs, pixels and components of `|v_{j+1} - S(v_j)|`, shape
        `(b,)`.
        """
        return jnp.mean(jnp.abs(self.residual(x)), (1, 2, 3, 4))

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{'kolmogorov': (b,)}`."""
        return {'kolmogorov': self.distance(x)}

    @property
    def restores(self) -> Mapping[str, Restore]:
        """Ways back onto the set: `resolve` keeps the first state and solves again from it;
        feasible, not nearest.
        """
        return {'resolve': self._resolve}

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the trajectory from the first state of `x`, and no further information.

        The first state is kept as it is: project it (`DivergenceConstraint.restore`) before, to
        satisfy both constraints.
        """
        return self._resolve(x)

    def _resolve(self, x: Fields) -> tuple[Fields, Metrics]:
        return flow_layout.from_states(
            self.problem, self.problem.solve(_states(self.problem, x)[:, 0])
        ), {}


def divergence(problem: FlowProblem) -> DivergenceConstraint:
    """Returns the constraint that every state of a flow is free of divergence.

    Args:
        problem: Grid, number of states and layout of the data.

    Returns:
        A constraint on fields `(b, *problem.shape)`.
    """
    return DivergenceConstraint(problem)


def kolmogorov(problem: FlowProblem) -> NavierStokesConstraint:
    """Returns the constraint that the states of a flow solve the Navier-Stokes equations of
    Kolmogorov flow.

    Args:
        problem: Grid, time steps, force and layout of the data.

    Returns:
        A constraint on fields `(b, *problem.shape)`.

    Raises:
        ValueError: If the problem has a single state.
    """
    return NavierStokesConstraint(problem)
