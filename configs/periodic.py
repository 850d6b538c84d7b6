"""Binary textures that repeat: every tile of the image is the same."""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment

# Tiles are compared across half an image: by f, and by the score network of both diffusion models.
ACROSS = {'mirror.global_convolution': True, 'score.global_convolution': True}

QUICK = ACROSS | {
    'data.points': 32,
    'data.train': 2000,
    'mirror.steps': 500,
    'mdm.steps': 4000,
    'finetune.samples': 256,
    'finetune.steps': 400,
    'dm.steps': 5600,
    'mirror.lambda_constr': 1.0,
    'finetune.lambda_constr': 1.0,
}

PAPER = (
    presets.PAPER
    | ACROSS
    | presets.epochs(mirror=50, mdm=300, finetune=950, dm=1000)
    | {'mirror.lambda_constr': 1.0, 'finetune.lambda_constr': 1.0}
)

PRESETS = {
    'quick': QUICK,
    'paper': PAPER,
    'published': presets.published(PAPER),
    'tiny': presets.TINY | ACROSS,
}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='textures')
