"""Sets given by inequalities, through their distance: box, ball, simplex, half-spaces, and mass
below a limit.

Each residual is the violation, zero inside and on the border, so no derivative pulls a point that
satisfies the set; `relu` and the norms here have the derivative 0 where they have a corner. Every
set but the half-spaces has one way back, to its nearest point. They take fields of any size:
`(b, h, w, c)`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Metrics, PerSample

Restore: TypeAlias = Callable[[Array], tuple[Array, Metrics]]

_PIXELS = (1, 2, 3)


def _raised(x: Array) -> Array:
    """Returns `x` in float32 or better, once it is known to be a batch of fields."""
    if x.ndim != 4:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, h, w, c): pass a batch of fields, channels '
            'last.'
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _total(x: Fields) -> Float[Array, 'b 1']:
    return jnp.sum(x, _PIXELS)[:, None]


def _norm(x: Fields) -> Float[Array, 'b 1']:
    """Returns the Euclidean norm of each field, with the derivative 0 at 0 in place of the square
    root's infinity.
    """
    square = _total(x * x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def project_simplex(x: Fields, total: float | int) -> Fields:
    """Returns the nearest field with no negative pixel and the sum `total`, `max(x - tau, 0)`.

    The threshold `tau` is found by sorting, then moved by one Newton step on
    `sum max(x - tau, 0) = total`, which is exact once the pixels above it are known: the sum is
    right to round-off, however many pixels there are.

    Args:
        x: Fields `(b, h, w, c)`, float32 or float64.
        total: The sum, > 0.

    Returns:
        Fields `(b, h, w, c)`.

    Reference:
        Held, Wolfe & Crowder, Mathematical Programming 6 (1974) 62; Duchi et al., ICML 2008, figure
        1.
    """
    flat = x.reshape(x.shape[0], -1)
    flat = flat - jnp.max(
        flat, 1, keepdims=True
    )  # a constant changes nothing, and tau is now of the total's size
    largest = -jnp.sort(-flat, axis=1)
    count = jnp.arange(1, flat.shape[1] + 1, dtype=x.dtype)
    thresholds = (
        jnp.cumsum(largest, 1) - total
    ) / count  # tau, if just the first ones stay above it
    above = jnp.sum(largest > thresholds, 1, keepdims=True)
    tau = jnp.take_along_axis(thresholds, above - 1, 1)
    left = jnp.maximum(flat - tau, 0)
    tau = tau + (left.sum(1, keepdims=True) - total) / jnp.sum(left > 0, 1, keepdims=True)
    return jnp.maximum(flat - tau, 0).reshape(x.shape)


class _Set:
    """The distance as the sum of the terms, for the sets below."""

    def distance(self, x: Fields) -> PerSample:
        """Returns the sum of the terms, `(b,)`."""
        return sum(self.terms(x).values())


class _Restorable(_Set):
    """The default way back, for the sets that have a nearest point in closed form."""

    @property
    def restores(self) -> Mapping[str, Restore]:
        """The one way onto the set by name, `nearest`: the Euclidean-nearest point, the identity on
        the set.
        """
        return {'nearest': self.restore}

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the Euclidean-nearest point of the set, `(b, h, w, c)`, and nothing else to
        report.
        """
        return self._nearest(_raised(x)), {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Box(_Restorable):
    """Fields with every pixel in `[low, high]`.

    Attributes:
        low: Smallest value allowed.
        high: Largest value allowed.
    """

    low: float = dataclasses.field(metadata={'static': True})
    high: float = dataclasses.field(metadata={'static': True})

    def residual(self, x: Fields) -> Fields:
        """Returns how far each pixel is outside, `relu(low - x) + relu(x - high)`, shape
        `(b, h, w, c)`.
        """
        x = _raised(x)
        return jax.nn.relu(self.low - x) + jax.nn.relu(x - self.high)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns `{'box': the mean violation over pixels (b,)}`."""
        return {'box': jnp.mean(self.residual(x), _PIXELS)}

    def _nearest(self, x: Fields) -> Fields:
        return jnp.clip(x, self.low, self.high)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ball(_Restorable):
    """Fields within `radius` of `center` in the Euclidean norm over all pixels,
    `|x - center| <= radius`.

    Attributes:
        radius: Largest norm allowed.
        center: The value of every pixel at the centre.
    """

    radius: float = dataclasses.field(metadata={'static': True})
    center: float = dataclasses.field(metadata={'static': True})

    def residual(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns the excess norm, `relu(|x - center| - radius)`, shape `(b, 1)`."""
        return jax.nn.relu(_norm(_raised(x) - self.center) - self.radius)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns `{'ball': the excess norm (b,)}`, the Euclidean distance to the ball."""
        return {'ball': self.residual(x)[:, 0]}

    def _nearest(self, x: Fields) -> Fields:
        norm = _norm(x - self.center)
        # The norm outside is at least the radius: no division by 0, and no cancellation however far
        # x is.
        inward = self.center + (self.radius / jnp.maximum(norm, self.radius))[..., None, None] * (
            x - self.center
        )
        return jnp.where((norm > self.radius)[..., None, None], inward, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Simplex(_Restorable):
    """Fields with no negative pixel and the sum `total`.

    Attributes:
        total: The sum over all pixels.
    """

    total: float = dataclasses.field(metadata={'static': True})

    def residual(self, x: Fields) -> Float[Array, 'b m']:
        """Returns `sum(x) - total`, then `relu(-x)` for every pixel, shape `(b, 1 + h w c)`."""
        x = _raised(x)
        return jnp.concatenate([_total(x) - self.total, jax.nn.relu(-x).reshape(x.shape[0], -1)], 1)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns `{'total': |sum(x) - total|, 'negative': the sum of relu(-x)}`, `(b,)` each, in
        the unit of a sum.
        """
        residual = self.residual(x)
        return {'total': jnp.abs(residual[:, 0]), 'negative': jnp.sum(residual[:, 1:], 1)}

    def _nearest(self, x: Fields) -> Fields:
        return project_simplex(x, self.total)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MassBelow(_Restorable):
    """Fields whose sum over all pixels is at most `limit`.

    Attributes:
        limit: The largest sum allowed.
    """

    limit: float = dataclasses.field(metadata={'static': True})

    def residual(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns the excess, `relu(sum(x) - limit)`, shape `(b, 1)`."""
        return jax.nn.relu(_total(_raised(x)) - self.limit)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns `{'mass': the excess (b,)}`."""
        return {'mass': self.residual(x)[:, 0]}

    def _nearest(self, x: Fields) -> Fields:
        return x - (self.residual(x) / math.prod(x.shape[1:]))[..., None, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one truth value to compare by
class HalfSpaces(_Set):
    """Fields on one side of k hyperplanes, `<normal_k, x> <= offset_k`.

    Attributes:
        normals: Unit normals `(k, h, w, c)`, a leaf of the pytree.
        offsets: Offsets `(k,)`, a leaf of the pytree.
    """

    normals: Any
    offsets: Any

    def residual(self, x: Fields) -> Float[Array, 'b k']:
        """Returns the distance to each half-space, `relu(<normal_k, x> - offset_k)`, shape
        `(b, k)`.

        Raises:
            ValueError: If a field of `x` and a normal differ in shape.
        """
        x = _raised(x)
        if x.shape[1:] != self.normals.shape[1:]:
            expected = ', '.join(map(str, self.normals.shape[1:]))
            raise ValueError(
                f'Got x of shape {x.shape}, expected (b, {expected}): one pixel for each of a '
                'normal.'
            )
        # Full precision: accelerators would otherwise round the fields to 10 bits or fewer.
        along = jnp.einsum('bhwc,khwc->bk', x, self.normals, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.relu(along - self.offsets)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns `{'half_spaces': the mean of the distances to the half-spaces (b,)}`."""
        return {'half_spaces': jnp.mean(self.residual(x), 1)}


def box(low: float | int, high: float | int) -> Box:
    """Returns the set of fields with every pixel in `[low, high]`; the distance is the mean
    violation.

    Args:
        low: Smallest value allowed.
        high: Largest value allowed, > low.

    Raises:
        ValueError: If `low >= high` or one is not finite.
    """
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f'Got low = {low}, high = {high}, expected finite numbers with low < high.'
        )
    return Box(float(low), float(high))


def ball(radius: float | int, center: float | int = 0.0) -> Ball:
    """Returns the set `|x - center| <= radius`, norm over all pixels; the distance is the excess
    norm.

    Args:
        radius: Largest norm allowed, > 0.
        center: The value of every pixel at the centre.

    Raises:
        ValueError: If `radius` is not positive and finite, or `center` is not finite.
    """
    _check_positive('radius', radius)
    if not math.isfinite(center):
        raise ValueError(
            f'Got center = {center}, expected a finite number: the value of every pixel at the '
            'centre.'
        )
    return Ball(float(radius), float(center))


def simplex(total: float | int) -> Simplex:
    """Returns the set of fields with no negative pixel and the sum `total`.

    The distance is `|sum(x) - total|` plus the sum of what is negative, two terms.

    Args:
        total: The sum over all pixels, > 0.

    Raises:
        ValueError: If `total` is not positive and finite.
    """
    _check_positive('total', total)
    return Simplex(float(total))


def mass_below(limit: float | int) -> MassBelow:
    """Returns the set of fields whose sum is at most `limit`; the distance is the excess.

    Args:
        limit: The largest sum allowed; pixels may be negative.

    Raises:
        ValueError: If `limit` is not finite.
    """
    if not math.isfinite(limit):
        raise ValueError(
            f'Got limit = {limit}, expected a finite number: the largest sum over all pixels.'
        )
    return MassBelow(float(limit))


def half_spaces(normals: ArrayLike, offsets: ArrayLike) -> HalfSpaces:
    """Returns the set `<normal_k, x> <= offset_k` for every k; the distance is the mean of those to
    the half-spaces.

    Zero only in all of them. There is no closed form of the nearest point, hence no `restores`.

    Args:
        normals: `(k, h, w, c)`, none zero; kept as unit vectors, the offsets scaled alike.
        offsets: `(k,)`.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or a normal is zero.
    """
    normals, offsets = (jnp.asarray(v) for v in (normals, offsets))
    if normals.ndim != 4 or not normals.size or offsets.shape != normals.shape[:1]:
        raise ValueError(
            f'Got normals of shape {normals.shape} and offsets of shape {offsets.shape}, expected '
            '(k, h, w, c) and (k,): one normal, shaped like a field, and one number for each '
            'half-space.'
        )
    normals = _raised(normals)
    norm = _norm(normals)
    if not (jnp.all(jnp.isfinite(norm) & (norm > 0)) and jnp.all(jnp.isfinite(offsets))):
        raise ValueError(
            f'Got normals of norm {norm[:, 0]} and offsets {offsets}, expected finite ones, norms '
            '> 0.'
        )
    return HalfSpaces(normals / norm[..., None, None], offsets / norm[:, 0])


def _check_positive(name: str, value: float | int) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f'Got {name} = {value}, expected a positive finite number.')
