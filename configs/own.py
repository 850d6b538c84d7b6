"""Your own data, and your own rule: `--config.data.path=DATA
--config.constraint.distance=FILE.py:FUNCTION`.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment

QUICK = {'data.train': 0, 'data.validation': 100, 'data.test': 100}  # all others are for training

TINY = {name: value for name, value in presets.TINY.items() if name != 'data.points'}

PRESETS = {'quick': QUICK, 'paper': presets.PAPER, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='own')
