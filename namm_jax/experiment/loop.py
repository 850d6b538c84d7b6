"""The one training loop: restore, step, log, validate, probe, save."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from namm_jax._arrays import Key, Metrics, Params, Task
from namm_jax.experiment import devices, flops
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.progress import Bar, say
from namm_jax.training.step import TrainState, TrainStep, init_state, train_step


class Stopped(Exception):
    """Training was asked to stop; everything is saved. `signal` is the signal's number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f'stopped by signal {signal}, after saving')
        self.signal = signal


class Diverged(RuntimeError):
    """A term of the loss, or its gradient, is not finite."""


class Plan(NamedTuple):
    """When things happen in `fit`, in steps."""

    name: str  # of the stage, for records and messages
    steps: int  # in all
    log_every: int  # between records of the training terms; the last step has one too
    validate_every: int  # between records of the held-out terms, each with a checkpoint
    probes: int  # their number, equally spaced, the last at the last step; 0 for none
    ema: float  # decay of the moving average of the parameters
    parts: int = 1  # of the batch, whose gradients are computed side by side
    rules: tuple[str, ...] = ()  # what of the state is split over the devices, see `devices`
    poll_every: int = 1  # between two looks for a signal, on which several processes have to agree
    together: int = 1  # taken in one call, where no stop comes between

    def stops(self) -> list[int]:
        """Returns the steps at which the loop pauses, in ascending order, the last among them."""
        records = {*range(0, self.steps, self.log_every), self.steps}
        validations = {*range(0, self.steps, self.validate_every)}
        return sorted((records | validations | self.probed()) - {0})

    def calls(self, steps: int) -> list[int]:
        """Returns the sizes of the calls that take so many steps, those of `together` first."""
        return [self.together] * (steps // self.together) + [1] * (steps % self.together)

    def probed(self) -> set[int]:
        """Returns the steps after which a probe is taken."""
        return {max(1, round(self.steps * k / self.probes)) for k in range(1, self.probes + 1)}

    def validated(self, step: int) -> bool:
        """Returns whether held-out terms and a checkpoint are due after this step."""
        return step % self.validate_every == 0 or step == self.steps


class Fitted(NamedTuple):
    """The last state, and the seconds and floating-point operations of training that led to it."""

    state: TrainState
    seconds: float
    flops: float


def make_train_step(
    task: Task, *, ema: float, mesh: Mesh, parts: int = 1, shardings: PyTree = None, steps: int = 1
) -> TrainStep:
    """Returns the jitted step `(state, frozen, stream, batch) -> (state, named terms)`, which
    donates the state.

    A state without `shardings` is replicated. `ema` and `parts` are those of `train_step`. Of
    several `steps` in one call, batches and terms have a first axis.
    """
    one = train_step(task, ema=ema, parts=parts)

    def several(
        state: TrainState, frozen: PyTree, stream: Key, batches: PyTree
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: one(state, frozen, stream, batch), state, batches)

    copy, split = devices.replicated(mesh), devices.batch_sharding(mesh, stacked=steps > 1)
    kept = shardings or copy
    places = {'in_shardings': (kept, copy, copy, split), 'out_shardings': (kept, copy)}
    return jax.jit(one if steps == 1 else several, donate_argnums=0, **places)


def make_validation(
    task: Task, *, mesh: Mesh, shardings: PyTree = None
) -> Callable[[Params, PyTree, Key, PyTree], Metrics]:
    """Returns the jitted `(params, frozen, key, batch) -> named terms` of the loss without dropout;
    parameters without `shardings` are replicated.
    """

    def validate(params: Params, frozen: PyTree, key: Key, batch: PyTree) -> Metrics:
        loss, terms = task.loss(params, frozen, key, batch, train=False)
        return terms | {'loss': loss}

    copy = devices.replicated(mesh)
    places = shardings or copy, copy, copy, devices.batch_sharding(mesh)
    return jax.jit(validate, in_shardings=places, out_shardings=copy)


def fit(
    task: Task,
    batches: Callable[[int], Iterator[PyTree]],
    held_out: list[PyTree],
    plan: Plan,
    *,
    key: Key,
    mesh: Mesh,
    checkpoints: Checkpoints,
    log: Callable[[dict[str, Any]], None],
    forget: Callable[[int], None] = lambda step: None,
    probe: Callable[[Params], dict[str, float]] | None = None,
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> Fitted:
    """Trains a task from its newest checkpoint, or from the start.

    Args:
        batches: `first step -> iterator over this process's batches`.
        held_out: batches on which the loss of the averaged parameters is measured.
        key: a PRNG key; initialisation, steps and validation each have a stream of their own.
        log: takes one record, `{'stage', 'step', 'seconds', <named terms>}`.
        forget: called with the step that training goes on from; later records are to be dropped.
        probe: `averaged parameters -> named numbers`, measured with the clock stopped.
        asked_to_stop: returns the number of a signal that asks training to stop, else 0.

    Raises:
        Diverged: if a term of the loss or its gradient is not finite.
        Stopped: once everything is saved, if asked to stop.
    """
    key_init, stream, key_held_out = jax.random.split(key, 3)
    state, shardings, seconds, history = _start(task, key_init, plan, mesh, checkpoints)
    step = int(state.step)
    forget(step)
    source = batches(step)
    held_out = [jax.tree.map(lambda a: devices.put_batch(mesh, a), batch) for batch in held_out]
    frozen = devices.put(task.frozen, devices.replicated(mesh))
    shapes = jax.eval_shape(lambda *inputs: inputs, state, frozen, stream, held_out[0])
    trace = functools.cache(functools.partial(_trace, task, plan, mesh, shardings, shapes))
    compiled = functools.cache(lambda size: trace(size).lower().compile())
    validate = make_validation(task, mesh=mesh, shardings=shardings.ema)

    with Bar(plan.name, plan.steps, start=step) as bar:
        for stop in (stop for stop in plan.stops() if stop > step):
            calls = [(compiled(size), size) for size in plan.calls(stop - step)]
            begun = time.perf_counter()
            for call, size in calls:
                if step % plan.poll_every == 0 and asked_to_stop():
                    break
                batch = jax.tree.map(lambda *a: _put(mesh, a), *itertools.islice(source, size))
                state, terms = call(state, frozen, stream, batch)
                history.append(terms)
                step += size
            jax.block_until_ready(state)
            seconds += time.perf_counter() - begun
            history = _rows(history)
            _check_finite(plan.name, step - len(history), history, checkpoints)
            if step < stop:
                checkpoints.save(step, state, {'seconds': seconds, 'history': history})
                raise Stopped(asked_to_stop())
            record = _mean('train', history)
            if plan.validated(step):
                terms = [validate(state.ema, frozen, key_held_out, batch) for batch in held_out]
                record |= _mean('heldout', _rows(terms))
            if probe and step in plan.probed():
                record |= probe(devices.whole(state.ema, mesh))
            log({'stage': plan.name, 'step': step, 'seconds': seconds} | record)
            bar.update(step, {name.removeprefix('train/'): value for name, value in record.items()})
            history = []
            if plan.validated(step):
                checkpoints.save(step, state, {'seconds': seconds, 'history': history})
    return Fitted(state, seconds, float(plan.steps * flops.count(trace(1).jaxpr)))


def _start(
    task: Task, key: Key, plan: Plan, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, TrainState, float, list[Any]]:
    """Returns the newest or first state, shardings, seconds, and terms since the last record."""
    state = init_state(task, key)
    shardings = devices.shardings_of(state, mesh, plan.rules)
    state = devices.put(state, shardings)
    if mesh.size > 1:
        say(f'{plan.name}: {devices.describe(state)}')
    restored = checkpoints.restore(state)
    if restored:
        return restored.state, shardings, restored.meta['seconds'], restored.meta['history']
    return state, shardings, 0.0, []


def _trace(
    task: Task, plan: Plan, mesh: Mesh, shardings: TrainState, shapes: tuple[Any, ...], steps: int
) -> Any:
    """Returns the call that takes so many steps, traced; compiled before the clock runs."""
    options = dict(ema=plan.ema, mesh=mesh, parts=plan.parts, shardings=shardings, steps=steps)
    stack = lambda a: jax.ShapeDtypeStruct((steps,) * (steps > 1) + a.shape, a.dtype)
    *others, batch = shapes
    return make_train_step(task, **options).trace(*others, jax.tree.map(stack, batch))


def _put(mesh: Mesh, batches: tuple[np.ndarray, ...]) -> jax.Array:
    stacked = len(batches) > 1
    return devices.put_batch(mesh, np.stack(batches) if stacked else batches[0], stacked=stacked)


def _rows(calls: list[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns the terms of each step of each call, as numbers."""
    rows = []
    for terms in jax.device_get(calls):
        columns = [np.ravel(values).astype(float).tolist() for values in terms.values()]
        rows += [dict(zip(terms, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows


def _mean(of: str, rows: list[dict[str, float]]) -> dict[str, float]:
    return {f'{of}/{name}': float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _check_finite(
    name: str, step: int, rows: list[dict[str, float]], checkpoints: Checkpoints
) -> None:
    """Raises `Diverged` unless all terms are finite, of the steps from this one on."""
    for i, terms in enumerate(rows):
        for term, value in terms.items():
            if not np.isfinite(value):
                saved = [f'{checkpoints.directory}/{good}' for good in checkpoints.steps()]
                raise Diverged(
                    f'{name}: {term} is {value} at step {step + i}, expected a finite number; last '
                    f'good checkpoint: {(saved or ["none: the stage starts anew"])[-1]}. Lower the '
                    'learning rate, or look at the data with that batch.'
                )
