"""Kolmogorov flow: every state is the one before it, stepped on by the Navier-Stokes solver.

`--config.constraint.name=divergence+kolmogorov` asks for both rules at once.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment

RULE = {'constraint.name': 'kolmogorov', 'mirror.lambda_constr': 1.0, 'finetune.lambda_constr': 1.0}

# Not the Gauss-Newton rows: a product with J J^T goes through all time steps and back, a projection
# takes minutes.
ROWS = ('dm', 'dm_guided', 'dm_restored', 'dm_projected_sampling', 'mdm', 'mdm_finetuned')

QUICK = presets.MUON | {
    'constraint.name': 'kolmogorov',
    'data.points': 32,
    'data.states': 4,
    'data.train': 2000,
    'data.validation': 500,
    'mirror.sigma_max': 0.3,
    'finetune.sigma_max': 0.3,
    'mirror.lambda_constr': 5.0,
    'finetune.lambda_constr': 5.0,
    # The gradient of the constraint goes through 60 time steps and back: in training, and 40 times
    # a guided sample.
    'mirror.steps': 300,
    'mdm.steps': 1200,
    'finetune.samples': 256,
    'finetune.steps': 190,
    'dm.steps': 2900,
    'sample.rows': ROWS,
    'sample.n': 128,
    'sample.guidance_scales': (0.0, 1.0, 3.0),
}

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=100, mdm=700, finetune=400, dm=2000)
    | RULE
    | {
        'mirror.layers': 2,
        'mirror.optimizer.learning_rate': 1e-3,
    }
)

PUBLISHED = presets.published(PAPER) | {'data.layout': 'tiled', 'mirror.output': 'plain'}

TINY = presets.TINY | RULE | {'data.states': 4, 'data.inner_steps': 2, 'data.burn_in': 0.1}

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='kolmogorov')
