"""The stages of an experiment, in order: each reads the run folder, does one thing, and writes its result there."""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from namm_jax.constraints.projection import gauss_newton_projection
from namm_jax.train import dataset, tasks
from namm_jax.train.config import nearest, steps_of
from namm_jax.train.evaluate import SHOWN, evaluate, residual_maps
from namm_jax.train.experiment import (
    Experiment,
    finetuned_parameters,
    in_batches,
    make_draw,
    mirror_parameters,
    restore,
    save_array,
    score_parameters,
    seconds_of,
    train,
)
from namm_jax.train.files import read_json, write_bytes, write_json
from namm_jax.train.progress import Bar
from namm_jax.train.state import adam_moments
from namm_jax.types import Params


class Stage(NamedTuple):
    """A stage: what it does, the stages it builds on, and the config's sections that it reads itself."""

    run: Callable[[Experiment], dict[str, Any]]
    needs: tuple[str, ...]
    sections: tuple[str, ...]


def data(experiment: Experiment) -> dict[str, Any]:
    """Generates the data set, and draws a picture of it."""
    config, folder = experiment.config, experiment.run.directory / 'data'
    sample, root = jax.jit(experiment.family.sample), jax.random.key(config.data.seed)

    def fields_of(indices: np.ndarray) -> jax.Array:
        return sample(jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.asarray(indices)))

    sizes = {split: config.data[split] for split in dataset.SPLITS}
    provenance = {'data': config.data.to_dict(), 'constraint': config.constraint.to_dict()}
    with Bar('data', sum(sizes.values()), unit='field') as bar:
        dataset.write_dataset(
            folder, fields_of, sizes=sizes, shard_size=config.data.shard_size, provenance=provenance,
            progress=lambda done, total: (bar.update(done), experiment.pause()),
        )  # fmt: skip
    _draw_data(experiment)
    return {}


def _draw_data(experiment: Experiment) -> None:
    from namm_jax.report import figures, pictures

    folder, x = experiment.run.directory / 'figures', experiment.split('test')[:SHOWN]
    folder.mkdir(exist_ok=True)
    units = pictures.units(experiment.config.data.family)
    figures.save(
        figures.samples_with_residuals({'data': (x, residual_maps(experiment, x))}, units=units), folder / 'data.png'
    )


def mirror(experiment: Experiment) -> dict[str, Any]:
    """Trains the mirror map, g and f together."""
    config = experiment.config
    x, held_out = experiment.split('train'), experiment.split('validation')
    fitted = train(
        experiment, 'mirror', tasks.mirror_task(config, steps_of(config, 'mirror')), {'x': x}, {'x': held_out},
        batch_size=config.mirror.batch_size, ema=config.mirror.optimizer.ema,
    )  # fmt: skip
    return {'training_seconds': fitted.seconds}


def _train_diffusion(
    experiment: Experiment, stage: str, x: np.ndarray, held_out: np.ndarray, to_data: Callable[[Any], Any]
) -> dict[str, Any]:
    """Trains a diffusion model on `x`; `to_data` maps its samples to data space, for the probes."""
    config, mean, std = experiment.config, float(x.mean()), float(x.std())
    draw = make_draw(config, config.train.sample, mean, std)
    keys = experiment.keys('probe', 0, config.train.probe_samples)

    def probe(params: Params) -> dict[str, float]:
        return _spread(experiment.constraint.distance(to_data(draw(params, keys))))

    fitted = train(
        experiment, stage, tasks.denoising_task(config, steps_of(config, stage), mean, std), {'x': x}, {'x': held_out},
        batch_size=config.score.batch_size, ema=config.score.optimizer.ema, probe=probe,
    )  # fmt: skip
    return {'training_seconds': fitted.seconds, 'mean': mean, 'std': std}


def _spread(distances: jax.Array) -> dict[str, float]:
    return {'distance_mean': float(distances.mean()), 'distance_std': float(distances.std())}


def dm(experiment: Experiment) -> dict[str, Any]:
    """Trains the plain diffusion model, on the data."""
    return _train_diffusion(experiment, 'dm', experiment.split('train'), experiment.split('validation'), lambda x: x)


def mdm(experiment: Experiment) -> dict[str, Any]:
    """Trains the mirror diffusion model: the same, on the data mirrored once by g."""
    g, f = experiment.mirror.bind(mirror_parameters(experiment))
    splits = (experiment.split('train'), experiment.split('validation'))
    z, held_out = (in_batches(jax.jit(g), split, 256, experiment.mesh) for split in splits)
    return _train_diffusion(experiment, 'mdm', z, held_out, jax.jit(f))


def finetune(experiment: Experiment) -> dict[str, Any]:
    """Trains f further, on samples of the mirror diffusion model in the place of mirrored data."""
    config, params = experiment.config, mirror_parameters(experiment)
    x, held_out = experiment.split('train'), experiment.split('validation')
    z, drawing = _finetuning_set(experiment)
    draw, score = _sampler(experiment, 'mdm', config.train.sample)
    probe_z = draw(score, experiment.keys('probe', 0, config.train.probe_samples))

    @jax.jit
    def distances(inverse: Params) -> jax.Array:
        return experiment.constraint.distance(experiment.mirror.inverse(params | inverse, probe_z))

    probe = lambda average: _spread(distances(average))
    steps, held_z = steps_of(config, 'finetune'), z[-max(config.finetune.batch_size, len(z) // 16) :]
    task = tasks.mirror_task(config, 1)
    shapes = jax.eval_shape(lambda key: task.optimizer.init(task.init(key))['inverse'], jax.random.key(0))
    moments = adam_moments(restore(experiment, 'mirror', {'opt_state': {'inverse': shapes}})['opt_state'])
    fitted = train(
        experiment, 'finetune', tasks.finetune_task(config, steps, params, moments),
        {'x': x, 'z': z[: len(z) - len(held_z)]}, {'x': held_out, 'z': held_z},
        batch_size=config.finetune.batch_size, ema=config.finetune.optimizer.ema, probe=probe,
    )  # fmt: skip
    return {'training_seconds': fitted.seconds + drawing, 'drawing_seconds': drawing}


def _finetuning_set(experiment: Experiment) -> tuple[np.ndarray, float]:
    """Returns the mirror samples to finetune on and the seconds it took to draw them, from disk if they are there."""
    folder, n = experiment.run.directory / 'finetune', experiment.config.finetune.samples
    path, clock = folder / 'mirror_samples.npy', folder / 'drawing.json'
    if not path.exists():
        draw, params = _sampler(experiment, 'mdm', experiment.config.train.sample)
        keys, size = experiment.keys('finetune', 0, n), min(n, experiment.config.sample.batch_size)
        jax.block_until_ready(draw(params, keys[:size]))  # compiles, outside the clock
        begun = time.perf_counter()
        z = in_batches(functools.partial(draw, params), keys, size, experiment.mesh, between=experiment.pause)
        write_json(clock, {'seconds': time.perf_counter() - begun})
        save_array(path, z)
    return dataset.read_fields(path, experiment.family.shape), read_json(clock)['seconds']


def _sampler(experiment: Experiment, stage: str, section: Any) -> tuple[Callable[..., jax.Array], Params]:
    """Returns a sampler of a trained diffusion model, jitted `(params, keys) -> samples`, and its parameters."""
    record = experiment.run.record(stage)
    draw = make_draw(experiment.config, section, record['mean'], record['std'])
    return draw, score_parameters(experiment, stage)


def sample(experiment: Experiment) -> dict[str, Any]:
    """Draws from both diffusion models, from the same initial noise, and maps to every row; times each whole way."""
    config, folder = experiment.config, experiment.run.directory / 'sample'
    n, size = config.sample.n, min(config.sample.n, config.sample.batch_size)
    keys = experiment.keys('sample', 0, n)
    inverse_of = lambda params: jax.jit(functools.partial(experiment.mirror.inverse, params))
    rows = {  # row -> the model that it is drawn from, and the way to data
        'dm': ('dm', lambda x: x),
        'dm_projected': ('dm', _projection(experiment)),
        'mdm': ('mdm', inverse_of(mirror_parameters(experiment))),
        'mdm_finetuned': ('mdm', inverse_of(finetuned_parameters(experiment))),
        'mirror': ('mdm', lambda z: z),
    }
    drawn, drawing, seconds = {}, {}, {}
    with Bar('sample', 2 * n, unit='sample') as bar:
        for i, model in enumerate(('dm', 'mdm')):
            draw = functools.partial(*_sampler(experiment, model, config.sample))
            drawn[model] = in_batches(draw, keys, size, experiment.mesh)
            drawing[model] = seconds_of(lambda draw=draw: draw(keys[:size])) / size
            bar.update((i + 1) * n, {'seconds_per_sample': drawing[model]})
    for row, (model, to_data) in rows.items():
        save_array(folder / f'{row}.npy', in_batches(to_data, drawn[model], size, experiment.mesh))
        mapping = seconds_of(lambda to_data=to_data, x=drawn[model][:size]: to_data(x)) / size
        seconds[row] = drawing[model] + mapping
    return {'seconds_per_sample': seconds, 'calls': experiment.calls()}


def _projection(experiment: Experiment) -> Callable[[jax.Array], jax.Array]:
    """Returns the jitted Gauss-Newton projection onto the set M."""
    section = experiment.config.sample
    return jax.jit(
        lambda x: gauss_newton_projection(
            experiment.constraint.residual,
            x,
            tolerance=section.projection_tolerance,
            max_iterations=section.projection_iterations,
        )[0]
    )


def report(experiment: Experiment) -> dict[str, Any]:
    """Draws the figures, and the page that holds them all."""
    from namm_jax.report import page, pictures, reading  # matplotlib takes a second to import

    folder = experiment.run.directory
    results = reading.read_run(folder)
    drawn = pictures.draw(results)
    (folder / 'figures').mkdir(exist_ok=True)
    for name, picture in drawn.items():
        write_bytes(folder / 'figures' / f'{name}.{picture.kind}', picture.data)
    write_bytes(folder / 'report.html', page.page({str(folder): (results, drawn)}).encode())
    return {}


TRAINING = ('train', 'seed')
STAGES = {
    'data': Stage(data, (), ('data', 'constraint')),
    'mirror': Stage(mirror, ('data',), ('mirror', *TRAINING)),
    'mdm': Stage(mdm, ('mirror',), ('score', 'mdm', *TRAINING)),
    'finetune': Stage(finetune, ('mdm',), ('finetune', *TRAINING)),
    'dm': Stage(dm, ('data',), ('score', 'dm', *TRAINING)),
    'sample': Stage(sample, ('mdm', 'finetune', 'dm'), ('sample',)),
    'evaluate': Stage(evaluate, ('data', 'sample'), ('evaluate',)),
    'report': Stage(report, ('evaluate',), ('report',)),
}


def check_stages(names: Iterable[str]) -> list[str]:
    """Returns the named stages in the order in which they run.

    Raises:
        ValueError: naming the nearest stages, if one is unknown.
    """
    names = list(names)
    for name in names:
        if name not in STAGES:
            raise ValueError(f'stage: {nearest(name, list(STAGES))}')
    return [name for name in STAGES if name in names]
