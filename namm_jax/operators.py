"""Measurement operators `y = A(x)`: fields `(b, h, w, c)` to real measurements `(b, *m)`, sample by sample.

Most select: they read `y = x[places]`, an integer array of places in one field, whose shape is that of a measurement.
The others are products with matrices along the axes of the field. All arrays are fixed when an operator is built, which
is done outside of `jax.jit`; they are its leaves, so operators of one kind and size share a compiled program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from namm_jax.choices import choose
from namm_jax.interferometry import eht_coverage
from namm_jax.types import Fields, Key

Shape = Sequence[int]  # (h, w, c), that of one field

# name -> (any integers, n) -> the pixels 0, ..., n - 1 that stand there
BORDERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    'periodic': lambda i, n: i % n,
    'reflecting': lambda i, n: np.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n)),  # c b a | a b c | c b a
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """A measurement operator A, called as `y = operator(x)`.

    Attributes:
        apply: `(b, h, w, c) -> (b, *m)`, a `jax.tree_util.Partial` whose arguments are the leaves.
        shape: `(h, w, c)` of the fields it takes. Static under `jax.jit`.
        linear: Whether A is linear, so that it has an adjoint. Static, too.

    Raises:
        ValueError: If `shape` is no such shape.
    """

    apply: Callable[[Array], Array]
    shape: tuple[int, int, int] = dataclasses.field(metadata={'static': True})
    linear: bool = dataclasses.field(default=True, metadata={'static': True})

    def __post_init__(self) -> None:
        checked_shape(self.shape)

    def __call__(self, x: Fields) -> Array:
        """Returns the measurement `(b, *m)`.

        Args:
            x: Fields `(b, *shape)`. Half precision is raised to float32, float64 kept.

        Raises:
            ValueError: If `x` has not the shape that the operator was built for.
        """
        if x.shape[1:] != self.shape:
            expected = ', '.join(map(str, self.shape))
            raise ValueError(f'x: got shape {x.shape}, expected (b, {expected}); build the operator for this shape')
        return self.apply(at_least_single(x))

    def adjoint(self, y: Float[Array, 'b *m']) -> Fields:
        """Returns `A^T y`, fields `(b, *shape)`, with `<A x, y> = <x, A^T y>` for sums over all entries.

        Args:
            y: Measurements `(b, *m)`. Half precision is raised to float32, float64 kept.

        Raises:
            ValueError: If A is not linear, or `y` has not the shape of a measurement.
        """
        if not self.linear:
            raise ValueError(
                'adjoint: got an operator with linear=False, expected a linear one; for others use jax.vjp at a field'
            )
        y = at_least_single(y)
        x = jax.ShapeDtypeStruct((*y.shape[:1], *self.shape), y.dtype)
        check_shape(y.shape, jax.eval_shape(self, x).shape)
        return jax.linear_transpose(self, x)(y)[0]


def places(shape: Shape) -> Int[np.ndarray, 'h w c']:
    """Returns the place of each entry in a flattened field: index it like a field, and `selection` measures that part.

    Args:
        shape: `(h, w, c)`.

    Raises:
        ValueError: If it is no such shape.
    """
    return np.arange(np.prod(checked_shape(shape)), dtype=np.int32).reshape(shape)


def selection(shape: Shape, *, at: ArrayLike) -> Operator:
    """Returns `y[b] = x[b].flatten()[at]`, measurements `(b, *m)`.

    Args:
        shape: `(h, w, c)` of the fields.
        at: Places in a flattened field, of any shape: a part of `places(shape)`. None may occur twice.

    Raises:
        ValueError: If there are no places, one is outside of the field, or one occurs twice.
    """
    at, size = np.asarray(at, np.int32), int(np.prod(checked_shape(shape)))
    if not at.size or at.min() < 0 or at.max() >= size:
        got = f'{at.size} of them' + (f' in [{at.min()}, {at.max()}]' if at.size else '')
        raise ValueError(f'places: got {got}, expected one or more in [0, {size}); index places(shape) like a field')
    if len(np.unique(at)) < at.size:
        raise ValueError(f'places: got {at.size - len(np.unique(at))} of {at.size} twice, expected each once')
    return _operator(shape, _select, at)


def _select(at: Array, x: Array) -> Array:
    # Clipping changes no place, as all are in range. Unique ones let the adjoint scatter in any order.
    return jnp.take(x.reshape(len(x), -1), at, axis=1, mode='clip', unique_indices=True)


def states(shape: Shape, *, indices: Sequence[int], channels_per_state: int | None = None) -> Operator:
    """Returns the operator that observes whole states of a trajectory.

    Args:
        shape: `(h, w, c)` of the fields: images with time along columns, c = 1, or states packed as channels.
        indices: Which states, from 0; negative ones count from the last.
        channels_per_state: 2 for packed flows, see `layout.packed_to_states`. None is images.

    Returns:
        Measurements like fields of these states alone: images `x[:, :, indices]`, `(b, h, k, 1)`, or packed flows,
        `(b, h, w, k channels_per_state)`.

    Raises:
        ValueError: If an index is out of range or occurs twice, or the channels are not those of whole states.
    """
    every = _by_state(shape, channels_per_state)
    count = every.shape[-2]
    if not all(-count <= i < count for i in indices):
        raise ValueError(f'indices: got {tuple(indices)}, expected states in [{-count}, {count}) of {count}')
    chosen = every[..., list(indices), :]
    return selection(shape, at=chosen if channels_per_state is None else chosen.reshape(*shape[:2], -1))


def _by_state(shape: Shape, channels_per_state: int | None) -> Int[np.ndarray, '... k channels']:
    """Returns the places by state, the last axis but one: `(h, k, 1)` of images, `(h, w, k, channels)` if packed."""
    channels = checked_shape(shape)[-1]
    if channels_per_state is None and channels != 1:
        raise ValueError(
            f'shape: got {tuple(shape)}, expected (h, w, 1), time along columns; for states packed as channels give '
            'channels_per_state, 2 for flows'
        )
    if channels_per_state is None:
        return places(shape)
    if channels_per_state < 1 or channels % channels_per_state:
        raise ValueError(f'channels_per_state: got {channels_per_state}, expected a divisor of the {channels} channels')
    return places(shape).reshape(*shape[:2], -1, channels_per_state)


def first_states(shape: Shape, *, k: int | None = None, channels_per_state: int | None = None) -> Operator:
    """Returns `states` of the first k: of images, `y = x[:, :, :k]`.

    Args:
        shape: `(h, w, c)` of the fields.
        k: Number of states, >= 1. None is an eighth of them, 8 of 64.
        channels_per_state: As of `states`.

    Raises:
        ValueError: If there are no k states.
    """
    k = max(1, _by_state(shape, channels_per_state).shape[-2] // 8) if k is None else k
    return states(shape, indices=range(k), channels_per_state=channels_per_state)


def first_last(shape: Shape, *, channels_per_state: int | None = None) -> Operator:
    """Returns `states` of the first and the last; arguments and errors are those of `states`."""
    return states(shape, indices=(0, -1), channels_per_state=channels_per_state)


def random_sensors(key: Key, shape: Shape, *, n: int | None = None) -> Operator:
    """Returns the operator that observes all channels of n random pixels, each set of n as likely as another.

    Args:
        key: A PRNG key, for the places.
        shape: `(h, w, c)` of the fields.
        n: Number of pixels, in [1, h w]. None is one in 16.

    Returns:
        Measurements `(b, n, c)`, by rows.

    Raises:
        ValueError: If `n` is out of its range.
    """
    pixels = places(shape).reshape(-1, shape[-1])
    n = max(1, len(pixels) // 16) if n is None else n
    if not 1 <= n <= len(pixels):
        raise ValueError(f'n: got {n} sensors, expected a number in [1, {len(pixels)}], that of the pixels')
    return selection(shape, at=pixels[np.sort(jax.random.choice(key, len(pixels), (n,), replace=False))])


def seeded_sensors(shape: Shape, *, n: int | None = None, seed: int = 0) -> Operator:
    """Returns `random_sensors` with the key of a seed, which a config can hold; arguments and errors are those."""
    return random_sensors(jax.random.key(seed), shape, n=n)


def gridded_sensors(shape: Shape, *, every: int = 4) -> Operator:
    """Returns the operator that observes one pixel of each block, `y = x[:, every // 2 :: every, every // 2 :: every]`.

    Args:
        shape: `(h, w, c)` of the fields.
        every: Distance of the sensors along both axes, in pixels, in [1, min(h, w)].

    Returns:
        Measurements `(b, rows, columns, c)`.

    Raises:
        ValueError: If `every` is out of its range.
    """
    h, w, _ = checked_shape(shape)
    if not 1 <= every <= min(h, w):
        raise ValueError(f'every: got {every}, expected a number of pixels in [1, {min(h, w)}]')
    return selection(shape, at=places(shape)[every // 2 :: every, every // 2 :: every])


def inpainting(shape: Shape, *, occluded: ArrayLike) -> Operator:
    """Returns the operator that observes what is not occluded, `y = x[:, ~occluded]`, by rows.

    Args:
        shape: `(h, w, c)` of the fields.
        occluded: True where nothing is observed: pixels `(h, w)`, or entries `(h, w, c)`.

    Returns:
        Measurements `(b, pixels, c)`, or `(b, entries)`.

    Raises:
        ValueError: If `occluded` is not of this shape, not boolean, or leaves nothing to observe.
    """
    occluded = np.asarray(occluded)
    if occluded.dtype != bool or occluded.shape not in (tuple(shape), tuple(shape[:2])):
        raise ValueError(
            f'occluded: got {occluded.dtype} of shape {occluded.shape}, expected booleans of shape {tuple(shape)} or '
            f'{tuple(shape[:2])}, True where nothing is observed'
        )
    return selection(shape, at=places(shape)[~occluded])


def occluded_box(shape: Shape, *, box: Sequence[int] | None = None) -> Operator:
    """Returns `inpainting` of a box.

    Args:
        shape: `(h, w, c)` of the fields.
        box: Its first row, first column, height and width, in pixels. None is the centre, half of each side; of a
            texture of two tiles along each axis `(0, 0, h // 2, w // 2)` is a tile.

    Raises:
        ValueError: If the box does not lie in the field, or fills it.
    """
    h, w, _ = checked_shape(shape)
    row, column, height, width = (h // 4, w // 4, h // 2, w // 2) if box is None else box
    if not (0 <= row < row + height <= h and 0 <= column < column + width <= w):
        raise ValueError(
            f'box: got {(row, column, height, width)}, expected first row, first column, height and width of a box '
            f'within {h} x {w} pixels'
        )
    occluded = np.zeros((h, w), bool)
    occluded[row : row + height, column : column + width] = True
    return inpainting(shape, occluded=occluded)


def downsampling(
    shape: Shape, *, factor: int = 4, blur_std: float | None = None, border: str = 'reflecting'
) -> Operator:
    """Returns Gaussian blur, then decimation: `y = (G x G^T)[:, factor // 2 :: factor, factor // 2 :: factor]`.

    The rows of G are Gaussians, cut off at 4 standard deviations, of sum 1: constants are kept.

    Args:
        shape: `(h, w, c)` of the fields.
        factor: By which height and width shrink, a divisor of both.
        blur_std: Standard deviation of the Gaussian, in pixels of the field, >= 0. None is `factor / 2`.
        border: How the field goes on beyond its border, `periodic` or `reflecting`.

    Returns:
        Measurements `(b, h / factor, w / factor, c)`.

    Raises:
        ValueError: If an option is out of its range.
    """
    h, w, _ = checked_shape(shape)
    if factor < 1 or h % factor or w % factor:
        raise ValueError(f'factor: got {factor}, expected a divisor of the height {h} and the width {w}')
    blur_std = factor / 2 if blur_std is None else blur_std
    if not 0 <= blur_std < np.inf:
        raise ValueError(f'blur_std: got {blur_std}, expected a finite number of pixels >= 0; 0 only decimates')
    place = choose('border', border, BORDERS)
    return _operator(shape, _blur, *(_blur_matrix(n, factor, blur_std, place) for n in (h, w)))


def _blur_matrix(n: int, factor: int, std: float, place: Callable[..., np.ndarray]) -> Float[np.ndarray, 'm n']:
    reach = int(np.ceil(4 * std))
    offsets, centres = np.arange(-reach, reach + 1), np.arange(factor // 2, n, factor)[:, None]
    weights = np.exp(-0.5 * (offsets / max(std, 1e-6)) ** 2)
    matrix = np.zeros((n // factor, n))
    np.add.at(matrix, (np.arange(n // factor)[:, None], place(centres + offsets, n)), weights / weights.sum())
    return matrix


def _blur(rows: Float[Array, 'p h'], columns: Float[Array, 'q w'], x: Fields) -> Float[Array, 'b p q c']:
    return _product('bhwc,ph,qw->bpqc', x, rows, columns)


def sparse_fourier(shape: Shape, *, uv: ArrayLike | None = None) -> Operator:
    """Returns samples of the Fourier transform, the visibilities that an interferometer measures.

    `V(u, v) = sum_ij x_ij exp(-2 pi i (u r_j + v s_i))` at the centres of pixels, `r_j = (j + 1/2) / w - 1/2` to the
    right and `s_i = 1/2 - (i + 1/2) / h` upwards, in fields of view from the centre of the image. `V(0, 0)` is the
    total brightness. Where east is to the left, as on the sky, give `-u`.

    Args:
        shape: `(h, w, 1)` of the images.
        uv: Frequencies `(m, 2)` in cycles per field of view. None is `eht_coverage()`.

    Returns:
        Measurements `(b, m, 2)`: real and imaginary parts.

    Raises:
        ValueError: If the fields have more than one channel, or `uv` is no such array or not finite.
    """
    h, w, channels = checked_shape(shape)
    uv = eht_coverage() if uv is None else np.asarray(uv, float)
    if channels != 1:
        raise ValueError(f'shape: got {tuple(shape)}, expected (h, w, 1): visibilities are of one-channel images')
    if uv.ndim != 2 or uv.shape[1] != 2 or not len(uv) or not np.isfinite(uv).all():
        raise ValueError(f'uv: got shape {uv.shape}, expected finite numbers (m, 2), in cycles per field of view')
    right = 2 * np.pi * uv[:, :1] * ((np.arange(w) + 0.5) / w - 0.5)
    up = 2 * np.pi * uv[:, 1:] * (0.5 - (np.arange(h) + 0.5) / h)
    wave, cos, sin = np.stack([np.cos(right), -np.sin(right)], -1), np.cos(up), np.sin(up)
    # A product with the complex number cos - i sin, as the matrix that (real, imaginary) is multiplied by.
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    return _operator(shape, _visibilities, turn, wave)


def _visibilities(turn: Float[Array, 'm h 2 2'], wave: Float[Array, 'm w 2'], x: Fields) -> Float[Array, 'b m 2']:
    return _product('bhmk,mhkl->bml', _product('bhw,mwk->bhmk', x[..., 0], wave), turn)


def own(shape: Shape, *, function: Callable[[Array], Any], linear: bool = False) -> Operator:
    """Returns the operator of a user's function; what it must be, `check_operator` checks.

    Args:
        shape: `(h, w, c)` of the fields.
        function: A pure JAX function `(b, h, w, c) -> (b, *m)`, sample by sample.
        linear: Whether it is linear, without a constant term, so that it has an adjoint.

    Raises:
        ValueError: If it is no function.
    """
    if not callable(function):
        raise ValueError(f'function: got {type(function).__name__}, expected a function of fields (b, h, w, c)')
    return _operator(shape, function, linear=linear)


OPERATORS: dict[str, Callable[..., Operator]] = {
    'states': states,
    'first_states': first_states,
    'first_last': first_last,
    'random_sensors': seeded_sensors,
    'gridded_sensors': gridded_sensors,
    'inpainting': inpainting,
    'occluded_box': occluded_box,
    'downsampling': downsampling,
    'sparse_fourier': sparse_fourier,
    'own': own,
}


def make_operator(name: str, shape: Shape, **options: Any) -> Operator:
    """Returns the operator called `name`.

    Args:
        name: One of `OPERATORS`.
        shape: `(h, w, c)` of the fields.
        **options: Of its builder. `states` needs `indices`, `inpainting` needs `occluded` and `own` needs `function`;
            all others have defaults.

    Raises:
        ValueError: If there is no such operator, or an option is out of its range.
    """
    return choose('operator', name, OPERATORS)(shape, **options)


def _operator(shape: Shape, function: Callable[..., Any], *arrays: ArrayLike, linear: bool = True) -> Operator:
    return Operator(jax.tree_util.Partial(function, *map(jnp.asarray, arrays)), checked_shape(shape), linear)


def _product(subscripts: str, x: Array, *matrices: Array) -> Array:
    """Returns the einsum in the dtype of x, in full precision: accelerators would round to 10 bits or fewer."""
    matrices = (matrix.astype(x.dtype) for matrix in matrices)
    return jnp.einsum(subscripts, x, *matrices, precision=jax.lax.Precision.HIGHEST)


def checked_shape(shape: Shape) -> tuple[int, int, int]:
    """Returns the shape `(h, w, c)` of one field, as integers; raises a ValueError if it is none."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f'shape: got {tuple(shape)}, expected (h, w, c), each at least 1, that of one field')
    return tuple(map(int, shape))


def at_least_single(x: ArrayLike) -> Array:
    """Returns `x` with half precision and integers raised to float32, float64 kept."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises a ValueError unless a measurement of shape `got` is one of those of shape `expected`, `(b, *m)`."""
    if got != expected:
        axes = ', '.join(map(str, expected[1:]))
        remedy = 'add the batch axis, y[None]' if got == expected[1:] else 'take the operator that y was measured with'
        raise ValueError(f'y: got shape {got}, expected (b, {axes}), b measurements; {remedy}')
