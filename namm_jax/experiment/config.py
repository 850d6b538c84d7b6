"""A config: the preset of an experiment, what a command changes, and what may no longer change."""

import functools
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from namm_jax._checks import choose
from namm_jax.experiment.cli import nearest
from namm_jax.experiment.files import UserError
from namm_jax.experiment.schema import schema

# Cheap: a change discards the stage's result, and is not refused.
FREE_SECTIONS = ('sample', 'assimilate', 'report')
FREE_FIELDS = ('train.devices', 'train.checkpoints')  # no result is a function of these
# Which of a stage's results are wanted: a change opens the stage again, and discards nothing.
SELECTING = frozenset({'assimilate.operator', 'assimilate.sampler'})


def experiment(
    presets: Mapping[str, Mapping[str, Any]], preset: str | None = None, *, problem: str = 'burgers'
) -> ConfigDict:
    """Returns the locked config of a preset, `quick` unless given: the schema of the problem with
    the dotted overrides that `presets` has of it.
    """
    return override(schema(problem), choose('preset', preset or 'quick', presets)).lock()


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
    """Returns a nested dict, or a config, as one dict with dotted names."""
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping | ConfigDict)
        flat |= flatten(value, f'{prefix}{name}.') if nested else {prefix + name: value}
    return flat


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """Returns a config with the fields of dotted names replaced: a `ConfigDict` in place, a nested
    dict as a copy in JSON's types (tuples are lists); a UserError if a name is no field.
    """
    names = flatten(config)
    for name in changes:
        if name not in names:
            raise UserError(f'config field: {nearest(name, names)}')
    if isinstance(config, ConfigDict):
        config.update_from_flattened_dict(changes)
        return config
    config, changes = json.loads(json.dumps([config, dict(changes)]))
    for name, value in changes.items():
        *sections, last = name.split('.')
        functools.reduce(operator.getitem, sections, config)[last] = value
    return config


def refuse_changes(
    config: Mapping[str, Any], saved: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises a UserError if a config differs from what a stage on record has read, its `sections`,
    or the saved config where the record lacks a field; save for `FREE_SECTIONS` and
    `FREE_FIELDS`.
    """
    fields = flatten(config)
    for stage, record in records.items():
        base = {name: saved[name] for name in record['sections'] if name in saved}
        for name, old in (flatten(base) | flatten(record['sections'])).items():
            free = name in FREE_FIELDS or name.split('.')[0] in FREE_SECTIONS
            if not free and name in fields and fields[name] != old:
                state = 'has finished' if record['finished'] else 'has begun'
                raise UserError(
                    f'got {name} = {fields[name]!r}, but stage {stage} {state} with {name} = '
                    f'{old!r}; leave the override out, choose another --workdir, or discard that '
                    f'stage and what was built on it with --redo={stage}'
                )


def refuse_stranger(
    path: Path, what: str, got: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Raises a UserError unless what is in a file was made from what the file's place says."""
    got, expected = flatten(got), flatten(expected)
    for name in sorted(got.keys() | expected.keys()):
        if got.get(name) != expected.get(name):
            raise UserError(
                f'{path} is in the wrong place: got {what} of {name} = {got.get(name)!r:.80}, '
                f'expected {expected.get(name)!r:.80}; put back that of this stage, or discard the '
                'stage with --redo'
            )


def steps_of(config: ConfigDict, stage: str) -> int:
    """Returns a stage's training steps: its `steps` times `train.budget`, at least 1."""
    return max(1, round(config[stage].steps * config.train.budget))
