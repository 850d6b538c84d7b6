"""The stages of an experiment, in order: each reads the run folder, does one thing, and writes its
result there.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from namm_jax._arrays import Constraint, Params
from namm_jax._checks import check_rule, nearest
from namm_jax.experiment import build, dataset
from namm_jax.experiment.assimilate import assimilate
from namm_jax.experiment.config import steps_of
from namm_jax.experiment.counter import train_counters
from namm_jax.experiment.drawing import in_batches, make_draw
from namm_jax.experiment.evaluate import SHOWN, evaluate, shown
from namm_jax.experiment.experiment import Experiment, mirror_parameters, restore, train
from namm_jax.experiment.methods import DRAWS, drawn, rows_of, sampler, timed
from namm_jax.experiment.posteriors import check_assimilation
from namm_jax.experiment.problem import fields_of
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.progress import Bar, say
from namm_jax.experiment.tune import tune
from namm_jax.problems.own_arrays import rule_unit
from namm_jax.training.optimizers import moments_of


class Stage(NamedTuple):
    """A stage: what it does, the stages it builds on, and the config's sections that it reads
    itself.
    """

    run: Callable[[Experiment], dict[str, Any]]
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    on_request: bool = False  # whether it runs only when it is named
    check: Callable[[ConfigDict], None] = lambda config: (
        None
    )  # raises for a bad value before any stage starts


def data(experiment: Experiment) -> dict[str, Any]:
    """Generates the data set, and draws a picture of it."""
    config, folder = experiment.config, experiment.run.directory / 'data'
    sizes = {split: config.data[split] for split in dataset.SPLITS}
    provenance = {'data': config.data.to_dict(), 'constraint': config.constraint.to_dict()}
    with Bar('data', sum(sizes.values()), unit='field') as bar:
        dataset.write_dataset(
            folder,
            fields_of(config, experiment.problem),
            sizes=sizes,
            shard_size=config.data.shard_size,
            provenance=provenance,
            progress=lambda done, total: (bar.update(done), experiment.pause()),
        )
    if not build.holds_network(config):
        _draw_data(experiment)
    return {} if experiment.problem.generated else _checked_distance(experiment)


def counter(experiment: Experiment) -> dict[str, Any]:
    """Trains the networks that count, and draws the picture of the data, which needs one of
    them.
    """
    facts = train_counters(experiment)
    _draw_data(experiment)
    return facts


def _checked_distance(experiment: Experiment) -> dict[str, Any]:
    """Returns the residual floor of a user's own data under their own distance, once that is found
    fit for training.
    """
    x = experiment.split('train')[:64]
    found = check_rule(experiment.constraint, x, experiment.key('evaluate'))
    floor, perturbed = found['floor_mean'], found['perturbed_mean']
    say(
        f'distance: {floor:.3g} on your data (largest {found["floor_max"]:.3g}), {perturbed:.3g} '
        'with 10 % of noise'
    )
    if floor > 0.1 * perturbed:
        say(
            f'warning: your data do not obey your rule well: a mean distance of {floor:.3g}, '
            f'expected far less than the {perturbed:.3g} of the same data with 10 % of noise; no '
            'sample will be much better than the data'
        )
    scale, key = experiment.problem.units[1], experiment.key('evaluate')
    unit = rule_unit(experiment.constraint, jnp.asarray(x), scale, key)
    return found | {'unit': unit}


def _draw_data(experiment: Experiment) -> None:
    from namm_jax.report import figures

    folder, x = experiment.run.directory / 'figures', experiment.split('test')[:SHOWN]
    style = experiment.problem.view._asdict()

    def draw() -> None:
        folder.mkdir(exist_ok=True)
        figures.save(
            figures.samples_with_residuals({'data': shown(experiment, x)}, **style),
            folder / 'data.png',
        )

    from_first(draw)


def mirror(experiment: Experiment) -> dict[str, Any]:
    """Trains the mirror map, g and f together."""
    config = experiment.config
    x, held_out = experiment.split('train'), experiment.split('validation')
    task = build.mirror_task(
        config, steps_of(config, 'mirror'), experiment.standard_constraint, experiment.unit
    )
    fitted = train(
        experiment,
        'mirror',
        task,
        {'x': x},
        {'x': held_out},
        batch_size=config.mirror.batch_size,
        optimizer=config.mirror.optimizer,
    )
    return {'training_seconds': fitted.seconds}


def _train_diffusion(
    experiment: Experiment,
    stage: str,
    x: np.ndarray,
    held_out: np.ndarray,
    to_data: Callable[[Any], Any],
) -> dict[str, Any]:
    """Trains a diffusion model on `x`; `to_data` maps its samples to data space, for the probes."""
    config, mean, std = experiment.config, float(x.mean()), float(x.std())
    draw = make_draw(config, config.train.sample, mean, std)
    keys, constraint = (
        experiment.keys('probe', 0, config.train.probe_samples),
        experiment.constraint,
    )

    def probe(params: Params) -> dict[str, float]:
        distances = lambda keys: constraint.distance(to_data(draw(params, keys)))
        return _spread(in_batches(distances, keys, len(keys), experiment.local_mesh))

    fitted = train(
        experiment,
        stage,
        build.denoising_task(config, steps_of(config, stage), mean, std),
        {'x': x},
        {'x': held_out},
        batch_size=config.score.batch_size,
        optimizer=config.score.optimizer,
        probe=probe,
    )
    return {'training_seconds': fitted.seconds, 'mean': mean, 'std': std}


def _spread(distances: np.ndarray | jax.Array) -> dict[str, float]:
    return {'distance_mean': float(distances.mean()), 'distance_std': float(distances.std())}


def dm(experiment: Experiment) -> dict[str, Any]:
    """Trains the plain diffusion model, on the data, standardised."""
    standardise, to_data = experiment.unit_maps
    splits = (jnp.asarray(experiment.split(name)) for name in ('train', 'validation'))
    x, held_out = (np.asarray(standardise(split)) for split in splits)
    return _train_diffusion(experiment, 'dm', x, held_out, to_data)


def mdm(experiment: Experiment) -> dict[str, Any]:
    """Trains the mirror diffusion model: the same, on the data mirrored once by g."""
    g, f = experiment.mirror.bind(mirror_parameters(experiment))
    splits = (experiment.split('train'), experiment.split('validation'))
    z, held_out = (in_batches(jax.jit(g), split, 256, experiment.local_mesh) for split in splits)
    return _train_diffusion(experiment, 'mdm', z, held_out, jax.jit(f))


def finetune(experiment: Experiment) -> dict[str, Any]:
    """Trains f further, on samples of the mirror diffusion model in the place of mirrored data."""
    config, params = experiment.config, mirror_parameters(experiment)
    x, held_out = experiment.split('train'), experiment.split('validation')
    z, drawing = _finetuning_set(experiment)
    draw, constraint = sampler(experiment, 'mdm', config.train.sample), experiment.constraint
    probe_z = draw(experiment.keys('probe', 0, config.train.probe_samples))

    @jax.jit
    def distances(constraint: Constraint, inverse: Params) -> jax.Array:
        return constraint.distance(experiment.mirror.inverse(params | inverse, probe_z))

    probe = lambda average: _spread(distances(constraint, average))
    steps, held_z = (
        steps_of(config, 'finetune'),
        z[-max(config.finetune.batch_size, len(z) // 16) :],
    )
    rule, unit = experiment.standard_constraint, experiment.unit
    task = build.mirror_task(config, 1, rule, unit)
    shapes = jax.eval_shape(
        lambda key: task.optimizer.init(task.init(key))['inverse'], jax.random.key(0)
    )
    moments = moments_of(
        restore(experiment, 'mirror', {'opt_state': {'inverse': shapes}})['opt_state']
    )
    fitted = train(
        experiment,
        'finetune',
        build.finetune_task(config, steps, rule, unit, params, moments),
        {'x': x, 'z': z[: len(z) - len(held_z)]},
        {'x': held_out, 'z': held_z},
        batch_size=config.finetune.batch_size,
        optimizer=config.finetune.optimizer,
        probe=probe,
    )
    return {'training_seconds': fitted.seconds + drawing, 'drawing_seconds': drawing}


def _finetuning_set(experiment: Experiment) -> tuple[np.ndarray, float]:
    """Returns the mirror samples to finetune on and the seconds it took to draw them, from disk if
    they are there.
    """
    config, path = (
        experiment.config,
        experiment.run.directory / 'finetune' / 'mirror_samples.npy',
    )
    draw = functools.partial(sampler, experiment, 'mdm', config.train.sample)
    z, seconds = drawn(
        experiment, path, draw, experiment.keys('finetune', 0, config.finetune.samples)
    )
    return z, seconds * len(z)


def sample(experiment: Experiment) -> dict[str, Any]:
    """Draws from both diffusion models, from the same initial noise, and maps to every row; times
    each whole way.
    """
    config, folder, rows = (
        experiment.config,
        experiment.run.directory / 'sample',
        rows_of(experiment),
    )
    keys, models, seconds = experiment.keys('sample', 0, config.sample.n), {}, {}
    draws = list(dict.fromkeys(['dm', 'mdm', *(row.draw for row in rows.values())]))
    with Bar('sample', len(draws) + len(rows), unit='set') as bar:
        for name in draws:
            around = DRAWS[name].around
            draw = lambda name=name, around=around: sampler(
                experiment, DRAWS[name].model, config.sample, around(experiment)
            )
            models[name] = drawn(experiment, folder / f'{DRAWS[name].file}.npy', draw, keys)
            bar.update(len(models), {'seconds_per_sample': models[name][1]})
        for row, (draw, way, _) in rows.items():
            x, mapping = timed(experiment, way(experiment), models[draw][0])
            if not from_first((folder / f'{row}.npy').exists):
                experiment.save(folder / f'{row}.npy', x)
            seconds[row] = models[draw][1] + mapping
            bar.update(len(models) + len(seconds), {'seconds_per_sample': seconds[row]})
    return {'seconds_per_sample': seconds, 'calls': experiment.calls()}


def report(experiment: Experiment) -> dict[str, Any]:
    """Draws the figures, and the page that holds them all."""
    from namm_jax.report.writing import write_report  # matplotlib takes a second to import

    from_first(lambda: write_report(experiment.run.directory))
    return {}


TRAINING = ('train', 'seed')
STAGES = {
    'data': Stage(data, (), ('data', 'constraint')),
    'counter': Stage(counter, ('data',), ('counter', *TRAINING)),
    'mirror': Stage(mirror, ('data', 'counter'), ('mirror', *TRAINING)),
    'tune': Stage(tune, ('mirror',), ('score', 'tune', *TRAINING), on_request=True),
    'mdm': Stage(mdm, ('data', 'counter', 'mirror'), ('mirror', 'score', 'mdm', *TRAINING)),
    'finetune': Stage(finetune, ('mdm',), ('finetune', *TRAINING)),
    'dm': Stage(dm, ('data', 'counter'), ('score', 'dm', *TRAINING)),
    'sample': Stage(sample, ('mdm', 'finetune', 'dm'), ('sample',)),
    'assimilate': Stage(
        assimilate,
        ('mdm', 'finetune', 'dm'),
        ('assimilate', 'sample'),
        on_request=True,
        check=check_assimilation,
    ),
    'evaluate': Stage(evaluate, ('data', 'sample'), ('evaluate',)),
    'report': Stage(report, ('evaluate',), ('report',)),
}


def stages_of(config: ConfigDict) -> dict[str, Stage]:
    """Returns the stages that an experiment has, in order, each with those of its needs that are
    among them.

    The stage `counter` is there where the constraint holds a network; `mirror`, `tune` and
    `finetune` where the mirror map is learned.
    """
    absent = set() if build.holds_network(config) else {'counter'}
    absent |= set() if build.learns_map(config) else {'mirror', 'tune', 'finetune'}
    return {
        name: stage._replace(needs=tuple(need for need in stage.needs if need not in absent))
        for name, stage in STAGES.items()
        if name not in absent
    }


def check_stages(names: Iterable[str], stages: Iterable[str]) -> list[str]:
    """Returns the named ones of `stages` in the order in which they run; all that need no naming
    where none is named.

    Raises:
        ValueError: naming the nearest stages, if one is unknown.
    """
    names, stages = list(names), list(stages)
    for name in names:
        if name not in stages:
            raise ValueError(f'stage: {nearest(name, stages)}')
    return [name for name in stages if (name in names if names else not STAGES[name].on_request)]
