"""Black-hole images: a thin disk of glowing gas around a black hole, its light bent, boosted and
blurred. The rule: the pixels of an image add up to a number.

Symbols, lengths in units of `M = G mass / c^2`: `r` the radius at which a ray meets the disk, `b`
its impact parameter; `(x, y)` the sky, y along the projection of the disk's axis, so that
`b^2 = x^2 + y^2`; `psi` the angle at the hole between the emitting gas and the observer; `i` the
inclination (0 face-on); `a` the spin; `g` the ratio of observed to emitted frequency; `s = sum(x)`
over the pixels of an image, `total` what it is on data.

Light moves as around a hole without spin, and the disk is thin and transparent, so each pixel adds
up its crossings of the disk: `I(x, y) = sum_n j(r_n) g(r_n, x)^(3 + spectral index)`. A ray's place
on the sky fixes its plane: `cos psi = -sin i (y/b) / sqrt(cos^2 i + (sin i y/b)^2)` for the direct
image, n = 0. The ray of n = 1 has turned by half a circle more, and makes the photon ring at the
critical curve `b = sqrt(27)`; later ones, about 4 % of its light, are left out. Spin acts through
the innermost stable orbit, where the disk ends, and the orbital speed. Not modelled: the dragging
of light by spin, turbulence, absorption, the time that light takes.

References: Luminet, Astron. Astrophys. 75 (1979) 228; Beloborodov, ApJ 566 (2002) L85; Gralla, Holz
& Wald, Phys. Rev. D 100 (2019) 024018; Narayan et al., ApJ 912 (2021) 35.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Key, Metrics, einsum, fold_in
from namm_jax._checks import check_keys
from namm_jax.constraints.base import Rule, rule
from namm_jax.constraints.sets import project_simplex
from namm_jax.problems.base import Problem, View, check_fields, parameter

CRITICAL = math.sqrt(27)  # radius of the critical curve; rays inside it fall into the hole
EDGE = 0.1  # width of the disk's inner edge, relative to its radius
RAYS = 128  # along each axis of an image, at least: the photon ring is thinner than a pixel
SMALLEST_SUM = 1e-6  # relative to the total: below it, rescaling has nothing to go by
GRAIN = 0.08  # width of bright patches, the std of a Gaussian, in image widths
AROUND = 0.25  # how far the faint ones reach, the std of a Gaussian, in image widths
CONTRAST = 1.5  # std of the log of their brightness
RANGES = 'spin', 'inclination', 'diameter', 'exponent', 'boost', 'orientation', 'shift'
WEATHER = 'turbulence', 'blur', 'faint'

_Image = Float[Array, 'h w']
_Range = tuple[float, float]  # (low, high) of a uniform law


class BlackHole(NamedTuple):
    """One image's parameters, scalars, or those of n, `(n,)`, in the units of `BlackHoles`."""

    spin: Array
    inclination: Array
    diameter: Array
    exponent: Array
    boost: Array
    orientation: Array
    right: Array  # the shift, in image widths
    up: Array


@dataclasses.dataclass(frozen=True)
class BlackHoles(Problem):
    """Images `(points, points, 1)` of black holes whose pixels add up to `total`.

    By default rings are about 20 of 64 pixels across and the brightest pixels about 0.6; for other
    sizes keep the mean: total 30 at 32 x 32. A width is that of the image, a range `low <= high`.
    """

    points: int = parameter(64, 'pixels along each axis', least=8)
    total: float | int = parameter(120.0, 'sum over the pixels of an image', above=0, most=1e30)
    # Above a = 0.94 the disk would reach inside r = 2, where this model's light cannot escape.
    spin: _Range = parameter((0.0, 0.9), 'a; < 0: orbits against the hole', least=-1, most=0.94)
    inclination: _Range = parameter((10.0, 60.0), 'i in degrees; 0 is face-on', least=0, most=85)
    diameter: _Range = parameter((0.22, 0.3), 'of the photon ring, in widths', least=0.01, most=0.5)
    exponent: _Range = parameter((4.0, 7.0), 'p of the emissivity r^-p', least=1, most=20)
    boost: _Range = parameter((0.3, 0.9), "the gas's speed over circular orbits'", least=0, most=1)
    orientation: _Range = parameter((0.0, 360.0), 'degrees, anticlockwise', least=-360, most=360)
    shift: _Range = parameter((-0.02, 0.02), 'of the hole, in widths', least=-0.25, most=0.25)
    turbulence: _Range = parameter((0.0, 0.0), 'std of the log of random patches', least=0, most=3)
    blur: _Range = parameter((0.0, 0.0), 'std of a further blur, in widths', least=0, most=0.25)
    faint: _Range = parameter((0.0, 0.0), 'share of light around the ring', least=0, most=0.5)
    spectral_index: float = parameter(1.0, 'of the emitted spectrum nu^-index', least=0)
    beam: float = parameter(0.02, "std of the telescope's blur, in widths", least=0)

    name = 'black_holes'
    rule_name = 'total_brightness'
    operator = 'sparse_fourier'
    view = View(('brightness', '|x − nearest of that total|'), colours='inferno')
    distance_words = {'total_brightness': 'error of the sum of the pixels'}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*RANGES, *WEATHER):
            value = getattr(self, name)
            if len(value) != 2 or not value[0] <= value[1]:
                raise ValueError(f'Got {name} = {value}, expected (low, high) with low <= high.')

    def holes(self, keys: Key) -> BlackHole:
        """Returns the black holes `(n,)` of the images of `fields`, uniform in their ranges."""
        check_keys(keys)
        bounds = [getattr(self, name) for name in (*RANGES, 'shift')]
        low, high = np.array(bounds, np.float32).T
        draw = functools.partial(jax.random.uniform, shape=(len(bounds),), dtype=jnp.float32)
        return BlackHole(*(low + (high - low) * jax.vmap(draw)(keys)).T)

    def render(self, hole: BlackHole) -> _Image:
        """Returns the image `(points, points)` of one black hole, before it is scaled to a total:
        brightness >= 0, in units of the emissivity at the disk's edge; rows run downwards.
        """
        x, y = _sky(hole, self.points)
        inclination = jnp.deg2rad(hole.inclination)
        b = jnp.maximum(jnp.hypot(x, y), 1e-6)
        tilt = jnp.sin(inclination) * y / b
        cos_psi = -tilt / jnp.sqrt(jnp.cos(inclination) ** 2 + tilt**2)
        swing = jnp.sin(inclination) * x
        images = (radius(b, cos_psi) for radius in (direct_radius, lensed_radius))
        sky = sum(_brightness(r, swing, hole, self.spectral_index) for r in images)
        return _on_both(jnp.asarray(_telescope(self.points, self.beam), jnp.float32), sky)

    def weather(self, key: Key, image: _Image) -> _Image:
        """Returns an image whose brightness is uneven, `exp(turbulence n)` times, n a smooth normal
        field of unit variance; then blurred; then with a share `faint` of all light in patches
        around its middle, `exp(CONTRAST m)` under a Gaussian, m as n. The strengths are uniform in
        their ranges.
        """
        strengths, *noises = jax.random.split(key, 3)
        low, high = np.array([getattr(self, name) for name in WEATHER], np.float32).T
        turbulence, blur, faint = low + (high - low) * jax.random.uniform(strengths, low.shape)
        grain = _gaussian(self.points, GRAIN)
        grain = grain / jnp.linalg.norm(grain, axis=1, keepdims=True)
        n, m = (_on_both(grain, jax.random.normal(noise, image.shape)) for noise in noises)
        kernel = _gaussian(self.points, jnp.maximum(blur, 0.1 / self.points))
        image = _on_both(kernel / kernel.sum(0), image * jnp.exp(turbulence * n))
        envelope = _gaussian(self.points, AROUND)[self.points // 2]
        patches = jnp.exp(CONTRAST * m) * envelope * envelope[:, None]
        return image + faint / (1 - faint) * patches * (image.sum() / patches.sum())

    def fields(self, keys: Key) -> Fields:
        """Returns images `(n, points, points, 1)`, float32, each with the sum `total` to about 1e-6
        of it. Dark pixels are positive, but by as little as 1e-8.
        """
        images = jax.vmap(self.render)(self.holes(keys))
        if any(getattr(self, name)[1] for name in WEATHER):
            images = jax.vmap(self.weather)(fold_in(keys, 1), images)
        return (images * (self.total / images.sum((1, 2), keepdims=True)))[..., None]

    def rule(self) -> Rule:
        """Returns the rule `s = total`; its distance is `|s - total|`, with the derivative 0 on the
        set itself.
        """
        ways = {'simplex': self.simplex, 'shift': self.even_shift, 'rescale': self.rescale}
        return rule('total_brightness', self.excess, restores=ways)

    def excess(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns `s - total` in brightness, known to about 1e-6 of the total in float32."""
        return jnp.sum(check_fields(self, x), (1, 2, 3))[:, None] - self.total

    def simplex(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the nearest image of that total without negative pixels; nothing to report."""
        return project_simplex(check_fields(self, x), self.total), {}

    def even_shift(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the nearest image of that total: pixels move alike; nothing to report."""
        x = check_fields(self, x)
        missing = self.total - jnp.sum(x, (1, 2, 3), keepdims=True)
        return x + missing / math.prod(x.shape[1:]), {}

    def rescale(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns `x total / s`, and in which images `restored (b,)`: where `|s| < 1e-6 total` the
        image stays as it is. Dark stays dark, but noise grows as s goes to 0, and a negative sum
        turns the image into its negative.
        """
        x = check_fields(self, x)
        s = jnp.sum(x, (1, 2, 3), keepdims=True)
        usable = jnp.abs(s) >= SMALLEST_SUM * self.total
        restored = jnp.where(usable, x * (self.total / jnp.where(usable, s, self.total)), x)
        return restored, {'restored': usable[:, 0, 0, 0]}


def isco_radius(spin: ArrayLike) -> Array:
    """Returns the radius of the innermost stable circular orbit, in units of M, for a spin a in
    [-1, 1], negative for orbits against the hole's rotation: 6 for `a = 0`, 1 for 1, 9 for -1.

    `r = 3 + Z_2 - sign(a) sqrt((3 - Z_1)(3 + Z_1 + 2 Z_2))`, with
    `Z_1 = 1 + (1 - a^2)^(1/3) ((1 + a)^(1/3) + (1 - a)^(1/3))` and `Z_2 = sqrt(3 a^2 + Z_1^2)`.

    Reference: Bardeen, Press & Teukolsky, ApJ 178 (1972) 347, equation 2.21.
    """
    z_1 = 1 + jnp.cbrt(1 - spin**2) * (jnp.cbrt(1 + spin) + jnp.cbrt(1 - spin))
    z_2 = jnp.sqrt(3 * spin**2 + z_1**2)
    return 3 + z_2 - jnp.sign(spin) * jnp.sqrt(jnp.maximum(3 - z_1, 0) * (3 + z_1 + 2 * z_2))


def orbital_speed(r: ArrayLike, spin: ArrayLike) -> Array:
    """Returns the speed of circular orbits over that of light, `1 / sqrt(r - 2)` without spin.

    `v = (r^2 - 2 a sqrt(r) + a^2) / (sqrt(r^2 - 2 r + a^2) (r^(3/2) + a))`, for a local observer
    without angular momentum, r from the innermost stable orbit on, a in (-1, 1).

    Reference: Bardeen, Press & Teukolsky, ApJ 178 (1972) 347, equation 3.10.
    """
    root = jnp.sqrt(r)
    horizon = jnp.sqrt(r**2 - 2 * r + spin**2)
    return (r**2 - 2 * spin * root + spin**2) / (horizon * (r * root + spin))


def direct_radius(b: _Image, cos_psi: _Image) -> _Image:
    """Returns where the rays of the direct image meet the disk, n = 0, for b > 0, cos psi < 1.

    Beloborodov's light bending `1 - cos alpha = (1 - cos psi)(1 - 2/r)`, alpha the angle between
    the ray and the radius, and `b = r sin alpha / sqrt(1 - 2/r)` make
    `r^2 sin^2 psi + 2 r (1 - cos psi)^2 = b^2`; its positive root. Within 1 % of the exact radius
    for rays that leave outwards from `r >= 4`.

    Reference: Beloborodov, ApJ 566 (2002) L85, equations 1 and 3.
    """
    bend = (1 - cos_psi) ** 2
    return b**2 / (bend + jnp.sqrt(bend**2 + (1 - cos_psi**2) * b**2))


def lensed_radius(b: _Image, cos_psi: _Image) -> _Image:
    """Returns where the rays that have turned by half a circle more meet the disk, n = 1; 1e6 or
    more if they do not.

    Near the critical curve a ray turns by `Psi = log(216 (2 - sqrt(3)) (1 - q) / ((1 + q) delta))`
    in all, with `q^2 = 1/3 + 2/r` and `delta = b / sqrt(27) - 1`: solved for r at `Psi = psi + pi`,
    psi of the direct image. Seen face-on the ring spans b from 5.00 (exact: 5.02) to 5.92 (6.17).

    Reference: Darwin, Proc. R. Soc. A 249 (1959) 180; Luminet (1979); the exact b of Gralla et al.
    """
    ratio = (b / CRITICAL - 1) * jnp.exp(jnp.arccos(cos_psi) + jnp.pi) / (216 * (2 - math.sqrt(3)))
    # Below -0.07 the ray meets the disk inside the hole, above 0.27 not at all; the formula turns
    # back beyond -1 and 1.
    ratio = jnp.clip(ratio, -0.2, 1)
    q = (1 - ratio) / (1 + ratio)
    return 2 / jnp.maximum(q**2 - 1 / 3, 2e-6)


def _brightness(r: _Image, swing: _Image, hole: BlackHole, spectral_index: float) -> _Image:
    """Returns `j(r) g^(3 + spectral index)`; swing is `x sin i`, > 0 on the receding side."""
    edge = isco_radius(hole.spin)
    speed = hole.boost * orbital_speed(jnp.maximum(r, edge), hole.spin)  # inside: that of the edge
    r = jnp.maximum(r, 2)
    lapse = jnp.sqrt(1 - 2 / r)
    doppler = jnp.sqrt(1 - speed**2) / (1 + speed * swing * lapse / r)
    emissivity = (r / edge) ** -hole.exponent * jax.nn.sigmoid((r - edge) / (EDGE * edge))
    return emissivity * (lapse * doppler) ** (3 + spectral_index)


def _rays(points: int) -> np.ndarray:
    """Returns the places of the rays along an axis in image widths, as many in each pixel."""
    n = points * max(2, RAYS // points)
    return (np.arange(n) + 0.5) / n - 0.5


@functools.cache
def _telescope(points: int, beam: float) -> np.ndarray:
    """Returns the matrix `(points, rays)` that blurs along an axis and averages over pixels."""
    rays = _rays(points)
    blur = np.exp(-0.5 * ((rays[:, None] - rays) / max(beam, 1e-6)) ** 2)
    pixels = blur.reshape(points, -1, len(rays)).sum(1)
    return pixels / pixels.sum(1, keepdims=True)


def _gaussian(points: int, std: ArrayLike) -> Float[Array, 'p p']:
    """Returns `exp(-(r_i - r_j)^2 / (2 std^2))` of the pixels along an axis, in image widths."""
    r = jnp.arange(points) / points
    return jnp.exp(-0.5 * ((r[:, None] - r) / std) ** 2)


def _on_both(matrix: Array, image: _Image) -> Float[Array, 'p p']:
    """Returns `matrix image matrix^T`."""
    return einsum('ih,hw,jw->ij', matrix, image, matrix)


def _sky(hole: BlackHole, points: int) -> tuple[_Image, _Image]:
    """Returns the rays' `(x, y)` in units of M, seen from the hole."""
    rays = jnp.asarray(_rays(points), jnp.float32)
    scale = 2 * CRITICAL / hole.diameter
    right = scale * (rays[None, :] - hole.right)
    up = scale * (-rays[:, None] - hole.up)
    angle = jnp.deg2rad(hole.orientation)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return cosine * right + sine * up, cosine * up - sine * right
