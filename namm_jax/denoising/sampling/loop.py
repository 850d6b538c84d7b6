"""The one sampling loop."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from namm_jax._arrays import Denoiser, Key, Schedule, Step, fold_in, normal
from namm_jax.denoising.sampling.grids import Grid
from namm_jax.denoising.sampling.steps import estimate


def sample_keys(key: Key, n: int, start: int = 0) -> Key:
    """Returns the keys `(n,)` of samples `start, ..., start + n - 1`: `fold_in(key, index)`,
    whatever the batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(n))


def check_keys(keys: Key) -> None:
    """Raises a ValueError unless the keys are `(b,)`, one a sample, as of `sample_keys`."""
    if keys.ndim != 1 or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f'keys: got {keys.dtype}{list(keys.shape)}, expected one typed key a sample; use '
            'sample_keys'
        )


def sample(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    schedule: Schedule,
    step: Step,
    grid: Grid,
    denoise_last: bool = True,
) -> Array:
    """Returns samples `(b, *shape)`: from `x = sigma noise` at the grid's first time, down the
    grid, and denoised.

    Args:
        keys: `(b,)`, one a sample, as of `sample_keys`; a ValueError is raised for anything else.
        denoiser: of the data, which should have mean about 0 and standard deviation about 1; see
            `Sampler`.
        shape: of one sample.
        schedule: the noising path, the one the step was built with.
        step: one of `steps`, or a wrapped one.
        grid: falling times `(n,)`, the last above 0.
        denoise_last: False returns the state at the grid's last time, with the noise that is left
            in it (published).
    """
    x, _ = _descend(keys, denoiser, shape, schedule, step, grid, lambda x: None)
    return estimate(schedule, denoiser, x, grid[-1]) if denoise_last else x


def trajectory(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    schedule: Schedule,
    step: Step,
    grid: Grid,
) -> tuple[Array, Array]:
    """Returns the way of `sample` down the grid: its states and the denoiser's estimates there,
    `(n, b, *shape)` each.

    The last estimate is the sample. Estimates cost `n` calls of the denoiser, the steps' own calls
    apart.

    Args:
        keys: as of `sample`, as are all that follow.
        denoiser: of the data.
        shape: of one sample.
        schedule: the noising path.
        step: the step.
        grid: falling times `(n,)`.
    """
    last, states = _descend(keys, denoiser, shape, schedule, step, grid, lambda x: x)
    states = jnp.concatenate([states, last[None]])
    return states, jax.lax.map(lambda now: estimate(schedule, denoiser, *now), (states, grid))


def _descend(
    keys: Key,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    schedule: Schedule,
    step: Step,
    grid: Grid,
    observe: Callable[[Array], PyTree],
) -> tuple[Array, PyTree]:
    """The one sampling loop: returns the state at the grid's end, and what is observed at each time
    before it.
    """
    check_keys(keys)

    def advance(
        carry: tuple[Array, PyTree], now: tuple[Array, ...]
    ) -> tuple[tuple[Array, PyTree], PyTree]:
        index, t, s = now
        return step(denoiser, fold_in(keys, index), carry[0], carry[1], t, s), observe(carry[0])

    x = schedule.sigma(grid[0]) * normal(fold_in(keys, 0), jnp.zeros((len(keys), *shape)))
    # A step's memory starts as zeros of whatever structure it returns from none: a scan's carry
    # cannot change.
    memory = jax.eval_shape(lambda x: step(denoiser, keys, x, (), grid[0], grid[-1])[1], x)
    memory = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), memory)
    (x, _), observed = jax.lax.scan(
        advance, (x, memory), (jnp.arange(1, len(grid)), grid[:-1], grid[1:])
    )
    return x, observed
