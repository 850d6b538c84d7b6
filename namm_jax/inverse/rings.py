"""The ring in an image of a black hole: its diameter, and where it is brightest.

Angles are position angles, from north through east, in images with north up and east to the left.

Reference: Chael 2019, PhD thesis, Harvard, chapter 7; Event Horizon Telescope Collaboration 2019,
ApJL 875 L4, section 9.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

FINER = 4  # points a pixel along each axis, by Fourier interpolation
RADII = np.linspace(0.04, 0.42, 96)  # in widths of the image, at which brightness is looked at
ANGLES = np.linspace(0, 2 * np.pi, 72, endpoint=False)
REACH = 0.12  # of the centre from the centroid of the light, in widths, at most

_Numbers = Float[np.ndarray, ' n']


class Rings(NamedTuple):
    """Rings of images; lengths in widths of the image."""

    diameter: _Numbers  # of a thin ring that is as blurred as this one
    peak: _Numbers  # twice the mean radius of greatest brightness
    thickness: _Numbers  # full width at half maximum, twice that of the outer side
    spread: _Numbers  # standard deviation of those radii over their mean, 0 for a circle
    brighter_side: _Numbers  # position angle in degrees, in [0, 360)
    depression: _Numbers  # brightness at the centre over that of the ring; 1 or more is no ring


def rings(images: Float[np.ndarray, 'n h w']) -> Rings:
    """Returns the ring in each image, square and dark at its border: about the centre from which
    the radii of greatest brightness, in all directions, spread least.

    Blur moves the peak inwards, as there is less ring inside than outside: of a thin ring of
    diameter d blurred by a Gaussian to the thickness t, it is at `d - t^2 / (4 log(2) d)`, which is
    solved for d.
    """
    return Rings(*map(np.array, zip(*map(_ring, np.asarray(images, float)), strict=True)))


def _ring(image: Float[np.ndarray, 'h w']) -> tuple[float, ...]:
    fine = _interpolated(image)
    places = (np.arange(len(fine)) + 0.5) / len(fine) - 0.5  # to the right, or downwards
    light = np.maximum(image, 0)
    rough = (np.arange(len(image)) + 0.5) / len(image) - 0.5
    centre = np.array([light.sum(1) @ rough, light.sum(0) @ rough]) / light.sum()
    for reach, number in ((REACH, 9), (REACH / 6, 9)):
        offsets = np.linspace(-reach, reach, number)
        centres = [centre + [down, right] for down in offsets for right in offsets]
        centre = min(centres, key=lambda at: sum(_peaks(_polar(fine, places, at))[1:]))
    brightness = _polar(fine, places, centre)
    radius, spread, _ = _peaks(brightness)
    ring = np.abs(RADII - radius) <= radius / 2
    side = np.angle(brightness[:, ring].sum(1) @ np.exp(1j * ANGLES))
    peak, thickness = 2 * radius, _thickness(brightness)
    diameter = (peak + np.sqrt(peak**2 + thickness**2 / np.log(2))) / 2
    inside = brightness[:, 0].mean() / max(brightness.max(1).mean(), 1e-30)
    return diameter, peak, thickness, spread, np.rad2deg(side) % 360, inside


def _interpolated(image: Float[np.ndarray, 'h w']) -> Float[np.ndarray, 'H W']:
    """Returns the image on `FINER` times as many points, its centres of pixels where they were."""
    n = len(image)
    k = np.fft.fftfreq(n, 1 / n)
    points = (np.arange(n * FINER) + 0.5) / FINER - 0.5
    waves = np.exp(2j * np.pi * np.outer(points, k) / n)
    return (waves @ np.fft.fft2(image) @ waves.T).real / n**2


def _polar(
    fine: np.ndarray, places: np.ndarray, centre: np.ndarray
) -> Float[np.ndarray, 'angles radii']:
    """Returns the brightness around a centre, at `ANGLES` and `RADII`, at the nearest points."""
    down = centre[0] - np.outer(np.cos(ANGLES), RADII)
    right = centre[1] - np.outer(np.sin(ANGLES), RADII)
    index = lambda at: np.clip(np.rint((at - places[0]) * len(places)), 0, len(places) - 1)
    return fine[index(down).astype(int), index(right).astype(int)]


def _peaks(brightness: np.ndarray) -> tuple[float, float, float]:
    """Returns mean and relative spread of the radii of greatest brightness, and the part of all
    directions left out, in which it is at an end of `RADII`.
    """
    places = brightness.argmax(1)
    inner = (places > 0) & (places < len(RADII) - 1)
    radii = RADII[places[inner]] if inner.any() else RADII[:1]
    return radii.mean(), radii.std() / radii.mean(), 1 - inner.mean()


def _thickness(brightness: np.ndarray) -> float:
    """Returns twice the mean way from the peak outwards to half of it."""
    beyond = np.arange(len(RADII)) >= brightness.argmax(1)[:, None]
    below = beyond & (brightness < brightness.max(1, keepdims=True) / 2)
    ends = np.where(below.any(1), below.argmax(1), len(RADII) - 1)
    return 2 * (RADII[ends] - RADII[brightness.argmax(1)]).mean()
