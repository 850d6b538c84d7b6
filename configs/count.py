"""Galaxy images with exactly eight sources, as counted by a network that the stage `counter`
trains.
"""

from namm_jax.experiment import presets
from namm_jax.experiment.config import experiment

QUICK = presets.MUON | {
    'data.points': 64,
    'data.train': 2000,
    'mirror.fold': 4,
    'mirror.lambda_constr': 0.02,
    'finetune.lambda_constr': 0.02,
    'score.fold': 4,
    # Images of 64x64 cost four times those of the other configs.
    'counter.samples': 20_000,
    'counter.channels': (16, 64),
    'counter.filters': (16, 16),
    'counter.hidden': 128,
    'counter.steps': 3500,
    'counter.optimizer.name': 'muon',
    'counter.optimizer.learning_rate': 8e-3,
    'mirror.steps': 400,
    'mdm.steps': 1300,
    'finetune.samples': 256,
    'finetune.steps': 150,
    'dm.steps': 2700,
    'sample.n': 128,
    'assimilate.noise_std': 0.05,  # half the standard deviation of the images
}

PAPER = (
    presets.PAPER
    | presets.epochs(mirror=50, mdm=300, finetune=650, dm=1500)
    | {
        'mirror.layers': 2,
        'mirror.lambda_constr': 0.01,
        'finetune.lambda_constr': 0.01,
        'counter.samples': 50_000,
        'counter.steps': 40_000,
        'assimilate.noise_std': 0.05,
    }
)

PUBLISHED = presets.published(PAPER) | {
    'mirror.output': 'softplus',
    'counter.network': 'dense',
    'counter.optimizer.learning_rate': 1e-3,
}

TINY = presets.TINY | {
    'data.points': 32,
    'data.count': 2,
    'counter.samples': 64,
    'counter.held_out': 16,
    'counter.most': 3,
    'counter.channels': (4, 4),
    'counter.filters': (4, 4),
    'counter.hidden': 8,
    'counter.batch_size': 8,
    'counter.steps': 8,
}

PRESETS = {'quick': QUICK, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset, problem='galaxies')
