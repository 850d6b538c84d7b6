"""The one training loop: restore, step, log, validate, probe, save."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from namm_jax._arrays import Key, Params, Task
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.devices import describe, put, put_batch, replicated, shardings_of, whole
from namm_jax.experiment.progress import Bar, say
from namm_jax.experiment.step import make_train_step, make_validation
from namm_jax.training.step import TrainState, init_state


class Stopped(Exception):
    """Training was asked to stop; everything is saved. `signal` is the signal's number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f'stopped by signal {signal}, after saving')
        self.signal = signal


class Diverged(RuntimeError):
    """A term of the loss, or its gradient, is not finite."""


class Plan(NamedTuple):
    """When things happen in `fit`, in steps.

    Attributes:
        name: the stage, for records and messages.
        steps: the total number of steps.
        log_every: between records of the training terms; the last step has one too.
        validate_every: between records of the held-out terms, each with a checkpoint.
        probes: number of probes, equally spaced; the last at the last step. 0 for none.
        ema: decay of the moving average of the parameters.
        parts: of the batch, whose gradients are computed side by side.
        rules: what of the state is split over the devices, as of `sharding.rules_of`.
        poll_every: steps between two looks for a signal to stop; several processes have to agree on
            it.
        together: steps taken in one call, where no stop comes between.
    """

    name: str
    steps: int
    log_every: int
    validate_every: int
    probes: int
    ema: float
    parts: int = 1
    rules: tuple[str, ...] = ()
    poll_every: int = 1
    together: int = 1

    def stops(self) -> list[int]:
        """Returns the steps at which the loop pauses, in ascending order, the last step among
        them.
        """
        every = {
            *range(0, self.steps, self.log_every),
            *range(0, self.steps, self.validate_every),
            self.steps,
        }
        return sorted((every | self.probed()) - {0})

    def sizes(self, step: int) -> set[int]:
        """Returns how many steps a call takes, of all calls from this step on."""
        stops = [step, *(stop for stop in self.stops() if stop > step)]
        return {size for a, b in itertools.pairwise(stops) for size in _calls(b - a, self.together)}

    def probed(self) -> set[int]:
        """Returns the steps after which a probe is taken."""
        return {max(1, round(self.steps * k / self.probes)) for k in range(1, self.probes + 1)}

    def validated(self, step: int) -> bool:
        """Returns whether the held-out terms are taken, and a checkpoint written, after this
        step.
        """
        return step % self.validate_every == 0 or step == self.steps


class Fitted(NamedTuple):
    """What `fit` returns: the last state, and the seconds of training that led to it."""

    state: TrainState
    seconds: float


def _check_finite(
    name: str, step: int, history: list[Mapping[str, Any]], checkpoints: Checkpoints
) -> None:
    """Raises `Diverged`, naming the step, the term and the last good checkpoint, unless all terms
    are finite.
    """
    for i, terms in enumerate(history):
        for term, value in terms.items():
            if not np.isfinite(value):
                checkpoints.wait()
                good = checkpoints.steps()
                where = (
                    f'{checkpoints.directory}/{good[-1]}.npz'
                    if good
                    else 'none: the stage starts anew'
                )
                raise Diverged(
                    f'{name}: {term} is {value} at step {step + i}, expected a finite number; last '
                    f'good checkpoint: {where}. Lower the learning rate, or look at the data with '
                    'that batch.'
                )


def _mean(history: list[Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([terms[name] for terms in history])) for name in history[0]}


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
    meta: Mapping[str, Any] = MappingProxyType({}),
    forget: Callable[[int], None] = lambda step: None,
    probe: Callable[[Params], dict[str, float]] | None = None,
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> Fitted:
    """Trains a task from its newest checkpoint, or from the start.

    Args:
        task: what is trained.
        batches: `first step -> iterator over this process's batches`, each put while devices work
            on those before.
        held_out: batches on which the loss of the averaged parameters is measured.
        plan: what happens when.
        key: a PRNG key; initialisation, steps and validation each have a stream of their own.
        mesh: the devices.
        checkpoints: where the state is saved and found.
        log: takes one record, `{'stage', 'step', 'seconds', <named terms>}`.
        meta: JSON types to keep in every checkpoint, such as the config.
        forget: called with the step that training goes on from; later records are to be dropped.
        probe: `averaged parameters -> named numbers`, measured with the clock stopped.
        asked_to_stop: returns the number of a signal that asks training to stop, else 0.

    Returns:
        The last state, and the seconds spent in training steps, without compilation, validation,
        probes and disk.

    Raises:
        Diverged: if a term of the loss or its gradient is not finite.
        Stopped: once everything is saved, if asked to stop.
    """
    key_init, stream, key_held_out = jax.random.split(key, 3)
    (state, seconds, history), shardings = _start(task, key_init, plan, mesh, checkpoints)
    step = int(state.step)
    forget(step)
    if step == plan.steps:
        return Fitted(state, seconds)
    source = batches(step)
    held_out = [jax.tree.map(lambda a: put_batch(mesh, a), batch) for batch in held_out]
    frozen = put(task.frozen, replicated(mesh))
    make = functools.partial(
        make_train_step, task, ema=plan.ema, mesh=mesh, parts=plan.parts, shardings=shardings
    )
    arguments = lambda size: (state, frozen, stream, _stacked(held_out[0], size))
    train_steps = {
        size: make(steps=size).lower(*arguments(size)).compile() for size in plan.sizes(step)
    }  # not timed
    validate = make_validation(task, mesh=mesh, shardings=shardings.ema)

    with Bar(plan.name, plan.steps, start=step) as bar:
        for stop in (s for s in plan.stops() if s > step):
            begun = time.perf_counter()
            for size in _calls(stop - step, plan.together):
                if step % plan.poll_every == 0 and asked_to_stop():
                    break
                batch = jax.tree.map(lambda *a: _put(mesh, a), *itertools.islice(source, size))
                state, terms = train_steps[size](state, frozen, stream, batch)
                history.append(terms)
                step += size
            jax.block_until_ready(state)
            seconds += time.perf_counter() - begun
            history = [each for terms in jax.device_get(history) for each in _unstacked(terms)]
            _check_finite(plan.name, step - len(history), history, checkpoints)
            if step < stop:
                checkpoints.save(step, state, {**meta, 'seconds': seconds, 'history': history})
                checkpoints.wait()
                raise Stopped(asked_to_stop())
            record = {f'train/{name}': value for name, value in _mean(history).items()}
            if plan.validated(step):
                measured = [
                    _floats(validate(state.ema, frozen, key_held_out, batch)) for batch in held_out
                ]
                record |= {f'heldout/{name}': value for name, value in _mean(measured).items()}
            if probe is not None and step in plan.probed():
                record |= probe(whole(state.ema, mesh))
            log({'stage': plan.name, 'step': step, 'seconds': seconds} | record)
            bar.update(step, {name.removeprefix('train/'): value for name, value in record.items()})
            if plan.validated(step):
                checkpoints.save(step, state, {**meta, 'seconds': seconds, 'history': []})
            history = []
    checkpoints.wait()
    return Fitted(state, seconds)


def _calls(steps: int, together: int) -> list[int]:
    """Returns how so many steps are taken: as many as may be in calls of `together`, the others one
    by one.
    """
    return [together] * (steps // together) + [1] * (steps % together)


def _put(mesh: Mesh, batches: tuple[np.ndarray, ...]) -> jax.Array:
    """Returns one batch on the mesh, or several stacked."""
    return (
        put_batch(mesh, batches[0])
        if len(batches) == 1
        else put_batch(mesh, np.stack(batches), stacked=True)
    )


def _stacked(batch: PyTree, size: int) -> PyTree:
    """Returns the shapes of so many batches stacked; the batch itself where it is one."""
    stack = lambda a: jax.ShapeDtypeStruct((size, *a.shape), a.dtype)
    return batch if size == 1 else jax.tree.map(stack, batch)


def _unstacked(terms: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns the terms of each step of a call."""
    columns = {name: np.atleast_1d(values) for name, values in terms.items()}
    return [
        _floats(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
    ]


def _floats(terms: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in terms.items()}


def _start(
    task: Task, key: Key, plan: Plan, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[tuple[TrainState, float, list[Any]], TrainState]:
    """Returns state, seconds, and terms since the last record, of the newest intact checkpoint or
    of the start.

    And the shardings of the state.
    """
    state = init_state(task, key)
    shardings = shardings_of(state, mesh, plan.rules)
    if mesh.size > 1:
        say(f'{plan.name}: {describe(state, shardings)}')
    state = put(state, shardings)
    restored = checkpoints.restore(state)
    found = (
        (restored.state, restored.meta['seconds'], restored.meta['history'])
        if restored
        else (state, 0.0, [])
    )
    return found, shardings
