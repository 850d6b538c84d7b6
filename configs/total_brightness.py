"""Black-hole images of a given total brightness: the sum of their pixels.

    python launch/main.py --config=configs/total_brightness.py

About 17 minutes on two cores of an Intel Xeon: the mirror side trains 387 s, the diffusion model
448 s. Expect a median distance of 0.0011 of the finetuned samples, 0.005 times the diffusion
model's 0.24 (seed 0).

`--config.mirror.map=simplex` takes a mirror map in closed form, which is not trained.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

# An f that starts with z's mean taken off has the sum at hand. The rule's gradient is 1 in every
# pixel, that of the cycle terms one over their number: a small weight is enough.
METHOD = section('mirror', output='centred', lambda_constr=0.01) | section(
    'finetune', lambda_constr=0.01
)

QUICK = METHOD | section('data', points=32, total=30.0, train=2000)

PAPER = presets.PAPER | presets.epochs(mirror=30, mdm=200, finetune=970, dm=450) | METHOD

TINY = presets.TINY | METHOD | section('data', total=30.0)

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': presets.published(PAPER), 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='black_holes')
