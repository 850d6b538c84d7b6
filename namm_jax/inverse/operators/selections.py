"""Operators that select: they read `y = x[places]`, an integer array of places in one field.

The shape of the places is that of a measurement.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from namm_jax._arrays import Key
from namm_jax.inverse.operators.base import Operator, Shape, built, checked_shape


def places(shape: Shape) -> Int[np.ndarray, 'h w c']:
    """Returns the place of each entry in a flattened field: index it like a field, and `selection`
    measures that part.

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
        at: Places in a flattened field, of any shape: a part of `places(shape)`. None may occur
            twice.

    Raises:
        ValueError: If there are no places, one is outside of the field, or one occurs twice.
    """
    at, size = np.asarray(at, np.int32), int(np.prod(checked_shape(shape)))
    if not at.size or at.min() < 0 or at.max() >= size:
        got = f'{at.size} of them' + (f' in [{at.min()}, {at.max()}]' if at.size else '')
        raise ValueError(
            f'places: got {got}, expected one or more in [0, {size}); index places(shape) like a '
            'field'
        )
    if len(np.unique(at)) < at.size:
        raise ValueError(
            f'places: got {at.size - len(np.unique(at))} of {at.size} twice, expected each once'
        )
    return built(shape, _select, at)


def _select(at: Array, x: Array) -> Array:
    # Clipping changes no place, as all are in range. Unique ones let the adjoint scatter in any
    # order.
    return jnp.take(x.reshape(len(x), -1), at, axis=1, mode='clip', unique_indices=True)


def states(
    shape: Shape, *, indices: Sequence[int], channels_per_state: int | None = None
) -> Operator:
    """Returns the operator that observes whole states of a trajectory.

    Args:
        shape: `(h, w, c)` of the fields: images with time along columns, c = 1, or states packed as
            channels.
        indices: Which states, from 0; negative ones count from the last.
        channels_per_state: 2 for packed flows, see `layout.packed_to_states`. None is images.

    Returns:
        Measurements like fields of these states alone: images `x[:, :, indices]`, `(b, h, k, 1)`,
            or packed flows,
        `(b, h, w, k channels_per_state)`.

    Raises:
        ValueError: If an index is out of range or occurs twice, or the channels are not those of
            whole states.
    """
    every = _by_state(shape, channels_per_state)
    count = every.shape[-2]
    if not all(-count <= i < count for i in indices):
        raise ValueError(
            f'indices: got {tuple(indices)}, expected states in [{-count}, {count}) of {count}'
        )
    chosen = every[..., list(indices), :]
    return selection(
        shape, at=chosen if channels_per_state is None else chosen.reshape(*shape[:2], -1)
    )


def _by_state(shape: Shape, channels_per_state: int | None) -> Int[np.ndarray, '... k channels']:
    """Returns the places by state, the last axis but one: `(h, k, 1)` of images,
    `(h, w, k, channels)` if packed.
    """
    channels = checked_shape(shape)[-1]
    if channels_per_state is None and channels != 1:
        raise ValueError(
            f'shape: got {tuple(shape)}, expected (h, w, 1), time along columns; for states packed '
            'as channels give channels_per_state, 2 for flows'
        )
    if channels_per_state is None:
        return places(shape)
    if channels_per_state < 1 or channels % channels_per_state:
        raise ValueError(
            f'channels_per_state: got {channels_per_state}, expected a divisor of the {channels} '
            'channels'
        )
    return places(shape).reshape(*shape[:2], -1, channels_per_state)


def first_states(
    shape: Shape, *, k: int | None = None, channels_per_state: int | None = None
) -> Operator:
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
    """Returns the operator that observes all channels of n random pixels, each set of n as likely
    as another.

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
        raise ValueError(
            f'n: got {n} sensors, expected a number in [1, {len(pixels)}], that of the pixels'
        )
    return selection(
        shape, at=pixels[np.sort(jax.random.choice(key, len(pixels), (n,), replace=False))]
    )


def seeded_sensors(shape: Shape, *, n: int | None = None, seed: int = 0) -> Operator:
    """Returns `random_sensors` with the key of a seed, which a config can hold; arguments and
    errors are those.
    """
    return random_sensors(jax.random.key(seed), shape, n=n)


def gridded_sensors(shape: Shape, *, every: int = 4) -> Operator:
    """Returns the operator that observes one pixel of each block,
    `y = x[:, every // 2 :: every, every // 2 :: every]`.

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
            f'occluded: got {occluded.dtype} of shape {occluded.shape}, expected booleans of shape '
            f'{tuple(shape)} or {tuple(shape[:2])}, True where nothing is observed'
        )
    return selection(shape, at=places(shape)[~occluded])


def occluded_box(shape: Shape, *, box: Sequence[int] | None = None) -> Operator:
    """Returns `inpainting` of a box.

    Args:
        shape: `(h, w, c)` of the fields.
        box: Its first row, first column, height and width, in pixels. None is the centre, half of
            each side; of a texture of two tiles along each axis `(0, 0, h // 2, w // 2)` is a tile.

    Raises:
        ValueError: If the box does not lie in the field, or fills it.
    """
    h, w, _ = checked_shape(shape)
    row, column, height, width = (h // 4, w // 4, h // 2, w // 2) if box is None else box
    if not (0 <= row < row + height <= h and 0 <= column < column + width <= w):
        raise ValueError(
            f'box: got {(row, column, height, width)}, expected first row, first column, height '
            f'and width of a box within {h} x {w} pixels'
        )
    occluded = np.zeros((h, w), bool)
    occluded[row : row + height, column : column + width] = True
    return inpainting(shape, occluded=occluded)
