"""The stage `assimilate`: posterior samples of test fields given noisy measurements, by every
sampler of the table. Each measurement's samples are a file, so a run goes on where it was stopped.
"""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from namm_jax import metrics
from namm_jax._arrays import Measure, normal
from namm_jax._checks import check_operator
from namm_jax.experiment import posteriors
from namm_jax.experiment.evaluate import SHOWN, save_arrays, views
from namm_jax.experiment.experiment import Experiment
from namm_jax.experiment.files import read_json, write_json
from namm_jax.experiment.methods import correction
from namm_jax.experiment.posteriors import ROWS, SAMPLERS
from namm_jax.experiment.processes import from_first, gather_rows
from namm_jax.experiment.progress import Bar, say, width


def assimilate(experiment: Experiment) -> dict[str, Any]:
    """Measures test fields with noise, draws posterior samples of each by every row, and fills
    their table.
    """
    section, name = experiment.config.assimilate, posteriors.operator_name(experiment.config)
    folder = experiment.run.directory / 'assimilate' / name
    experiment.run.place('assimilate', name)
    test, operator = experiment.split('test'), posteriors.make_operator(experiment.config)
    truth = test[: section.measurements]
    check_operator(operator, experiment.problem.shape, x=truth[:3])
    y = operator(jnp.asarray(truth))
    y = y + section.noise_std * normal(experiment.keys('assimilate', 0, len(y)), y)
    rows = {row: SAMPLERS[ROWS[row].act] for row in posteriors.rows_of(experiment.config)}
    # Rows of one model share what is measured of it.
    gains = functools.cache(functools.partial(posteriors.measured_gains, experiment, operator))
    draw_of = lambda row: posteriors.draw_of(experiment, row, operator, gains)

    @functools.cache
    def noise_floor(model: str) -> dict[str, Any]:
        x = posteriors.with_noise_floor(experiment, model, jnp.asarray(test[: section.samples]))
        return metrics.distance_statistics(jnp.asarray(experiment.distances(x)))

    with Bar('assimilate', len(rows) * len(y), unit='measurement') as bar:
        done = itertools.count(1)
        advance = lambda: bar.update(next(done))
        for row, sampler in rows.items():
            samples, seconds = _samples(experiment, folder, row, draw_of, y, advance)
            valid = np.isfinite(samples).all((2, 3, 4))
            entry = statistics_of(experiment, operator, y, samples)
            compared = tuple(map(jnp.asarray, (truth, samples, valid)))
            entry |= metrics.posterior_statistics(*compared)
            if len(y) > 1:
                entry['error'] = metrics.jackknife(metrics.posterior_statistics, *compared)
            entry['calls'] = section.get(sampler.steps, 0) + sampler.more
            entry['seconds_per_sample'] = seconds
            if sampler.noisy:
                entry['noise_floor'] = noise_floor(ROWS[row].prior)
            experiment.run.merge_metrics({f'assimilation.{name}.{row}': entry})
    save_arrays(folder / 'arrays.npz', _arrays(experiment, folder, operator, truth[:1], y[:1]))
    from_first(lambda: _report(experiment, name))
    return {'operator': name, 'rows': list(rows)}


def _samples(
    experiment: Experiment, folder: Path, name: str, draw_of: Any, y: Array, advance: Callable
) -> tuple[np.ndarray, float]:
    """Returns a row's samples `(n, k, h, w, c)` of each measurement, and the median seconds a
    sample, its correction's included.
    """
    row, path = ROWS[name], folder / name
    if row.draw == name:
        draw = functools.cache(lambda: draw_of(row))
        make = lambda i: posteriors.samples_of(experiment, draw(), i, y[i])
        return _kept(experiment, path, len(y), make, advance)
    x, seconds = _samples(experiment, folder, row.draw, draw_of, y, advance)
    way = correction(experiment, row.map)
    x, more = _kept(experiment, path, len(y), lambda i: np.asarray(way(x[i])), lambda: None)
    return x, seconds + more


def _kept(
    experiment: Experiment, folder: Path, n: int, make: Callable[[int], np.ndarray], advance: Any
) -> tuple[np.ndarray, float]:
    """Returns `make(i)` of n measurements, and the median seconds a sample; from the folder if they
    are there.
    """
    experiment.run.place('assimilate', *folder.parts[-2:])
    warm, clock, parts = False, folder / 'seconds.json', []
    seconds = read_json(clock, list) if from_first(clock.exists) else []
    paths, processes = [folder / f'{i}.npy' for i in range(n)], jax.process_count()
    for first in range(0, n, processes):  # one measurement for each process
        together = paths[first : first + processes]
        if not from_first(lambda paths=together: all(path.exists() for path in paths)):
            experiment.pause()
            begun = time.perf_counter()
            x = make(min(first + jax.process_index(), n - 1))
            # The first one compiles: it counts only where there is no other.
            if warm or (not seconds and first + processes >= n):
                seconds.append((time.perf_counter() - begun) / len(x))
            warm = True
            for path, samples in zip(together, gather_rows(x[None]), strict=False):
                experiment.save(path, samples)
            from_first(functools.partial(write_json, clock, seconds))
        for path in together:
            parts.append(experiment.load(path))
            advance()
    return np.stack(parts), float(np.median(seconds))


def statistics_of(
    experiment: Experiment, operator: Measure, y: Array, samples: np.ndarray
) -> dict[str, Any]:
    """Returns distance, misfit in noise units, and the numbers of samples `(n, k, h, w, c)` and of
    those that are not finite, which are left out of all else; `y (n, *m)` are the measurements.
    """
    valid = np.isfinite(samples).all((2, 3, 4))
    entry = {'diverged': int((~valid).sum()), 'n': valid.size}
    if not valid.any():
        return entry
    x, of_each = jnp.asarray(samples[valid]), jnp.asarray(y)[np.nonzero(valid)[0]]
    of_y = posteriors.likelihood_of(experiment.config, operator, of_each)
    distance = metrics.distance_statistics(jnp.asarray(experiment.distances(x)))
    return entry | {'distance': distance, 'misfit': float(of_y.misfit_per_value(x).mean())}


def _arrays(
    experiment: Experiment, folder: Path, operator: Measure, truth: np.ndarray, y: Array
) -> dict[str, Any]:
    """Returns what the report draws of the first measurement `y (1, *m)`, for every row that the
    folder holds.
    """
    image = lambda x: experiment.problem.image(jnp.asarray(x))
    _, transposed = jax.vjp(operator, jnp.asarray(truth))
    (seen,) = transposed(jax.random.normal(jax.random.key(0), y.shape))
    (back,) = transposed(y)
    # NaN where no measurement looks.
    arrays = {'truth/measured': image(jnp.where(seen == 0, jnp.nan, back))[0]}
    arrays |= {'truth/field': image(truth)[0], 'truth/residual': views(experiment, truth)[1][0]}
    for row in filter(lambda row: (folder / row / '0.npy').exists(), ROWS):
        x = experiment.load(folder / row / '0.npy')
        images, (_, residuals) = jnp.asarray(image(x))[None, ..., None], views(experiment, x[:1])
        mean, variance = metrics.posterior_moments(images, jnp.isfinite(images).all((2, 3, 4)))
        arrays |= {f'{row}/mean': mean[0, ..., 0], f'{row}/std': jnp.sqrt(variance[0, ..., 0])}
        arrays |= {f'{row}/samples': images[0, :SHOWN, ..., 0], f'{row}/residual': residuals[0]}
    return arrays


def _report(experiment: Experiment, name: str) -> None:
    """Draws the figure of an operator, the report again if there is one, and prints the table."""
    from namm_jax.report.table import assimilation_table, render
    from namm_jax.report.writing import write_assimilation, write_report  # imports matplotlib

    folder, noise = experiment.run.directory, experiment.config.assimilate.noise_std
    if (folder / 'report.html').exists():
        write_report(folder)  # with this figure
    else:
        write_assimilation(folder, name)
    entries = read_json(folder / 'metrics.json')['assimilation'][name]
    say(f'{name}, noise {noise:g}: posterior samples of measured test fields')
    say(render(assimilation_table(entries, width())))
