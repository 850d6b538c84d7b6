"""The training step and the validation of a task, compiled and sharded over a mesh."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from namm_jax._arrays import Key, Metrics, Params, Task
from namm_jax.experiment.devices import batch_sharding, replicated
from namm_jax.training.step import TrainState, TrainStep, train_step


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

    Args:
        task: what is trained.
        ema: decay of the moving average of the parameters, in [0, 1).
        mesh: the devices; the batch is split over them, and what `shardings` does not say is
            replicated.
        parts: of the batch, see `training.step.gradient_in_parts`.
        shardings: of the state, as of `sharding.shardings_of`; replicated unless given.
        steps: taken in one call; of more than one, batches and terms have a first axis, one entry a
            step.
    """
    step = train_step(task, ema=ema, parts=parts)

    def scanned(
        state: TrainState, frozen: PyTree, stream: Key, batches: PyTree
    ) -> tuple[TrainState, Metrics]:
        one = lambda state, batch: step(state, frozen, stream, batch)
        return jax.lax.scan(one, state, batches)

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
