"""Operators that are products with matrices along the axes of the field: blur and decimation,
Fourier samples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields
from namm_jax._checks import choose
from namm_jax.inverse.interferometry import eht_coverage
from namm_jax.inverse.operators.base import Operator, Shape, built, checked_shape

# name -> (any integers, n) -> the pixels 0, ..., n - 1 that stand there
BORDERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    'periodic': lambda i, n: i % n,
    'reflecting': lambda i, n: np.minimum(
        i % (2 * n), 2 * n - 1 - i % (2 * n)
    ),  # c b a | a b c | c b a
}


def downsampling(
    shape: Shape, *, factor: int = 4, blur_std: float | None = None, border: str = 'reflecting'
) -> Operator:
    """Returns Gaussian blur, then decimation: `y = (G x G^T)[:, factor // 2 :: factor, factor // 2
    :: factor]`.

    The rows of G are Gaussians, cut off at 4 standard deviations, of sum 1: constants are kept.

    Args:
        shape: `(h, w, c)` of the fields.
        factor: By which height and width shrink, a divisor of both.
        blur_std: Standard deviation of the Gaussian, in pixels of the field, >= 0. None is
            `factor / 2`.
        border: How the field goes on beyond its border, `periodic` or `reflecting`.

    Returns:
        Measurements `(b, h / factor, w / factor, c)`.

    Raises:
        ValueError: If an option is out of its range.
    """
    h, w, _ = checked_shape(shape)
    if factor < 1 or h % factor or w % factor:
        raise ValueError(
            f'factor: got {factor}, expected a divisor of the height {h} and the width {w}'
        )
    blur_std = factor / 2 if blur_std is None else blur_std
    if not 0 <= blur_std < np.inf:
        raise ValueError(
            f'blur_std: got {blur_std}, expected a finite number of pixels >= 0; 0 only decimates'
        )
    place = choose('border', border, BORDERS)
    return built(shape, _blur, *(_blur_matrix(n, factor, blur_std, place) for n in (h, w)))


def _blur_matrix(
    n: int, factor: int, std: float, place: Callable[..., np.ndarray]
) -> Float[np.ndarray, 'm n']:
    reach = int(np.ceil(4 * std))
    offsets, centres = np.arange(-reach, reach + 1), np.arange(factor // 2, n, factor)[:, None]
    weights = np.exp(-0.5 * (offsets / max(std, 1e-6)) ** 2)
    matrix = np.zeros((n // factor, n))
    np.add.at(
        matrix,
        (np.arange(n // factor)[:, None], place(centres + offsets, n)),
        weights / weights.sum(),
    )
    return matrix


def _blur(
    rows: Float[Array, 'p h'], columns: Float[Array, 'q w'], x: Fields
) -> Float[Array, 'b p q c']:
    return _product('bhwc,ph,qw->bpqc', x, rows, columns)


def sparse_fourier(shape: Shape, *, uv: ArrayLike | None = None) -> Operator:
    """Returns samples of the Fourier transform, the visibilities that an interferometer measures.

    `V(u, v) = sum_ij x_ij exp(-2 pi i (u r_j + v s_i))` at the centres of pixels,
    `r_j = (j + 1/2) / w - 1/2` to the right and `s_i = 1/2 - (i + 1/2) / h` upwards, in fields of
    view from the centre of the image. `V(0, 0)` is the total brightness. Where east is to the left,
    as on the sky, give `-u`.

    Args:
        shape: `(h, w, 1)` of the images.
        uv: Frequencies `(m, 2)` in cycles per field of view. None is `eht_coverage()`.

    Returns:
        Measurements `(b, m, 2)`: real and imaginary parts.

    Raises:
        ValueError: If the fields have more than one channel, or `uv` is no such array or not
            finite.
    """
    h, w, channels = checked_shape(shape)
    uv = eht_coverage() if uv is None else np.asarray(uv, float)
    if channels != 1:
        raise ValueError(
            f'shape: got {tuple(shape)}, expected (h, w, 1): visibilities are of one-channel images'
        )
    if uv.ndim != 2 or uv.shape[1] != 2 or not len(uv) or not np.isfinite(uv).all():
        raise ValueError(
            f'uv: got shape {uv.shape}, expected finite numbers (m, 2), in cycles per field of view'
        )
    right = 2 * np.pi * uv[:, :1] * ((np.arange(w) + 0.5) / w - 0.5)
    up = 2 * np.pi * uv[:, 1:] * (0.5 - (np.arange(h) + 0.5) / h)
    wave, cos, sin = np.stack([np.cos(right), -np.sin(right)], -1), np.cos(up), np.sin(up)
    # A product with the complex number cos - i sin, as the matrix that (real, imaginary) is
    # multiplied by.
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    return built(shape, _visibilities, turn, wave)


def _visibilities(
    turn: Float[Array, 'm h 2 2'], wave: Float[Array, 'm w 2'], x: Fields
) -> Float[Array, 'b m 2']:
    return _product('bhmk,mhkl->bml', _product('bhw,mwk->bhmk', x[..., 0], wave), turn)


def _product(subscripts: str, x: Array, *matrices: Array) -> Array:
    """Returns the einsum in the dtype of x, in full precision: accelerators would round to 10 bits
    or fewer.
    """
    matrices = (matrix.astype(x.dtype) for matrix in matrices)
    return jnp.einsum(subscripts, x, *matrices, precision=jax.lax.Precision.HIGHEST)
