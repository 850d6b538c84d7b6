"""Black-hole images of a given total brightness: the sum of their pixels."""

from namm_jax.train import presets
from namm_jax.train.config import experiment

QUICK = {'data.train': 2000, 'mirror.lambda_constr': 0.05, 'finetune.lambda_constr': 0.05}

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=30, mdm=200, finetune=970, dm=450)
    | {'data.points': 64, 'data.total': 120.0, 'mirror.lambda_constr': 0.01, 'finetune.lambda_constr': 0.01}
)

TINY = presets.TINY | {'mirror.lambda_constr': 0.05, 'finetune.lambda_constr': 0.05}

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': presets.published(PAPER), 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, family='black_holes')
