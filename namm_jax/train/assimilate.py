"""The stage `assimilate`: posterior samples of test fields given noisy measurements, by every sampler of the table.

Each measurement's samples are a file, so a run goes on where it was stopped.
"""

import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from namm_jax import inverse_problems
from namm_jax.evaluation import distance_statistics
from namm_jax.inverse_problems import Measure
from namm_jax.operator_checks import check_operator
from namm_jax.per_sample import normal
from namm_jax.posterior_statistics import posterior_statistics
from namm_jax.train.evaluate import SHOWN, shown
from namm_jax.train.experiment import Experiment
from namm_jax.train.files import read_checked, read_json, write_json
from namm_jax.train.posteriors import ROWS, Row, make_config_operator, operator_name, rows_of, samples_of
from namm_jax.train.progress import Bar, say


def assimilate(experiment: Experiment) -> dict[str, Any]:
    """Measures test fields with noise, draws posterior samples of each by every row, and fills their table."""
    config, section, name = experiment.config, experiment.config.assimilate, operator_name(experiment.config)
    folder = experiment.run.directory / 'assimilate' / name
    folder.mkdir(parents=True, exist_ok=True)
    truth = experiment.split('test')[: section.measurements]
    operator = make_config_operator(config, experiment.family.shape)
    check_operator(operator, experiment.family.shape, x=truth[:3])
    y = operator(jnp.asarray(truth))
    y = y + section.noise_std * normal(experiment.keys('assimilate', 0, len(y)), y)
    rows = rows_of(config)
    long = min(section.measurements, section.long_measurements)
    numbers = {row: long if ROWS[row].long else section.measurements for row in rows}
    done, shown_rows = itertools.count(1), {}
    with Bar('assimilate', sum(numbers.values()), unit='measurement') as bar:
        advance = lambda: bar.update(next(done))
        for row in rows:
            samples, seconds = _row(experiment, folder, row, operator, y[: numbers[row]], advance)
            entry = _entry(experiment, operator, truth[: numbers[row]], y[: numbers[row]], samples)
            entry |= {'calls': ROWS[row].calls(section), 'seconds_per_sample': seconds}
            experiment.run.merge_metrics({f'assimilation.{name}.{row}': entry})
            shown_rows[row] = np.concatenate([samples[0].mean(0, keepdims=True), samples[0]])[:SHOWN]
    _draw(experiment, name, {'truth': truth[:1]} | shown_rows)
    _tell(experiment, name)
    return {'operator': name, 'rows': rows}


def _draw(experiment: Experiment, name: str, rows: dict[str, np.ndarray]) -> None:
    """Draws what each row made of the first measurement: the mean of its samples, then some of them."""
    from namm_jax.report import figures, pictures

    (experiment.run.directory / 'figures').mkdir(exist_ok=True)
    titles = {row: 'truth' if row == 'truth' else f'{row}: posterior mean, then samples' for row in rows}
    style = pictures.style(experiment.config.data.family)._asdict()
    images = {row: shown(experiment, np.nan_to_num(x)) for row, x in rows.items()}
    figure = figures.samples_with_residuals(images, names=titles, **style)
    figures.save(figure, experiment.run.directory / 'figures' / f'assimilation_{name}.png')


def _tell(experiment: Experiment, name: str) -> None:
    from namm_jax.report.table import assimilation_table, render

    entries = read_json(experiment.run.directory / 'metrics.json')['assimilation'][name]
    section = experiment.config.assimilate
    say(f'{name}, noise {section.noise_std:g}: posterior samples of measured test fields')
    say(render(assimilation_table(entries)))


def _row(
    experiment: Experiment, folder: Path, name: str, operator: Measure, y: Array, advance: Callable[[], None]
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Returns samples `(n, k, h, w, c)` of each measurement and the median seconds a sample, its map's included."""
    row, times = ROWS[name], []
    samples, seconds = _drawn(experiment, folder / (row.draws or name), row, operator, y, advance)
    if row.way is None:
        return samples, seconds
    way, mapped = row.way(experiment), []
    for x in samples:
        begun = time.perf_counter()
        mapped.append(np.asarray(way(x)))
        times.append((time.perf_counter() - begun) / len(x))
    return np.stack(mapped), seconds + float(np.median(times[1:] or times))  # the first one compiles


def _drawn(
    experiment: Experiment, folder: Path, row: Row, operator: Measure, y: Array, advance: Callable[[], None]
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Returns what a row draws for each measurement, and the median seconds a sample; from disk if they are there."""
    folder.mkdir(exist_ok=True)
    draw, clock, parts = None, folder / 'seconds.json', []
    seconds = read_json(clock) if clock.exists() else []
    for i, one in enumerate(y):
        path = folder / f'{i}.npy'
        if not path.exists():
            experiment.pause()
            warm, draw = draw is not None, draw or row.draw(experiment, operator)
            begun = time.perf_counter()
            x = samples_of(experiment, draw, i, one)
            # The first draw compiles: it counts only where there is no other.
            seconds += [(time.perf_counter() - begun) / len(x)] if warm or not (seconds or i + 1 < len(y)) else []
            experiment.save(path, x)
            write_json(clock, seconds)
        parts.append(experiment.packed(np.load(io.BytesIO(read_checked(path)), allow_pickle=False)))
        advance()
    return np.stack(parts), float(np.median(seconds))


def statistics_of(experiment: Experiment, operator: Measure, y: Array, samples: np.ndarray) -> dict[str, Any]:
    """Returns distance, misfit in noise units, and the numbers of samples and of those that are not finite.

    Args:
        experiment: the experiment.
        operator: A.
        y: measurements `(n, *m)`.
        samples: `(n, k, h, w, c)`; those that are not finite are counted, and left out of all else.
    """
    valid = np.isfinite(samples).all((2, 3, 4))
    entry = {'diverged': int((~valid).sum()), 'n': valid.size}
    if not valid.any():
        return entry
    x, of_each = jnp.asarray(samples[valid]), jnp.asarray(y)[np.nonzero(valid)[0]]
    misfit = inverse_problems.misfit_per_value(operator, of_each, experiment.config.assimilate.noise_std)(x)
    distance = distance_statistics(experiment.constraint.distance(x))
    return entry | {'distance': distance, 'misfit': float(misfit.mean())}


def _entry(
    experiment: Experiment, operator: Measure, truth: np.ndarray, y: Array, samples: np.ndarray
) -> dict[str, Any]:
    """Returns an entry of the table."""
    valid = jnp.asarray(np.isfinite(samples).all((2, 3, 4)))
    errors = posterior_statistics(jnp.asarray(truth), jnp.asarray(samples), valid)
    return statistics_of(experiment, operator, y, samples) | errors
