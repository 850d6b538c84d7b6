"""Mirror maps of convex sets in closed form: box, ball and simplex.

Symbols as in `types`: `g = grad phi` of a convex potential phi takes the inside of the set to all
of mirror space, and `f = (grad phi)^-1` takes every finite z back inside or, by rounding, onto the
border: samples violate the set by no more than round-off.

On the border of its set g is infinite, and real data do lie there: black pixels, binary images. So
each map takes a `floor` in [0, 1): g reads `x' = (1 - floor) x + floor centre` in place of x. f
does not undo this, or its points could lie outside: `f(g(x)) = x'`, and samples keep a haze, a bias
of `floor (centre - x)` in each pixel. A small floor has a price too, a long tail in mirror space,
where darkness that nobody sees sets the scale: among pixels near 1, one of 1e-12 lies 28 below the
others on the simplex. With floor 0 the round trip is exact, and the data must be inside.

Reference: Liu, Chen, Theodorou & Tao, "Mirror Diffusion Models for Constrained and Watermarked
Generation", NeurIPS 2023, arXiv 2310.01236.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from namm_jax._arrays import Fields, Key, MirrorMap, Params

_PIXELS = (1, 2, 3)


def _closed_form(g: Callable[[Array], Array], f: Callable[[Array], Array]) -> MirrorMap:
    """Returns the mirror map without parameters."""

    def forward(params: Params, x: Fields) -> Fields:
        return g(x)

    def inverse(params: Params, z: Fields, dropout_key: Key | None = None) -> Fields:
        return f(z)

    return MirrorMap(lambda key, x: {}, forward, inverse)


def _check(name: str, value: float | int, floor: float | int) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f'Got {name} = {value}, expected a positive finite number.')
    if not 0 <= floor < 1:
        raise ValueError(
            f'Got floor = {floor}, expected a number in [0, 1): the part of the centre mixed into '
            'x.'
        )


def box_map(low: float | int, high: float | int, *, floor: float | int = 0.0) -> MirrorMap:
    """Returns the mirror map of `low < x < high`, pixel by pixel.

    `g(x) = (log(x - low) - log(high - x)) / 2 = artanh((2 x - low - high) / (high - low))` and
    `f(z) = low + (high - low)(1 + tanh z)/2`; `phi(x) = sum ((x - low) log(x - low) + (high - x)
    log(high - x)) / 2`. In float32 `f(g(x)) = x` to 1e-6 of `max(|low|, |high|)`, and f stays
    inside to the same, exactly if low is 0.

    Args:
        low: The lower bound.
        high: The upper bound, > low.
        floor: Part of the middle of the box that is mixed into the data; see the module's
            docstring.

    Raises:
        ValueError: If a number is out of its range.
    """
    _check('high - low', high - low, floor)
    middle = (low + high) / 2

    def g(x: Array) -> Array:
        x = (1 - floor) * x + floor * middle
        return (jnp.log(x - low) - jnp.log(high - x)) / 2

    # Both weights from their own sigmoid: each border is then reached without cancellation.
    return _closed_form(g, lambda z: low * jax.nn.sigmoid(-2 * z) + high * jax.nn.sigmoid(2 * z))


def ball_map(radius: float | int, *, floor: float | int = 0.0) -> MirrorMap:
    """Returns the mirror map of `|x| < radius`, the Euclidean norm over all pixels of a field.

    `phi(x) = -log(R^2 - |x|^2)`, `g(x) = 2 x / (R^2 - |x|^2)` and
    `f(z) = R^2 z / (1 + sqrt(1 + R^2 |z|^2))`, which has no norm to divide by. In float32
    `f(g(x)) = x` to 1e-6 R where `|x| < (1 - 1e-6) R`, and `|f(z)| <= R` to 1e-6 R for `R |z|` up
    to 1e18.

    Args:
        radius: R > 0.
        floor: Part of the centre, 0, that is mixed into the data; see the module's docstring.

    Raises:
        ValueError: If a number is out of its range.
    """
    _check('radius', radius, floor)

    def square(x: Array) -> Array:
        return jnp.sum(x * x, _PIXELS, keepdims=True)

    def g(x: Array) -> Array:
        x = (1 - floor) * x
        return 2 * x / (radius**2 - square(x))

    return _closed_form(g, lambda z: radius**2 * z / (1 + jnp.sqrt(1 + square(radius * z))))


def simplex_map(total: float | int, *, floor: float | int = 0.0) -> MirrorMap:
    """Returns the mirror map of `x > 0, sum(x) = total`, over all pixels of a field.

    `phi(x) = sum x log x`, whose gradient on the simplex is `g(x) = log x - mean(log x)`: mirror
    points are fields of mean 0. `f(z) = total softmax(z)`, the same for `z + constant`, so
    `g(f(z)) = z - mean(z)`: of the noise in mirror space one number a field has no effect. In
    float32 `f(g(x)) = x` to 1e-5 of each pixel above 1e-20, `f(z) >= 0`, and its sum is right to
    1e-6 of the total; a pixel more than 104 below the largest z is 0.

    Args:
        total: The sum, > 0.
        floor: Part of the uniform image that is mixed into the data; see the module's docstring.
            Black pixels become `floor total / n`, and samples lose the part `floor` of their light
            to an even haze.

    Raises:
        ValueError: If a number is out of its range.
    """
    _check('total', total, floor)

    def g(x: Array) -> Array:
        log_x = jnp.log((1 - floor) * x + floor * total / math.prod(x.shape[1:]))
        return log_x - jnp.mean(log_x, _PIXELS, keepdims=True)

    return _closed_form(g, lambda z: total * jax.nn.softmax(z, _PIXELS))


# name -> (size of the set, *, floor) -> MirrorMap
CLOSED_FORM: dict[str, Callable[..., MirrorMap]] = {
    'box': box_map,
    'ball': ball_map,
    'simplex': simplex_map,
}
