"""Counting sources without a network: peaks above the noise, in NumPy and SciPy, outside of any
compiled function.

Symbols: heights are above the background, in units of the noise;
`u_k = threshold + (k - 1) prominence` are levels, `k = 0, 1, ...`. A peak is a connected component
of `{height >= u_k}` whose maximum lies in `[u_k + prominence, u_k + 2 prominence)`: each maximum is
looked for at the one level that far below it.

Reference: Bertin & Arnouts, "SExtractor", A&AS 117 (1996), for separating blended sources by a
ladder of thresholds.
"""

from types import ModuleType

import numpy as np
from jaxtyping import Float, Int

CLIP = 3.0  # pixels farther than this many standard deviations from the median are no background
# an image is taken to have at least 1/50 of its range as noise; galaxy images have 1/20 to 1/6
DYNAMIC_RANGE = 50.0


def classical_count(
    x: Float[np.ndarray, 'n h w 1'],
    *,
    smoothing: float = 0.5,
    threshold: float = 4.0,
    prominence: float = 0.5,
) -> Int[np.ndarray, ' n']:
    """Returns the number of peaks in each image that stand out of its noise and of each other.

    The image is smoothed; background and noise are median and standard deviation of its pixels,
    those farther than 3 standard deviations from the median left out until none is. Counted are
    maxima at least `threshold` above the background, each separated from every higher one by a
    saddle: always where that is 2 `prominence` deep, never where it is less than `prominence` deep,
    and in between depending on where the levels fall. Neighbours are the 8 pixels around one. An
    image without noise is given 1/50 of its range, and a constant image has no peaks.

    The defaults are for galaxy images, whose sources have peaks of at least 5.62 standard
    deviations of the noise. Sources with one common maximum, or with a shallow saddle between
    theirs, count as one. The scale of x makes no difference, nor does a constant added to it.

    Args:
        x: Images `(n, h, w, 1)`, brighter at sources.
        smoothing: Standard deviation in pixels of the Gaussian that smooths the image, >= 0; about
            1 pixel against noise from pixel to pixel, and less than a source's own, about 1.2 at
            least.
        threshold: Least height of a peak, in standard deviations of the noise, > `prominence`.
        prominence: Spacing of the levels, in standard deviations of the noise, > 0.

    Returns:
        Numbers of peaks `(n,)`, int64.

    Raises:
        ValueError: If `x` has another shape or a value that is not finite, or a setting is out of
            its range.
        ImportError: If SciPy is not installed.
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
    ndimage = _import_ndimage()
    smooth = [ndimage.gaussian_filter(image, smoothing) for image in images]
    return np.array(
        [_count_peaks(image, threshold, prominence, ndimage) for image in smooth], np.int64
    )


def _import_ndimage() -> ModuleType:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError(
            'Counting peaks needs SciPy, which is not installed: pip install scipy.'
        ) from error
    return ndimage


def _background(image: np.ndarray) -> tuple[float, float]:
    """Returns median and standard deviation of the pixels that are within 3 standard deviations of
    the median.
    """
    kept = image.ravel()
    while True:
        median, std = np.median(kept), np.std(kept)
        inside = kept[np.abs(kept - median) <= CLIP * std]
        # None inside means that the rest is constant up to round-off.
        if len(inside) in (0, len(kept)):
            return float(median), float(std)
        kept = inside


def _count_peaks(
    image: np.ndarray, threshold: float, prominence: float, ndimage: ModuleType
) -> int:
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
        total += np.count_nonzero(np.floor((peaks - threshold) / prominence) == k)
    return total
