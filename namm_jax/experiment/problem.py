"""From a config to its problem: the section `data` holds the parameters of the problem's dataclass.
A user's own arrays are a problem, too, whose sizes and units are read from their files.
"""

import functools
import os
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
from namm_jax.experiment.dataset import Stored
from namm_jax.experiment.devices import first_devices
from namm_jax.experiment.files import UserError
from namm_jax.experiment.formats import place_of, read_user_data
from namm_jax.experiment.own import DATA, checksum, load_function
from namm_jax.experiment.progress import say
from namm_jax.experiment.schema import problem_class
from namm_jax.problems.base import Problem, parameters
from namm_jax.problems.own_arrays import units

FEWEST = 32  # samples of a user's own, of which a sixth are held out, twice


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
    named = lambda name, value: value and name in DATA or re.fullmatch(r'.+:[^\W\d]\w*', value)
    texts = {name: text for name, text in flatten(sections).items() if isinstance(text, str)}
    return {name: checksum(name, text) for name, text in texts.items() if named(name, text)}


def check_files(
    record_of: Callable[[str], Mapping[str, Any] | None], *, goes_on: bool, stays: bool = False
) -> None:
    """Raises a UserError if a user's function or data have changed since a stage with a record has
    read them. Data that it has copied may be gone; a line tells of others in their place where
    the run does not go on, and of any change of what is there where it `stays` as it is.
    """
    for stage, record in ((stage, record_of(stage) or {}) for stage in STAGES):
        saved, fields = record.get('files', {}), flatten(record.get('sections', {}))
        for name in saved:
            value, copied = fields.get(name, ''), name in DATA and record.get('finished')
            place = place_of(value)[0] if name in DATA else value.rpartition(':')[0]
            if stays and not goes_on and not os.path.exists(os.path.expanduser(place)):
                continue
            got = checksum(name, value)
            if got == saved[name] or (copied and not got):
                continue
            fault = (
                f'{value} has changed since stage {stage} read it for {name}: got the '
                f'checksum {got}, expected {saved[name]}; put it back (a relative path starts '
                f'from {Path.cwd()}), or discard the stage with --redo={stage}'
            )
            if goes_on or not (copied or stays):
                raise UserError(fault)
            say(f'warning: {fault}')


def fields_of(config: ConfigDict, problem: Problem) -> Callable[[np.ndarray], Array]:
    """Returns the fields of global indices `(n,)` as files hold them: generated ones by the key
    `fold_in(key(data.seed), i)`, or a user's own in an order of `data.seed`.
    """
    if not problem.generated:
        samples = functools.cache(lambda: _enough_samples(config.data))
        return lambda indices: samples()[_order(config, len(samples()))[indices]]
    root = jax.random.key(config.data.seed)

    @jax.jit
    def fields(indices: Array) -> Array:
        keys = jax.vmap(functools.partial(jax.random.fold_in, root))(indices)
        return problem.unpack(problem.fields(keys))

    return lambda indices: fields(jnp.asarray(indices))


@functools.lru_cache(maxsize=1)
def _samples(place: tuple[str, str, str], version: tuple[int, ...]) -> np.ndarray | Stored:
    return read_user_data(*place)


def own_samples(data: ConfigDict) -> np.ndarray | Stored:
    """Returns a user's own samples, read again where their files have changed."""
    version = tuple(checksum(name, data[name.removeprefix('data.')]) for name in DATA)
    return _samples((data.path, data.axes, data.mask), version)


def forget_samples() -> None:
    """Frees the memory of the samples that were read last."""
    _samples.cache_clear()


def _enough_samples(data: ConfigDict) -> np.ndarray | Stored:
    x = own_samples(data)
    n = data.train + data.validation + data.test
    if len(x) < n:
        raise UserError(
            f'{data.path}: got {len(x)} samples, expected at least {n}, the sum of data.train, '
            'data.validation and data.test; lower those, or bring more'
        )
    return x


def _order(config: ConfigDict, n: int) -> np.ndarray:
    return np.random.default_rng(config.data.seed).permutation(n)


def with_own_data(config: ConfigDict, record: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns the config with the shape, number and units of a user's own samples, as the finished
    stage `data` has them on its record (`own`), else as they are in their files, and batches of no
    more samples than there are to train on.

    Where `data.train` is 0, all but those of `data.validation` and `data.test`, at most a sixth of
    all each, are for training. Mean and scale, one a channel, are those of the training samples.
    """
    if problem_class(config.data.problem).generated:
        return config
    config = config.copy_and_resolve_references()
    finished = record and record['finished']
    with config.unlocked():
        config.data.update(record.get('own', {}) if finished else _of_files(config))
        devices = len(first_devices(config.train.devices))
        most = max(devices, config.data.train // devices * devices)
        for section in ('mirror', 'score', 'finetune'):
            config[section].batch_size = min(config[section].batch_size, most)
    return config


def _of_files(config: ConfigDict) -> dict[str, Any]:
    data, x = config.data, own_samples(config.data)
    if len(x) < FEWEST:
        raise UserError(f'{data.path}: got {len(x)} samples, expected at least {FEWEST}; add more')
    found = dict(zip(('height', 'width', 'channels'), x.shape[1:], strict=True))
    for name, size in found.items():
        if data[name] not in (0, size):
            raise UserError(f'data.{name}: got {data[name]}, expected {size}, as of {data.path}')
    if not (train := data.train):
        found |= {name: min(data[name], len(x) // 6) for name in ('validation', 'test')}
        train = found['train'] = len(x) - found['validation'] - found['test']
    training = _order(config, len(x))[:train]
    if len(training) and not data.mean:
        blocks = x.blocks(training) if isinstance(x, Stored) else [x[training]]
        found['mean'], found['scale'] = units(blocks)
        if config.score.external:  # its noise has one level for all channels
            scale = float(np.linalg.norm(found['scale']) / x.shape[3] ** 0.5)
            found['scale'] = (scale,) * x.shape[3]
    return found
