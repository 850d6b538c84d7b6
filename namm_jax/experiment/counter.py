"""The stage `counter`: networks that count sources, trained on images with any number of them.

One is the constraint's. Another, of another architecture, counts generated images beside it, and so
does a classical method, so that samples which fool the first are seen.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax._arrays import Key, Metrics, Params, Task
from namm_jax.experiment import build, dataset
from namm_jax.experiment.config import steps_of
from namm_jax.experiment.drawing import in_batches
from namm_jax.experiment.experiment import Experiment, restore, save_array, train
from namm_jax.experiment.problem import make_problem
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.progress import Bar
from namm_jax.problems.counting import classical_count
from namm_jax.training.optimizers import per_network

CHUNK = 500  # images generated at once


def _init(config: ConfigDict) -> Callable[[Key], Params]:
    x, nets = jnp.zeros((1, *make_problem(config).shape)), build.make_counters(config)
    return lambda key: {
        name: network.init(part, x)['params']
        for part, (name, network) in zip(jax.random.split(key), nets.items(), strict=True)
    }


def counter_task(config: ConfigDict, steps: int) -> Task:
    """Returns the training of both networks, batches `{'x': images, 'centres': (b, k, 2, 1)}`.

    Each network has a loss of its own. Every image is turned into one of its 8 mirror images, which
    are as likely as it is, and where its sources are with it.

    Args:
        config: a config with the section `counter`.
        steps: the number of steps.
    """
    nets = build.make_counters(config)

    def loss(
        params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool
    ) -> tuple[Array, Metrics]:
        both = jnp.concatenate([batch['x'], source_map(batch['centres'], batch['x'].shape[1])], -1)
        both = turned(key, both) if train else both
        x, sources = both[..., :-1], both[..., -1:]
        terms = {
            name: net.apply({'params': params[name]}, x, sources, method='loss')
            for name, net in nets.items()
        }
        terms = {name: values.mean() for name, values in terms.items()}
        return sum(terms.values()), terms

    optimizers = {name: build.optimizer_of(config.counter.optimizer, steps) for name in nets}
    return Task(init=jax.jit(_init(config)), loss=loss, optimizer=per_network(optimizers))


def source_map(centres: Array, points: int) -> Array:
    """Returns the sources at each pixel `(b, points, points, 1)`, from rows and columns
    `(b, k, 2, 1)`, -1 for none.
    """
    centres = jnp.where(centres < 0, points, centres).astype(
        jnp.int32
    )  # outside of the image, where they are dropped
    image = jnp.arange(len(centres))[:, None]
    empty = jnp.zeros((len(centres), points, points, 1), jnp.float32)
    return empty.at[image, centres[:, :, 0, 0], centres[:, :, 1, 0]].add(1, mode='drop')


def turned(key: Key, x: Array) -> Array:
    """Returns square images `(b, h, h, c)`, each turned into one of its 8 mirror images, drawn at
    random.
    """
    for axis, part in zip(((1,), (2,), None), jax.random.split(key, 3), strict=True):
        other = x.swapaxes(1, 2) if axis is None else jnp.flip(x, axis)
        x = jnp.where(jax.random.bernoulli(part, shape=(len(x), 1, 1, 1)), other, x)
    return x


def train_counters(experiment: Experiment) -> dict[str, Any]:
    """Trains the counting networks; returns their mean absolute errors on held-out images, and the
    classical one's.
    """
    config, section = experiment.config, experiment.config.counter
    x, centres = _images(experiment)
    splits = slice(section.samples), slice(section.samples, None)
    batches, held_out = ({'x': x[split], 'centres': centres[split]} for split in splits)
    fitted = train(
        experiment,
        'counter',
        counter_task(config, steps_of(config, 'counter')),
        batches,
        held_out,
        batch_size=section.batch_size,
        optimizer=section.optimizer,
    )
    count = (held_out['centres'][:, :, 0, 0] >= 0).sum(1)
    counts = counted(experiment, held_out['x'])
    errors = {name: float(np.abs(values - count).mean()) for name, values in counts.items()}
    return {'training_seconds': fitted.seconds, 'mean_absolute_error': errors}


def _images(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Returns training and held-out images, and where their sources are `(n, k, 2, 1)`, from disk
    if they are there.
    """
    config, folder = experiment.config, experiment.run.directory / 'counter'
    section, paths = config.counter, [folder / 'images.npy', folder / 'centres.npy']
    if not from_first(lambda: all(path.exists() for path in paths)):
        problem = dataclasses.replace(experiment.problem, count=(0, section.most))
        sample = jax.jit(lambda keys: (problem.fields(keys), problem.sources(keys)[0]))
        parts, n = [], section.samples + section.held_out
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
    """Returns the sources in each image by both networks and by the classical method, `(n,)` each.

    Args:
        experiment: one whose stage `counter` has finished training.
        x: images `(n, h, w, 1)`.
    """
    nets, shapes = (
        build.make_counters(experiment.config),
        jax.eval_shape(_init(experiment.config), jax.random.key(0)),
    )
    params = restore(experiment, 'counter', {'ema': shapes})['ema']
    count = {
        name: jax.jit(lambda x, name=name: nets[name].apply({'params': params[name]}, x))
        for name in nets
    }
    counts = {
        name: in_batches(function, x, min(len(x), 256), experiment.local_mesh)
        for name, function in count.items()
    }
    return counts | {'classical': classical_count(np.nan_to_num(x, posinf=0, neginf=0))}


def count_statistics(experiment: Experiment, x: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns, of each way to count, the mean count, its mean distance from the target and how
    often it is hit.

    Args:
        experiment: one whose stage `counter` has finished training.
        x: images `(n, h, w, 1)`.
    """
    target = experiment.config.data.count
    return {
        name: {
            'mean': float(np.mean(counts)),
            'error': float(np.abs(counts - target).mean()),
            'exact': float((np.rint(counts) == target).mean()),
        }
        for name, counts in counted(experiment, x).items()
    }
