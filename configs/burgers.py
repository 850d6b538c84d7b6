"""Burgers' equation: every column of the image is one time step after the column before it.

    python launch/main.py --config=configs/burgers.py

Within an hour on two cores, from nothing to the report. Expect a median distance
of 1.2e-6 of the finetuned samples, 0.0033 times the diffusion model's 3.7e-4, and 1.1e-4 of f
without its last step (means of three seeds).

`desk` has the paper's fields, 64 x 64: 103 minutes on one core of an AMD EPYC without the rows that
train further or draw more. Expect 1.5e-6, 0.0095 times the diffusion model's 1.6e-4 (one seed).
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

QUICK = (
    presets.MUON
    # data: the time span of the paper's size
    | section('data', points=32, states=32, inner_steps=10)
    # the mirror side, and a diffusion model that trains as long
    | section('mirror', steps=1000)
    | section('mdm', steps=3400)
    | section('finetune', samples=256, steps=200)
    | section('dm', steps=5200)
    | section('sample', n=512)
)

# The paper's fields, this preset's networks.
DESK = (
    QUICK
    | section('data', points=64, states=64, inner_steps=5)
    | section('mirror', steps=1500)
    | section('mdm', steps=6000)
    | section('dm', steps=8600)
    | section('sample', n=128)
)

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=100, mdm=300, finetune=600, dm=1500)
    | section('mirror', lambda_constr=1.0)
    | section('finetune', lambda_constr=1.0)
)

# As many steps of the paper's networks as one GPU makes in a minute a side, by Muon.
GPU = (
    PAPER
    | presets.MUON
    | section('mirror', steps=700)
    | section('mdm', steps=700)
    | section('finetune', samples=1024, steps=350)
    | section('dm', steps=1600)
    | section('sample', n=128)
    | section('sample', rows=('dm', 'dm_landed', 'dm_mapped_finetuned', 'mdm', 'mdm_finetuned'))
    | section('train', compute_dtype='bfloat16', probes=2)
)

PUBLISHED = presets.published(PAPER) | section('data', stepper='forward_euler')

TINY = presets.TINY | section('data', states=16, inner_steps=4)

PRESETS = {
    'quick': QUICK,
    'desk': DESK,
    'gpu': GPU,
    'paper': PAPER,
    'published': PUBLISHED,
    'tiny': TINY,
}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='burgers')
