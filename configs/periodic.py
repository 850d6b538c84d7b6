"""Binary textures that repeat: every tile of the image is the same."""

from namm_jax.train import presets
from namm_jax.train.config import experiment

QUICK = {
    'data.train': 2000,
    # The diffusion model in mirror space is what takes long to learn, not its map.
    'mirror.steps': 500,
    'mdm.steps': 6000,
    'finetune.steps': 600,
    'dm.steps': 8300,
    'mirror.lambda_constr': 1.0,
    'finetune.lambda_constr': 1.0,
}

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=50, mdm=300, finetune=950, dm=1000)
    | {'data.points': 64, 'mirror.lambda_constr': 1.0, 'finetune.lambda_constr': 1.0}
)

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': presets.published(PAPER), 'tiny': presets.TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, family='textures')
