"""Kolmogorov flow: every state is the one before it, stepped on by the Navier-Stokes solver.

    python launch/main.py --config=configs/kolmogorov.py

About an hour on one core of an AMD EPYC. Expect a median distance of 0.0012, 0.029 times the
diffusion model's 0.042, and 0.030 of the finetuned f without the step that ends it (means of three
seeds).

`--config.constraint.name=divergence+kolmogorov` asks for both rules at once.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

# Not Gauss-Newton at every step of sampling: a step costs five of the rule's gradients.
ROWS = (
    'dm',
    'dm_guided',
    'dm_restored',
    'dm_projected',
    'dm_landed',
    'dm_restored_sampling',
    'dm_ppr',
    'dm_residual_conditioned',
    'dm_rejected',
    'dm_mapped',
    'dm_mapped_finetuned',
    'mdm',
    'mdm_finetuned',
    'mdm_unlanded',
)

QUICK = (
    presets.MUON
    | section('data', points=32, states=4, train=2000, validation=500)
    | section('constraint', name='kolmogorov')
    # The rule's gradient goes through 60 time steps and back, at every step of these two.
    | section('mirror', sigma_max=0.3, steps=300)
    | section('finetune', sigma_max=0.3, samples=256, steps=190)
    # both diffusion models; DM trains as long as the mirror side
    | section('mdm', steps=1200)
    | section('dm', steps=2900)
    # guidance takes that gradient 40 times a sample
    | section('sample', n=128, rows=ROWS, guidance_scales=(0.0, 0.3, 1.0, 1.5), guidance_steps=(1,))
)

RULE = (
    section('constraint', name='kolmogorov')
    | section('mirror', lambda_constr=1.0)
    | section('finetune', lambda_constr=1.0)
)

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=100, mdm=700, finetune=400, dm=2000)
    | RULE
    | section('mirror', layers=2)
    | section('mirror.optimizer', learning_rate=1e-3)
)

PUBLISHED = (
    presets.published(PAPER) | section('data', layout='tiled') | section('mirror', output='plain')
)

TINY = presets.TINY | RULE | section('data', states=4, inner_steps=2, burn_in=0.1)

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='kolmogorov')
