"""`launch/solve.py`: posterior samples given a user's own measurements, with the models of a
finished run.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from namm_jax._checks import choose
from namm_jax.experiment.arguments import experiment_name, overrides_of, parse, solve_flags
from namm_jax.experiment.command import configure_jax, guarded, open_experiment
from namm_jax.experiment.config import FREE_SECTIONS, flatten, override
from namm_jax.experiment.dataset import read_array
from namm_jax.experiment.files import UserError, finite, read_json

SELECTED = {
    'operator': 'operator',
    'sampler': 'sampler',
    'noise_std': 'noise_std',
    'num_samples': 'samples',
}
FREE = (*FREE_SECTIONS, 'seed')  # the models of a run know nothing of these


def solve(arguments: list[str]) -> int:
    """Runs `launch/solve.py` with these arguments, the program's name first; returns the exit
    status.
    """
    return guarded(_solve, arguments)


def _solve(arguments: list[str]) -> None:
    values = solve_flags(arguments)
    parse(values, arguments, sys.modules['__main__'].__doc__)
    for name in ('workdir', 'measurement', 'out'):
        if values[name].value is None:
            raise UserError(
                f'--{name} is missing; expected a run folder, --measurement=y.npy and '
                '--out=posterior.npy'
            )
    workdir, out = Path(values.workdir), Path(values.out)
    asked, y = experiment_name(values), read_array(Path(values.measurement))
    if not (workdir / 'config.json').exists():
        raise UserError(
            f'{workdir} is no run folder; expected one whose stages dm, mdm and finetune have '
            'finished'
        )
    if (saved := read_json(workdir / 'config.json')['experiment']) != asked:
        raise UserError(
            f'got --config {asked}, but {workdir} holds {saved}; give that config file and preset'
        )
    if not out.parent.is_dir():
        raise UserError(f'--out: got {out}, but there is no folder {out.parent}; make it first')
    configure_jax()
    import jax.numpy as jnp

    with open_experiment(workdir) as experiment:
        config = asked_config(ConfigDict(experiment.config.to_dict()), values)
        posterior, told = _posterior(experiment._replace(config=config), y)
        np.save(
            out,
            np.asarray(experiment.problem.unpack(jnp.asarray(posterior)), np.float32),
            allow_pickle=False,
        )
    print(json.dumps(told), flush=True)


def asked_config(config: ConfigDict, values: flags.FlagValues) -> ConfigDict:
    """Returns a run's config with what the command changes for itself, in place.

    Raises:
        UserError: if it changes what the run's models are made for.
    """
    plain = lambda config: flatten(
        json.loads(json.dumps(config.to_dict()))
    )  # tuples compare equal to lists
    before = plain(config)
    given = {field: values[name].value for name, field in SELECTED.items()}
    changes = {f'assimilate.{field}': value for field, value in given.items() if value is not None}
    after = plain(override(config, overrides_of(values) | changes))
    if changed := [
        name for name in after if name.split('.')[0] not in FREE and after[name] != before[name]
    ]:
        raise UserError(
            f'got {changed[0]} = {after[changed[0]]!r} for a run with {before[changed[0]]!r}, '
            f'expected changes of {", ".join(FREE)} alone; leave the override out, or give the run '
            'that was made with it'
        )
    return config


def checked(config: ConfigDict, y: np.ndarray) -> tuple[Any, Any]:
    """Returns a config's operator, and measurements as `(n, *m)`, float32.

    Args:
        config: the config.
        y: what a file holds, measurements `(n, *m)` or one `(*m)`.

    Raises:
        ValueError: if they do not fit each other, or the config has a value out of range.
    """
    import jax

    from namm_jax._checks import check_operator
    from namm_jax.experiment.posteriors import check_assimilation, make_operator, operator_name
    from namm_jax.experiment.schema import check_ranges
    from namm_jax.inverse.likelihood import likelihood

    check_ranges(config)
    check_assimilation(config)
    operator = make_operator(config)
    shape = operator.shape
    if operator_name(config) == 'own':  # a user's function may raise anything
        check_operator(operator, shape)
    one = len(jax.eval_shape(operator, jax.ShapeDtypeStruct((1, *shape), np.float32)).shape) - 1
    y = y[None] if y.ndim == one else y
    return operator, likelihood(operator, y, config.assimilate.noise_std).y


def _posterior(experiment: Any, y: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns posterior samples of each measurement, one after another, and what is told of
    them.
    """
    from namm_jax.experiment.assimilate import statistics_of
    from namm_jax.experiment.methods import correction
    from namm_jax.experiment.posteriors import (
        ROWS,
        draw_of,
        measured_gains,
        operator_name,
        samples_of,
    )
    from namm_jax.experiment.progress import Bar

    config, section = experiment.config, experiment.config.assimilate
    operator, y = checked(config, y)
    row = choose('sampler', section.sampler, ROWS)
    gains = functools.partial(measured_gains, experiment, operator)
    draw = draw_of(experiment, row, operator, gains)
    way, parts = correction(experiment, row.map), []
    with Bar('solve', len(y), unit='measurement') as bar:
        for i, measured in enumerate(y):
            parts.append(np.asarray(way(samples_of(experiment, draw, i, measured))))
            bar.update(i + 1)
    told = {'operator': operator_name(config), 'sampler': section.sampler, 'measurements': len(y)}
    return np.concatenate(parts), told | finite(
        statistics_of(experiment, operator, y, np.stack(parts))
    )
