"""Decaying flow: all states are those that the Navier-Stokes solver makes of the first one.

    python launch/main.py --config=configs/decaying_flow.py

About 22 minutes on one core of an AMD EPYC. Expect a median distance of 6.5e-5, 0.009 times the
diffusion model's 0.007, and 0.008 of the finetuned f without the step that ends it (three seeds).

`desk` has the fields of the paper that the data are of (arXiv 2608.26748), 64 x 64: some
40 minutes on one core without the rows that train further.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

# Not Gauss-Newton to its end: each of its products goes through all time steps and back.
ROWS = tuple(
    'dm dm_guided dm_restored dm_landed dm_restored_sampling dm_ppr dm_residual_conditioned '
    'dm_rejected dm_mapped dm_mapped_finetuned mdm mdm_finetuned mdm_unlanded'.split()
)

# The rule's gradient goes through 60 time steps and back.
QUICK = (
    presets.MUON
    | section('data', points=32, train=2000, validation=500)
    | section('mirror', sigma_max=0.3, steps=600)
    | section('finetune', sigma_max=0.3, samples=256, steps=300)
    | section('mdm', steps=1200)
    | section('dm', steps=2900)
    | section('condition', samples=256, steps=600)
    | section('sample', n=128, rows=ROWS, guidance_scales=(0.0, 0.3, 1.0, 1.5), guidance_steps=(1,))
)

DESK = (
    QUICK
    | presets.FOLDED
    | section('data', points=64, train=4000)
    | section('train', budget=0.5)
    | section('sample', n=64)
)

PAPER = presets.PAPER | presets.epochs(mirror=100, mdm=300, finetune=600, dm=1500)

TINY = presets.TINY | section('data', inner_steps=2)

PRESETS = {'quick': QUICK, 'desk': DESK, 'paper': PAPER, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='decaying_flow')
