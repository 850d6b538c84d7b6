"""Data sets: one file a family, each with `sample_<family>(keys, ...) -> (n, h, w, c)`, field i
from key i alone.
"""

import jax
import jax.numpy as jnp

from namm_jax._arrays import Key


def checked_keys(keys: Key) -> Key:
    """Returns `keys`, if they are a vector of typed keys `(n,)`, one a sample.

    Raises:
        ValueError: if they are not.
    """
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise ValueError(
            f'Got keys of shape {keys.shape} and type {keys.dtype}, expected a vector of typed '
            'keys, one a sample: use jax.random.split(jax.random.key(seed), n).'
        )
    return keys
