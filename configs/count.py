"""Galaxy images with exactly eight sources, each with the map of its sources, which sums to eight.

    python launch/main.py --config=configs/count.py

About 22 minutes on one core of an AMD EPYC, with the network that judges. By it and by the
classical count, samples have 1.3 sources too many or too few, with or without the mirror map; drawn
until their map is right, 0.5 (means of three seeds).

Preset `images` has no maps: its rule is what a network counts, which the stage `counter` trains.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

# The steps that end f would fool a counter that is the rule, and mend of a map its sum alone.
ALONE = section('sample', landing=0)

IMAGES = (
    presets.MUON
    | ALONE
    # data: images of 64x64 cost four times those of the other configs
    | section('data', points=64, train=2000)
    # the networks that count
    | section('counter', samples=20_000, steps=3500)
    | section('counter', channels=(16, 64), filters=(16, 16), hidden=128)
    | section('counter.optimizer', name='muon', learning_rate=8e-3)
    # the mirror side
    | section('mirror', fold=4, lambda_constr=0.02, steps=400)
    | section('score', fold=4)
    | section('mdm', steps=1300)
    | section('finetune', lambda_constr=0.02, samples=256, steps=150)
    # a diffusion model that trains as long
    | section('dm', steps=2700)
    | section('sample', n=128)
    # half the standard deviation of the images
    | section('assimilate', noise_std=0.05)
)

# Images with the map of their sources, whose sum is the rule: one network is trained, which judges.
QUICK = IMAGES | section('data', maps=True) | section('condition', steps=1000)

PAPER = (
    presets.PAPER
    | ALONE
    | presets.epochs(mirror=50, mdm=300, finetune=650, dm=1500)
    | section('counter', samples=50_000, steps=40_000)
    | section('mirror', layers=2, lambda_constr=0.01)
    | section('finetune', lambda_constr=0.01)
    | section('assimilate', noise_std=0.05)
)

PUBLISHED = (
    presets.published(PAPER)
    | section('counter', network='dense')
    | section('counter.optimizer', learning_rate=1e-3)
    | section('mirror', output='softplus')
)

TINY = (
    presets.TINY
    | section('data', points=32, count=2)
    | section('counter', samples=64, held_out=16, most=3, batch_size=8, steps=8)
    | section('counter', channels=(4, 4), filters=(4, 4), hidden=8, second_channels=(4, 4))
)

PRESETS = {'quick': QUICK, 'images': IMAGES, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='galaxies')
