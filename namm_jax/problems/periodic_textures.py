"""Periodic textures: a random binary tile, repeated along both axes. The rule: all tiles are equal.

Symbols: `m` pixels along a tile, at `linspace(0, 1, m)`, whose end point repeats the first; `Z`
standard normal. The tile before its threshold is a Gaussian process with the separable periodic
covariance `E (tile[i, k] - 1/2)(tile[j, l] - 1/2) = C[i, j] C[k, l]`,
`C[i, j] = std exp(-2 sin^2(pi |d_ij|) / correlation^2)`, sampled as `1/2 + A Z A^T` with
`A A^T = C`. There are K tiles in all, `q_1, ..., q_K`; `tile(q)` is the image that repeats q.

Reference: Feng, Baptista & Bouman, "Neural Approximate Mirror Maps for Constrained Diffusion
Models", ICLR 2025, arXiv 2406.12816.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Key, Metrics, PerSample, einsum
from namm_jax._checks import check_keys
from namm_jax.constraints.base import Rule, rule
from namm_jax.problems.base import Problem, View, check_fields, parameter

_Tiles = Float[Array, 'b K m']  # the pixels of each tile in one row
_Tile = Float[Array, 'b m']


@dataclasses.dataclass(frozen=True)
class Textures(Problem):
    """Binary images `(points, points, 1)` of equal tiles, whose number divides the points'."""

    points: int = parameter(64, 'pixels along each axis, whole tiles of 3 or more', least=6)
    tiles: int = parameter(2, 'copies of the tile along each axis', least=2)
    correlation: float = parameter(0.7, 'length scale of the covariance, in tiles', above=0)
    # The threshold is the mean, so that this does not matter to the binary field.
    std: float = parameter(0.49, 'of the process before its threshold', above=0)

    name = 'textures'
    rule_name = 'periodic'
    operator = 'occluded_box'
    periodic = (True, True)
    view = View(('x', '|x − nearest texture|'), colours='cividis')
    distance_words = {
        'periodic': 'mean absolute difference from each tile repeated, summed over tiles'
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points % self.tiles or self.points < 3 * self.tiles:
            raise ValueError(
                f'Got points = {self.points} and tiles = {self.tiles}, expected a multiple of '
                f'{self.tiles}, at least {3 * self.tiles}: an image is made of whole tiles.'
            )

    @property
    def cell(self) -> tuple[int, int]:
        """Pixels along each axis of a tile."""
        return self.points // self.tiles, self.points // self.tiles

    def gaussian_tiles(self, keys: Key) -> Float[Array, 'n m m']:
        """Returns the tiles `(n, *cell)` of `fields` before their threshold, float32, mean 1/2; the
        last row and column equal the first to the bit.
        """
        check_keys(keys)
        distinct = self.cell[0] - 1
        draw = functools.partial(jax.random.normal, shape=(distinct, distinct), dtype=jnp.float32)
        root = jnp.asarray(_covariance_root(distinct, self.correlation, self.std), jnp.float32)
        tiles = 0.5 + einsum('ij,njk,kl->nil', root, jax.vmap(draw)(keys), root)
        return jnp.pad(tiles, [(0, 0), (0, 1), (0, 1)], mode='wrap')

    def fields(self, keys: Key) -> Fields:
        """Returns textures `(n, points, points, 1)`, float32: 1 where the process is at least 1/2,
        0 elsewhere.
        """
        binary = (self.gaussian_tiles(keys) >= 0.5).astype(jnp.float32)
        return jnp.tile(binary, (1, self.tiles, self.tiles))[..., None]

    def rule(self) -> Rule:
        """Returns the rule `q_1 = ... = q_K`."""
        ways = {'mean': self.mean_tile, 'median': self.median_tile, 'copy': self.first_tile}
        return rule('periodic', self.difference, self.tile_distance, restores=ways)

    def difference(self, x: Fields) -> Fields:
        """Returns `x - tile(mean_q q)`, linear in x, exactly 0 where all tiles are equal."""
        x = check_fields(self, x)
        return x - self._repeat(_mean(self._split(x)))

    def tile_distance(self, x: Fields) -> PerSample:
        """Returns `sum_q mean|x - tile(q)|`, shape `(b,)`: 2/K of the sum over pairs of tiles of
        `mean|q_i - q_j|`.
        """
        tiles = self._split(check_fields(self, x))
        gaps = jnp.abs(tiles[:, :, None] - tiles[:, None])
        return tiles.shape[1] * jnp.mean(gaps, (1, 2, 3))

    def mean_tile(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the mean of the tiles repeated, the nearest point in L2; nothing to report."""
        return self._repeat(_mean(self._split(check_fields(self, x)))), {}

    def median_tile(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the median of each pixel over the tiles (the midpoint of the middle two)
        repeated, and nothing to report: a nearest point in L1, binary where a majority agrees.
        """
        tiles = jnp.sort(self._split(check_fields(self, x)), 1)
        count = tiles.shape[1]
        return self._repeat((tiles[:, (count - 1) // 2] + tiles[:, count // 2]) / 2), {}

    def first_tile(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the first tile repeated, to the bit, nearest in no norm; nothing to report."""
        return self._repeat(self._split(check_fields(self, x))[:, 0]), {}

    def _split(self, x: Fields) -> _Tiles:
        b, k, side = x.shape[0], self.tiles, self.cell[0]
        return x.reshape(b, k, side, k, side).swapaxes(2, 3).reshape(b, k * k, side * side)

    def _repeat(self, tile: _Tile) -> Fields:
        side = self.cell[0]
        return jnp.tile(tile.reshape(-1, side, side, 1), (1, self.tiles, self.tiles, 1))


def _mean(tiles: _Tiles) -> _Tile:
    # Written around the first tile, so that the mean of equal tiles is that tile to the bit.
    first = tiles[:, 0]
    return first + jnp.mean(tiles - first[:, None], 1)


@functools.cache
def _covariance_root(distinct: int, correlation: float, std: float) -> np.ndarray:
    """Returns the symmetric A with `A A = C` on the points that do not repeat another, float64."""
    grid = np.arange(distinct) / distinct
    sine = np.sin(np.pi * (grid[:, None] - grid))
    values, vectors = np.linalg.eigh(std * np.exp(-2 * sine**2 / correlation**2))
    # The spectrum falls below round-off, which may be negative. The symmetric root does not depend
    # on the choice of eigenvectors: a key gives the same texture with every library.
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
