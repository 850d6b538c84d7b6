"""The stage `counter`: networks that count sources, trained on images with any number of them.

One is the constraint's. The other, and a classical method, count generated images beside it, so
that samples which fool the first are seen.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax._arrays import Key, Metrics, Params, Task
from namm_jax.experiment import build, dataset, devices
from namm_jax.experiment.config import steps_of
from namm_jax.experiment.drawing import in_batches
from namm_jax.experiment.experiment import Experiment, restore, save_array, train
from namm_jax.experiment.problem import make_problem
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.progress import Bar
from namm_jax.problems.base import Problem
from namm_jax.problems.counting import classical_count
from namm_jax.training.optimizers import per_network

CHUNK = 500  # images generated at once


def check_counters(config: ConfigDict) -> None:
    """Raises a ValueError if the networks cannot be built, or not be trained on such images."""
    section, target = config.counter, config.data.count
    if section.most < target:
        raise ValueError(
            f'counter.most: got {section.most}, expected at least {target}, the sources of the data'
        )
    if section.samples < section.batch_size:
        raise ValueError(
            f'counter.samples: got {section.samples}, expected at least {section.batch_size}, a '
            'batch'
        )
    mesh = devices.make_mesh(devices.first_devices(config.train.devices))
    devices.check_batch_size(mesh, section.batch_size)
    try:
        _problem(config)
    except ValueError as error:
        raise ValueError(f'counter.most: {error}') from error
    jax.eval_shape(functools.partial(_init, config), jax.random.key(0))


def _problem(config: ConfigDict) -> Problem:
    """Returns the problem of images with any number of sources."""
    return dataclasses.replace(make_problem(config), count=(0, config.counter.most), maps=False)


def _init(config: ConfigDict, key: Key) -> Params:
    x = jnp.zeros((1, *make_problem(config).shape[:2], 1))
    nets = build.make_counters(config)
    parts = zip(jax.random.split(key, len(nets)), nets.items(), strict=True)
    return {name: network.init(part, x)['params'] for part, (name, network) in parts}


def counter_task(config: ConfigDict, steps: int) -> Task:
    """Returns the training of the networks, batches `{'x': images, 'centres': (b, k, 2, 1)}`.

    Each has a loss of its own. Every image is turned into one of its 8 mirror images, which
    are as likely as it is, and where its sources are with it. The second network sees them with
    noise besides, of a strength drawn from U(0, second_noise).
    """
    nets, most = build.make_counters(config), config.counter.second_noise

    def loss(
        params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool
    ) -> tuple[Array, Metrics]:
        sources = sources_at_pixels(batch['centres'], batch['x'].shape[1])
        both = jnp.concatenate([batch['x'], sources], -1)
        both = turn(key, both) if train else both
        x, sources = both[..., :-1], both[..., -1:]
        seen = dict.fromkeys(nets, x)
        if train:
            seen['second'] = noisy(jax.random.fold_in(key, 1), x, most)
        apply = lambda name, x: nets[name].apply(
            {'params': params[name]}, x, sources, method='loss'
        )
        terms = {name: apply(name, x).mean() for name, x in seen.items()}
        return sum(terms.values()), terms

    optimizers = {name: build.optimizer_of(config.counter.optimizer, steps) for name in nets}
    init = jax.jit(functools.partial(_init, config))
    return Task(init=init, loss=loss, optimizer=per_network(optimizers))


def sources_at_pixels(centres: Array, points: int) -> Array:
    """Returns the sources at each pixel `(b, points, points, 1)`, from rows and columns
    `(b, k, 2, 1)`, -1 for none.
    """
    # None is put outside of the image, where it is dropped.
    centres = jnp.where(centres < 0, points, centres).astype(jnp.int32)
    image = jnp.arange(len(centres))[:, None]
    empty = jnp.zeros((len(centres), points, points, 1), jnp.float32)
    return empty.at[image, centres[:, :, 0, 0], centres[:, :, 1, 0]].add(1, mode='drop')


def turn(key: Key, x: Array) -> Array:
    """Returns square images `(b, h, h, c)`, each turned into one of its 8 mirror images, drawn at
    random.
    """
    for axis, part in zip(((1,), (2,), None), jax.random.split(key, 3), strict=True):
        other = x.swapaxes(1, 2) if axis is None else jnp.flip(x, axis)
        x = jnp.where(jax.random.bernoulli(part, shape=(len(x), 1, 1, 1)), other, x)
    return x


def noisy(key: Key, x: Array, most: float) -> Array:
    """Returns images `(b, h, w, c)` with white noise, of strengths drawn from U(0, most)."""
    strength, noise = jax.random.split(key)
    shape = (len(x), 1, 1, 1)
    return x + jax.random.uniform(strength, shape, maxval=most) * jax.random.normal(noise, x.shape)


def train_counters(experiment: Experiment) -> dict[str, Any]:
    """Trains the counting networks; returns their mean absolute errors on held-out images, and the
    classical one's.
    """
    section = experiment.config.counter
    task = counter_task(experiment.config, steps_of(experiment.config, 'counter'))
    x, centres = _images(experiment)
    n = section.samples
    arrays = {'x': x[:n], 'centres': centres[:n]}
    held_out = {'x': x[n:], 'centres': centres[n:]}
    fitted = train(experiment, 'counter', task, arrays, held_out, section)
    count = (centres[n:, :, 0, 0] >= 0).sum(1)
    error = lambda values: float(np.abs(values - count).mean())
    errors = {name: error(values) for name, values in counted(experiment, x[n:]).items()}
    costs = {'training_seconds': fitted.seconds, 'training_flops': fitted.flops}
    return costs | {'mean_absolute_error': errors}


def _images(experiment: Experiment) -> tuple[np.ndarray, ...]:
    """Returns training and held-out images, and where their sources are `(n, k, 2, 1)`, from disk
    if they are there.
    """
    section = experiment.config.counter
    folder = experiment.run.directory / 'counter'
    paths = [folder / 'images.npy', folder / 'centres.npy']
    if not from_first(lambda: all(path.exists() for path in paths)):
        problem = _problem(experiment.config)
        sample = jax.jit(lambda keys: (problem.fields(keys), problem.sources(keys)[0]))
        n = section.samples + section.held_out
        parts = []
        with Bar('counter: images', n, unit='image') as bar:
            for start in range(0, n, CHUNK):
                experiment.pause()
                images, sources = sample(experiment.keys('counter', start, CHUNK))
                centres = np.where(sources.peaks[..., None] > 0, sources.centres, -1)
                parts.append((np.asarray(images), centres[..., None].astype(np.float32)))
                bar.update(min(start + CHUNK, n))
        for path, arrays in zip(paths, zip(*parts, strict=True), strict=True):
            save_array(path, np.concatenate(arrays)[:n])
    return tuple(dataset.read_fields(path) for path in paths)


def counted(experiment: Experiment, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the sources in each of the images `(n, h, w, 1 or 2)` by the networks that the stage
    `counter` has trained, and by the classical method, `(n,)` each; none looks at maps.
    """
    x = x[..., :1]
    nets = build.make_counters(experiment.config)
    shapes = jax.eval_shape(functools.partial(_init, experiment.config), jax.random.key(0))
    params = restore(experiment, 'counter', {'ema': shapes})['ema']
    counts = {}
    for name, network in nets.items():
        count = jax.jit(functools.partial(network.apply, {'params': params[name]}))
        counts[name] = in_batches(count, x, min(len(x), 256), experiment.local_mesh)
    return counts | {'classical': classical_count(np.nan_to_num(x, posinf=0, neginf=0))}


def count_statistics(counts: dict[str, np.ndarray], target: int) -> dict[str, dict[str, float]]:
    """Returns, of each way to count, as of `counted`, the mean count, its mean distance from the
    target and how often it is hit.
    """
    return {
        name: {
            'mean': float(np.mean(of)),
            'error': float(np.abs(of - target).mean()),
            'exact': float((np.rint(of) == target).mean()),
        }
        for name, of in counts.items()
    }


def held_out_error(counts: dict[str, np.ndarray], target: int) -> np.ndarray:
    """Returns how far counts, as of `counted`, are from the target `(n,)`: the mean of the ways to
    count that no sample was trained against or chosen by, which is all but the constraint's own.
    """
    held_out = [of for name, of in counts.items() if name != 'counter']
    return np.abs(np.stack(held_out) - target).mean(0)
