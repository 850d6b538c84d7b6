"""`launch/solve.py`: posterior samples given a user's own measurements, with the models of a finished run."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from namm_jax.choices import choose
from namm_jax.train.arguments import experiment_name, overrides_of, parse, solve_flags
from namm_jax.train.command import configure_jax, guarded, open_experiment
from namm_jax.train.config import override
from namm_jax.train.dataset import read_array
from namm_jax.train.files import UserError, finite, read_json

SELECTED = {'operator': 'operator', 'sampler': 'sampler', 'noise_std': 'noise_std', 'num_samples': 'samples'}


def solve(arguments: list[str]) -> int:
    """Runs `launch/solve.py` with these arguments, the program's name first; returns the exit status."""
    return guarded(_solve, arguments)


def _solve(arguments: list[str]) -> None:
    values = solve_flags(arguments)
    parse(values, arguments, sys.modules['__main__'].__doc__)
    for name in ('workdir', 'measurement', 'out'):
        if values[name].value is None:
            raise UserError(f'--{name} is missing; expected a run folder, --measurement=y.npy and --out=posterior.npy')
    workdir, out = Path(values.workdir), Path(values.out)
    asked, y = experiment_name(values), read_array(Path(values.measurement))
    if not (workdir / 'config.json').exists():
        raise UserError(f'{workdir} is no run folder; expected one whose stages dm, mdm and finetune have finished')
    if (saved := read_json(workdir / 'config.json')['experiment']) != asked:
        raise UserError(f'got --config {asked}, but {workdir} holds {saved}; give that config file and preset')
    if not out.parent.is_dir():
        raise UserError(f'--out: got {out}, but there is no folder {out.parent}; make it first')
    configure_jax()
    given = {field: values[name].value for name, field in SELECTED.items()}
    changes = {f'assimilate.{field}': value for field, value in given.items() if value is not None}
    with open_experiment(workdir) as experiment:
        config = override(ConfigDict(experiment.config.to_dict()), overrides_of(values) | changes)
        posterior, told = _posterior(experiment._replace(config=config), y)
        np.save(out, np.asarray(experiment.family.unpack(posterior), np.float32), allow_pickle=False)
    print(json.dumps(told), flush=True)


def _posterior(experiment: Any, y: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns posterior samples of each measurement, one after another, and what is told of them."""
    import jax.numpy as jnp

    from namm_jax.operator_checks import check_measurement
    from namm_jax.train.assimilate import statistics_of
    from namm_jax.train.measurements import make_config_operator, operator_name
    from namm_jax.train.posteriors import ROWS, check_assimilation, measured_gains, samples_of
    from namm_jax.train.progress import Bar
    from namm_jax.train.ranges import check_ranges

    config, section, shape = experiment.config, experiment.config.assimilate, experiment.family.shape
    check_ranges(config)
    check_assimilation(config)
    operator = make_config_operator(config, shape)
    one = operator(jnp.zeros((1, *shape))).ndim - 1
    y = check_measurement(operator, y[None] if y.ndim == one else y, section.noise_std, shape)
    row = choose('sampler', section.sampler, ROWS)
    draw = row.draw(experiment, operator, functools.partial(measured_gains, experiment, operator))
    way, parts = row.way(experiment) if row.way else lambda x: x, []
    with Bar('solve', len(y), unit='measurement') as bar:
        for i, measured in enumerate(y):
            parts.append(np.asarray(way(samples_of(experiment, draw, i, measured))))
            bar.update(i + 1)
    told = {'operator': operator_name(config), 'sampler': section.sampler, 'measurements': len(y)}
    return np.concatenate(parts), told | finite(statistics_of(experiment, operator, y, np.stack(parts)))
