"""The config that a run folder holds, for those who read the folder without owning it."""

from pathlib import Path

from ml_collections import ConfigDict

from namm_jax.experiment.config import flatten, override, schema
from namm_jax.experiment.files import UserError, read_json
from namm_jax.experiment.problem import measured
from namm_jax.problems import PROBLEMS


def saved_config(folder: Path) -> tuple[str, ConfigDict]:
    """Returns a run folder's experiment, `burgers:quick`, and its config.

    Fields that are newer than the folder take their defaults.

    Raises:
        UserError: if it is no run folder, or one of another version.
    """
    path = folder / 'config.json'
    saved = read_json(path)
    fields = flatten(saved['config'])
    problem = fields.get('data.problem')
    config = schema(problem) if problem in PROBLEMS else None
    gone = fields.keys() - flatten(config.to_dict()).keys() if config else {'data.problem'}
    if gone:
        raise UserError(
            f'{path} is of another version of this program: got {sorted(gone)}, which this one '
            'does not know; go on with the version in provenance.json, or train again'
        )
    record = folder / 'stages' / 'data.json'
    config = measured(override(config, fields), read_json(record) if record.exists() else None)
    return saved['experiment'], config
