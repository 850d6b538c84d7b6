"""What posterior samplers share: their arguments' checks, where they start, and samples that are
lost.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Key, Measure, PerSample, axes, fold_in, normal
from namm_jax.denoising.denoisers import known
from namm_jax.denoising.sampling import check_keys

Levels = Float[Array, ' n']


def checked(
    keys: Key,
    shape: tuple[int, ...],
    measure: Measure,
    y: Array,
    noise_std: ArrayLike,
    levels: ArrayLike,
) -> Levels:
    """Returns the levels `(n,)` as an array; of traced arrays, as inside a compiled function, only
    shapes are checked.

    Raises:
        ValueError: If keys, y, noise_std or levels are not what the samplers take.
    """
    check_keys(keys)
    made = jax.eval_shape(measure, jax.ShapeDtypeStruct((len(keys), *shape), jnp.zeros(()).dtype))
    if made.shape != jnp.shape(y) or jnp.iscomplexobj(made) or jnp.iscomplexobj(y):
        raise ValueError(
            f'y: got {jnp.result_type(y)}{list(jnp.shape(y))}, expected real numbers of shape '
            f'{list(made.shape)}, the '
            f"measure's values ({made.dtype}); repeat y for each key, and stack real and imaginary "
            'parts'
        )
    if known(y) and not np.all(np.isfinite(y)):
        raise ValueError(
            f'y: got {np.sum(~np.isfinite(y))} values that are not finite; leave them out of the '
            'measure'
        )
    if jnp.ndim(noise_std) or known(noise_std) and not 0 < np.asarray(noise_std) < np.inf:
        raise ValueError(
            f'noise_std: got {noise_std}, expected one positive finite number in units of y'
        )
    if jnp.ndim(levels) != 1 or known(levels) and not np.all(np.diff(np.append(levels, 0)) < 0):
        raise ValueError(
            f'levels: got {levels}, expected falling noise levels (n,) above 0; use '
            'Sampler.levels()'
        )
    return jnp.asarray(levels)


def prior_start(
    keys: Key, shape: tuple[int, ...], levels: Levels, mean: ArrayLike, tau: Array
) -> Array:
    """Returns `x ~ N(mean, sigma^2 + tau^2)` at the first level: what the data give, if normal and
    isotropic.
    """
    noise = normal(fold_in(keys, 0), jnp.zeros((len(keys), *shape)))
    return jnp.asarray(mean) + jnp.sqrt(levels[0] ** 2 + tau**2) * noise


def misfit(measure: Measure, y: Array, x_0: Array) -> PerSample:
    """Returns `|y - A(x_0)|^2 / 2` of each sample."""
    return jnp.sum((y - measure(x_0)) ** 2, axes(y)) / 2


def frozen(x: Array, x_next: Array) -> Array:
    """Returns `x_next`, NaN in each sample that is not finite there or in x: a network may map NaN
    to numbers.
    """
    finite = jnp.all(jnp.isfinite(x) & jnp.isfinite(x_next), axes(x), keepdims=True)
    return jnp.where(finite, x_next, jnp.nan).astype(x.dtype)


def split_keys(keys: Key, n: int) -> tuple[Key, ...]:
    """Returns `n` arrays of keys `(b,)`."""
    return tuple(jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys))
