"""Training in memory: from data to a mirror map or a prior in one call."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from rich.progress import track

from namm_jax._arrays import Key, Metrics, Params, Task, at_least_single
from namm_jax._checks import check_key, check_kind, check_within, refuse
from namm_jax.training.step import TrainState, init_state, train_step

CHECK_EVERY = 50  # steps between two looks at the loss
HELD_OUT = 16  # samples that are kept out of training, at most; 1 in 8 of a small set


class Recipe(NamedTuple):
    """What `fit` trains, and what it makes of it."""

    task: Callable[[Mapping[str, Array], int], Task]  # of the training arrays and the steps
    # (averaged parameters, frozen, held-out arrays) -> what `fit` returns
    result: Callable[[Params, PyTree, Mapping[str, Array]], Any]
    shape: tuple[int, int, int]  # (h, w, c) of a sample
    batch_size: int = 16  # of a step
    ema: float = 0.999  # decay of the average
    extra: Mapping[str, Array] = MappingProxyType({})  # besides the data, sampled on their own


def fit(
    recipe: Recipe,
    x: Array,
    *,
    steps: int,
    key: Key | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Any:
    """Returns what a recipe makes of data: a mirror map of `namm`, a prior of `diffusion`, a pytree
    with the averaged parameters. The last samples, 1 in 8 and 16 at most, are kept out of training:
    a prior measures on them how far to trust its estimates.

    Args:
        recipe: as of `namm`, `finetune` or `diffusion`.
        x: data `(n, h, w, c)`, in their own unit.
        key: a PRNG key; `jax.random.key(0)` unless given.
        batch_size: samples a step; the recipe's unless given.

    Raises:
        ValueError: if the data are not of the recipe's shape, fewer than a batch, or not finite.
        FloatingPointError: if the loss is not finite.
    """
    check_kind('recipe', recipe, Recipe, 'nj.namm or nj.diffusion')
    key = jax.random.key(0) if key is None else key
    check_key(key)
    size = recipe.batch_size if batch_size is None else batch_size
    check_within('[1, inf)', kinds='iu', steps=steps, batch_size=size)
    arrays = {'x': x, **recipe.extra}
    arrays = {name: _usable(name, a, recipe.shape, size) for name, a in arrays.items()}
    train = {name: array[: len(array) - _held_out(array)] for name, array in arrays.items()}
    held = {name: array[len(train[name]) :] for name, array in arrays.items()}
    task = recipe.task(train, steps)
    key_init, stream, key_order = jax.random.split(key, 3)
    state = init_state(task, key_init)
    parts = math.gcd(size, 2) if jax.default_backend() == 'cpu' else 1
    update = train_step(task, ema=recipe.ema, parts=parts)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, frozen: PyTree, stream: Key, arrays: PyTree, rows: PyTree) -> Any:
        return update(state, frozen, stream, jax.tree.map(lambda a, i: a[i], arrays, rows))

    order_of = lambda i, array: _orders(jax.random.fold_in(key_order, i), len(array), size)
    orders = {name: order_of(i, array) for i, (name, array) in enumerate(train.items())}
    indices = range(1, steps + 1)
    for index in track(indices, description='fit') if progress else indices:
        rows = {name: next(order) for name, order in orders.items()}
        state, terms = step(state, task.frozen, stream, train, rows)
        if index % CHECK_EVERY == 0 or index == steps:
            _check_finite(index, terms)
    return recipe.result(state.ema, task.frozen, held)


def _orders(key: Key, n: int, size: int) -> Iterator[np.ndarray]:
    """Yields the rows of batch after batch, each epoch in an order of its own."""
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    while True:
        order = random.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


def _held_out(array: Array) -> int:
    return min(HELD_OUT, len(array) // 8)


def _usable(name: str, x: Array, shape: tuple[int, int, int], size: int) -> Array:
    """Returns an array to train on, float32 at least, after checks."""
    x = jnp.asarray(x)
    if x.shape[1:] != shape:
        expected = f'(n, {", ".join(map(str, shape))}), the shape of the problem of the recipe'
        raise ValueError(f'{name}: got shape {x.shape}, expected {expected}')
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f'{name}: got {x.dtype}, expected floating-point numbers; cast it')
    if len(x) - _held_out(x) < size:
        raise ValueError(
            f'{name}: got {len(x)} samples, of which {_held_out(x)} are kept out of training, '
            f'expected a batch of {size} besides; bring more, or give a smaller batch_size'
        )
    bad = ~np.asarray(jnp.isfinite(x).all((1, 2, 3)))
    refuse(name, bad, 'NaN or infinity', 'finite numbers; leave those out')
    return at_least_single(x)


def _check_finite(step: int, terms: Metrics) -> None:
    for term, value in jax.device_get(terms).items():
        if not np.isfinite(value):
            remedy = 'expected a finite number; lower the learning rate, or look at the data'
            raise FloatingPointError(f'fit: {term} is {value} at step {step}, {remedy}')
