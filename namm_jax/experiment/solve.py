"""The commands for files of your own: `evaluate` measures samples; `solve` draws posterior samples
given measurements, with the models of a finished run.
"""

import argparse
import contextlib
import functools
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from namm_jax._checks import (
    POSITIVE,
    FunctionError,
    check_alone,
    check_operator,
    choose,
    refuse,
    strict,
)
from namm_jax.experiment import build, imaging, posteriors
from namm_jax.experiment.assimilate import statistics_of
from namm_jax.experiment.cli import tell
from namm_jax.experiment.command import configure_jax
from namm_jax.experiment.config import FREE_SECTIONS, flatten, override
from namm_jax.experiment.dataset import as_fields
from namm_jax.experiment.devices import make_mesh
from namm_jax.experiment.drawing import in_batches
from namm_jax.experiment.experiment import make_experiment
from namm_jax.experiment.files import UserError, finite, naming, write_bytes
from namm_jax.experiment.folder import Folder
from namm_jax.experiment.formats import read, read_values
from namm_jax.experiment.methods import correction
from namm_jax.experiment.open_run import open_run
from namm_jax.experiment.problem import check_files, make_problem, with_own_data
from namm_jax.experiment.progress import Bar, say
from namm_jax.experiment.schema import check_ranges
from namm_jax.inverse.closures import MEASUREMENTS, Observation
from namm_jax.inverse.likelihood import likelihood
from namm_jax.metrics import distance_statistics

FREE = (*FREE_SECTIONS, 'seed')  # the models of a run know nothing of these


def evaluate(given: argparse.Namespace) -> None:
    """Writes the constraint distances of a file's samples, as JSON, to standard output."""
    _tell(_distances, given)


def _tell(facts_of: Callable[[argparse.Namespace], Any], given: argparse.Namespace) -> None:
    """Writes facts as JSON to standard output; what a user's function prints goes elsewhere."""
    configure_jax()
    with contextlib.redirect_stdout(sys.stderr):
        facts = facts_of(given)
        jax.effects_barrier()
    tell(json.dumps(finite(facts)))


def _distances(given: argparse.Namespace) -> dict[str, Any]:
    config, problem = given.config, make_problem(given.config)
    shape = problem.file_shape if all(problem.file_shape) else None
    layout = [config.data.get(name, '') for name in ('axes', 'mask')]
    x = as_fields(given.samples, read(given.samples, *layout), shape)
    x = np.asarray(problem.pack(jnp.asarray(x)))
    if not build.holds_network(config):
        constraint = build.make_constraint(config)
    elif given.workdir:
        constraint = open_run(given.workdir).constraint
    else:
        rule = f'the constraint {config.constraint.name} holds a trained network'
        raise UserError(f'--workdir is missing: {rule}; expected a run with a finished counter')
    label = f'the distance {constraint.name!r}'
    measure = _compiled(label, constraint.distance, x)
    distances = in_batches(measure, x, min(len(x), 256), make_mesh())
    if not problem.generated:
        _check_values(label, measure, x[:64], distances)
    statistics = distance_statistics(jnp.asarray(distances))
    result = {'constraint': config.constraint.name, 'n': len(x), 'distance': statistics}
    return result | {'per_sample': distances}


def _compiled(
    label: str, distance: Callable[[Array], Array], x: np.ndarray
) -> Callable[[Array], Array]:
    """Returns a rule compiled, one in NumPy as it is."""
    try:
        jax.eval_shape(distance, jax.ShapeDtypeStruct(x[:1].shape, np.float32))
    except FunctionError as error:
        if 'TracerArray' not in str(error):
            raise
        say('the rule is in NumPy, which measures; to train with it, write it in jax.numpy')
        return lambda x: distance(jnp.asarray(x))
    return strict(label, distance)


def _check_values(
    label: str, measure: Callable[[Array], Array], x: np.ndarray, distances: np.ndarray
) -> None:
    """Raises a ValueError unless a rule is one number >= 0 a sample, of that sample alone; numbers
    that are not finite are no fault of it.
    """
    refuse(label, distances < 0, f'{distances.min():.3g}', POSITIVE)
    of = lambda x, where: np.nan_to_num(measure(x), posinf=0)
    scale = x.std((0, 1, 2))
    noise = np.random.default_rng(0).normal(size=(2, *x.shape[1:]))
    off = np.concatenate([x, x[:1] + np.float32(np.where(scale > 0, scale, 1) * noise)])
    check_alone(label, of, off, values := of(off, ''))
    if (values == values[0]).all():
        say(f'warning: {label} is {values[0]:.3g} for noise, too; does it read its argument?')


def solve(given: argparse.Namespace) -> None:
    """Writes posterior samples to a file, and how well they fit, as JSON, to standard output."""
    _tell(_solved, given)


def _solved(given: argparse.Namespace) -> dict[str, Any]:
    out, source = Path(given.out), given.measurement
    folder = Folder(Path(given.workdir), experiment=given.name)
    config = config_of(folder.config, given)
    images = config.assimilate.operator in MEASUREMENTS
    measurement = imaging.observation_of(config, Path(source)) if images else read_values(source)
    for path in (out, *map(out.with_suffix, ('.npz', '.png') if images else ())):
        _check_out(path, folder.directory, given.overwrite)
    check_files(folder.record, goes_on=False)
    config = with_own_data(config, folder.record('data'))
    experiment = make_experiment(folder)._replace(config=config)
    x, facts = posterior(experiment, measurement)
    if facts['diverged'] == len(x):
        raise UserError(
            f'got no finite sample, {len(x)} have diverged, expected some; check that the operator '
            'and the noise of the measurement are of the order of the data'
        )
    if images:
        facts |= _sky(experiment, measurement, x, out)
    file = io.BytesIO()
    x = np.asarray(experiment.problem.unpack(jnp.asarray(x)), np.float32)
    np.save(file, x, allow_pickle=False)
    write_bytes(out, file.getbuffer())
    return facts


def _sky(experiment: Any, observation: Observation, x: np.ndarray, out: Path) -> dict[str, Any]:
    """Writes the fits of samples, and their picture, beside them; returns what is told of them."""
    from namm_jax.report.imaging import sky  # imports matplotlib

    x = x[np.isfinite(x).all((1, 2, 3))]
    if not len(x):
        return {}
    arrays = imaging.arrays_of(experiment.config, observation, x)
    files = {'.npz': io.BytesIO(), '.png': io.BytesIO()}
    np.savez_compressed(files['.npz'], **arrays)
    figure = sky(arrays, experiment.problem.view.colours)
    figure.savefig(files['.png'], format='png', dpi=experiment.config.report.dpi)
    for suffix, file in files.items():
        write_bytes(out.with_suffix(suffix), file.getbuffer())
    return imaging.facts_of(experiment.config, observation, x)


def _check_out(out: Path, run: Path, overwrite: bool) -> None:
    """Raises an error, before anything is drawn, unless the samples can be written there."""
    place, run = out.resolve(), run.resolve()
    suffixes = ('.npy', '.npz', '.png')
    if run in place.parents and (place.parent != run or place.suffix not in suffixes):
        fault = f'a name that the run {run} has or may take', 'another one'
    elif out.is_dir() or not out.parent.is_dir():
        fault = ('a folder', 'a file') if out.is_dir() else ('no folder for it', 'one that exists')
    elif out.exists() and not overwrite:
        fault = 'a file that is there', 'a new one; choose another, or say --overwrite'
    else:
        with naming(out):
            return tempfile.TemporaryFile(dir=out.parent).close()
    raise UserError(f'--out: got {out}, {fault[0]}, expected {fault[1]}')


def config_of(run: Mapping[str, Any], given: argparse.Namespace) -> ConfigDict:
    """Returns a run's config, given in JSON's types, with what the command changes for itself; a
    UserError if that changes what the run's models are made for.
    """
    old = flatten(run)
    for name, value in given.overrides.items():
        value = list(value) if isinstance(value, tuple) else value
        if name.split('.')[0] not in FREE and value != old[name]:
            raise UserError(
                f'got {name} = {value!r} for a run with {old[name]!r}, expected changes of '
                f'{", ".join(FREE)} alone; leave the override out, or give the run made with it'
            )
    flags = {name: getattr(given, name) for name in ('operator', 'sampler', 'noise_std')}
    flags['samples'] = given.num_samples
    changes = {f'assimilate.{name}': value for name, value in flags.items() if value is not None}
    return override(ConfigDict(run), given.overrides | changes)


def operator_of(config: ConfigDict, y: Any, x: np.ndarray) -> tuple[Any, Any]:
    """Returns a config's operator, one of the user's checked at fields x, and measurements as
    `(n, *m)`, float32, where y is several or one `(*m)`, or the observation that both are of; a
    ValueError if they do not fit, or the config has a value out of range.
    """
    check_ranges(config)
    name = posteriors.operator_name(config)
    if isinstance(y, Observation):
        posteriors.rows_of(config)
        imaging.measured(config, y, 'closures')  # by which samples are judged
        return imaging.measured(config, y, name)
    posteriors.check_assimilation(config, least=1)
    operator = posteriors.make_operator(config)
    if name == 'own':  # a user's function may raise anything
        check_operator(operator, operator.shape, x)
    one = jax.eval_shape(operator, jax.ShapeDtypeStruct((1, *operator.shape), np.float32))
    y = y[None] if y.ndim == one.ndim - 1 else y
    try:
        return operator, likelihood(operator, y, config.assimilate.noise_std).y
    except ValueError as error:
        raise UserError(f'--operator={name}, which --measurement is of: {error}') from error


def posterior(experiment: Any, y: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns posterior samples of each measurement, one after another, and facts about them."""
    config, section = experiment.config, experiment.config.assimilate
    operator, y = operator_of(config, y, experiment.split('validation')[:3])
    row = choose('sampler', section.sampler, posteriors.ROWS)
    gains = functools.partial(posteriors.measured_gains, experiment, operator)
    draw = posteriors.draw_of(experiment, row, operator, gains)
    way = correction(experiment, row.map)
    parts = []
    with Bar('solve', len(y), unit='measurement') as bar:
        for i, one in enumerate(y):
            parts.append(np.asarray(way(posteriors.samples_of(experiment, draw, i, one))))
            bar.update(i + 1)
    facts = {'operator': posteriors.operator_name(config), 'sampler': section.sampler}
    statistics = finite(statistics_of(experiment, operator, y, np.stack(parts)))
    return np.concatenate(parts), facts | {'measurements': len(y)} | statistics
