"""Binary textures that repeat: every tile of the image is the same.

    python launch/main.py --config=configs/periodic.py

Within 50 minutes on two cores of an Intel Xeon. Expect a median distance of 2.1e-8 of the finetuned
samples, 9e-6 times the diffusion model's 0.0025, and 4.3e-5 of f without its last step (means of
three seeds).

`desk` has the paper's fields, 64 x 64: 107 minutes on one core of an AMD EPYC without the rows that
train further or draw more. Expect round-off after the step that ends f. The network of f is still
the identity after its 700 steps (one seed).
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

# Tiles are compared across half an image: by f, and by the score network of both diffusion models.
ACROSS = section('mirror', global_convolution=True) | section('score', global_convolution=True)

QUICK = (
    ACROSS
    | section('data', points=32, train=2000)
    # the mirror side
    | section('mirror', lambda_constr=1.0, steps=500)
    | section('mdm', steps=4500)
    | section('finetune', lambda_constr=1.0, samples=256, steps=200)
    # a diffusion model that trains as long
    | section('dm', steps=5600)
)

# The paper's fields, this preset's networks.
DESK = (
    QUICK
    | section('data', points=64, train=4000)
    | section('mdm', steps=6000)
    | section('dm', steps=7000)
    | section('sample', n=128)
)

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=50, mdm=300, finetune=950, dm=1000)
    | ACROSS
    | section('mirror', lambda_constr=1.0)
    | section('finetune', lambda_constr=1.0)
)

TINY = presets.TINY | ACROSS

PRESETS = {
    'quick': QUICK,
    'desk': DESK,
    'paper': PAPER,
    'published': presets.published(PAPER),
    'tiny': TINY,
}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='textures')
