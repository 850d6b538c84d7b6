"""The config of a run folder: the saved one, the overrides of a command, and what may no longer
change.
"""

import json
from collections.abc import Mapping
from typing import Any

from namm_jax.experiment.files import UserError

FREE_SECTIONS = (
    'sample',
    'assimilate',
    'report',
)  # cheap: a change discards the stage's result, and is not refused

# Which of a stage's results are asked for: a change opens the stage again, and discards nothing
# that it has.
SELECTING = frozenset({'assimilate.operator', 'assimilate.sampler'})


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns a nested dict as one dict with dotted names."""
    flat = {}
    for name, value in tree.items():
        flat |= (
            flatten(value, f'{prefix}{name}.')
            if isinstance(value, Mapping)
            else {prefix + name: value}
        )
    return flat


def override(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of `config` with the fields named by dotted names replaced.

    Raises:
        UserError: if a name is not a field of `config`.
    """
    config = json.loads(
        json.dumps(config)
    )  # a deep copy in JSON's own types, so that tuples compare equal to lists
    fields = flatten(config)
    for name, value in overrides.items():
        if name not in fields:
            raise UserError(
                f'got an override of {name}, which is no field of the config; expected one of '
                f'{list(fields)}'
            )
        *parents, last = name.split('.')
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = json.loads(json.dumps(value))
    return config


def refuse_changes(
    config: Mapping[str, Any], saved: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises if `config` differs from what a stage on record has read, save for `FREE_SECTIONS`.

    Args:
        config: the resolved config.
        saved: the one before the command's overrides; it has the fields of sections that are newer
            than a record.
        records: stage -> record, in the order of the stages; a record's `sections` maps name ->
            what was read.

    Raises:
        UserError: naming the first such field, the old and the new value, the stage, and `--redo`.
    """
    fields = flatten(config)
    for stage, record in records.items():
        base = {name: saved[name] for name in record['sections'] if name in saved}
        for name, old in (flatten(base) | flatten(record['sections'])).items():
            if name.split('.')[0] not in FREE_SECTIONS and name in fields and fields[name] != old:
                state = 'has finished' if record['finished'] else 'has begun'
                raise UserError(
                    f'got {name} = {fields[name]!r}, but stage {stage} {state} with {name} = '
                    f'{old!r}; leave the override out, choose another --workdir, or discard that '
                    f'stage and what was built on it with --redo={stage}'
                )
