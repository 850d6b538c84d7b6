"""From a config to its problem: the section `data` holds the parameters of the problem's dataclass.
A user's own arrays are a problem, too, whose sizes and units are read from their files.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from namm_jax.experiment.cli import STAGES
from namm_jax.experiment.config import flatten
from namm_jax.experiment.files import UserError
from namm_jax.experiment.own import checksum, load_function, read_user_data
from namm_jax.experiment.schema import problem_class
from namm_jax.problems.base import Problem, parameters
from namm_jax.problems.own_arrays import units


def plain(value: Any) -> Any:
    """Returns a value of a config, a list as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else value


def make_problem(config: ConfigDict) -> Problem:
    """Returns the problem that the config names; a ValueError by it if a value is out of range."""
    cls = problem_class(config.data.problem)
    values = {name: plain(config.data[name]) for name in parameters(cls)}
    if config.constraint.get('distance'):
        values['distance_function'] = load_function(config.constraint.distance)
    return cls(**values)


def user_files(sections: Mapping[str, Any]) -> dict[str, int]:
    """Returns the fields of these sections that name a user's function or data, and checksums."""
    names = lambda name, value: name == 'data.path' or re.fullmatch(r'.+:[^\W\d]\w*', value)
    texts = {name: text for name, text in flatten(sections).items() if isinstance(text, str)}
    return {name: checksum(name, text) for name, text in texts.items() if names(name, text)}


def check_files(record_of: Callable[[str], Mapping[str, Any] | None]) -> None:
    """Raises a UserError if a user's function, or data still to be read, has changed since a stage
    with a record has read it.
    """
    for stage, record in ((stage, record_of(stage) or {}) for stage in STAGES):
        saved, fields = record.get('files', {}), flatten(record.get('sections', {}))
        for name in saved.keys() - ({'data.path'} if record.get('finished') else set()):
            value = fields.get(name, '')
            if (got := checksum(name, value)) != saved[name]:
                raise UserError(
                    f'{value} has changed since stage {stage} read it for {name}: got the '
                    f'checksum {got}, expected {saved[name]}; put it back (a relative path starts '
                    f'from {Path.cwd()}), or discard the stage with --redo={stage}'
                )


def fields_of(config: ConfigDict, problem: Problem) -> Callable[[np.ndarray], Array]:
    """Returns the fields of global indices `(n,)` as files hold them: generated ones by the key
    `fold_in(key(data.seed), i)`, or a user's own in an order of `data.seed`.
    """
    if not problem.generated:
        return functools.partial(_fields_of_files, config, functools.cache(read_user_data))
    root = jax.random.key(config.data.seed)

    @jax.jit
    def fields(indices: Array) -> Array:
        keys = jax.vmap(functools.partial(jax.random.fold_in, root))(indices)
        return problem.unpack(problem.fields(keys))

    return lambda indices: fields(jnp.asarray(indices))


def _fields_of_files(
    config: ConfigDict, read: Callable[[str], np.ndarray], indices: np.ndarray
) -> np.ndarray:
    data = config.data
    x = read(data.path)
    if len(x) < (n := data.train + data.validation + data.test):
        raise UserError(
            f'{data.path}: got {len(x)} samples, expected at least {n}, the sum of data.train, '
            'data.validation and data.test; lower those, or bring more'
        )
    return x[_order(config, len(x))[indices]]


def _order(config: ConfigDict, n: int) -> np.ndarray:
    return np.random.default_rng(config.data.seed).permutation(n)


def with_own_data(config: ConfigDict, record: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns the config with the shape, number and units of a user's own samples, as the finished
    stage `data` has them on its record (`own`), else as they are in their files: all but those of
    `data.validation` and `data.test` are for training where `data.train` is 0; mean and scale, one
    a channel, are those of the training samples.
    """
    if problem_class(config.data.problem).generated:
        return config
    config = config.copy_and_resolve_references()
    finished = record and record['finished']
    with config.unlocked():
        config.data.update(record.get('own', {}) if finished else _of_files(config))
    return config


def _of_files(config: ConfigDict) -> dict[str, Any]:
    data, x = config.data, read_user_data(config.data.path)
    train = data.train or max(0, len(x) - data.validation - data.test)
    found = dict(zip(('height', 'width', 'channels'), x.shape[1:], strict=True), train=train)
    training = x[_order(config, len(x))[:train]]
    if len(training) and not data.mean:
        found['mean'], found['scale'] = units(training)
    return found
