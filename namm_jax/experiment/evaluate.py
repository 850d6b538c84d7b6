"""The stage that fills the table, and keeps the arrays that the report draws."""

import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from namm_jax import metrics as evaluation
from namm_jax._arrays import Constraint, Key, Params
from namm_jax.experiment import build
from namm_jax.experiment.advice import advise
from namm_jax.experiment.comparison import LEAST, against, comparison, copying, floors
from namm_jax.experiment.counter import count_statistics, counted, held_out_error
from namm_jax.experiment.drawing import sampler_of
from namm_jax.experiment.experiment import (
    Experiment,
    finetuned_parameters,
    mirror_parameters,
    score_parameters,
)
from namm_jax.experiment.files import write_checked
from namm_jax.experiment.methods import Method, rows_of, trained_by
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.progress import Bar, say
from namm_jax.mirror import robustness
from namm_jax.problems.base import Problem
from namm_jax.report.reading import ARRAYS

SHOWN = 6  # samples of each row that the report shows


def evaluate(experiment: Experiment) -> dict[str, Any]:
    """Fills the table: constraint distances, distribution distances to held-out data, costs;
    measures f itself.
    """
    run = experiment.run
    found = run.record('sample')['calls']  # a row may be absent
    of_row = lambda row: experiment.load(run.directory / 'sample' / f'{row}.npy')
    rows, samples = {}, {'data': experiment.split('test')}
    for name, row in rows_of(experiment.config, experiment.constraint).items():
        if name in found and len(x := _finite(name, of_row(name))):
            rows[name], samples[name] = row, x
    counts, target = {}, experiment.config.data.get('count')
    if build.counts(experiment.config):
        counts = {row: counted(experiment, x) for row, x in samples.items()}
        distances = {row: held_out_error(of, target) for row, of in counts.items()}
    else:
        distances = {row: experiment.distances(x) for row, x in samples.items()}
    arrays = {f'distances/{row}': values for row, values in distances.items()}
    for row, x in samples.items():
        arrays[f'samples/{row}'], arrays[f'residuals/{row}'] = views(experiment, x[:SHOWN])
    maps = {'f': mirror_parameters(experiment)}
    if build.learns_map(experiment.config):
        maps['f_finetuned'] = finetuned_parameters(experiment)
    *_, last = maps.values()
    z = jnp.asarray(of_row('mirror')[:SHOWN])
    image = lambda x: experiment.problem.image(x)[..., None]
    arrays |= {'mirror/z': image(z), 'mirror/x': image(jax.jit(experiment.landed(last)[1])(z))}
    arrays |= {f'trajectory/{part}': array for part, array in _trajectory(experiment, last).items()}
    save_arrays(run.directory / ARRAYS, arrays)
    table = _table(experiment, rows, samples, distances)
    for row, of in counts.items():
        table[row]['counts'] = count_statistics(of, target)
    measured = {'rows': table, 'robustness': _robustness(experiment, maps)}
    advice = advise(table)
    run.merge_metrics(measured | ({'advice': advice} if advice else {}))
    return {}


def _finite(row: str, x: np.ndarray) -> np.ndarray:
    """Returns the samples of a row that are finite; says how many are not."""
    finite = x[np.isfinite(x).all((1, 2, 3))]
    if lost := len(x) - len(finite):
        say(f'{row}: {lost} of {len(x)} samples are not finite, left out')
    return finite


def views(experiment: Experiment, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `(n, h', w', 1)` of fields `(n, h, w, c)`, and of what breaks the rule in
    them, `(n, h', w')`.
    """
    images, residuals = _views(experiment.problem, experiment.constraint, jnp.asarray(x))
    return np.asarray(images)[..., None], np.asarray(residuals)


@jax.jit
def _views(problem: Problem, constraint: Constraint, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return problem.image(x), problem.residual_map(constraint, x)


def _table(
    experiment: Experiment,
    rows: dict[str, Method],
    samples: dict[str, np.ndarray],
    distances: dict[str, np.ndarray],
) -> dict[str, dict[str, Any]]:
    """Returns the table of `metrics.json`. The distribution metrics of the row `data` are those of
    as many true fields as a row has samples, over sets of the training data, or half of the data
    where those are fewer: each row is then compared by as many of its samples. A row that lost some
    has none, as what is left of it is not its distribution.
    """
    train, test = experiment.split('train'), samples['data']
    section = experiment.config.evaluate
    of = experiment.problem, experiment.split('validation'), test, experiment.key('evaluate')
    compare = comparison(*of, projections=section.projections)
    n = min(max(1, len(train) // 2), experiment.config.sample.n)
    if (least := min(n, len(test))) < LEAST:
        say(f'{least} fields on a side, fewer than {LEAST}: no two-sample test, and no advice')
    floor = floors(compare, train, n, sets=section.resamples, seed=experiment.config.seed)
    table = {}
    with Bar('evaluate', len(samples), unit='row') as bar:
        for row, x in samples.items():
            experiment.pause()
            distance = evaluation.distance_statistics(jnp.asarray(distances[row]))
            table[row] = {'distance': distance, 'distribution': floor, 'n': len(x)}
            lost = experiment.config.sample.n - len(x)
            if row in rows and lost:
                table[row] |= {'distribution': {}, 'diverged': lost}
            elif row in rows:
                table[row]['distribution'] = against(floor, compare(x[:n]))
                table[row]['memorisation'] = copying(row, x, train, test)
            bar.update(len(table))
    drawing = experiment.run.record('sample')
    for name, row in rows.items():
        table[name] |= {kind: drawing[kind][name] for kind in ('seconds_per_sample', 'calls')}
        stages = [experiment.run.record(stage) for stage in trained_by(experiment.config, row)]
        for kind in ('training_seconds', 'training_flops'):
            table[name][kind] = sum(stage[kind] for stage in stages)
    return table


def _robustness(experiment: Experiment, maps: dict[str, Params]) -> dict[str, Any]:
    """Returns where each f lands from mirrored test fields with noise, up to twice the noise of its
    training.
    """
    section = experiment.config.evaluate
    sigma_max = experiment.config.mirror.sigma_max
    sigma = np.linspace(0, 2 * sigma_max, section.noise_levels)
    x = jnp.asarray(experiment.split('test')[: section.noise_fields])
    key = experiment.key('robustness')
    levels = jnp.asarray(sigma, jnp.float32)

    @jax.jit
    def measure(constraint: Constraint, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        return robustness(experiment.mirror, params, key, x, constraint, levels)

    constraint = experiment.constraint
    errors = {name: measure(constraint, params, x) for name, params in maps.items()}
    z = jax.jit(experiment.mirror.forward)(maps['f'], x)
    line = evaluation.line(experiment.unit_maps[0](x), z) | {'std': jnp.std(z)}
    return {'sigma': sigma, 'sigma_max': sigma_max, 'n': len(x), 'g': line} | errors


def _trajectory(experiment: Experiment, params: Params) -> dict[str, jax.Array]:
    """Returns the way of the first sample through mirror space, for
    `report.motion.trajectory_frames`.
    """
    config = experiment.config
    problem = experiment.problem
    constraint = experiment.constraint
    record = experiment.run.record('mdm')
    moments = record['mean'], record['std']
    sampler = sampler_of(config.sample, *moments)
    ends = len(sampler.grid) - 1
    times = np.unique(np.linspace(0, ends, config.evaluate.frames).round().astype(int))
    image = lambda x: problem.image(x)[..., None]

    @jax.jit
    def walk(score: Params, f: Partial, keys: Key) -> dict[str, jax.Array]:
        denoiser = build.make_denoiser(config, score, *moments)
        path = sampler.trajectory(keys, denoiser, problem.shape)
        states, estimates = (part[times, 0] for part in path)
        x = f(estimates)
        return {
            'states': image(states),
            'estimates': image(x),
            'residuals': problem.residual_map(constraint, x),
            'distances': constraint.distance(x),
            'levels': sampler.levels()[times],
        }

    f = experiment.landed(params)[1]
    return walk(score_parameters(experiment, 'mdm'), f, experiment.keys('sample', 0, 1))


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes what the report draws, as float32, in the place of what is there."""
    file = io.BytesIO()
    np.savez(file, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})
    from_first(lambda: write_checked(path, file.getvalue()))
