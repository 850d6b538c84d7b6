"""Black-hole images of a given total brightness: the sum of their pixels.

    python launch/main.py --config=configs/total_brightness.py

About half an hour on one core of an AMD EPYC, 11 minutes of them for the diffusion model. Expect a
mean distance of 3.8e-4 of the finetuned f alone, 0.0011 times the diffusion model's 0.35 (three
seeds), and round-off after the step that ends it.

`desk` has the paper's fields, 64 x 64: 75 minutes on one core of an AMD EPYC without the rows that
train further or draw more. Expect a mean distance of 0.0027 of the finetuned f alone, 0.0011 times
the diffusion model's 2.5, and round-off after the step (one seed).

`--config.mirror.map=simplex` takes a mirror map in closed form, which is not trained.

Preset `m87` is the prior of `namm_jax solve --operator=closures --sampler=mirror_smc`: 32 pixels
across 120 microarcseconds, rings of 18 to 68 microarcseconds, any orientation, smooth or uneven,
sharp or blurred, with up to 15 % of the light around them.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

# An f that starts with z's mean taken off has the sum at hand. The rule's gradient is 1 in every
# pixel, that of the cycle terms one over their number: a small weight is enough.
METHOD = section('mirror', output='centred', lambda_constr=0.01) | section(
    'finetune', lambda_constr=0.01
)

QUICK = (
    METHOD
    | section('data', points=32, total=30.0, train=2000)
    | section('mdm', steps=5800)
    | section('finetune', samples=256, steps=400)
)

# The paper's fields, this preset's networks.
DESK = (
    QUICK
    | section('data', points=64, total=120.0, train=4000)
    | section('mdm', steps=4400)
    | section('dm', steps=8600)
    | section('sample', n=128)
)

PAPER = presets.PAPER | presets.epochs(mirror=30, mdm=200, finetune=970, dm=450) | METHOD

TINY = presets.TINY | METHOD | section('data', total=30.0)

# Wide, so that a measurement decides: width is 120 microarcseconds, blur up to 23 (full width).
M87 = (
    QUICK
    | section('data', train=6000, spin=(0.0, 0.9), inclination=(0.0, 60.0), diameter=(0.15, 0.42))
    | section('data', exponent=(3.0, 8.0), boost=(0.0, 1.0), shift=(-0.05, 0.05))
    | section('data', turbulence=(0.0, 1.0), blur=(0.0, 0.08), faint=(0.0, 0.15))
    | section('mdm', steps=3000)
    | section('finetune', steps=300)
    | section('dm', steps=3000)
    | section('assimilate', samples=48, particles=16, few_steps=1000)
)

PRESETS = {
    'quick': QUICK,
    'desk': DESK,
    'paper': PAPER,
    'published': presets.published(PAPER),
    'm87': M87,
    'tiny': TINY,
}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='black_holes')
