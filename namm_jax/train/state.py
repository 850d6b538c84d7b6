"""What training carries from step to step, and the step: a pure function, compiled once, sharded
over a mesh.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from namm_jax._arrays import Key, Loss, Metrics, Params, Task
from namm_jax.train.sharding import batch_sharding, replicated


class TrainState(NamedTuple):
    """Attributes: `step`, the number of steps taken; the parameters; their moving average; the
    optimizer's state.
    """

    step: Int[Array, '']
    params: Params
    ema: Params
    opt_state: PyTree


def init_state(task: Task, key: Key) -> TrainState:
    """Returns the state before the first step; the average starts at the parameters."""
    params = task.init(key)
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        jax.tree.map(jnp.copy, params),
        task.optimizer.init(params),
    )


def ema_decay(step: Array, decay: float) -> Array:
    """Returns `min(decay, (1 + step) / (10 + step))`: a short run's average must forget its first
    weights.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


TrainStep = Callable[[TrainState, PyTree, Key, PyTree], tuple[TrainState, Metrics]]


def gradient_in_parts(
    loss: Loss, parts: int
) -> Callable[..., tuple[tuple[Array, Metrics], Params]]:
    """Returns `(params, frozen, key, batch) -> ((loss, terms), gradient)`: the means over so many
    parts of the batch.

    No part waits for another, so XLA:CPU, whose convolutions use one thread each, runs the parts
    side by side. A part takes every `parts`-th sample, and so keeps the batch's sharding.

    Args:
        loss: of a task, a mean over the batch.
        parts: a divisor of the batch size on each device; part i's key is `fold_in(key, i)`.
    """
    gradient_of = jax.value_and_grad(loss, has_aux=True)

    def gradient(
        params: Params, frozen: PyTree, key: Key, batch: PyTree
    ) -> tuple[tuple[Array, Metrics], Params]:
        rows = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), batch)
        each = [
            gradient_of(
                params,
                frozen,
                jax.random.fold_in(key, i),
                jax.tree.map(lambda a, i=i: a[:, i], rows),
                train=True,
            )
            for i in range(parts)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves) / parts, *each)

    return gradient


def make_train_step(
    task: Task,
    *,
    ema: float,
    mesh: Mesh,
    parts: int = 1,
    shardings: TrainState | None = None,
    steps: int = 1,
) -> TrainStep:
    """Returns the jitted step `(state, frozen, stream, batch) -> (state, named terms)`; the state
    is donated.

    Step k's key is `fold_in(stream, k)`: a resumed run needs no saved key. The terms are those of
    the loss, the loss itself and the norm of the gradient.

    Args:
        task: what is trained.
        ema: decay of the moving average of the parameters, in [0, 1).
        mesh: the devices; the batch is split over them, and what `shardings` does not say is
            replicated.
        parts: of the batch, see `gradient_in_parts`.
        shardings: of the state, as of `sharding.shardings_of`; replicated unless given.
        steps: taken in one call; of more than one, batches and terms have a first axis, one entry a
            step.
    """
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

    def scanned(
        state: TrainState, frozen: PyTree, stream: Key, batches: PyTree
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, frozen, stream, batch), state, batches)

    whole, split = replicated(mesh), batch_sharding(mesh, stacked=steps > 1)
    kept = whole if shardings is None else shardings
    return jax.jit(
        step if steps == 1 else scanned,
        in_shardings=(kept, whole, whole, split),
        out_shardings=(kept, whole),
        donate_argnums=0,
    )


def make_validation(
    task: Task, *, mesh: Mesh, shardings: PyTree = None
) -> Callable[[Params, PyTree, Key, PyTree], Metrics]:
    """Returns the jitted `(params, frozen, key, batch) -> named terms` of the loss without dropout.

    Args:
        task: what is trained.
        mesh: the devices.
        shardings: of the parameters; replicated unless given.
    """

    def validate(params: Params, frozen: PyTree, key: Key, batch: PyTree) -> Metrics:
        loss, terms = task.loss(params, frozen, key, batch, train=False)
        return terms | {'loss': loss}

    whole, split = replicated(mesh), batch_sharding(mesh)
    kept = whole if shardings is None else shardings
    return jax.jit(validate, in_shardings=(kept, whole, whole, split), out_shardings=whole)
