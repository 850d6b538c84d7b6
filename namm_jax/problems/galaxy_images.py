"""Galaxy images: a known number of elliptical sources in smoothed noise.

Symbols: a source has a centre, a peak `A`, widths `s_x >= s_y` in pixels and an angle; `x'` and
`y'` are the distances from its centre along its two axes. The image is
`sum_sources A exp(-(x'^2/s_x^2 + y'^2/s_y^2)/(4 ln 2))` plus smoothed white noise, scaled to [0,
1]. (Whether the signal's mean is taken off first makes no difference to that.) The standard
deviation of a source is `sqrt(2 ln 2) s = 1.18 s`, its full width at half maximum
`4 ln 2 s = 2.77 s`.

Lengths are stated at 128 points. An image of other size shows the same sky with larger or smaller
pixels: the scale of the widths, the smoothing and the white noise are multiplied by `points / 128`,
which keeps the standard deviation of the smoothed noise. What a pixel sets stays in pixels: the
least width, and the separation of sources.

Reference: Feng, Baptista & Bouman, "Neural Approximate Mirror Maps for Constrained Diffusion
Models", ICLR 2025, arXiv 2406.12816.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from namm_jax._arrays import Fields, Key
from namm_jax.problems import checked_keys

REFERENCE_POINTS = 128
FAINTEST = 5.62  # least peak, in standard deviations of the smoothed noise
BRIGHTEST = 10.0  # greatest peak
WIDTH_SHAPE, WIDTH_SCALE = 1.6, 2.0  # s_x = 0.5 Gamma(1.6, 1) / 0.25, in pixels at 128 points
LEAST_WIDTH = 1.0  # of s_x, in pixels at any size
ELLIPTICITY = (1.7, 4.5)  # e ~ Beta, s_y = s_x sqrt((1 - e)/(1 + e))
MOST_CLOSE_PAIRS = 5.0  # expected in a draw of centres; about one draw in exp(5) is then accepted


@dataclasses.dataclass(frozen=True)
class GalaxyProblem:
    """The sizes and the noise of galaxy images.

    Attributes:
        points: Pixels along each axis of the image.
        count: Sources in each image, >= 0; or the least and the greatest number `(low, high)` of a
            uniform law.
        noise: Standard deviation of the white noise before smoothing, at 128 points, >= 0.
        smoothing: Standard deviation in pixels of the Gaussian that smooths the noise, at 128
            points, > 0.
        separation: Distance in pixels that every two centres exceed, at any size, >= 0.

    Raises:
        ValueError: If a number is out of its range, if the noise makes the faintest source brighter
            than the brightest, or if so many sources so far apart hardly ever fit.
    """

    points: int = 128
    count: int | tuple[int, int] = 8
    noise: float = 8.5
    smoothing: float = 4.0
    separation: float = 5.0

    def __post_init__(self) -> None:
        low, high = self.counts
        if not 0 <= low <= high:
            raise ValueError(
                f'Got count = {self.count}, expected a number >= 0 or a pair 0 <= low <= high.'
            )
        if self.points < 4:
            raise ValueError(f'Got points = {self.points}, expected at least 4.')
        if not (self.noise >= 0 and self.smoothing > 0 and self.separation >= 0):
            raise ValueError(
                f'Got noise = {self.noise}, smoothing = {self.smoothing}, separation = '
                f'{self.separation}; expected noise >= 0, smoothing > 0, separation >= 0.'
            )
        if self.faintest > BRIGHTEST:
            raise ValueError(
                f'Got noise = {self.noise} and smoothing = {self.smoothing}, whose least peak is '
                f'{self.faintest:.3g}; expected at most {BRIGHTEST}, the greatest: use less noise '
                'or smooth more.'
            )
        if (
            pairs := math.comb(high, 2) * math.pi * self.separation**2 / self.points**2
        ) > MOST_CLOSE_PAIRS:
            raise ValueError(
                f'Got up to {high} sources more than {self.separation} pixels apart on '
                f'{self.points}x{self.points}, where a random draw has {pairs:.1f} pairs that are '
                f'closer, expected at most {MOST_CLOSE_PAIRS}: use fewer sources, more points or a '
                'smaller separation.'
            )

    @property
    def counts(self) -> tuple[int, int]:
        """The least and the greatest number of sources."""
        return self.count if isinstance(self.count, tuple) else (self.count, self.count)

    @property
    def scale(self) -> float:
        """What lengths and white noise at 128 points are multiplied by."""
        return self.points / REFERENCE_POINTS

    @property
    def smoothed_noise(self) -> float:
        """Standard deviation of the smoothed noise: the root of its variance's mean over the image.
        0.63 by default.
        """
        blur = _blur_matrix(self.points, self.scale * self.smoothing)
        # The variance at (i, j) is noise^2 v_i v_j, with v_i the sum over row i of blur^2.
        return self.scale * self.noise * float((blur**2).sum(1).mean())

    @property
    def faintest(self) -> float:
        """The least peak of a source, 5.62 standard deviations of the smoothed noise. 3.55 by
        default.
        """
        return FAINTEST * self.smoothed_noise


class Sources(NamedTuple):
    """The sources of images, `k` slots in each; a slot without a source has the peak 0.

    Attributes:
        centres: Row and column in pixels, `(..., k, 2)`.
        peaks: `A`, `(..., k)`.
        widths: `s_x` and `s_y` in pixels, `(..., k, 2)`.
        angles: From the columns' direction to the axis of `s_x`, towards larger rows, in radians,
            `(..., k)`.
    """

    centres: Int[Array, '*n k 2']
    peaks: Float[Array, '*n k']
    widths: Float[Array, '*n k 2']
    angles: Float[Array, '*n k']


@functools.cache
def _blur_matrix(points: int, sigma: float) -> np.ndarray:
    """Returns the matrix `(points, points)` of smoothing by a Gaussian cut at 4 sigma, reflected at
    the borders.

    The image is continued by its mirror image, border pixel included, as by SciPy's
    `gaussian_filter`. Rows sum to 1.
    """
    radius = math.ceil(4 * sigma)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    index = (np.arange(points)[:, None] + offsets) % (2 * points)
    index = np.minimum(index, 2 * points - 1 - index)
    matrix = np.zeros((points, points))
    np.add.at(matrix, (np.arange(points)[:, None], index), weights / weights.sum())
    return matrix


def _draw_centres(key: Key, count: Int[Array, ''], problem: GalaxyProblem) -> Int[Array, 'k 2']:
    """Returns centres of which the first `count` are more than the separation apart, pair by pair.

    All centres are drawn again, uniformly on the pixels, until they are: the law is uniform on all
    such placements. Neither widths, peaks nor noise depend on the centres, so drawing those again
    too would not change the law.
    """
    slots = max(1, problem.counts[1])
    first, second = np.triu_indices(slots, 1)  # first < second: a pair is there if its second is

    def draw(attempt: Array) -> Array:
        return jax.random.randint(
            jax.random.fold_in(key, attempt), (slots, 2), 0, problem.points, jnp.int32
        )

    def too_close(carry: tuple[Array, Array]) -> Array:
        gaps = carry[1][first] - carry[1][second]
        return jnp.any((jnp.sum(gaps**2, -1) <= problem.separation**2) & (second < count))

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] + 1, draw(carry[0] + 1)

    start = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(too_close, again, (start, draw(start)))[1]


def _draw_sources(key: Key, problem: GalaxyProblem) -> tuple[Sources, Int[Array, '']]:
    """Returns the sources of one image, and how many there are."""
    key_count, key_centre, key_peak, key_width, key_ellipticity, key_angle = jax.random.split(
        key, 6
    )
    low, high = problem.counts
    shape, dtype = (max(1, high),), jnp.float32
    count = jax.random.randint(key_count, (), low, high + 1, jnp.int32)
    peaks = jax.random.uniform(key_peak, shape, dtype, problem.faintest, BRIGHTEST)
    s_x = problem.scale * WIDTH_SCALE * jax.random.gamma(key_width, WIDTH_SHAPE, shape, dtype)
    s_x = jnp.maximum(s_x, LEAST_WIDTH)
    e = jax.random.beta(key_ellipticity, *ELLIPTICITY, shape, dtype)
    return Sources(
        centres=_draw_centres(key_centre, count, problem),
        peaks=jnp.where(jnp.arange(shape[0]) < count, peaks, 0),
        widths=jnp.stack([s_x, s_x * jnp.sqrt((1 - e) / (1 + e))], -1),
        angles=jax.random.uniform(key_angle, shape, dtype, 0, math.pi),
    ), count


def sample_sources(keys: Key, *, problem: GalaxyProblem) -> tuple[Sources, Int[Array, ' n']]:
    """Returns the sources that the images of `sample_galaxies` show, drawn from the same keys.

    Peaks are uniform between `problem.faintest` and 10, `s_x = 2 Gamma(1.6, 1)` pixels but at least
    1, `s_y = s_x sqrt((1 - e)/(1 + e))` with `e ~ Beta(1.7, 4.5)`, angles uniform; centres are
    uniform on all placements on pixels with every two more than `problem.separation` apart. A
    source near the border is cut by it.

    Args:
        keys: Typed PRNG keys `(n,)`, one an image.
        problem: Sizes, noise and number of sources.

    Returns:
        The sources, each array with leading axes `(n, k)`, k the greatest number of the problem (at
        least 1); and their numbers `(n,)`, int32: the first of an image's k slots are taken, the
        others have the peak 0.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    return jax.vmap(lambda key: _draw_sources(jax.random.split(key)[0], problem))(
        checked_keys(keys)
    )


def sample_noise(keys: Key, *, problem: GalaxyProblem) -> Float[Array, 'n points points']:
    """Returns the smoothed noise in the images of `sample_galaxies`, drawn from the same keys.

    White noise of standard deviation `problem.noise` (at 128 points), smoothed by a Gaussian that
    is reflected at the borders, where its variance is therefore greater: up to twofold at an edge,
    fourfold in a corner.

    Args:
        keys: Typed PRNG keys `(n,)`, one an image.
        problem: Sizes and noise.

    Returns:
        Noise `(n, points, points)`, float32, with mean 0 and, over the image, variance
        `problem.smoothed_noise**2`.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    draw = lambda key: jax.random.normal(
        jax.random.split(key)[1], (problem.points, problem.points), jnp.float32
    )
    blur = jnp.asarray(_blur_matrix(problem.points, problem.scale * problem.smoothing), jnp.float32)
    # Full precision: accelerators would otherwise round the matrix to 10 bits or fewer.
    smooth = functools.partial(jnp.einsum, 'ij,njk,lk->nil', precision=jax.lax.Precision.HIGHEST)
    return problem.scale * problem.noise * smooth(blur, jax.vmap(draw)(checked_keys(keys)), blur)


def _profile(source: Sources, points: int) -> Float[Array, 'points points']:
    """Returns the image of one source."""
    pixels = jnp.arange(points, dtype=jnp.float32)
    down, right = pixels[:, None] - source.centres[0], pixels[None, :] - source.centres[1]
    cosine, sine = jnp.cos(source.angles), jnp.sin(source.angles)
    along = (right * cosine + down * sine) / source.widths[0]
    across = (down * cosine - right * sine) / source.widths[1]
    return source.peaks * jnp.exp(-(along**2 + across**2) / (4 * math.log(2)))


def render(sources: Sources, *, points: int) -> Float[Array, 'n points points']:
    """Returns the sum of the sources, `sum A exp(-(x'^2/s_x^2 + y'^2/s_y^2)/(4 ln 2))`, at every
    pixel of the image.

    Args:
        sources: Sources, each array with leading axes `(n, k)`.
        points: Pixels along each axis.

    Returns:
        Images `(n, points, points)`, float32, no noise.
    """

    def add(image: Array, source: Sources) -> tuple[Array, None]:
        return image + _profile(source, points), None

    # One source of every image at a time: all at once would hold k times as many pixels.
    def one(sources: Sources) -> Array:
        return jax.lax.scan(add, jnp.zeros((points, points), jnp.float32), sources)[0]

    return jax.vmap(one)(sources)


def sample_galaxies_with_counts(
    keys: Key, *, problem: GalaxyProblem
) -> tuple[Fields, Int[Array, ' n']]:
    """Returns galaxy images and the number of sources in each.

    A counter is trained on `dataclasses.replace(problem, count=(0, 16))`. An image without a source
    is noise stretched to [0, 1].

    Args:
        keys: Typed PRNG keys `(n,)`, one an image.
        problem: Sizes, noise and number of sources.

    Returns:
        Fields as those of `sample_galaxies`, and the numbers `(n,)`, int32.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    sources, counts = sample_sources(keys, problem=problem)
    x = render(sources, points=problem.points) + sample_noise(keys, problem=problem)
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    # A constant image, which only noise = 0 without a source can give, becomes 0.
    return ((x - low) / jnp.where(high > low, high - low, 1))[..., None], counts


def sample_galaxies(keys: Key, *, problem: GalaxyProblem) -> Fields:
    """Returns galaxy images with the problem's number of sources.

    Field i depends on `keys[i]` alone, so a set can be drawn in chunks, on any number of hosts, and
    extended.

    Args:
        keys: Typed PRNG keys `(n,)`, one an image.
        problem: Sizes, noise and number of sources.

    Returns:
        Fields `(n, points, points, 1)`, float32, the least value of each exactly 0 and the greatest
        1.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    return sample_galaxies_with_counts(keys, problem=problem)[0]
