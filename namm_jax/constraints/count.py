"""The count constraint: a trained network counts the right number of sources in an image."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Params, PerSample


@runtime_checkable
class CountingProblem(Protocol):
    """What the constraint needs to know of the data."""

    @property
    def points(self) -> int:
        """Pixels along each axis of the image."""
        ...

    @property
    def counts(self) -> tuple[int, int]:
        """The least and the greatest number of sources, equal for a constraint."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(
    frozen=True, eq=False
)  # parameters are arrays: they have no one truth value to compare by
class CountConstraint:
    """Images in which the network counts the right number, `CNN(x) = target`.

    It is as good as its network: an image that fools it satisfies the constraint, so count by other
    means too. There is no exact way back onto the set.

    Attributes:
        params: Parameters of the network, the constraint's only leaves.
        network: A module with `apply({'params': params}, x) -> (b,)`, hashable. Static under
            `jax.jit`.
        problem: The sizes and the number of sources, those of the data. Static under `jax.jit`.
    """

    params: Params
    network: Any = dataclasses.field(metadata={'static': True})
    problem: CountingProblem = dataclasses.field(metadata={'static': True})

    @property
    def target(self) -> int:
        """The right number of sources."""
        return self.problem.counts[0]

    def residual(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns `CNN(x) - target`, negative where sources are missing.

        Args:
            x: Fields `(b, points, points, 1)`. Half precision is raised to float32, float64 kept.

        Returns:
            Residuals `(b, 1)`, in sources.

        Raises:
            ValueError: If the shape of `x` is not that of the problem, or the network has no
                parameters.
        """
        points = self.problem.points
        if x.ndim != 4 or x.shape[1:] != (points, points, 1):
            raise ValueError(
                f'Got x of shape {x.shape}, expected (b, {points}, {points}, 1): '
                'build the constraint from the problem that the data were made with.'
            )
        if self.params is None:
            raise ValueError(
                'Got params = None, expected parameters of the counting network: train it first.'
            )
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return self.network.apply({'params': self.params}, x)[:, None] - self.target

    def distance(self, x: Fields) -> PerSample:
        """Returns `|CNN(x) - target|`, shape `(b,)`, in sources."""
        return jnp.abs(self.residual(x)[:, 0])

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{'count': (b,)}`."""
        return {'count': self.distance(x)}


def count(problem: CountingProblem, network: Any, params: Params) -> CountConstraint:
    """Returns the constraint that a network counts the problem's number of sources.

    Args:
        problem: The sizes and the number of sources, such as a `GalaxyProblem` with one number.
        network: A hashable module with `apply({'params': params}, x) -> (b,)`, such as a `Counter`.
        params: Its trained parameters.

    Returns:
        A constraint on fields `(b, points, points, 1)`.

    Raises:
        ValueError: If the problem's number of sources is a range.
    """
    if problem.counts[0] != problem.counts[1]:
        raise ValueError(
            f'Got {problem.counts[0]} to {problem.counts[1]} sources, expected one number for all '
            'images: use dataclasses.replace(problem, count=8).'
        )
    return CountConstraint(params, network, problem)
