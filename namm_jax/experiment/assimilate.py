"""The stage `assimilate`: posterior samples of test fields given noisy measurements, by every
sampler of the table.

Each measurement's samples are a file, so a run goes on where it was stopped.
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

from namm_jax._arrays import Measure, normal
from namm_jax._checks import check_operator
from namm_jax.experiment.dataset import read_array
from namm_jax.experiment.evaluate import SHOWN, save_arrays, shown
from namm_jax.experiment.experiment import Experiment
from namm_jax.experiment.files import read_json, write_json
from namm_jax.experiment.posteriors import (
    ROWS,
    Draw,
    Row,
    make_operator,
    measured_gains,
    operator_name,
    rows_of,
    samples_of,
    with_noise_floor,
)
from namm_jax.experiment.processes import from_first, gather_rows
from namm_jax.experiment.progress import Bar, say
from namm_jax.inverse.likelihood import likelihood
from namm_jax.metrics import distance_statistics, posterior_moments, posterior_statistics


def assimilate(experiment: Experiment) -> dict[str, Any]:
    """Measures test fields with noise, draws posterior samples of each by every row, and fills
    their table.
    """
    config, section, name = (
        experiment.config,
        experiment.config.assimilate,
        operator_name(experiment.config),
    )
    folder = experiment.run.directory / 'assimilate' / name
    from_first(lambda: folder.mkdir(parents=True, exist_ok=True))
    truth = experiment.split('test')[: section.measurements]
    operator = make_operator(config)
    check_operator(operator, experiment.problem.shape, x=truth[:3])
    y = operator(jnp.asarray(truth))
    y = y + section.noise_std * normal(experiment.keys('assimilate', 0, len(y)), y)
    rows = rows_of(config)
    long = min(section.measurements, section.long_measurements)
    numbers = {row: long if ROWS[row].long else section.measurements for row in rows}
    done = itertools.count(1)
    # Rows of one model share what is measured of it.
    gains = functools.cache(functools.partial(measured_gains, experiment, operator))
    noise_floor = functools.cache(functools.partial(_noise_floor, experiment))
    draw_of = lambda row: row.draw(experiment, operator, gains)
    with Bar('assimilate', sum(numbers.values()), unit='measurement') as bar:
        advance = lambda: bar.update(next(done))
        for row in rows:
            samples, seconds = _row(experiment, folder, row, draw_of, y[: numbers[row]], advance)
            entry = _entry(experiment, operator, truth[: numbers[row]], y[: numbers[row]], samples)
            entry |= {'calls': ROWS[row].calls(section), 'seconds_per_sample': seconds}
            if ROWS[row].noisy:
                entry['noise_floor'] = noise_floor(ROWS[row].noisy)
            experiment.run.merge_metrics({f'assimilation.{name}.{row}': entry})
    save_arrays(folder / 'arrays.npz', _arrays(experiment, folder, operator, truth[:1], y[:1]))
    from_first(lambda: (_draw(experiment, name), _tell(experiment, name)) and None)
    return {'operator': name, 'rows': rows}


def _noise_floor(experiment: Experiment, model: str) -> dict[str, Any]:
    """Returns the constraint distance of true fields with the noise that the published samplers
    leave.
    """
    x = with_noise_floor(
        experiment,
        model,
        jnp.asarray(experiment.split('test')[: experiment.config.assimilate.samples]),
    )
    return distance_statistics(experiment.constraint.distance(x))


def _arrays(
    experiment: Experiment, folder: Path, operator: Measure, truth: np.ndarray, y: Array
) -> dict[str, Any]:
    """Returns what the report draws of the first measurement `y (1, *m)`, for every row that the
    folder holds.
    """
    image = lambda x: experiment.problem.image(jnp.asarray(x))
    _, residual = shown(experiment, truth)
    _, transposed = jax.vjp(operator, jnp.asarray(truth))
    (seen,) = transposed(jax.random.normal(jax.random.key(0), y.shape))
    (back,) = transposed(y)
    arrays = {'truth/field': image(truth)[0], 'truth/residual': residual[0]}
    arrays['truth/measured'] = image(jnp.where(seen == 0, jnp.nan, back))[
        0
    ]  # 0 where no measurement looks
    for row in ROWS:
        if not (folder / row / '0.npy').exists():
            continue
        x = experiment.packed(read_array(folder / row / '0.npy'))
        images, (_, residuals) = jnp.asarray(image(x))[None, ..., None], shown(experiment, x[:1])
        mean, variance = posterior_moments(images, jnp.isfinite(images).all((2, 3, 4)))
        arrays |= {f'{row}/mean': mean[0, ..., 0], f'{row}/std': jnp.sqrt(variance[0, ..., 0])}
        arrays |= {f'{row}/samples': images[0, :SHOWN, ..., 0], f'{row}/residual': residuals[0]}
    return arrays


def _draw(experiment: Experiment, name: str) -> None:
    """Draws the figure of an operator, and the report again if there is one."""
    from namm_jax.report.writing import (
        write_assimilation,
        write_report,
    )  # matplotlib takes a second to import

    if (experiment.run.directory / 'report.html').exists():
        write_report(experiment.run.directory)  # with this figure
    else:
        write_assimilation(experiment.run.directory, name)


def _tell(experiment: Experiment, name: str) -> None:
    from namm_jax.report.table import assimilation_table, render

    entries = read_json(experiment.run.directory / 'metrics.json')['assimilation'][name]
    section = experiment.config.assimilate
    say(f'{name}, noise {section.noise_std:g}: posterior samples of measured test fields')
    say(render(assimilation_table(entries)))


def _row(
    experiment: Experiment,
    folder: Path,
    name: str,
    draw_of: Callable[[Row], Draw],
    y: Array,
    advance: Callable[[], None],
) -> tuple[np.ndarray, float]:
    """Returns samples `(n, k, h, w, c)` of each measurement and the median seconds a sample, its
    map's included.
    """
    row = ROWS[name]
    draw = functools.cache(lambda: draw_of(row))
    make = lambda i: samples_of(experiment, draw(), i, y[i])
    samples, seconds = _kept(experiment, folder / (row.draws or name), len(y), make, advance)
    if row.way is None:
        return samples, seconds
    way = row.way(experiment)
    mapped, more = _kept(
        experiment, folder / name, len(y), lambda i: np.asarray(way(samples[i])), lambda: None
    )
    return mapped, seconds + more


def _kept(
    experiment: Experiment,
    folder: Path,
    n: int,
    make: Callable[[int], np.ndarray],
    advance: Callable[[], None],
) -> tuple[np.ndarray, float]:
    """Returns `make(i)` of n measurements, and the median seconds a sample; from the folder if they
    are there.
    """
    from_first(lambda: folder.mkdir(exist_ok=True))
    warm, clock, parts = False, folder / 'seconds.json', []
    seconds = read_json(clock) if from_first(clock.exists) else []
    paths, processes = [folder / f'{i}.npy' for i in range(n)], jax.process_count()
    for first in range(0, n, processes):  # one measurement for each process
        together = paths[first : first + processes]
        if not from_first(lambda paths=together: all(path.exists() for path in paths)):
            experiment.pause()
            begun = time.perf_counter()
            x = make(min(first + jax.process_index(), n - 1))
            # The first one compiles: it counts only where there is no other.
            last = first + processes >= n
            seconds += (
                [(time.perf_counter() - begun) / len(x)]
                if warm or not (seconds or not last)
                else []
            )
            warm = True
            for path, samples in zip(together, gather_rows(x[None]), strict=False):
                experiment.save(path, samples)
            from_first(functools.partial(write_json, clock, seconds))
        for path in together:
            parts.append(experiment.packed(read_array(path)))
            advance()
    return np.stack(parts), float(np.median(seconds))


def statistics_of(
    experiment: Experiment, operator: Measure, y: Array, samples: np.ndarray
) -> dict[str, Any]:
    """Returns distance, misfit in noise units, and the numbers of samples and of those that are not
    finite.

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
    of_y = likelihood(operator, of_each, experiment.config.assimilate.noise_std)
    misfit = of_y.misfit_per_value(x)
    distance = distance_statistics(experiment.constraint.distance(x))
    return entry | {'distance': distance, 'misfit': float(misfit.mean())}


def _entry(
    experiment: Experiment, operator: Measure, truth: np.ndarray, y: Array, samples: np.ndarray
) -> dict[str, Any]:
    """Returns an entry of the table."""
    valid = jnp.asarray(np.isfinite(samples).all((2, 3, 4)))
    errors = posterior_statistics(jnp.asarray(truth), jnp.asarray(samples), valid)
    return statistics_of(experiment, operator, y, samples) | errors
