"""Image layouts: how trajectories become images and back. No other file knows them.

A Burgers image `(b, h, w, 1)` shows space against time: columns are time, forward from left to
right; rows are space, *flipped upside down*: the first row is the last grid point. Flip back before
stepping in time, or the waves run the wrong way.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def image_to_states(x: Float[Array, 'b h w 1']) -> Float[Array, 'b t n']:
    """Returns the trajectory that an image shows: `states[b, t, i] = x[b, n - 1 - i, t, 0]`.

    Args:
        x: Images `(b, n, t, 1)`, rows space upside down, columns time.

    Returns:
        States `(b, t, n)`, space increasing along the last axis.

    Raises:
        ValueError: If `x` does not have four axes or not exactly one channel.
    """
    if x.ndim != 4 or x.shape[-1] != 1:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, h, w, 1): pass a batch of one-channel images.'
        )
    return jnp.swapaxes(x[:, ::-1, :, 0], 1, 2)


def states_to_image(states: Float[Array, 'b t n']) -> Float[Array, 'b h w 1']:
    """Returns the image of a trajectory, the inverse of `image_to_states`.

    Args:
        states: States `(b, t, n)`, space increasing along the last axis.

    Returns:
        Images `(b, n, t, 1)`, rows space upside down, columns time.

    Raises:
        ValueError: If `states` does not have three axes.
    """
    if states.ndim != 3:
        raise ValueError(
            f'Got states of shape {states.shape}, expected (b, t, n): pass a batch of trajectories.'
        )
    return jnp.swapaxes(states, 1, 2)[:, ::-1, :, None]


# A flow is `k` states `(b, k, h, w, c)` in time, c = 2 velocity components. Files show the states
# as the tiles of one image, four in a row; networks see each component of each state as a channel,
# where both axes wrap exactly.
TILES_IN_A_ROW = 4


def tile_grid(states: int) -> tuple[int, int]:
    """Returns the rows and columns of tiles that show so many states; state k is at row k // 4,
    column k % 4.

    Args:
        states: Number of states: 1, 2, 3, or a multiple of 4.

    Raises:
        ValueError: If the tiles would not fill a rectangle.
    """
    if states < 1 or (states > TILES_IN_A_ROW and states % TILES_IN_A_ROW):
        raise ValueError(
            f'Got {states} states, expected 1, 2, 3 or a multiple of {TILES_IN_A_ROW}: tiles fill '
            f'whole rows of {TILES_IN_A_ROW}.'
        )
    return -(-states // TILES_IN_A_ROW), min(states, TILES_IN_A_ROW)


def tiled_to_states(x: Float[Array, 'b H W c'], states: int) -> Float[Array, 'b k h w c']:
    """Returns the states that a mosaic shows, the inverse of `states_to_tiled`.

    Args:
        x: Mosaics `(b, rows h, columns w, c)`, with the rows and columns of `tile_grid(states)`.
        states: Number of states k.

    Returns:
        States `(b, k, h, w, c)`.

    Raises:
        ValueError: If `x` does not have four axes, or the tiles do not divide its height and width.
    """
    rows, columns = tile_grid(states)
    if x.ndim != 4 or x.shape[1] % rows or x.shape[2] % columns:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, {rows} h, {columns} w, c) for {states} '
            f'states: pass a batch of mosaics of {rows} x {columns} tiles.'
        )
    b, height, width, c = x.shape
    tiles = jnp.reshape(x, (b, rows, height // rows, columns, width // columns, c))
    return jnp.reshape(jnp.swapaxes(tiles, 2, 3), (b, states, height // rows, width // columns, c))


def states_to_tiled(states: Float[Array, 'b k h w c']) -> Float[Array, 'b H W c']:
    """Returns the mosaic of the states: state k is the tile at row k // 4, column k % 4.

    Args:
        states: States `(b, k, h, w, c)`, k = 1, 2, 3 or a multiple of 4.

    Returns:
        Mosaics `(b, rows h, columns w, c)`, with the rows and columns of `tile_grid(k)`.

    Raises:
        ValueError: If `states` does not have five axes, or their number fills no rectangle.
    """
    _check_states(states)
    b, k, h, w, c = states.shape
    rows, columns = tile_grid(k)
    tiles = jnp.reshape(states, (b, rows, columns, h, w, c))
    return jnp.reshape(jnp.swapaxes(tiles, 2, 3), (b, rows * h, columns * w, c))


def packed_to_states(x: Float[Array, 'b h w c'], states: int) -> Float[Array, 'b k h w 2']:
    """Returns the states that the channels hold: `states[b, k, i, j, c] = x[b, i, j, 2 k + c]`.

    Args:
        x: Packed flows `(b, h, w, 2 k)`.
        states: Number of states k.

    Returns:
        States `(b, k, h, w, 2)`.

    Raises:
        ValueError: If `x` does not have four axes, or not two channels for each state.
    """
    if x.ndim != 4 or x.shape[-1] != 2 * states:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, h, w, {2 * states}) for {states} states: pass '
            'a batch with two channels for each state.'
        )
    return jnp.moveaxis(jnp.reshape(x, (*x.shape[:-1], states, 2)), 3, 1)


def states_to_packed(states: Float[Array, 'b k h w 2']) -> Float[Array, 'b h w c']:
    """Returns the states as channels, the inverse of `packed_to_states`.

    Args:
        states: States `(b, k, h, w, 2)`.

    Returns:
        Packed flows `(b, h, w, 2 k)`: both components of the first state, both of the second, and
            so on.

    Raises:
        ValueError: If `states` does not have five axes, or not two components.
    """
    _check_states(states, 2)
    b, k, h, w, _ = states.shape
    return jnp.reshape(jnp.moveaxis(states, 1, 3), (b, h, w, 2 * k))


def _check_states(states: Float[Array, '...'], components: int | None = None) -> None:
    if states.ndim != 5 or (components and states.shape[-1] != components):
        raise ValueError(
            f'Got states of shape {states.shape}, expected (b, k, h, w, {components or "c"}): pass '
            'a batch of trajectories.'
        )


# name -> (x, number of states) -> states, and name -> states -> x, its inverse
FLOW_LAYOUTS = {'packed': packed_to_states, 'tiled': tiled_to_states}
STATES_TO_LAYOUT = {'packed': states_to_packed, 'tiled': states_to_tiled}
