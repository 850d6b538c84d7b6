"""States in time as one image, and back.

States `(b, k, h, w, c)` are either tiles of a mosaic, four in a row, as files hold them: state k is
at row `k // 4`, column `k % 4`; or packed, each component of each state a channel, as networks see
them: both axes then wrap exactly.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

TILES_IN_A_ROW = 4


def tile_grid(states: int) -> tuple[int, int]:
    """Returns the rows and columns of tiles that show so many states; raises a ValueError if they
    would not fill a rectangle: the number is not 1, 2, 3 or a multiple of 4.
    """
    if states < 1 or (states > TILES_IN_A_ROW and states % TILES_IN_A_ROW):
        raise ValueError(
            f'Got {states} states, expected 1, 2, 3 or a multiple of {TILES_IN_A_ROW}: tiles fill '
            f'whole rows of {TILES_IN_A_ROW}.'
        )
    return -(-states // TILES_IN_A_ROW), min(states, TILES_IN_A_ROW)


def tiled_to_states(x: Array, states: int) -> Float[Array, 'b k h w c']:
    """Returns the states that mosaics `(b, rows h, columns w, c)` show, rows and columns as of
    `tile_grid`; raises a ValueError if x is not of such a shape.
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
    """Returns mosaics, the inverse of `tiled_to_states`; raises as `tile_grid` does."""
    b, k, h, w, c = states.shape
    rows, columns = tile_grid(k)
    tiles = jnp.reshape(states, (b, rows, columns, h, w, c))
    return jnp.reshape(jnp.swapaxes(tiles, 2, 3), (b, rows * h, columns * w, c))


def packed_to_states(x: Float[Array, 'b h w c'], states: int) -> Float[Array, 'b k h w _']:
    """Returns the states that channels hold, `states[b, k, i, j, c] = x[b, i, j, 2 k + c]`."""
    return jnp.moveaxis(jnp.reshape(x, (*x.shape[:-1], states, -1)), 3, 1)


def states_to_packed(states: Float[Array, 'b k h w c']) -> Float[Array, 'b h w _']:
    """Returns the states as channels, the inverse of `packed_to_states`."""
    b, k, h, w, c = states.shape
    return jnp.reshape(jnp.moveaxis(states, 1, 3), (b, h, w, k * c))


LAYOUTS = {  # name -> (x, number of states) -> states, and its inverse, states -> x
    'packed': (packed_to_states, states_to_packed),
    'tiled': (tiled_to_states, states_to_tiled),
}


def mosaic(images: Float[Array, 'b k h w *c'], states: int) -> Float[Array, 'b H W']:
    """Returns images, or the lengths of vectors, of the last k of so many states as mosaics
    `(b, rows h, columns w)`; absent states are 0.
    """
    lengths = jnp.linalg.norm(images, axis=-1) if images.ndim == 5 else images
    absent = states - lengths.shape[1]
    padded = jnp.pad(lengths, ((0, 0), (absent, 0), (0, 0), (0, 0)))
    return states_to_tiled(padded[..., None])[..., 0]
