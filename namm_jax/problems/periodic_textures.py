"""Periodic textures: a random binary tile, repeated along both axes.

Symbols: `m` pixels along a tile, at `linspace(0, 1, m)`, whose end point repeats the first; `Z`
standard normal. The tile before its threshold is a Gaussian process with the separable periodic
covariance `E (tile[i, k] - 1/2)(tile[j, l] - 1/2) = C[i, j] C[k, l]`,
`C[i, j] = std exp(-2 sin^2(pi |d_ij|) / correlation^2)`, drawn as `1/2 + A Z A^T` with `A A^T = C`.

Reference: Feng, Baptista & Bouman, "Neural Approximate Mirror Maps for Constrained Diffusion
Models", ICLR 2025, arXiv 2406.12816.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Key
from namm_jax.problems import checked_keys


@dataclasses.dataclass(frozen=True)
class TextureProblem:
    """The sizes and the covariance of periodic textures.

    Attributes:
        points: Pixels along each axis of the image, a multiple of `tiles`.
        tiles: Copies of the tile along each axis, >= 2.
        correlation: Length scale of the covariance, > 0; where small, `correlation / (2 pi)` of the
            tile's side is the length of a Gaussian covariance.
        std: Standard deviation of the process before its threshold, > 0. The threshold is the mean,
            so it does not matter to the binary field.

    Raises:
        ValueError: If a number is out of its range or `tiles` does not divide `points`.
    """

    points: int = 64
    tiles: int = 2
    correlation: float = 0.7
    std: float = 0.49

    def __post_init__(self) -> None:
        if self.tiles < 2:
            raise ValueError(
                f'Got tiles = {self.tiles}, expected at least 2: one copy is no repetition.'
            )
        if self.points % self.tiles or self.points < 3 * self.tiles:
            raise ValueError(
                f'Got points = {self.points} and tiles = {self.tiles}, expected a multiple of '
                f'{self.tiles}, at least {3 * self.tiles}: an image is made of whole tiles.'
            )
        if not (self.correlation > 0 and self.std > 0):
            raise ValueError(
                f'Got correlation = {self.correlation} and std = {self.std}, expected positive '
                'numbers.'
            )

    @property
    def tile(self) -> int:
        """Pixels along each axis of a tile."""
        return self.points // self.tiles


@functools.cache
def _covariance_root(distinct: int, correlation: float, std: float) -> np.ndarray:
    """Returns the symmetric A with `A A = C` on the `distinct` points that do not repeat another,
    in float64.
    """
    grid = np.arange(distinct) / distinct
    sine = np.sin(np.pi * (grid[:, None] - grid))
    values, vectors = np.linalg.eigh(std * np.exp(-2 * sine**2 / correlation**2))
    # The spectrum falls below round-off, which may be negative. The symmetric root is the one that
    # does not depend on the choice of eigenvectors, so that a key gives the same texture with every
    # linear algebra library.
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def sample_tiles(keys: Key, *, problem: TextureProblem) -> Float[Array, 'n m m']:
    """Returns tiles of the Gaussian process `1/2 + A Z A^T`, before their threshold.

    Args:
        keys: Typed PRNG keys `(n,)`, one a sample.
        problem: The sizes and the covariance.

    Returns:
        Tiles `(n, tile, tile)`, float32, mean 1/2; the last row and column equal the first to the
        bit.
    """
    distinct = problem.tile - 1
    draw = functools.partial(jax.random.normal, shape=(distinct, distinct), dtype=jnp.float32)
    root = jnp.asarray(_covariance_root(distinct, problem.correlation, problem.std), jnp.float32)
    # Full precision: accelerators would otherwise round the root to 10 bits or fewer.
    tiles = 0.5 + jnp.einsum(
        'ij,njk,kl->nil', root, jax.vmap(draw)(keys), root, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.pad(tiles, [(0, 0), (0, 1), (0, 1)], mode='wrap')


def sample_textures(keys: Key, *, problem: TextureProblem) -> Fields:
    """Returns binary textures, 1 where the process of `sample_tiles` is at least 1/2 and 0
    elsewhere, repeated.

    Field i depends on `keys[i]` alone, so a set can be drawn in chunks, on any number of hosts, and
    extended.

    Args:
        keys: Typed PRNG keys `(n,)`, one a sample.
        problem: The sizes and the covariance. Draw with the problem that the constraint gets.

    Returns:
        Fields `(n, points, points, 1)`, float32, every value 0 or 1.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    binary = (sample_tiles(checked_keys(keys), problem=problem) >= 0.5).astype(jnp.float32)
    return jnp.tile(binary, (1, problem.tiles, problem.tiles))[..., None]
