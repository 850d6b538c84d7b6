"""Measurement operators `y = A(x)`: fields `(b, h, w, c)` to real measurements `(b, *m)`, sample by
sample, and the law of their noise.

`shape` is that of one field, `(h, w, c)`, throughout. All arrays are fixed when an operator is
built, outside of `jax.jit`; they are its leaves, so operators of one kind and size share a compiled
program. A ValueError is raised for an option out of its range.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from namm_jax._arrays import Fields, Measurement, as_pytree, at_least_single, einsum, static
from namm_jax._checks import check_shape, check_within, choose, field_shape
from namm_jax.inverse.interferometry import eht_coverage

Shape = Sequence[int]  # (h, w, c), that of one field
Law = Callable[[Measurement, Measurement], Array]  # (y, A(x)) -> residuals (b, ...)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """A measurement operator A of fields of a `shape (h, w, c)`, called as `y = operator(x)`.

    `apply: (b, h, w, c) -> (b, *m)` is a `jax.tree_util.Partial` whose arguments are the leaves.
    `linear` says whether A is, so that it has an adjoint. `whiten` is the law of its noise,
    `(y, A(x)) -> residuals (b, ...)` of unit variance, such as `(y - Ax) / (0.1 * Ax)`, a `Partial`
    if it holds arrays; None is white noise, whose size is given with the measurement.
    """

    apply: Callable[[Array], Array]
    shape: tuple[int, int, int] = static()
    linear: bool = static(default=True)
    whiten: Law | None = None

    def __post_init__(self) -> None:
        field_shape(self.shape)

    def __call__(self, x: Fields) -> Array:
        """Returns the measurement `(b, *m)` of fields `(b, *shape)`, float32 at least."""
        if x.shape[1:] != self.shape:
            expected = ', '.join(map(str, self.shape))
            raise ValueError(
                f'x: got shape {x.shape}, expected (b, {expected}); build the operator for it'
            )
        return self.apply(at_least_single(x))

    def adjoint(self, y: Measurement) -> Fields:
        """Returns `A^T y`, fields `(b, *shape)`: `<A x, y> = <x, A^T y>`, sums over all entries; a
        ValueError unless A is linear and y `(b, *m)`.
        """
        if not self.linear:
            raise ValueError(
                'adjoint: got an operator with linear=False, expected a linear one; use jax.vjp'
            )
        y = at_least_single(y)
        x = jax.ShapeDtypeStruct((*y.shape[:1], *self.shape), y.dtype)
        check_shape(y.shape, jax.eval_shape(self, x).shape)
        return jax.linear_transpose(self, x)(y)[0]

    def after(self, f: Callable[[Array], Fields]) -> 'Composition':
        """Returns `z -> A(f(z))`, with the noise of A; f maps mirror points, say, to fields."""
        return Composition(self, as_pytree(f))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Composition:
    """The measurement `A(f(z))` of points z that f maps to fields."""

    operator: Operator
    f: Callable[[Array], Fields]

    def __call__(self, z: Array) -> Array:
        return self.operator(self.f(z))

    @property
    def whiten(self) -> Law | None:
        return self.operator.whiten


def places(shape: Shape) -> Int[np.ndarray, 'h w c']:
    """Returns the place of each entry in a flattened field: `selection` measures a part of it."""
    return np.arange(np.prod(field_shape(shape)), dtype=np.int32).reshape(shape)


def selection(shape: Shape, *, at: ArrayLike) -> Operator:
    """Returns `y[b] = x[b].flatten()[at]`, measurements `(b, *m)`.

    `at (*m)` is a part of `places(shape)`, one place or more, none of which occurs twice.
    """
    at = np.asarray(at, np.int32)
    size = int(np.prod(field_shape(shape)))
    if not at.size or at.min() < 0 or at.max() >= size:
        got = f'{at.size} of them' + (f' in [{at.min()}, {at.max()}]' if at.size else '')
        raise ValueError(f'places: got {got}, expected some of places(shape), in [0, {size})')
    twice = at.size - len(np.unique(at))
    if twice:
        raise ValueError(f'places: got {twice} of {at.size} twice, expected each once')
    return _operator(shape, _select, at)


def states(
    shape: Shape, *, indices: Sequence[int], channels_per_state: int | None = None
) -> Operator:
    """Returns the operator that observes whole states of a trajectory: fields of these alone,
    images `x[:, :, indices]`, `(b, h, k, 1)`, or packed flows, `(b, h, w, k channels_per_state)`.

    Args:
        shape: an image with time along columns, c = 1, or states packed as channels.
        indices: which states, from 0, each once; negative ones count from the last.
        channels_per_state: 2 for packed flows. None is images.
    """
    every = _by_state(shape, channels_per_state)
    count = every.shape[-2]
    if not all(-count <= i < count for i in indices):
        raise ValueError(
            f'indices: got {tuple(indices)}, expected states in [{-count}, {count}) of {count}'
        )
    at = every[..., list(indices), :]
    return selection(shape, at=at if channels_per_state is None else at.reshape(*shape[:2], -1))


def _by_state(shape: Shape, channels_per_state: int | None) -> Int[np.ndarray, '... k channels']:
    """Returns `places` with states the last axis but one, `(h, k, 1)` or `(h, w, k, channels)`."""
    c = field_shape(shape)[-1]
    if channels_per_state is None:
        if c != 1:
            raise ValueError(
                f'shape: got {tuple(shape)}, expected (h, w, 1), time along columns; for states '
                'packed as channels give channels_per_state, 2 for flows'
            )
        return places(shape)
    if channels_per_state < 1 or c % channels_per_state:
        raise ValueError(
            f'channels_per_state: got {channels_per_state}, expected a divisor of the {c} channels'
        )
    return places(shape).reshape(*shape[:2], -1, channels_per_state)


def first_states(
    shape: Shape, *, k: int | None = None, channels_per_state: int | None = None
) -> Operator:
    """Returns `states` of the first k >= 1, by default an eighth of them."""
    k = max(1, _by_state(shape, channels_per_state).shape[-2] // 8) if k is None else k
    return states(shape, indices=range(k), channels_per_state=channels_per_state)


def first_last(shape: Shape, *, channels_per_state: int | None = None) -> Operator:
    """Returns `states` of the first and the last."""
    return states(shape, indices=(0, -1), channels_per_state=channels_per_state)


def random_sensors(shape: Shape, *, n: int | None = None, seed: int = 0) -> Operator:
    """Returns the operator that observes all channels of n random pixels, by rows: `(b, n, c)`.

    n is in [1, h w], None one in 16; each set of n is as likely as another.
    """
    pixels = places(shape).reshape(-1, shape[-1])
    n = max(1, len(pixels) // 16) if n is None else n
    if not 1 <= n <= len(pixels):
        raise ValueError(f'n: got {n} sensors, expected a number in [1, {len(pixels)}], of pixels')
    rows = jax.random.choice(jax.random.key(seed), len(pixels), (n,), replace=False)
    return selection(shape, at=pixels[np.sort(rows)])


def gridded_sensors(shape: Shape, *, every: int = 4) -> Operator:
    """Returns the operator that observes one pixel of each block, `(b, rows, columns, c)`:
    `y = x[:, every // 2 :: every, every // 2 :: every]`, `every` in [1, min(h, w)] pixels.
    """
    h, w, _ = field_shape(shape)
    check_within(f'[1, {min(h, w)}]', kinds='iu', every=every)
    return selection(shape, at=places(shape)[every // 2 :: every, every // 2 :: every])


def inpainting(shape: Shape, *, occluded: ArrayLike) -> Operator:
    """Returns the operator that observes what is not occluded, `y = x[:, ~occluded]`, by rows.

    `occluded` is True where nothing is observed: pixels `(h, w)`, which give `(b, pixels, c)`, or
    entries `(h, w, c)`, which give `(b, entries)`.
    """
    occluded = np.asarray(occluded)
    if occluded.dtype != bool or occluded.shape not in (tuple(shape), tuple(shape[:2])):
        raise ValueError(
            f'occluded: got {occluded.dtype} of shape {occluded.shape}, expected booleans of shape '
            f'{tuple(shape)} or {tuple(shape[:2])}, True where nothing is observed'
        )
    return selection(shape, at=places(shape)[~occluded])


def occluded_box(shape: Shape, *, box: Sequence[int] | None = None) -> Operator:
    """Returns `inpainting` of a box in the field: first row, first column, height and width, in
    pixels; None is the centre, half of each side.
    """
    h, w, _ = field_shape(shape)
    row, column, height, width = (h // 4, w // 4, h // 2, w // 2) if box is None else box
    if not (0 <= row < row + height <= h and 0 <= column < column + width <= w):
        raise ValueError(
            f'box: got {(row, column, height, width)}, expected first row, first column, height '
            f'and width of a box within {h} x {w} pixels'
        )
    occluded = np.zeros((h, w), bool)
    occluded[row : row + height, column : column + width] = True
    return inpainting(shape, occluded=occluded)


# name -> (any integers, n) -> the pixels 0, ..., n - 1 that stand there
BORDERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    'periodic': lambda i, n: i % n,
    # c b a | a b c | c b a
    'reflecting': lambda i, n: np.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n)),
}


def downsampling(
    shape: Shape, *, factor: int = 4, blur_std: float | None = None, border: str = 'reflecting'
) -> Operator:
    """Returns Gaussian blur, then decimation, `(b, h / factor, w / factor, c)`:
    `y = (G x G^T)[:, factor // 2 :: factor, factor // 2 :: factor]`.

    The rows of G are Gaussians, cut off at 4 standard deviations, of sum 1: constants are kept.

    Args:
        factor: by which height and width shrink, a divisor of both.
        blur_std: of the Gaussian, in pixels of the field, >= 0; 0 only decimates. None is
            `factor / 2`.
        border: how the field goes on beyond its border, a key of `BORDERS`.
    """
    h, w, _ = field_shape(shape)
    if factor < 1 or h % factor or w % factor:
        raise ValueError(
            f'factor: got {factor}, expected a divisor of the height {h} and the width {w}'
        )
    blur_std = factor / 2 if blur_std is None else blur_std
    check_within('[0, inf)', blur_std=blur_std)
    return _operator(shape, _blur, *(blur_matrix(n, factor, blur_std, border) for n in (h, w)))


def blur_matrix(n: int, factor: int, std: float, border: str = 'reflecting') -> np.ndarray:
    """Returns the matrix `(n / factor, n)` of `downsampling` along an axis of n pixels."""
    place = choose('border', border, BORDERS)
    reach = int(np.ceil(4 * std))
    offsets = np.arange(-reach, reach + 1)
    centres = np.arange(factor // 2, n, factor)[:, None]
    weights = np.exp(-0.5 * (offsets / max(std, 1e-6)) ** 2)
    matrix = np.zeros((n // factor, n))
    rows = np.arange(n // factor)[:, None]
    np.add.at(matrix, (rows, place(centres + offsets, n)), weights / weights.sum())
    return matrix


def _blur(rows: Array, columns: Array, x: Fields) -> Float[Array, 'b p q c']:
    return _product('bhwc,ph,qw->bpqc', x, rows, columns)


def sparse_fourier(shape: Shape, *, uv: ArrayLike | None = None) -> Operator:
    """Returns samples of the Fourier transform, the visibilities that an interferometer measures:
    real and imaginary parts, `(b, m, 2)`.

    `V(u, v) = sum_ij x_ij exp(-2 pi i (u r_j + v s_i))` of images `(h, w, 1)` at frequencies
    `uv (m, 2)` in cycles per field of view, by default `eht_coverage()`. The centres of pixels are
    `r_j = (j + 1/2) / w - 1/2` to the right and `s_i = 1/2 - (i + 1/2) / h` upwards, in fields of
    view from the centre of the image. `V(0, 0)` is the total brightness. Where east is to the left,
    as on the sky, give `-u`.
    """
    h, w, channels = field_shape(shape)
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
    wave = np.stack([np.cos(right), -np.sin(right)], -1)
    # A product with the complex number cos - i sin, as a matrix that (real, imaginary) multiplies.
    cos, sin = np.cos(up), np.sin(up)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    return _operator(shape, _visibilities, turn, wave)


def _visibilities(turn: Array, wave: Array, x: Fields) -> Float[Array, 'b m 2']:
    return _product('bhmk,mhkl->bml', _product('bhw,mwk->bhmk', x[..., 0], wave), turn)


def own(
    shape: Shape, *, function: Callable[..., Any], linear: bool = False, whiten: Law | None = None
) -> Operator:
    """Returns the operator of a user's function; what it must be, `check_operator` checks.

    Args:
        function: a pure JAX function `(b, h, w, c) -> (b, *m)`, sample by sample.
        linear: whether it is linear, without a constant term, so that it has an adjoint.
        whiten: the law of its noise, as of `Operator`.
    """
    if not callable(function):
        raise ValueError(
            f'function: got {type(function).__name__}, expected a function of fields (b, h, w, c)'
        )
    operator = _operator(shape, function, linear=linear)
    return dataclasses.replace(operator, whiten=whiten and as_pytree(whiten))


OPERATORS: dict[str, Callable[..., Operator]] = {
    'states': states,
    'first_states': first_states,
    'first_last': first_last,
    'random_sensors': random_sensors,
    'gridded_sensors': gridded_sensors,
    'inpainting': inpainting,
    'occluded_box': occluded_box,
    'downsampling': downsampling,
    'sparse_fourier': sparse_fourier,
    'own': own,
}
__getattr__ = lambda name: choose('operators', name, OPERATORS, AttributeError)


def make_operator(name: str, shape: Shape, **options: Any) -> Operator:
    """Returns the operator of that name in `OPERATORS`, for fields of a shape `(h, w, c)`.

    `states` needs the option `indices`, `inpainting` needs `occluded` and `own` needs `function`;
    all others have defaults.
    """
    return choose('operator', name, OPERATORS)(shape, **options)


def _operator(
    shape: Shape, function: Callable[..., Any], *arrays: ArrayLike, linear: bool = True
) -> Operator:
    """Returns the operator `x -> function(*arrays, x)`, whose leaves the arrays are."""
    return Operator(Partial(function, *map(jnp.asarray, arrays)), field_shape(shape), linear)


def _select(at: Array, x: Array) -> Array:
    # Clipping changes no place. Unique ones let the adjoint scatter in any order.
    return jnp.take(x.reshape(len(x), -1), at, axis=1, mode='clip', unique_indices=True)


def _product(subscripts: str, x: Array, *matrices: Array) -> Array:
    """Returns the einsum in x's dtype."""
    return einsum(subscripts, x, *(matrix.astype(x.dtype) for matrix in matrices))
