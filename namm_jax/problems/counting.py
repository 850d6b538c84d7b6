"""Counting sources without a network: peaks above the noise, in NumPy and SciPy, outside of any
compiled function.

Symbols: heights are above the background, in units of the noise;
`u_k = threshold + (k - 1) prominence` are levels, `k = 0, 1, ...`. A peak is a connected component
of `{height >= u_k}` whose maximum lies in `[u_k + prominence, u_k + 2 prominence)`: each maximum is
looked for at the one level that far below it.

Reference: Bertin & Arnouts, "SExtractor", A&AS 117 (1996), for separating blended sources by a
ladder of thresholds.
"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int
from scipy import ndimage

CLIP = 3.0  # pixels farther than this many standard deviations from the median are no background
# an image is taken to have at least 1/50 of its range as noise; galaxy images have 1/20 to 1/6
DYNAMIC_RANGE = 50.0


def classical_count(
    x: ArrayLike,
    *,
    smoothing: float = 0.5,
    threshold: float = 4.0,
    prominence: float = 0.5,
) -> Int[np.ndarray, ' n']:
    """Returns the number of peaks `(n,)` in each image that stand out of its noise and each other.

    The image is smoothed; background and noise are median and standard deviation of its pixels,
    those farther than 3 standard deviations from the median left out until none is. Counted are
    maxima at least `threshold` above the background, each separated from every higher one by a
    saddle: always where that is 2 `prominence` deep, never where it is less than `prominence` deep,
    and in between depending on where the levels fall. Neighbours are the 8 pixels around one.
    Sources with one common maximum, or a shallow saddle between theirs, count as one. The scale of
    x makes no difference, nor does a constant added to it; a constant image has no peaks.

    Args:
        x: images `(n, h, w, 1)`, brighter at sources; the defaults are for peaks of at least 5.62
            standard deviations of the noise.
        smoothing: standard deviation in pixels of the Gaussian that smooths the image, >= 0; about
            1 pixel against noise from pixel to pixel, and less than a source's own.
        threshold: least height of a peak, in standard deviations of the noise, > `prominence`.
        prominence: spacing of the levels, in standard deviations of the noise, > 0.

    Raises:
        ValueError: if x has another shape or a value that is not finite, or a setting is out of its
            range.
    """
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[-1] != 1 or not x.size:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (n, h, w, 1): pass images of one channel, at '
            'least one.'
        )
    if not (smoothing >= 0 and threshold > prominence > 0):
        raise ValueError(
            f'Got smoothing = {smoothing}, threshold = {threshold}, prominence = {prominence}; '
            'expected smoothing >= 0 and threshold > prominence > 0.'
        )
    images = x[..., 0].astype(np.float64)
    if bad := np.count_nonzero(~np.isfinite(images).all((1, 2))):
        raise ValueError(
            f'Got {bad} of {len(x)} images with values that are not finite: leave those out.'
        )
    smooth = [ndimage.gaussian_filter(image, smoothing) for image in images]
    return np.array([_peaks(image, threshold, prominence) for image in smooth], np.int64)


def _background(image: np.ndarray) -> tuple[float, float]:
    """Returns median and standard deviation of the pixels within 3 of those of the median."""
    pixels = image.ravel()
    while True:
        median, std = np.median(pixels), np.std(pixels)
        inside = pixels[np.abs(pixels - median) <= CLIP * std]
        # None inside means that the rest is constant up to round-off.
        if len(inside) in (0, len(pixels)):
            return float(median), float(std)
        pixels = inside


def _peaks(image: np.ndarray, threshold: float, prominence: float) -> int:
    """Returns the number of peaks of one smoothed image."""
    background, noise = _background(image)
    unit = max(noise, (image.max() - background) / DYNAMIC_RANGE)
    if not unit > 1e-12 * np.abs(image).max():  # constant up to round-off
        return 0
    height = (image - background) / unit
    total = 0
    for k in range(int(np.floor((height.max() - threshold) / prominence)) + 1):
        labels, n = ndimage.label(height >= threshold + (k - 1) * prominence, np.ones((3, 3)))
        inside, peaks = labels > 0, np.zeros(n)
        np.maximum.at(peaks, labels[inside] - 1, height[inside])
        total += int(np.count_nonzero(np.floor((peaks - threshold) / prominence) == k))
    return total
