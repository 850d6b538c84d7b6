"""Divergence-free flow: Kolmogorov flow, whose divergence vanishes in every cell of the grid.

    python launch/main.py --config=configs/divergence.py

Within 40 minutes on two cores of an Intel Xeon. Expect a median distance of 1.1e-4 of the
finetuned samples, 2.4e-4 times the diffusion model's 0.46, and 0.012 of f without its last step
(three seeds).

`desk` has states of the paper's 64 x 64, four where the paper has eight: some 100 minutes on two
cores, by the pace of its first steps.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

QUICK = (
    section('data', points=32, states=4, train=2000)
    # the mirror map, quick to learn
    | section('mirror', sigma_max=0.3, lambda_constr=1.0, steps=600)
    # the diffusion model in mirror space, which is not
    | section('mdm', steps=4400)
    | section('finetune', sigma_max=0.3, lambda_constr=1.0, samples=256, steps=150)
    # a diffusion model that trains as long
    | section('dm', steps=5500)
)

# States of the paper's size, this preset's networks on patches of 4x4.
DESK = (
    QUICK
    | presets.FOLDED
    | section('data', points=64, train=4000)
    | section('mdm', steps=3800)
    | section('dm', steps=4600)
    | section('sample', n=128)
)

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=100, mdm=700, finetune=400, dm=2000)
    | section('mirror', layers=2, sigma_max=0.5, lambda_constr=1.0)
    | section('mirror.optimizer', learning_rate=1e-3)
    | section('finetune', sigma_max=0.5, lambda_constr=1.0)
)

PUBLISHED = (
    presets.published(PAPER) | section('data', layout='tiled') | section('mirror', output='plain')
)

TINY = presets.TINY | section('data', states=4, inner_steps=2, burn_in=0.1)

PRESETS = {'quick': QUICK, 'desk': DESK, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='kolmogorov')
