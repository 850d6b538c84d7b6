"""Divergence-free flow: the velocity of Kolmogorov flow, whose divergence vanishes in every cell of
the grid.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment

QUICK = {
    'data.points': 32,
    'data.states': 4,
    'data.train': 2000,
    # The diffusion model in mirror space is what takes long to learn, not its map.
    'mirror.steps': 600,
    'mdm.steps': 4000,
    'finetune.samples': 256,
    'finetune.steps': 300,
    'dm.steps': 5500,
    'mirror.sigma_max': 0.3,
    'finetune.sigma_max': 0.3,
    'mirror.lambda_constr': 1.0,
    'finetune.lambda_constr': 1.0,
}

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=100, mdm=700, finetune=400, dm=2000)
    | {
        'mirror.layers': 2,
        'mirror.optimizer.learning_rate': 1e-3,
        'mirror.sigma_max': 0.5,
        'finetune.sigma_max': 0.5,
        'mirror.lambda_constr': 1.0,
        'finetune.lambda_constr': 1.0,
    }
)

PUBLISHED = presets.published(PAPER) | {'data.layout': 'tiled', 'mirror.output': 'plain'}

TINY = presets.TINY | {'data.states': 4, 'data.inner_steps': 2, 'data.burn_in': 0.1}

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='kolmogorov')
