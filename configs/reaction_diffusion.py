"""Reaction and diffusion: a constant inflow through the ends explains the mass.

    python launch/main.py --config=configs/reaction_diffusion.py

About 22 minutes on one core of an AMD EPYC. Expect round-off after the step that ends f, as of
all exact ways, and 8.6e-5 of the finetuned f alone, 0.53 times the diffusion model's 1.62e-4
(three seeds).

`desk` has the fields of the paper that the data are of (arXiv 2506.04171), 128 x 100:
some 50 minutes on one core without the rows that train further.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

QUICK = (
    presets.MUON
    | section('data', points=32, states=32, dt=0.03)  # the time span of 100 states
    | section('mdm', steps=2000)
    | section('finetune', samples=512, steps=800)
    | section('dm', steps=5200)
)

DESK = (
    QUICK
    | presets.FOLDED
    | section('data', points=128, states=100, dt=0.01)
    | section('train', budget=0.3)
)

PAPER = presets.PAPER | presets.epochs(mirror=100, mdm=300, finetune=600, dm=1500)

TINY = presets.TINY | section('data', states=16)

PRESETS = {'quick': QUICK, 'desk': DESK, 'paper': PAPER, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='reaction_diffusion')
