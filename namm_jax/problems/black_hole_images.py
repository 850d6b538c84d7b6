"""Black-hole images: a thin disk of glowing gas around a black hole, its light bent, boosted and
blurred.

Symbols, lengths in units of `M = G mass / c^2`: `r` the radius at which a ray meets the disk, `b`
its impact parameter; `(x, y)` the sky, y along the projection of the disk's axis, so that
`b^2 = x^2 + y^2`; `psi` the angle at the hole between the emitting gas and the observer; `i` the
inclination (0 face-on); `a` the spin; `g` the ratio of observed to emitted frequency.

Light moves as around a hole without spin, and the disk is thin and transparent, so each pixel adds
up its crossings of the disk: `I(x, y) = sum_n j(r_n) g(r_n, x)^(3 + spectral index)`. The plane of
a ray is fixed by its place on the sky, hence
`cos psi = -sin i (y/b) / sqrt(cos^2 i + (sin i y/b)^2)` for the direct image, n = 0. The ray of n =
1 has turned by half a circle more, and makes the photon ring at the critical curve `b = sqrt(27)`;
the next one carries about 4 % of its light, and is left out with all later ones. Spin acts through
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

from namm_jax._arrays import Fields, Key
from namm_jax.problems import checked_keys

CRITICAL = math.sqrt(
    27
)  # radius of the critical curve on the sky; rays inside it fall into the hole
EDGE = 0.1  # width of the disk's inner edge, relative to its radius
RAYS = 128  # along each axis of an image, at least: the photon ring is thinner than a pixel

# What a range may span. Above a = 0.94 the disk would reach inside r = 2, where this model's light
# cannot escape.
LIMITS = {
    'spin': (-1.0, 0.94),
    'inclination': (0.0, 85.0),
    'diameter': (0.01, 0.5),
    'exponent': (1.0, 20.0),
    'boost': (0.0, 1.0),
    'orientation': (-360.0, 360.0),
    'shift': (-0.25, 0.25),
}


@dataclasses.dataclass(frozen=True)
class BlackHoleProblem:
    """The numbers that black-hole data and the constraint on the total brightness share.

    The ranges, `(low, high)` of uniform draws, are chosen so that rings are about 20 of 64 pixels
    across and the brightest pixels about 0.6 at 64 x 64 pixels and a total of 120. For other sizes
    keep the mean: total 30 at 32 x 32.

    Attributes:
        points: Pixels along each axis, >= 8.
        total: Sum over the pixels of an image, > 0.
        spin: `a`, dimensionless; negative for a disk that orbits against the hole. In [-1, 0.94].
        inclination: `i` in degrees, in [0, 85].
        diameter: Diameter of the critical curve in image widths, in [0.01, 0.5]: the mass over the
            distance. The ring that is seen lies outside it for slow spins, inside for fast ones.
        exponent: p of the emissivity `r^-p`, in [1, 20].
        boost: Speed of the gas as a part of that of circular orbits, in [0, 1]; 0 for no Doppler
            boosting.
        orientation: Angle in degrees by which the image is turned, anticlockwise.
        shift: Offset of the hole from the centre along each axis, in image widths, in [-0.25,
            0.25].
        spectral_index: Of the emitted spectrum `nu^-index`, >= 0.
        beam: Standard deviation of the telescope's Gaussian blur, in image widths, >= 0.

    Raises:
        ValueError: If a number is out of its range.
    """

    points: int = 64
    total: float | int = 120.0
    spin: tuple[float, float] = (0.0, 0.9)
    inclination: tuple[float, float] = (10.0, 60.0)
    diameter: tuple[float, float] = (0.22, 0.30)
    exponent: tuple[float, float] = (4.0, 7.0)
    boost: tuple[float, float] = (0.3, 0.9)
    orientation: tuple[float, float] = (0.0, 360.0)
    shift: tuple[float, float] = (-0.02, 0.02)
    spectral_index: float = 1.0
    beam: float = 0.02

    def __post_init__(self) -> None:
        for name, least in (('points', 8), ('spectral_index', 0), ('beam', 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f'Got {name} = {getattr(self, name)}, expected at least {least}.')
        if not 0 < self.total < math.inf:
            raise ValueError(
                f'Got total = {self.total}, expected a positive sum over the pixels of an image.'
            )
        for name, (least, most) in LIMITS.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f'Got {name} = {(low, high)}, expected low <= high within [{least}, {most}].'
                )


class BlackHole(NamedTuple):
    """The parameters of one image, scalars, or of n, each `(n,)`. Units and meanings are those of
    `BlackHoleProblem`.

    Attributes:
        spin: `a`.
        inclination: `i`, degrees.
        diameter: Diameter of the critical curve, image widths.
        exponent: p of the emissivity.
        boost: Speed relative to circular orbits.
        orientation: Degrees, anticlockwise.
        right: Offset of the hole to the right, image widths.
        up: Offset of the hole upwards, image widths.
    """

    spin: Array
    inclination: Array
    diameter: Array
    exponent: Array
    boost: Array
    orientation: Array
    right: Array
    up: Array


def isco_radius(spin: ArrayLike) -> Array:
    """Returns the radius of the innermost stable circular orbit, in units of M: 6 for `a = 0`, 1
    for 1, 9 for -1.

    `r = 3 + Z_2 - sign(a) sqrt((3 - Z_1)(3 + Z_1 + 2 Z_2))`, with
    `Z_1 = 1 + (1 - a^2)^(1/3) ((1 + a)^(1/3) + (1 - a)^(1/3))` and `Z_2 = sqrt(3 a^2 + Z_1^2)`.

    Args:
        spin: `a` in [-1, 1], negative for orbits against the hole's rotation.

    Reference:
        Bardeen, Press & Teukolsky, ApJ 178 (1972) 347, equation 2.21.
    """
    z_1 = 1 + jnp.cbrt(1 - spin**2) * (jnp.cbrt(1 + spin) + jnp.cbrt(1 - spin))
    z_2 = jnp.sqrt(3 * spin**2 + z_1**2)
    return 3 + z_2 - jnp.sign(spin) * jnp.sqrt(jnp.maximum(3 - z_1, 0) * (3 + z_1 + 2 * z_2))


def orbital_speed(r: ArrayLike, spin: ArrayLike) -> Array:
    """Returns the speed of circular orbits over that of light, `1 / sqrt(r - 2)` without spin.

    `v = (r^2 - 2 a sqrt(r) + a^2) / (sqrt(r^2 - 2 r + a^2) (r^(3/2) + a))`, measured by the local
    observer who has no angular momentum.

    Args:
        r: Radii, at least that of the innermost stable orbit.
        spin: `a` in (-1, 1).

    Reference:
        Bardeen, Press & Teukolsky, ApJ 178 (1972) 347, equation 3.10.
    """
    root = jnp.sqrt(r)
    return (r**2 - 2 * spin * root + spin**2) / (
        jnp.sqrt(r**2 - 2 * r + spin**2) * (r * root + spin)
    )


def direct_radius(b: Float[Array, 'h w'], cos_psi: Float[Array, 'h w']) -> Float[Array, 'h w']:
    """Returns where the rays of the direct image meet the disk, n = 0.

    Beloborodov's light bending `1 - cos alpha = (1 - cos psi)(1 - 2/r)`, alpha the angle between
    the ray and the radius, and `b = r sin alpha / sqrt(1 - 2/r)` make
    `r^2 sin^2 psi + 2 r (1 - cos psi)^2 = b^2`; its positive root. Within 1 % of the exact radius
    for rays that leave outwards from `r >= 4`.

    Args:
        b: Impact parameters `(h, w)`, > 0.
        cos_psi: Cosine of the angle between gas and observer `(h, w)`, below 1.

    Reference:
        Beloborodov, ApJ 566 (2002) L85, equations 1 and 3.
    """
    bend = (1 - cos_psi) ** 2
    return b**2 / (bend + jnp.sqrt(bend**2 + (1 - cos_psi**2) * b**2))


def lensed_radius(b: Float[Array, 'h w'], cos_psi: Float[Array, 'h w']) -> Float[Array, 'h w']:
    """Returns where the rays that have turned by half a circle more meet the disk, n = 1; 1e6 or
    more if they do not.

    Near the critical curve a ray turns by `Psi = log(216 (2 - sqrt(3)) (1 - q) / ((1 + q) delta))`
    in all, with `q^2 = 1/3 + 2/r` and `delta = b / sqrt(27) - 1`: solved for r at `Psi = psi + pi`.
    A few per cent off at small r, more further out, where the ring is faint: it spans b from 5.00
    (exact: 5.02) to 5.92 (6.17) seen face-on.

    Args:
        b: Impact parameters `(h, w)`.
        cos_psi: Cosine of the angle between gas and observer in the direct image `(h, w)`.

    Reference:
        Darwin, Proc. R. Soc. A 249 (1959) 180; Luminet (1979); exact ranges of b: Gralla, Holz &
        Wald (2019).
    """
    ratio = (b / CRITICAL - 1) * jnp.exp(jnp.arccos(cos_psi) + jnp.pi) / (216 * (2 - math.sqrt(3)))
    # Below -0.07 the ray meets the disk inside the hole, above 0.27 not at all; the formula turns
    # back beyond -1 and 1.
    ratio = jnp.clip(ratio, -0.2, 1)
    q = (1 - ratio) / (1 + ratio)
    return 2 / jnp.maximum(q**2 - 1 / 3, 2e-6)


def _brightness(
    r: Float[Array, 'h w'], swing: Float[Array, 'h w'], hole: BlackHole, spectral_index: float
) -> Float[Array, 'h w']:
    """Returns `j(r) g^(3 + spectral index)`, zero at the horizon; swing is `x sin i`, positive on
    the receding side.
    """
    edge = isco_radius(hole.spin)
    speed = hole.boost * orbital_speed(
        jnp.maximum(r, edge), hole.spin
    )  # inside the edge: that of the edge
    r = jnp.maximum(r, 2)
    lapse = jnp.sqrt(1 - 2 / r)
    doppler = jnp.sqrt(1 - speed**2) / (1 + speed * swing * lapse / r)
    emissivity = (r / edge) ** -hole.exponent * jax.nn.sigmoid((r - edge) / (EDGE * edge))
    return emissivity * (lapse * doppler) ** (3 + spectral_index)


def _rays(points: int) -> np.ndarray:
    """Returns the places of the rays along an axis, image widths from the centre, the same number
    in each pixel.
    """
    n = points * max(2, RAYS // points)
    return (np.arange(n) + 0.5) / n - 0.5


@functools.cache
def _telescope(points: int, beam: float) -> np.ndarray:
    """Returns the matrix `(points, rays)` that blurs along one axis and averages the rays of each
    pixel.
    """
    rays = _rays(points)
    blur = np.exp(-0.5 * ((rays[:, None] - rays) / max(beam, 1e-6)) ** 2)
    pixels = blur.reshape(points, -1, len(rays)).sum(1)
    return pixels / pixels.sum(1, keepdims=True)


def _sky(hole: BlackHole, points: int) -> tuple[Float[Array, 'h w'], Float[Array, 'h w']]:
    """Returns the rays' `(x, y)` in units of M, seen from the hole, y along the projected axis of
    the disk.
    """
    rays = jnp.asarray(_rays(points), jnp.float32)
    scale = 2 * CRITICAL / hole.diameter
    right, up = scale * (rays[None, :] - hole.right), scale * (-rays[:, None] - hole.up)
    angle = jnp.deg2rad(hole.orientation)
    return jnp.cos(angle) * right + jnp.sin(angle) * up, jnp.cos(angle) * up - jnp.sin(
        angle
    ) * right


def render(hole: BlackHole, *, problem: BlackHoleProblem) -> Float[Array, 'h w']:
    """Returns the image of a black hole, the equation of the module's docstring, before it is
    scaled to a total.

    Args:
        hole: The parameters, scalars.
        problem: Number of pixels, spectral index and beam; its ranges are not read.

    Returns:
        Brightness `(points, points)`, >= 0, in units of the emissivity at the disk's edge; rows run
        downwards.
    """
    x, y = _sky(hole, problem.points)
    inclination = jnp.deg2rad(hole.inclination)
    b = jnp.maximum(jnp.hypot(x, y), 1e-6)
    tilt = jnp.sin(inclination) * y / b
    cos_psi = -tilt / jnp.sqrt(jnp.cos(inclination) ** 2 + tilt**2)
    swing = jnp.sin(inclination) * x
    images = (radius(b, cos_psi) for radius in (direct_radius, lensed_radius))
    sky = sum(_brightness(r, swing, hole, problem.spectral_index) for r in images)
    telescope = jnp.asarray(_telescope(problem.points, problem.beam), jnp.float32)
    # Full precision: accelerators would otherwise round the brightness to 10 bits or fewer.
    return jnp.einsum(
        'ih,hw,jw->ij', telescope, sky, telescope, precision=jax.lax.Precision.HIGHEST
    )


def sample_parameters(keys: Key, *, problem: BlackHoleProblem) -> BlackHole:
    """Returns random parameters, uniform in the problem's ranges.

    Args:
        keys: Typed PRNG keys `(n,)`, one a sample.
        problem: The ranges.

    Returns:
        The parameters, `(n,)` each, float32.
    """
    names = (
        'spin',
        'inclination',
        'diameter',
        'exponent',
        'boost',
        'orientation',
        'shift',
        'shift',
    )
    low, high = np.array([getattr(problem, name) for name in names], np.float32).T
    draw = functools.partial(jax.random.uniform, shape=(len(names),), dtype=jnp.float32)
    return BlackHole(*(low + (high - low) * jax.vmap(draw)(keys)).T)


def sample_black_holes(keys: Key, *, problem: BlackHoleProblem) -> Fields:
    """Returns black-hole images of one total brightness.

    Image i depends on `keys[i]` alone, so a set can be drawn in chunks, on any number of hosts, and
    extended. Dark pixels are positive, but by as little as 1e-8.

    Args:
        keys: Typed PRNG keys `(n,)`, one a sample.
        problem: Size, total and ranges. Draw with the problem that the constraint gets.

    Returns:
        Fields `(n, points, points, 1)`, float32, >= 0, each with the sum `total` to about 1e-6 of
        it.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    holes = sample_parameters(checked_keys(keys), problem=problem)
    images = jax.vmap(functools.partial(render, problem=problem))(holes)
    return (images * (problem.total / images.sum((1, 2), keepdims=True)))[..., None]
