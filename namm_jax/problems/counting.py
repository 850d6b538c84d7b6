"""Counting sources without a network: peaks above the noise, in NumPy and SciPy.

Symbols: heights are above the background, in units of the noise; `u_k = 4 + (k - 1)/2` are levels,
`k = 0, 1, ...`. A peak is a connected component of `{height >= u_k}` whose maximum lies in
`[u_k + 1/2, u_k + 1)`: each maximum is looked for at the one level that far below it.

Reference: Bertin & Arnouts, "SExtractor", A&AS 117 (1996), for the ladder of thresholds.
"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int
from scipy import ndimage

THRESHOLD = 4.0  # least height of a peak
PROMINENCE = 0.5  # spacing of the levels
CLIP = 3.0  # pixels farther than this many standard deviations from the median are no background
DYNAMIC_RANGE = 50.0  # noise is at least 1/50 of an image's range; galaxy images have 1/20 to 1/6


def classical_count(x: ArrayLike, *, smoothing: float = 0.5) -> Int[np.ndarray, ' n']:
    """Returns the number of peaks `(n,)` in each image that stand out of its noise and each other.

    The image is smoothed; background and noise are median and standard deviation of its pixels,
    those farther than 3 standard deviations from the median left out until none is. Counted are
    maxima of height 4 or more, each separated from every higher one by a saddle: always where that
    is 1 deep, never where it is less than 1/2 deep, and in between depending on where the levels
    fall. Neighbours are the 8 pixels around one. Scaling x makes no difference, nor does adding a
    constant.

    Args:
        x: images `(n, h, w, 1)`, brighter at sources, of heights about 5.62 or more.
        smoothing: standard deviation in pixels of the Gaussian that smooths the image, >= 0.

    Raises:
        ValueError: if x has another shape or a value that is not finite.
    """
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[-1] != 1 or not x.size:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (n, h, w, 1), n >= 1: pass images of one channel.'
        )
    images = x[..., 0].astype(np.float64)
    if bad := np.count_nonzero(~np.isfinite(images).all((1, 2))):
        raise ValueError(
            f'Got {bad} of {len(x)} images with values that are not finite: leave those out.'
        )
    peaks = [_peaks(ndimage.gaussian_filter(image, smoothing)) for image in images]
    return np.array(peaks, np.int64)


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


def _peaks(image: np.ndarray) -> int:
    """Returns the number of peaks of one smoothed image."""
    background, noise = _background(image)
    unit = max(noise, (image.max() - background) / DYNAMIC_RANGE)
    if not unit > 1e-12 * np.abs(image).max():  # constant up to round-off
        return 0
    height = (image - background) / unit
    total = 0
    for k in range(int(np.floor((height.max() - THRESHOLD) / PROMINENCE)) + 1):
        labels, n = ndimage.label(height >= THRESHOLD + (k - 1) * PROMINENCE, np.ones((3, 3)))
        inside, peaks = labels > 0, np.zeros(n)
        np.maximum.at(peaks, labels[inside] - 1, height[inside])
        total += int(np.count_nonzero(np.floor((peaks - THRESHOLD) / PROMINENCE) == k))
    return total
