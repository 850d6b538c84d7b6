"""Burgers' equation: every column of the image is one time step after the column before it."""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment

QUICK = presets.MUON | {
    'data.points': 32,
    'data.states': 32,
    'data.inner_steps': 10,  # the time span of the paper's size
    'mdm.steps': 2000,
    'finetune.samples': 512,
    'finetune.steps': 800,
    'dm.steps': 5200,
}

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=100, mdm=300, finetune=600, dm=1500)
    | {
        'mirror.lambda_constr': 1.0,
        'finetune.lambda_constr': 1.0,
    }
)

PUBLISHED = presets.published(PAPER) | {'data.stepper': 'forward_euler'}

TINY = presets.TINY | {'data.states': 16, 'data.inner_steps': 4}

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='burgers')
