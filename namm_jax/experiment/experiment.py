"""An experiment: the objects of a config, the run folder that holds its results, and what the
stages share.
"""

import functools
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import PyTree
from ml_collections import ConfigDict

from namm_jax._arrays import (
    Constraint,
    Key,
    MirrorMap,
    Params,
    Task,
    from_standard,
    to_standard,
)
from namm_jax.constraints.base import standardised
from namm_jax.experiment import build, dataset
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.config import steps_of
from namm_jax.experiment.devices import (
    check_batch_size,
    first_devices,
    local_mesh,
    make_mesh,
    replicated,
    rules_of,
)
from namm_jax.experiment.drawing import make_draw, sampler_of
from namm_jax.experiment.files import write_checked
from namm_jax.experiment.loop import Fitted, Plan, Stopped, fit
from namm_jax.experiment.problem import make_problem
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.schema import check_ranges
from namm_jax.experiment.shared_run import SharedRun
from namm_jax.problems.base import Problem

POLL_EVERY = 10  # steps between two looks for a signal, where several processes have to agree on it

# A key each; append, never reorder.
STREAMS = (
    'mirror',
    'mdm',
    'finetune',
    'dm',
    'sample',
    'evaluate',
    'probe',
    'robustness',
    'counter',
    'tune',
    'assimilate',
    'posterior',
)


class Experiment(NamedTuple):
    """What a stage works with.

    Attributes:
        config: the resolved config.
        run: the run folder.
        mesh: the devices of all processes, on which models train.
        problem: the data and their rule.
        mirror: the mirror map, from and to data in their own units.
        asked_to_stop: returns the number of a signal that asks the run to stop, else 0.
    """

    config: ConfigDict
    run: SharedRun
    mesh: Mesh
    problem: Problem
    mirror: MirrorMap
    asked_to_stop: Callable[[], int]

    @property
    def local_mesh(self) -> Mesh:
        """The devices of this process, for all but training: no sample needs another's process."""
        return local_mesh(self.mesh)

    def key(self, stream: str) -> Key:
        """Returns the key of a stream of random numbers, which depends on `seed` and the stream's
        name alone.
        """
        return jax.random.fold_in(jax.random.key(self.config.seed), STREAMS.index(stream))

    def keys(self, stream: str, first: int, n: int) -> Key:
        """Returns the keys `(n,)` of samples `first`, ..., each a function of its global index."""
        return jax.vmap(functools.partial(jax.random.fold_in, self.key(stream)))(
            first + jnp.arange(n)
        )

    @property
    def constraint(self) -> Constraint:
        """The set M; the network that it may hold is that of the finished stage `counter`."""
        return build.make_constraint(
            self.config, counter_parameters(self) if build.holds_network(self.config) else None
        )

    @property
    def unit_maps(self) -> tuple[Partial, Partial]:
        """The maps from data in their own units to standardised fields and back."""
        units = dict(zip(('mean', 'scale'), self.problem.units, strict=True))
        return Partial(functools.partial(to_standard, **units)), Partial(
            functools.partial(from_standard, **units)
        )

    @property
    def standard_constraint(self) -> Constraint:
        """The set M of standardised fields."""
        return standardised(self.constraint, *self.problem.units)

    @property
    def unit(self) -> float:
        """The unit of the constraint's distance, for its weight in a loss: that of a user's own
        rule is measured by the stage `data`.
        """
        return (self.run.record('data') or {}).get('unit', self.problem.unit)

    def split(self, name: str) -> np.ndarray:
        """Returns a split of the data, `(n, h, w, c)`, as networks see it."""
        return self.packed(dataset.load_split(self.run.directory / 'data', name))

    def packed(self, x: np.ndarray) -> np.ndarray:
        """Returns fields of a file as networks see them."""
        return np.asarray(self.problem.pack(jnp.asarray(x)))

    def save(self, path: Path, x: np.ndarray) -> None:
        """Writes fields, which are as networks see them, as files hold them."""
        save_array(path, np.asarray(self.problem.unpack(jnp.asarray(x))))

    def pause(self) -> None:
        """Raises `Stopped` if the run is asked to stop; called where all that was done is on
        disk.
        """
        if number := self.asked_to_stop():
            raise Stopped(number)

    def calls(self) -> int:
        """Returns the network calls a sample of the config's sampler."""
        return sampler_of(self.config.sample, 0.0, 1.0).calls

    def checkpoints(self, stage: str) -> Checkpoints:
        """Returns the checkpoints of a training stage."""
        return Checkpoints(
            self.run.directory / stage / 'checkpoints', keep=self.config.train.checkpoints
        )


def check(config: ConfigDict) -> None:
    """Builds every object of the config, shapes only, so that a bad value for the last stage fails
    at once.

    Raises:
        ValueError: by the function that takes the bad value.
    """
    check_ranges(config)
    shape, mesh = make_problem(config).shape, make_mesh(first_devices(config.train.devices))
    rules_of(config.sharding.parameters, config.sharding.rules)
    for section in ('mirror', 'score', 'finetune'):
        check_batch_size(mesh, config[section].batch_size)
    constraint = build.make_constraint(config, counter_shapes(config))
    params = jax.eval_shape(build.mirror_init(config), jax.random.key(0))
    if (got := config.finetune.optimizer.name) != (expected := config.mirror.optimizer.name):
        raise ValueError(
            f'finetune.optimizer.name: got {got!r}, expected {expected!r}, as of mirror, whose '
            'moments it keeps'
        )
    for section in ('counter', 'mirror', 'finetune'):
        if section in config:
            build.optimizer_of(config[section].optimizer, steps_of(config, section))
    task = build.denoising_task(config, steps_of(config, 'dm'), 0.0, 1.0)
    score = jax.eval_shape(task.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    jax.eval_shape(lambda p, x: build.make_mirror(config).inverse(p, x), params, batch)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    for section in (config.sample, config.train.sample):
        jax.eval_shape(make_draw(config, section, 0.0, 1.0), score, keys)
    jax.eval_shape(lambda constraint, x: constraint.distance(x), constraint, batch)
    loss = functools.partial(task.loss, train=False)
    jax.eval_shape(loss, score, task.frozen, jax.random.key(0), {'x': batch})


def train(
    experiment: Experiment,
    stage: str,
    task: Task,
    arrays: dict[str, Any],
    held_out: dict[str, Any],
    *,
    batch_size: int,
    optimizer: ConfigDict,
    probe: Callable[[Params], dict[str, float]] | None = None,
) -> Fitted:
    """Runs `fit` for a stage on named arrays; those of one length have one order, a function of
    (seed, step).

    Args:
        experiment: the experiment.
        stage: the stage's name.
        task: what is trained.
        arrays: name -> training samples `(n, ...)`; they may differ in n.
        held_out: name -> held-out samples.
        batch_size: size of the global batch.
        optimizer: its section of the config, which also has the decay of the moving average.
        probe: see `fit`.
    """
    config, run, steps = experiment.config, experiment.run, steps_of(experiment.config, stage)
    processes = dict(process_index=jax.process_index(), process_count=jax.process_count())
    lengths = list(dict.fromkeys(map(len, arrays.values())))

    def batches(start: int) -> Iterator[PyTree]:
        iterators = {
            name: dataset.batches(
                array,
                seed=2 * config.seed + lengths.index(len(array)),
                batch_size=batch_size,
                start=start,
                steps=steps,
                **processes,
            )
            for name, array in arrays.items()
        }
        return (
            dict(zip(iterators, parts, strict=True))
            for parts in zip(*iterators.values(), strict=True)
        )

    size, local = (
        min(len(array) for array in held_out.values()),
        dataset.local_rows(batch_size, **processes),
    )
    held = [
        {name: array[start : start + batch_size][local] for name, array in held_out.items()}
        for start in range(0, min(size, 8 * batch_size) - batch_size + 1, batch_size)
    ]
    every = (config.train.log_every, config.train.validate_every)
    parts = math.gcd(batch_size // experiment.mesh.size, config.train.parts)
    rules = rules_of(config.sharding.parameters, config.sharding.rules)
    poll_every = 1 if jax.process_count() == 1 else POLL_EVERY
    ema = optimizer.ema ** (
        1 / optimizer.accumulate
    )  # the parameters change on every so many steps
    plan = Plan(
        stage,
        steps,
        *every,
        config.train.probes if probe else 0,
        ema,
        parts,
        rules,
        poll_every,
        config.train.steps_per_call,
    )
    with experiment.checkpoints(stage) as checkpoints:
        return fit(
            task,
            batches,
            held,
            plan,
            key=experiment.key(stage),
            mesh=experiment.mesh,
            checkpoints=checkpoints,
            log=run.log,
            meta={'config': run.config},
            forget=functools.partial(run.drop_records, stage),
            probe=probe,
            asked_to_stop=experiment.asked_to_stop,
        )


def restore(experiment: Experiment, stage: str, target: PyTree) -> PyTree:
    """Returns part of a finished stage's last state, such as `{'ema': ...}`.

    Args:
        experiment: the experiment.
        stage: a finished training stage.
        target: the part, as a pytree of shapes and dtypes: `jax.eval_shape(...)`.

    Raises:
        ValueError: naming the folder, if its last checkpoint is damaged or missing.
    """
    whole, steps = replicated(experiment.local_mesh), steps_of(experiment.config, stage)
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), target
    )
    with experiment.checkpoints(stage) as checkpoints:
        restored = checkpoints.restore(target, part=True)
    if restored is None or restored.step != steps:
        got = 'no checkpoint' if restored is None else f'checkpoint {restored.step}'
        raise ValueError(
            f'{checkpoints.directory}: got {got}, expected an intact checkpoint {steps}, the last '
            f'of the stage {stage}, which is finished; restore the folder from a copy, or discard '
            f'the stage with --redo={stage}'
        )
    return restored.state


def mirror_parameters(experiment: Experiment) -> Params:
    """Returns the averaged parameters of the mirror map, none for one that is not learned."""
    if not build.learns_map(experiment.config):
        return {}
    shapes = jax.eval_shape(build.mirror_init(experiment.config), jax.random.key(0))
    return restore(experiment, 'mirror', {'ema': shapes})['ema']


def finetuned_parameters(experiment: Experiment) -> Params:
    """Returns the mirror map's averaged parameters, those of f after finetuning, none for one that
    is not learned.
    """
    params = mirror_parameters(experiment)
    if not params:
        return params
    shapes = jax.eval_shape(lambda: {'inverse': params['inverse']})
    return params | restore(experiment, 'finetune', {'ema': shapes})['ema']


def counter_shapes(config: ConfigDict) -> Params:
    """Returns shapes and dtypes of the counting network's parameters; None where the constraint
    holds none.
    """
    if not build.holds_network(config):
        return None
    network, shape = build.make_counters(config)['counter'], make_problem(config).shape
    return jax.eval_shape(
        lambda key: network.init(key, jnp.zeros((1, *shape)))['params'], jax.random.key(0)
    )


def counter_parameters(experiment: Experiment) -> Params:
    """Returns the averaged parameters of the trained counting network."""
    return restore(experiment, 'counter', {'ema': {'counter': counter_shapes(experiment.config)}})[
        'ema'
    ]['counter']


def score_parameters(experiment: Experiment, stage: str) -> Params:
    """Returns the averaged parameters of a diffusion model, `dm` or `mdm`."""
    task = build.denoising_task(experiment.config, 1, 0.0, 1.0)
    return restore(experiment, stage, {'ema': jax.eval_shape(task.init, jax.random.key(0))})['ema']


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a float32 `.npy` file, whole or not at all, and its checksum; process 0 does."""
    file = io.BytesIO()
    np.save(file, np.asarray(array, np.float32), allow_pickle=False)
    from_first(lambda: write_checked(path, file.getvalue()))
