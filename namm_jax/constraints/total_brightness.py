"""The total brightness: the pixels of an image add up to a known number.

Symbols: `s = sum(x)` over the n pixels of an image, `total` what it should be. The set is the plane
`s = total`; the images of `data.black_holes` lie on its part without negative pixels, a simplex.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics, PerSample
from namm_jax.constraints.sets import project_simplex

SMALLEST_SUM = 1e-6  # relative to the total: below it, rescaling has nothing to go by


@runtime_checkable
class BrightnessProblem(Protocol):
    """What the constraint needs to know of the data."""

    @property
    def points(self) -> int:
        """Pixels along each axis of the image."""
        ...

    @property
    def total(self) -> float | int:
        """Sum over the pixels of an image."""
        ...


def _simplex(x: Fields, total: float | int) -> tuple[Fields, Metrics]:
    return project_simplex(x, total), {}


def _shift(x: Fields, total: float | int) -> tuple[Fields, Metrics]:
    missing = total - jnp.sum(x, (1, 2, 3), keepdims=True)
    return x + missing / math.prod(x.shape[1:]), {}


def _rescale(x: Fields, total: float | int) -> tuple[Fields, Metrics]:
    s = jnp.sum(x, (1, 2, 3), keepdims=True)
    usable = jnp.abs(s) >= SMALLEST_SUM * total
    return jnp.where(usable, x * (total / jnp.where(usable, s, total)), x), {
        'restored': usable[:, 0, 0, 0]
    }


# name -> (x, total) -> (x on the set, information); the first is the default
RESTORES: dict[str, Callable[..., tuple[Array, Metrics]]] = {
    'simplex': _simplex,
    'shift': _shift,
    'rescale': _rescale,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TotalBrightness:
    """Images whose pixels add up to `total`.

    Any permutation of the pixels is a symmetry; so is every change whose sum is 0.

    Attributes:
        problem: Number of pixels and total, those of the data. Static under `jax.jit`.
    """

    problem: BrightnessProblem = dataclasses.field(metadata={'static': True})

    def _raised(self, x: Fields) -> Fields:
        points = self.problem.points
        if x.ndim != 4 or x.shape[1:] != (points, points, 1):
            raise ValueError(
                f'Got x of shape {x.shape}, expected (b, {points}, {points}, 1): '
                'build the constraint from the problem that the data were made with.'
            )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def residual(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns `sum(x) - total`, negative for an image that is too dark.

        Args:
            x: Fields `(b, points, points, 1)`. Half precision is raised to float32, float64 kept.

        Returns:
            Residuals `(b, 1)`, in brightness. In float32 they are known to about 1e-6 of the total.

        Raises:
            ValueError: If the shape of `x` is not that of the problem.
        """
        return jnp.sum(self._raised(x), (1, 2, 3))[:, None] - self.problem.total

    def distance(self, x: Fields) -> PerSample:
        """Returns `|sum(x) - total|`, shape `(b,)`; its derivative on the set itself is 0."""
        return jnp.abs(self.residual(x)[:, 0])

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{'total_brightness': (b,)}`."""
        return {'total_brightness': self.distance(x)}

    @property
    def restores(self) -> Mapping[str, Callable[[Array], tuple[Array, Metrics]]]:
        """The exact ways back onto the set by name, `x -> (x, information)`; all keep images of the
        data as they are.

        `simplex` is the nearest image without negative pixels, and sets every pixel below one
        threshold to 0. It is the identity on the set only where no pixel is negative. `shift` adds
        the same to every pixel: the nearest point of the set, at the price of haze or negative
        pixels. `rescale` multiplies by `total / s`: dark stays dark, but what noise there is grows
        by that factor, without bound as s goes to 0, and a negative sum turns the image into its
        negative. Below `|s| = 1e-6 total` the image is returned as it is, off the set; `restored`
        `(b,)` says where it was not.
        """
        return {
            name: lambda x, way=way: way(self._raised(x), self.problem.total)
            for name, way in RESTORES.items()
        }

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the nearest image without negative pixels, and nothing else to report.

        Args:
            x: Fields `(b, points, points, 1)`.

        Raises:
            ValueError: If the shape of `x` is not that of the problem.
        """
        return next(iter(self.restores.values()))(x)


def total_brightness(problem: BrightnessProblem) -> TotalBrightness:
    """Returns the constraint that the pixels of an image add up to the problem's total.

    Args:
        problem: Size and total of the data, such as a `BlackHoleProblem`; hashable.

    Returns:
        A constraint on fields `(b, points, points, 1)`.

    Raises:
        ValueError: If the total is not positive and finite, or there are no points.
    """
    if not 0 < problem.total < math.inf or problem.points < 1:
        raise ValueError(
            f'Got total = {problem.total} and points = {problem.points}, expected a positive, '
            'finite total and at least 1 point along each axis.'
        )
    return TotalBrightness(problem)
