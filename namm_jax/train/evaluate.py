"""The stage that fills the table, and keeps the arrays that the report draws."""

import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from namm_jax import evaluation
from namm_jax.mirror import robustness
from namm_jax.train import dataset, tasks
from namm_jax.train.experiment import (
    Experiment,
    finetuned_parameters,
    in_batches,
    mirror_parameters,
    sampler_of,
    score_parameters,
)
from namm_jax.train.files import write_checked
from namm_jax.types import Key, Params

SHOWN = 6  # samples of each row that the report shows
TRAINED_BY = {  # row -> the stages whose training it needs
    'dm': ('dm',),
    'dm_projected': ('dm',),
    'mdm': ('mirror', 'mdm'),
    'mdm_finetuned': ('mirror', 'mdm', 'finetune'),
}


def evaluate(experiment: Experiment) -> dict[str, Any]:
    """Fills the table: constraint distances, distribution distances to held-out data, costs; measures f itself."""
    run, held_out = experiment.run, experiment.split('test')
    read = lambda row: dataset.read_fields(run.directory / 'sample' / f'{row}.npy')
    samples = {'data': held_out} | {row: read(row) for row in TRAINED_BY}
    distance = jax.jit(experiment.constraint.distance)
    distances = {row: in_batches(distance, x, min(len(x), 256), experiment.mesh) for row, x in samples.items()}
    arrays = {f'distances/{row}': values for row, values in distances.items()}
    for row, x in samples.items():
        arrays |= {f'samples/{row}': x[:SHOWN], f'residuals/{row}': residual_maps(experiment, x[:SHOWN])}
    arrays |= {'mirror/z': read('mirror')[:SHOWN], 'mirror/x': samples['mdm_finetuned'][:SHOWN]}
    maps = {'f': mirror_parameters(experiment), 'f_finetuned': finetuned_parameters(experiment)}
    arrays |= {f'trajectory/{part}': array for part, array in _trajectory(experiment, maps['f_finetuned']).items()}
    _save_arrays(experiment, arrays)
    run.merge_metrics({'rows': _rows(experiment, samples, distances), 'robustness': _robustness(experiment, maps)})
    return {}


def residual_maps(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    """Returns images `(n, h', w')` of the residual of fields `(n, h, w, c)`."""
    return np.asarray(experiment.family.residual_map(experiment.constraint.residual(jnp.asarray(x))))


def _rows(
    experiment: Experiment, samples: dict[str, np.ndarray], distances: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Returns the table of `metrics.json`; the row `data` compares two halves of the held-out set."""
    run, section, held_out = experiment.run, experiment.config.evaluate, samples['data']
    compare = functools.partial(
        evaluation.distribution_distances, experiment.key('evaluate'), spatial_axes=experiment.family.spatial_axes,
        projections=section.projections, resamples=section.resamples,
    )  # fmt: skip
    half, sampled, rows = len(held_out) // 2, run.record('sample'), {}
    for row, x in samples.items():
        pair = (x, held_out) if row in TRAINED_BY else (held_out[:half], held_out[half:])
        rows[row] = {
            'distance': evaluation.distance_statistics(jnp.asarray(distances[row])),
            'distribution': compare(*map(jnp.asarray, pair)),
            'n': len(x),
        }
    for row, stages in TRAINED_BY.items():
        rows[row] |= {
            'seconds_per_sample': sampled['seconds_per_sample'][row],
            'calls': sampled['calls'],
            'training_seconds': sum(run.record(stage)['training_seconds'] for stage in stages),
        }
    return rows


def _robustness(experiment: Experiment, maps: dict[str, Params]) -> dict[str, Any]:
    """Returns where each f lands from mirrored test fields with noise, up to twice the noise of its training."""
    section, sigma_max, key = (
        experiment.config.evaluate,
        experiment.config.mirror.sigma_max,
        experiment.key('robustness'),
    )
    sigma = np.linspace(0, 2 * sigma_max, section.noise_levels)
    x, levels = jnp.asarray(experiment.split('test')[: section.noise_fields]), jnp.asarray(sigma, jnp.float32)

    @jax.jit
    def measure(params: Params, x: jax.Array) -> dict[str, jax.Array]:
        return robustness(experiment.mirror, params, key, x, experiment.constraint, levels)

    measured = {name: measure(params, x) for name, params in maps.items()}
    return {'sigma': sigma, 'sigma_max': sigma_max, 'n': len(x)} | measured


def _trajectory(experiment: Experiment, params: Params) -> dict[str, jax.Array]:
    """Returns the way of the first sample through mirror space, for `report.motion.trajectory_frames`."""
    config, record = experiment.config, experiment.run.record('mdm')
    sampler = sampler_of(config.sample, record['mean'], record['std'])
    parameterisation = tasks.make_parameterisation(config, record['mean'], record['std'])
    network, shape, n = tasks.make_score(config), experiment.family.shape, len(sampler.grid)
    times = np.unique(np.linspace(0, n - 1, config.evaluate.frames).round().astype(int))

    @jax.jit
    def walk(score: Params, params: Params, keys: Key) -> dict[str, jax.Array]:
        denoiser = parameterisation.denoiser(tasks.bind_score(network, score))
        states, estimates = (part[times, 0] for part in sampler.trajectory(keys, denoiser, shape))
        x = experiment.mirror.inverse(params, estimates)
        residuals = experiment.family.residual_map(experiment.constraint.residual(x))
        distances, levels = experiment.constraint.distance(x), sampler.levels()[times]
        return {'states': states, 'estimates': x, 'residuals': residuals, 'distances': distances, 'levels': levels}

    return walk(score_parameters(experiment, 'mdm'), params, experiment.keys('sample', 0, 1))


def _save_arrays(experiment: Experiment, arrays: dict[str, Any]) -> None:
    file = io.BytesIO()
    np.savez(file, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})
    write_checked(experiment.run.directory / 'evaluate' / 'arrays.npz', file.getvalue())
