"""Image layouts: how trajectories become images and back. No other file knows them.

A Burgers image `(b, h, w, 1)` shows space against time: columns are time, forward from left to right; rows are
space, *flipped upside down*: the first row is the last grid point. Flip back before stepping in time, or the waves
run the wrong way.
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
        raise ValueError(f'Got x of shape {x.shape}, expected (b, h, w, 1): pass a batch of one-channel images.')
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
        raise ValueError(f'Got states of shape {states.shape}, expected (b, t, n): pass a batch of trajectories.')
    return jnp.swapaxes(states, 1, 2)[:, ::-1, :, None]
