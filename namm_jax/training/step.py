"""The one training step.

    params <- params + optimizer(grad loss),    average <- average + (1 - decay) (params - average)

Step k takes the key `fold_in(stream, k)`: a resumed run needs none of its own. The averaged
parameters are the result.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from namm_jax._arrays import Key, Loss, Metrics, Params, Task
from namm_jax._checks import check_within

Gradient = tuple[tuple[Array, Metrics], Params]  # the loss, its terms, and the gradient


class TrainState(NamedTuple):
    """What training changes."""

    step: Int[Array, '']  # steps taken
    params: Params
    ema: Params  # their moving average
    opt_state: PyTree  # of the optimizer


TrainStep = Callable[..., tuple[TrainState, Metrics]]


def init_state(task: Task, key: Key) -> TrainState:
    """Returns the state before the first step; the average starts at the parameters."""
    params = task.init(key)
    average = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, average, task.optimizer.init(params))


def ema_decay(step: Array, decay: float) -> Array:
    """Returns `min(decay, (1 + step) / (10 + step))`: a short run forgets its first weights."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def gradient_in_parts(loss: Loss, parts: int) -> Callable[..., Gradient]:
    """Returns `(params, frozen, key, batch) -> ((loss, terms), gradient)`, means over the parts.

    XLA:CPU, whose convolutions use one thread each, runs the parts side by side; their number
    divides the batch size on each device. Part i takes every `parts`-th sample, and so keeps the
    batch's sharding, and the key `fold_in(key, i)`. The loss is a mean over the batch.
    """
    gradient_of = jax.value_and_grad(loss, has_aux=True)

    def gradient(params: Params, frozen: PyTree, key: Key, batch: PyTree) -> Gradient:
        rows = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), batch)
        each = []
        for i in range(parts):
            part = jax.tree.map(lambda a, i=i: a[:, i], rows)
            each.append(gradient_of(params, frozen, jax.random.fold_in(key, i), part, train=True))
        return jax.tree.map(lambda *leaves: sum(leaves) / parts, *each)

    return gradient


def train_step(task: Task, *, ema: float, parts: int = 1) -> TrainStep:
    """Returns the step `(state, frozen, stream, batch) -> (state, terms)`, to be compiled.

    The terms are those of the loss, the loss itself, and the norm of its gradient. The average's
    `ema` is in [0, 1); parts as of `gradient_in_parts`.
    """
    check_within('[0, 1)', ema=ema)
    gradient_of = gradient_in_parts(task.loss, parts)

    def step(
        state: TrainState, frozen: PyTree, stream: Key, batch: PyTree
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(stream, state.step)
        (loss, terms), gradient = gradient_of(state.params, frozen, key, batch)
        updates, opt_state = task.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(params, state.ema, 1 - ema_decay(state.step, ema))
        terms = terms | {'loss': loss, 'gradient_norm': optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, average, opt_state), terms

    return step
