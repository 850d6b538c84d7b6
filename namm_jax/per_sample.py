"""Batches whose samples do not know of each other: `x (b, ...)`, a number or a key for each
sample.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax.types import Key


def axes(x: Array) -> tuple[int, ...]:
    """Returns the axes of `x (b, ...)` within a sample: all but the first."""
    return tuple(range(1, x.ndim))


def broadcast(level: ArrayLike, x: Array) -> Array:
    """Returns a scalar or `(b,)` in the shape that broadcasts against `x (b, ...)`."""
    level = jnp.asarray(level)
    return level.reshape(level.shape + (1,) * (x.ndim - 1)) if level.ndim else level


def fold_in(keys: Key, index: ArrayLike) -> Key:
    """Returns keys `(b,)` for step `index`, made of each sample's own."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)


def normal(keys: Key, x: Array) -> Array:
    """Returns standard normal noise like `x (b, ...)`, that of sample i from key i."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
