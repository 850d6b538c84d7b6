"""Black-hole images of a given total brightness: the sum of their pixels."""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment

# An f that starts with z's mean taken off has the sum at hand. The rule's gradient is 1 in every
# pixel, that of the cycle terms one over their number: a small weight is enough.
METHOD = {'mirror.output': 'centred', 'mirror.lambda_constr': 0.01, 'finetune.lambda_constr': 0.01}

QUICK = METHOD | {'data.points': 32, 'data.total': 30.0, 'data.train': 2000}

PAPER = presets.PAPER | presets.epochs(mirror=30, mdm=200, finetune=970, dm=450) | METHOD

TINY = presets.TINY | METHOD | {'data.total': 30.0}

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': presets.published(PAPER), 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='black_holes')
