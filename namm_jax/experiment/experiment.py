"""An experiment: a config's objects, the run folder that holds its results, what stages share."""

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
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax._arrays import Constraint, Key, MirrorMap, Params, Task, from_standard, to_standard
from namm_jax.constraints.base import standardised
from namm_jax.constraints.projection import land
from namm_jax.experiment import build, dataset, devices
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.config import steps_of
from namm_jax.experiment.drawing import in_batches, make_draw
from namm_jax.experiment.files import UserError, write_checked
from namm_jax.experiment.folder import SharedRun
from namm_jax.experiment.loop import Fitted, Plan, Stopped, fit
from namm_jax.experiment.problem import make_problem, with_own_data
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.schema import check_ranges
from namm_jax.problems.base import Problem

MAPPED = 256  # samples that a function maps at once
POLL_EVERY = 10  # steps between two looks for a signal, where several processes have to agree on it
# A key each; append, never reorder.
STREAMS = (
    'mirror mdm finetune dm sample evaluate probe robustness counter tune assimilate posterior '
    'condition'
).split()


class Experiment(NamedTuple):
    """What a stage works with; the mirror map is from and to data in their own units."""

    config: ConfigDict
    run: SharedRun
    mesh: Mesh  # of all processes
    problem: Problem
    mirror: MirrorMap
    asked_to_stop: Callable[[], int]  # the number of a signal that asks the run to stop, else 0

    @property
    def local_mesh(self) -> Mesh:
        """The devices of this process, for all but training: no sample needs another's process."""
        return devices.local_mesh(self.mesh)

    def key(self, stream: str) -> Key:
        """Returns the key of a stream of random numbers, a function of `seed` and its name."""
        return jax.random.fold_in(jax.random.key(self.config.seed), STREAMS.index(stream))

    def keys(self, stream: str, first: int, n: int) -> Key:
        """Returns the keys `(n,)` of samples `first`, ..., each a function of its index."""
        fold = functools.partial(jax.random.fold_in, self.key(stream))
        return jax.vmap(fold)(first + jnp.arange(n))

    @property
    def constraint(self) -> Constraint:
        """The set M; the network that it may hold is that of the finished stage `counter`."""
        params = counter_shapes(self.config)
        if params is not None:
            params = restore(self, 'counter', {'ema': {'counter': params}})['ema']['counter']
        return build.make_constraint(self.config, params)

    def distances(self, x: np.ndarray | Array) -> np.ndarray:
        """Returns the distances `(n,)` of fields from M."""
        measure = Partial(_distance, self.constraint)
        return in_batches(measure, x, min(len(x), 256), self.local_mesh)

    @property
    def unit_maps(self) -> tuple[Partial, Partial]:
        """The maps from data in their own units to standardised fields and back."""
        units = dict(zip(('mean', 'scale'), self.problem.units, strict=True))
        maps = (functools.partial(function, **units) for function in (to_standard, from_standard))
        return tuple(map(Partial, maps))

    @property
    def standard_constraint(self) -> Constraint:
        """The set M of standardised fields."""
        return standardised(self.constraint, *self.problem.units)

    def landed(self, params: Params) -> tuple[Partial, Partial]:
        """Returns g and f as they are used: a learned f ends in steps towards the rule."""
        g, f = self.mirror.bind(params)
        steps = self.config.sample.landing if build.learns_map(self.config) else 0
        return (g, Partial(lambda land, f, z: land(f(z)), self.landing, f)) if steps else (g, f)

    @property
    def landing(self) -> Partial:
        """The steps towards the rule, of data in their own units."""
        standardise, to_data = self.unit_maps
        section = self.config.sample
        settings = dict(steps=section.landing, tolerance=section.projection_tolerance)
        unit = self.unit

        def function(rule: Constraint, x: Array) -> Array:
            return to_data(land(lambda u: rule.residual(u) / unit, standardise(x), **settings))

        return Partial(function, self.standard_constraint)

    @property
    def unit(self) -> float:
        """The unit of the rule's distance, for its weight in a loss and for tolerances."""
        return (self.run.record('data') or {}).get('unit', self.problem.unit)

    def split(self, name: str) -> np.ndarray | dataset.Stored:
        """Returns a split of the data, `(n, h, w, c)`, as networks see it; many samples of a user's
        own, to train on, stay in their file.
        """
        folder, large = self.run.directory / 'data', name == 'train' and not self.problem.generated
        x = dataset.load_split(folder, name, limit=dataset.IN_MEMORY if large else math.inf)
        return x if large else self.packed(x)

    def packed(self, x: np.ndarray) -> np.ndarray:
        """Returns fields of a file as networks see them."""
        return np.asarray(self.problem.pack(jnp.asarray(x)))

    def load(self, path: Path) -> np.ndarray:
        """Returns the fields that `save` wrote; not finite where a sampler diverged."""
        return self.packed(dataset.read_array(path))

    def save(self, path: Path, x: np.ndarray) -> None:
        """Writes fields, which are as networks see them, as files hold them."""
        save_array(path, np.asarray(self.problem.unpack(jnp.asarray(x))))

    def pause(self) -> None:
        """Raises `Stopped` if the run is asked to stop; called where all work is on disk."""
        if number := self.asked_to_stop():
            raise Stopped(number)

    def checkpoints(self, stage: str) -> Checkpoints:
        """Returns the checkpoints of a training stage."""
        folder = self.run.directory / stage / 'checkpoints'
        keep = self.config.train.checkpoints
        return Checkpoints(folder, keep=keep, origin=self.run.origin(stage))


def splits(
    experiment: Experiment, function: Callable[[Any], Any] | None = None
) -> list[np.ndarray | dataset.Stored]:
    """Returns training and validation data, or what a function makes of batches `(b, h, w, c)` of
    them; of data that stay in their file, as they are read.
    """
    both = [experiment.split(name) for name in ('train', 'validation')]
    if not function:
        return both
    of = lambda x: in_batches(function, x, MAPPED, experiment.local_mesh)
    return [x.map(function, MAPPED) if isinstance(x, dataset.Stored) else of(x) for x in both]


@jax.jit
def _distance(constraint: Constraint, x: Array) -> Array:
    return constraint.distance(x)


def make_experiment(
    run: Any, asked_to_stop: Callable[[], int] = lambda: 0, mesh: Mesh | None = None
) -> Experiment:
    """Returns the experiment of a run folder, a `Run` or to be read alone a `Folder`."""
    config = with_own_data(ConfigDict(run.config), run.record('data'))
    mesh = mesh or devices.make_mesh(devices.first_devices(config.train.devices))
    mirror = build.user_mirror(config)
    return Experiment(config, run, mesh, make_problem(config), mirror, asked_to_stop)


def check(config: ConfigDict, preset: ConfigDict | None = None) -> None:
    """Builds all objects of the config, shapes only, so that a bad value fails before any stage."""
    check_ranges(config)
    build.check_networks(config, preset or config)
    shape = make_problem(config).shape
    mesh = devices.make_mesh(devices.first_devices(config.train.devices))
    devices.rules_of(config.sharding.parameters, config.sharding.rules)
    if config.score.external:
        build.external_denoiser(config)
    for section in ('mirror', 'score', 'finetune'):
        devices.check_batch_size(mesh, config[section].batch_size)
    if (got := config.finetune.optimizer.name) != (expected := config.mirror.optimizer.name):
        raise ValueError(
            f'finetune.optimizer.name: got {got!r}, expected {expected!r}, as of mirror, whose '
            'moments it keeps'
        )
    for section in ('counter', 'mirror', 'finetune'):
        if section in config:
            build.optimizer_of(config[section].optimizer, steps_of(config, section))
    constraint = build.make_constraint(config, counter_shapes(config))
    task = build.denoising_task(config, steps_of(config, 'dm'), 0.0, 1.0)
    score = _shapes(task.init)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    keys = _shapes(lambda key: jax.random.split(key, 2))
    jax.eval_shape(build.make_mirror(config).inverse, _shapes(build.mirror_init(config)), x)
    for section in (config.sample, config.train.sample):
        jax.eval_shape(make_draw(config, section, 0.0, 1.0), score, keys)
    jax.eval_shape(_distance, constraint, x)
    loss = functools.partial(task.loss, train=False)
    jax.eval_shape(loss, score, task.frozen, jax.random.key(0), {'x': x})


def train(
    experiment: Experiment,
    stage: str,
    task: Task,
    arrays: dict[str, Any],
    held_out: dict[str, Any],
    section: ConfigDict,
    probe: Callable[[Params], dict[str, float]] | None = None,
) -> Fitted:
    """Runs `fit` for a stage on named samples `(n, ...)`, which may differ in n: those of one n
    have one order, a function of (seed, step). The section has `batch_size` and `optimizer`.
    """
    config = experiment.config
    steps = steps_of(config, stage)
    size = section.batch_size
    processes = dict(process_index=jax.process_index(), process_count=jax.process_count())
    lengths = list(dict.fromkeys(map(len, arrays.values())))

    def batches(start: int) -> Iterator[PyTree]:
        own = dict(batch_size=size, start=start, steps=steps, **processes)
        seed_of = lambda array: 2 * config.seed + lengths.index(len(array))
        each = [dataset.batches(array, seed=seed_of(array), **own) for array in arrays.values()]
        return (dict(zip(arrays, parts, strict=True)) for parts in zip(*each, strict=True))

    rows = dataset.local_rows(size, **processes)
    starts = range(0, max(1, min(*map(len, held_out.values()), 8 * size) - size + 1), size)
    batch = lambda a, i: a.take(np.arange(i, i + size)[rows], 0, mode='wrap')  # few come again
    held = [{name: batch(a, i) for name, a in held_out.items()} for i in starts]
    plan = Plan(
        stage,
        steps,
        config.train.log_every,
        config.train.validate_every,
        config.train.probes if probe else 0,
        # The parameters change on every so many steps.
        ema=section.optimizer.ema ** (1 / section.optimizer.accumulate),
        parts=math.gcd(size // experiment.mesh.size, config.train.parts),
        rules=devices.rules_of(config.sharding.parameters, config.sharding.rules),
        poll_every=1 if jax.process_count() == 1 else POLL_EVERY,
        together=config.train.steps_per_call,
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
            log=experiment.run.log,
            forget=functools.partial(experiment.run.drop_records, stage),
            probe=probe,
            asked_to_stop=experiment.asked_to_stop,
        )


def check_finished(experiment: Experiment, stage: str) -> None:
    """Raises a UserError unless a stage has finished."""
    folder = experiment.run.directory
    if not experiment.run.finished(stage):
        config, _, preset = experiment.run.experiment.partition(':')
        command = f'launch/main.py --config=configs/{config}.py:{preset} --workdir={folder}'
        raise UserError(f'{folder}: stage {stage} has not finished; finish it with {command}')


def restore(experiment: Experiment, stage: str, target: PyTree) -> PyTree:
    """Returns part of a finished stage's last state, such as `{'ema': shapes}`; a ValueError names
    the folder if its last checkpoint is damaged or missing.
    """
    place = devices.replicated(experiment.local_mesh)
    steps = steps_of(experiment.config, stage)
    put = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    with experiment.checkpoints(stage) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(put, target), part=True)
    if restored is None or restored.step != steps:
        check_finished(experiment, stage)
        got = f'checkpoint {restored.step}' if restored else 'no checkpoint'
        raise ValueError(
            f'{checkpoints.directory}: got {got}, expected an intact checkpoint {steps}, the last '
            f'of the finished stage {stage}; restore the folder from a copy, or --redo={stage}'
        )
    return restored.state


def _shapes(function: Callable[[Key], PyTree]) -> PyTree:
    return jax.eval_shape(function, jax.random.key(0))


def mirror_parameters(experiment: Experiment) -> Params:
    """Returns the averaged parameters of the mirror map, none for one that is not learned."""
    if not build.learns_map(experiment.config):
        return {}
    shapes = _shapes(build.mirror_init(experiment.config))
    return restore(experiment, 'mirror', {'ema': shapes})['ema']


def finetuned_parameters(experiment: Experiment) -> Params:
    """Returns the same, those of f after finetuning."""
    params = mirror_parameters(experiment)
    if not params:
        return params
    shapes = jax.eval_shape(lambda: {'inverse': params['inverse']})
    return params | restore(experiment, 'finetune', {'ema': shapes})['ema']


def counter_shapes(config: ConfigDict) -> Params:
    """Returns the shapes of the counting network's parameters; None where the rule holds none."""
    if not build.holds_network(config):
        return None
    network = build.make_counters(config)['counter']
    x = jnp.zeros((1, *make_problem(config).shape))
    return _shapes(lambda key: network.init(key, x)['params'])


def score_parameters(experiment: Experiment, stage: str) -> Params:
    """Returns the averaged parameters of a diffusion model, or for `dm` a user's own denoiser."""
    if stage == 'dm' and experiment.config.score.external:
        return build.external_denoiser(experiment.config)
    kind = build.conditioned_task if stage == 'condition' else build.denoising_task
    task = kind(experiment.config, 1, 0.0, 1.0)
    return restore(experiment, stage, {'ema': _shapes(task.init)})['ema']


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a float32 `.npy` file, whole or not at all, and its checksum; process 0 does."""
    file = io.BytesIO()
    np.save(file, np.asarray(array, np.float32), allow_pickle=False)
    from_first(lambda: write_checked(path, file.getvalue()))
