"""Your own data, a `.npy` file or a folder of arrays or images, and your own rule.

    python docs/own_rule.py
    python launch/main.py --config=configs/own.py --config.data.path=own_data.npy \\
        --config.constraint.distance=docs/own_rule.py:rows_sum_to_one

The first line writes the example's data. Sizes, number, mean and scale are read from the data.
A run takes about as long as one of the other configs: up to an hour on two cores. In a program,
the first samples of 1,000 images of 32 x 32, by 500 steps each of mirror map and diffusion model,
came a minute and a half after the installation had begun, on two cores of an AMD EPYC.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment
from namm_jax.experiment.presets import section

# All others are for training; of few samples a sixth is for each of the two. A step of Gauss-Newton
# gains little by a distance alone; for a rule with a residual, sample.landing=1.
OWN = section('data', train=0) | section('sample', landing=0)

QUICK = OWN | section('data', validation=100, test=100)

PAPER = presets.PAPER | OWN

TINY = {name: value for name, value in presets.TINY.items() if name != 'data.points'}
TINY |= OWN

PRESETS = {'quick': QUICK, 'paper': PAPER, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='own')
