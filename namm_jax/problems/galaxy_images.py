"""Galaxy images: a number of elliptical sources in smoothed noise. The rule: a trained network
counts that number; where images come with a map of their sources, the map's sum is near to it.

Symbols: a source has a centre, a peak `A`, widths `s_x >= s_y` in pixels and an angle; `x'` and
`y'` are the distances from its centre along its two axes. The image is
`sum_sources A exp(-(x'^2/s_x^2 + y'^2/s_y^2)/(4 ln 2))` plus smoothed white noise, scaled to
[0, 1]. The standard deviation of a source is `sqrt(2 ln 2) s = 1.18 s`.

Peaks are uniform between `faintest` and 10, `s_x = 2 Gamma(1.6, 1)` pixels but at least 1,
`s_y = s_x sqrt((1 - e)/(1 + e))` with `e ~ Beta(1.7, 4.5)`, angles uniform; centres are uniform on
all placements on pixels with every two more than `separation` apart. The border cuts sources.

Lengths are stated at 128 points. An image of other size shows the same sky with larger or smaller
pixels: the scale of the widths, the smoothing and the white noise are multiplied by `points / 128`,
which keeps the standard deviation of the smoothed noise; least width and separation stay in pixels.

The map is the sources as points of sum 1, smoothed by a Gaussian of `MAP_WIDTH` pixels that the
borders reflect: however wide it is, its sum is the number of sources.

Reference: Feng, Baptista & Bouman, "Neural Approximate Mirror Maps for Constrained Diffusion
Models", ICLR 2025, arXiv 2406.12816.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from namm_jax._arrays import Fields, Key, Measurement, PerSample, as_pytree, einsum
from namm_jax._checks import check_keys
from namm_jax.constraints.base import Rule, rule
from namm_jax.inverse.operators import Operator, blur_matrix
from namm_jax.problems.base import Problem, View, check_fields, parameter

FAINTEST = 5.62  # least peak, in standard deviations of the smoothed noise
BRIGHTEST = 10.0  # greatest peak
WIDTH_SHAPE, WIDTH_SCALE = 1.6, 2.0  # s_x = 0.5 Gamma(1.6, 1) / 0.25, in pixels at 128 points
LEAST_WIDTH = 1.0  # of s_x, in pixels at any size
ELLIPTICITY = (1.7, 4.5)  # e ~ Beta, s_y = s_x sqrt((1 - e)/(1 + e))
MAP_WIDTH = 2.0  # standard deviation of a source in the map, in pixels at any size
MAP_SLACK = 0.25  # sources by which the sum of a map may be off
IMAGE_MEAN, IMAGE_STD = 0.21, 0.107  # of the pixels of images with eight sources
MOST_CLOSE_PAIRS = 5.0  # expected among random centres; about one set in exp(5) is then accepted


class Sources(NamedTuple):
    """The sources of images, `k` slots in each; a slot without a source has the peak 0."""

    centres: Int[Array, '*n k 2']  # row and column in pixels
    peaks: Float[Array, '*n k']  # A
    widths: Float[Array, '*n k 2']  # s_x and s_y in pixels
    angles: Float[Array, '*n k']  # radians, from the columns' direction to x', towards larger rows


@dataclasses.dataclass(frozen=True)
class Galaxies(Problem):
    """Images `(points, points, 1)` with `count` sources each, or with the map of these sources as a
    second channel. A ValueError is raised if the noise makes the faintest source brighter than the
    brightest, or so many sources so far apart hardly ever fit.
    """

    points: int = parameter(128, 'pixels along each axis', least=4)
    count: int | tuple[int, int] = parameter(8, 'sources, or (low, high) of a uniform law', least=0)
    noise: float = parameter(8.5, 'std of the white noise before smoothing, at 128 points', least=0)
    smoothing: float = parameter(4.0, "std of the noise's blur, in pixels at 128 points", above=0)
    separation: float = parameter(5.0, 'least distance of two centres, in pixels', least=0)
    maps: bool = parameter(False, 'whether images come with the map of their sources')

    name = 'galaxies'
    rule_name = 'count'
    operator = 'downsampling'
    view = View(('brightness', '|residual|'), colours='gray')
    distance_words = {
        'count': 'error of the number of sources, by counters that nothing is trained against'
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.counts
        if low > high:
            raise ValueError(f'Got count = {self.count}, expected a number or low <= high.')
        if self.faintest > BRIGHTEST:
            raise ValueError(
                f'Got noise = {self.noise} and smoothing = {self.smoothing}, whose least peak is '
                f'{self.faintest:.3g}; expected at most {BRIGHTEST}, the greatest: use less noise '
                'or smooth more.'
            )
        pairs = math.comb(high, 2) * math.pi * self.separation**2 / self.points**2
        if pairs > MOST_CLOSE_PAIRS:
            raise ValueError(
                f'Got up to {high} sources more than {self.separation} pixels apart on '
                f'{self.points}x{self.points}, where random centres have {pairs:.1f} pairs that '
                f'are closer, expected at most {MOST_CLOSE_PAIRS}: use fewer sources, more points '
                'or a smaller separation.'
            )

    @property
    def counts(self) -> tuple[int, int]:
        """The least and the greatest number of sources."""
        return self.count if isinstance(self.count, tuple) else (self.count, self.count)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.points, self.points, 1 + self.maps

    @property
    def mean(self) -> float | tuple[float, float]:
        return (IMAGE_MEAN, sum(self.counts) / 2 / self.points**2) if self.maps else 0.0

    @property
    def scale(self) -> float | tuple[float, float]:
        # A Gaussian of width s and sum 1 has the sum of squares 1 / (4 pi s^2).
        std = math.sqrt(max(1, self.counts[1]) / (4 * math.pi)) / (MAP_WIDTH * self.points)
        return (1.0, std / IMAGE_STD) if self.maps else 1.0

    @property
    def magnification(self) -> float:
        """What lengths and white noise at 128 points are multiplied by, `points / 128`."""
        return self.points / 128

    @property
    def blur(self) -> Float[np.ndarray, 'points points']:
        """The matrix of smoothing along an axis, by a Gaussian cut at 4 standard deviations, the
        image continued by its mirror image, border pixel included: SciPy's `gaussian_filter`.
        """
        return blur_matrix(self.points, 1, self.magnification * self.smoothing)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the smoothed noise over the image, 0.63 by default."""
        # The variance at (i, j) is noise^2 v_i v_j, with v_i the sum over row i of blur^2.
        return self.magnification * self.noise * float((self.blur**2).sum(1).mean())

    @property
    def faintest(self) -> float:
        """The least peak of a source, 5.62 `noise_std`: 3.55 by default."""
        return FAINTEST * self.noise_std

    def sources(self, keys: Key) -> tuple[Sources, Int[Array, ' n']]:
        """Returns the sources `(n, k)` of `fields`, and in how many of its k slots each has one."""
        check_keys(keys)
        return jax.vmap(lambda key: _image_sources(jax.random.split(key)[0], self))(keys)

    def smoothed_noise(self, keys: Key) -> Float[Array, 'n points points']:
        """Returns the noise in `fields`, float32, of mean 0 and, over the image, variance
        `noise_std**2`: smoothing reflects at the borders, where it is up to fourfold.
        """
        check_keys(keys)
        white = functools.partial(jax.random.normal, shape=self.shape[:2], dtype=jnp.float32)
        noise = jax.vmap(lambda key: white(jax.random.split(key)[1]))(keys)
        blur = jnp.asarray(self.blur, jnp.float32)
        return self.magnification * self.noise * einsum('ij,njk,lk->nil', blur, noise, blur)

    def fields_with_counts(self, keys: Key) -> tuple[Fields, Int[Array, ' n']]:
        """Returns images as of `fields`, and how many sources there are in each."""
        sources, counts = self.sources(keys)
        x = render(sources, points=self.points) + self.smoothed_noise(keys)
        low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
        # A constant image, which only noise = 0 without a source can give, becomes 0.
        images = (x - low) / jnp.where(high > low, high - low, 1)
        channels = [images, self.source_maps(sources)] if self.maps else [images]
        return jnp.stack(channels, -1), counts

    def source_maps(self, sources: Sources) -> Float[Array, 'n points points']:
        """Returns the maps of sources `(n, k)`, in sources a pixel, float32, >= 0."""
        spread = jnp.asarray(blur_matrix(self.points, 1, MAP_WIDTH), jnp.float32)
        down, right = spread[sources.centres[..., 0]], spread[sources.centres[..., 1]]
        return einsum('nk,nki,nkj->nij', (sources.peaks > 0).astype(jnp.float32), down, right)

    def fields(self, keys: Key) -> Fields:
        """Returns images `(n, points, points, 1)`, float32, each with exact extremes 0 and 1, or
        `(n, points, points, 2)` with the maps of their sources.
        """
        return self.fields_with_counts(keys)[0]

    def rule(self, counter: Callable[[Fields], PerSample] | None = None) -> Rule:
        """Returns the rule `counter(x) = count`; its distance is `|counter(x) - count|`. It is as
        good as its network, and there is no exact way back onto the set. Of images with maps, the
        rule is `|sum(map) - count| <= MAP_SLACK`, without a counter; its distance is by how much
        the sum is beyond.

        Args:
            counter: `x (b, h, w, 1) -> (b,)`; parameters are leaves of the rule where it is
                `jax.tree_util.Partial(network.apply, {'params': params})`.

        Raises:
            ValueError: if there is no counter for images, or one for images with maps, or the
                number of sources is a range.
        """
        if self.maps and counter is not None:
            raise ValueError(
                'counter: got one, expected none: the map of sources is what is counted'
            )
        if counter is None and not self.maps:
            raise ValueError(
                'counter: got none, expected the network that counts sources: train one, the stage '
                '`counter` of an experiment, or give constraint(counter=...)'
            )
        if self.counts[0] != self.counts[1]:
            raise ValueError(
                f'Got {self.counts[0]} to {self.counts[1]} sources, expected one number for all '
                'images: use dataclasses.replace(problem, count=8).'
            )
        if self.maps:
            return rule('count', Partial(Galaxies.beyond_slack, self))
        return rule('count', Partial(Galaxies.excess, self, as_pytree(counter)))

    def beyond_slack(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns by how much the sum of the map is too large, or negative too small."""
        excess = check_fields(self, x)[..., 1].sum((1, 2))[:, None] - self.counts[0]
        return excess - jnp.clip(excess, -MAP_SLACK, MAP_SLACK)

    def measurement(self, name: str = '', **options: Any) -> Operator:
        """Returns the operator `name` of the images: maps are not measured."""
        if not self.maps:
            return super().measurement(name, **options)
        operator = dataclasses.replace(self, maps=False).measurement(name, **options)
        return dataclasses.replace(operator, apply=Partial(_of_images, operator), shape=self.shape)

    def excess(self, counter: Callable[[Fields], PerSample], x: Fields) -> Float[Array, 'b 1']:
        """Returns `counter(x) - count`, in sources, negative where they are missing."""
        return counter(check_fields(self, x))[:, None] - self.counts[0]


def _of_images(operator: Operator, x: Fields) -> Measurement:
    return operator(x[..., :1])


def render(sources: Sources, *, points: int) -> Float[Array, 'n points points']:
    """Returns images of sources `(n, k)` without noise, `points` pixels a side, float32:
    `sum A exp(-(x'^2/s_x^2 + y'^2/s_y^2)/(4 ln 2))` at every pixel.
    """

    def add(image: Array, source: Sources) -> tuple[Array, None]:
        return image + _profile(source, points), None

    # One source of every image at a time: all at once would hold k times as many pixels.
    def one(sources: Sources) -> Array:
        return jax.lax.scan(add, jnp.zeros((points, points), jnp.float32), sources)[0]

    return jax.vmap(one)(sources)


def _profile(source: Sources, points: int) -> Float[Array, 'points points']:
    """Returns the image of one source."""
    pixels = jnp.arange(points, dtype=jnp.float32)
    down = pixels[:, None] - source.centres[0]
    right = pixels[None, :] - source.centres[1]
    cosine, sine = jnp.cos(source.angles), jnp.sin(source.angles)
    along = (right * cosine + down * sine) / source.widths[0]
    across = (down * cosine - right * sine) / source.widths[1]
    return source.peaks * jnp.exp(-(along**2 + across**2) / (4 * math.log(2)))


def _image_sources(key: Key, problem: Galaxies) -> tuple[Sources, Int[Array, '']]:
    """Returns the sources of one image, and how many there are."""
    keys = jax.random.split(key, 6)
    key_count, key_centre, key_peak, key_width, key_ellipticity, key_angle = keys
    low, high = problem.counts
    shape, dtype = (max(1, high),), jnp.float32
    count = jax.random.randint(key_count, (), low, high + 1, jnp.int32)
    peaks = jax.random.uniform(key_peak, shape, dtype, problem.faintest, BRIGHTEST)
    gamma = jax.random.gamma(key_width, WIDTH_SHAPE, shape, dtype)
    s_x = jnp.maximum(problem.magnification * WIDTH_SCALE * gamma, LEAST_WIDTH)
    e = jax.random.beta(key_ellipticity, *ELLIPTICITY, shape, dtype)
    return Sources(
        centres=_centres(key_centre, count, problem),
        peaks=jnp.where(jnp.arange(shape[0]) < count, peaks, 0),
        widths=jnp.stack([s_x, s_x * jnp.sqrt((1 - e) / (1 + e))], -1),
        angles=jax.random.uniform(key_angle, shape, dtype, 0, math.pi),
    ), count


def _centres(key: Key, count: Int[Array, ''], problem: Galaxies) -> Int[Array, 'k 2']:
    """Returns uniform centres, made again until the first `count` are as far apart as they must."""
    slots = max(1, problem.counts[1])
    first, second = np.triu_indices(slots, 1)  # first < second: a pair is there if its second is

    def attempt(number: Array) -> Array:
        key_attempt = jax.random.fold_in(key, number)
        return jax.random.randint(key_attempt, (slots, 2), 0, problem.points, jnp.int32)

    def too_close(carry: tuple[Array, Array]) -> Array:
        gaps = carry[1][first] - carry[1][second]
        return jnp.any((jnp.sum(gaps**2, -1) <= problem.separation**2) & (second < count))

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] + 1, attempt(carry[0] + 1)

    start = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(too_close, again, (start, attempt(start)))[1]
