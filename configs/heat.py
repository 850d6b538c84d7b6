"""The heat equation: waves that decay at random rates, and conserve mass.

    python launch/main.py --config=configs/heat.py

About 22 minutes on one core of an AMD EPYC. Expect round-off after the step that ends f, as of
all exact ways, and 5e-5 of the finetuned f alone, 0.02 times the diffusion model's 0.0027 (three
seeds).

`desk` has the fields of the paper that the data are of (arXiv 2506.04171), 100 x 100: some 80
minutes on one core.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

QUICK = (
    presets.MUON
    | section('data', points=32, states=32)
    | section('mdm', steps=2000)
    | section('finetune', samples=512, steps=800)
    | section('dm', steps=5200)
)

DESK = QUICK | presets.FOLDED | section('data', points=100, states=100)

PAPER = presets.PAPER | presets.epochs(mirror=100, mdm=300, finetune=600, dm=1500)

TINY = presets.TINY | section('data', states=16)

PRESETS = {'quick': QUICK, 'desk': DESK, 'paper': PAPER, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='heat')
