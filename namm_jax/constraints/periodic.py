"""The periodic constraint: an image consists of equal copies of one tile.

Symbols: `k` tiles along each axis, `K = k^2` of them in all, `q_1, ..., q_K`; `tile(q)` the image
that repeats q.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics, PerSample

_Tiles = Float[Array, 'b K m']  # the pixels of each tile in one row
_Tile = Float[Array, 'b m']


@runtime_checkable
class TilingProblem(Protocol):
    """What the constraint needs to know of the data."""

    @property
    def points(self) -> int:
        """Pixels along each axis of the image."""
        ...

    @property
    def tiles(self) -> int:
        """Tiles along each axis, a divisor of `points`."""
        ...


def _mean(tiles: _Tiles) -> _Tile:
    # Written around the first tile, so that the mean of equal tiles is that tile to the bit.
    first = tiles[:, 0]
    return first + jnp.mean(tiles - first[:, None], 1)


def _median(tiles: _Tiles) -> _Tile:
    ordered, count = jnp.sort(tiles, 1), tiles.shape[1]
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2


def _copy(tiles: _Tiles) -> _Tile:
    return tiles[:, 0]


# name -> the tile that all others become; the first is the default
RESTORES: dict[str, Callable[[Array], Array]] = {'mean': _mean, 'median': _median, 'copy': _copy}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PeriodicConstraint:
    """Images of equal tiles, `q_1 = ... = q_K`.

    Attributes:
        problem: The sizes, those of the data. Static under `jax.jit`.
    """

    problem: TilingProblem = dataclasses.field(metadata={'static': True})

    def _split(self, x: Fields) -> _Tiles:
        """Returns the tiles of `x`, row by row of tiles, raised to float32 where of half
        precision.
        """
        points, k = self.problem.points, self.problem.tiles
        if x.ndim != 4 or x.shape[1:] != (points, points, 1):
            raise ValueError(
                f'Got x of shape {x.shape}, expected (b, {points}, {points}, 1): '
                'build the constraint from the problem that the data were made with.'
            )
        b, side = x.shape[0], points // k
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x.reshape(b, k, side, k, side).swapaxes(2, 3).reshape(b, k * k, side * side)

    def _repeat(self, tile: _Tile) -> Fields:
        """Returns `tile(q)`, the image that repeats a tile."""
        k, side = self.problem.tiles, self.problem.points // self.problem.tiles
        return jnp.tile(tile.reshape(tile.shape[0], side, side, 1), (1, k, k, 1))

    def residual(self, x: Fields) -> Fields:
        """Returns `x - tile(mean_q q)`, the difference of each tile from their mean. Linear in x.

        Args:
            x: Fields `(b, points, points, 1)`. Half precision is raised to float32, float64 kept.

        Returns:
            Residuals `(b, points, points, 1)`, pixel by pixel; exactly 0 where all tiles are equal.

        Raises:
            ValueError: If the shape of `x` is not that of the problem.
        """
        return x - self._repeat(_mean(self._split(x)))

    def distance(self, x: Fields) -> PerSample:
        """Returns `sum_q mean|x - tile(q)|`, shape `(b,)`: 2/K of the sum over pairs of tiles of
        `mean|q_i - q_j|`.
        """
        tiles = self._split(x)
        gaps = jnp.abs(tiles[:, :, None] - tiles[:, None])
        return tiles.shape[1] * jnp.mean(gaps, (1, 2, 3))

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{'periodic': (b,)}`."""
        return {'periodic': self.distance(x)}

    @property
    def restores(self) -> Mapping[str, Callable[[Array], tuple[Array, Metrics]]]:
        """The exact ways back onto the set, `x -> (tile(q), {})`, by name; each is the identity on
        the set.

        `mean` averages the tiles: the nearest point in L2, but a binary texture turns grey where
        its tiles differ. `median` takes the median of each pixel over the tiles, the midpoint of
        the middle two: a nearest point in L1, and still binary where a majority of the tiles agree.
        `copy` repeats the first tile: in general nearest in no norm, but what holds within a tile
        (binarity) is kept.
        """
        return {name: functools.partial(self._replace, tile) for name, tile in RESTORES.items()}

    def _replace(self, choose_tile: Callable[[Array], Array], x: Fields) -> tuple[Fields, Metrics]:
        return self._repeat(choose_tile(self._split(x))), {}

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the nearest point in L2, the mean of the tiles repeated, and nothing else to
        report.

        Args:
            x: Fields `(b, points, points, 1)`.

        Returns:
            Fields of the same shape with all tiles equal, `x` itself to the bit where they already
            were; and `{}`.

        Raises:
            ValueError: If the shape of `x` is not that of the problem.
        """
        return next(iter(self.restores.values()))(x)


def periodic(problem: TilingProblem) -> PeriodicConstraint:
    """Returns the constraint that an image repeats one tile.

    Args:
        problem: The sizes of the data, such as a `TextureProblem`.

    Returns:
        A constraint on fields `(b, points, points, 1)`.

    Raises:
        ValueError: If the tiles do not divide the image.
    """
    if problem.tiles < 1 or problem.points % problem.tiles:
        raise ValueError(
            f'Got points = {problem.points} and tiles = {problem.tiles}, expected tiles >= 1 that '
            'divide the points.'
        )
    return PeriodicConstraint(problem)
