"""Kolmogorov flow: every state is the one before it, stepped on by the Navier-Stokes solver.

`--config.constraint.name=divergence+kolmogorov` asks for both rules at once.
"""

from namm_jax.train import presets
from namm_jax.train.config import experiment

RULE = {'constraint.name': 'kolmogorov', 'mirror.lambda_constr': 1.0, 'finetune.lambda_constr': 1.0}

QUICK = RULE | {'data.train': 2000}

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=100, mdm=700, finetune=400, dm=2000)
    | RULE
    | {'data.points': 64, 'data.states': 8, 'mirror.layers': 2, 'mirror.optimizer.learning_rate': 1e-3}
)

PUBLISHED = presets.published(PAPER) | {'data.layout': 'tiled', 'mirror.output': 'plain'}

TINY = presets.TINY | RULE | {'data.inner_steps': 2, 'data.burn_in': 0.1}

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, family='kolmogorov')
