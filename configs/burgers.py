"""Burgers' equation: every column of the image is one time step after the column before it."""

from namm_jax.train.config import experiment

PAPER = {
    'data.train': 10_000,
    'data.points': 64,
    'data.states': 64,
    'data.inner_steps': 5,
    'mirror.filters': 32,
    'mirror.layers': 3,
    'mirror.reduction': 'row_sum',
    'mirror.channels': (64, 128, 256),
    'mirror.blocks': 2,
    'mirror.batch_size': 16,
    'mirror.lambda_constr': 1.0,
    'mirror.steps': 62_500,  # 100 epochs of 625 steps
    'mirror.optimizer.learning_rate': 2e-4,
    'score.channels': (64, 160, 160, 160),
    'score.blocks': 4,
    'score.fold': 1,
    'score.attention': True,
    'score.dropout': 0.1,
    'score.batch_size': 64,
    'score.optimizer.learning_rate': 2e-4,
    'score.optimizer.ema': 0.9999,
    'mdm.steps': 46_800,  # 300 epochs of 156 steps
    'finetune.samples': 12_800,
    'finetune.batch_size': 16,
    'finetune.lambda_constr': 1.0,
    'finetune.steps': 375_000,  # 600 epochs of 625 steps
    'finetune.optimizer.learning_rate': 2e-4,
    'dm.steps': 234_000,  # 1,500 epochs of 156 steps
    'train.parts': 1,
    'train.probes': 16,
    'train.probe_samples': 128,
    'train.validate_every': 1000,
}

PUBLISHED_OPTIMIZER = {'decay': 'constant', 'warmup': 0.0, 'clip': 0.0, 'ema': 0.0, 'b1': 0.5}

PUBLISHED = PAPER | {
    'constraint.stepper': 'forward_euler',
    'mirror.forward_padding': 'circular',
    'mirror.inverse': 'resnet',
    'mirror.inverse_padding': 'zeros',
    'mirror.channels': (64,),
    'mirror.blocks': 6,
    'mirror.dropout': 0.5,
    'mirror.output': 'residual_softplus',
    'mirror.sigma_power': 1.0,
    'finetune.sigma_power': 1.0,
    **{f'mirror.optimizer.{name}': value for name, value in PUBLISHED_OPTIMIZER.items()},
    **{f'finetune.optimizer.{name}': value for name, value in PUBLISHED_OPTIMIZER.items()},
    'score.parameterisation': 'vp',
    'score.reduction': 'half_sum',
    'score.padding': 'zeros',
    'score.optimizer.decay': 'constant',
    'score.optimizer.warmup': 5000 / 46_800,
    'sample.sampler': 'euler_maruyama',
    'sample.steps': 1000,
    'sample.n': 128,
    'train.sample.sampler': 'euler_maruyama',
    'train.sample.steps': 1000,
}

TINY = {
    'data.train': 128,
    'data.validation': 32,
    'data.test': 32,
    'data.shard_size': 64,
    'data.points': 16,
    'data.states': 16,
    'data.inner_steps': 4,
    'mirror.filters': 4,
    'mirror.layers': 1,
    'mirror.channels': (8,),
    'mirror.batch_size': 8,
    'mirror.steps': 12,
    'score.channels': (8,),
    'score.batch_size': 8,
    'mdm.steps': 12,
    'finetune.samples': 16,
    'finetune.batch_size': 8,
    'finetune.steps': 8,
    'dm.steps': 16,
    'sample.sampler': 'heun',
    'sample.n': 16,
    'sample.batch_size': 16,
    'sample.steps': 4,
    'evaluate.resamples': 20,
    'evaluate.noise_levels': 3,
    'evaluate.noise_fields': 16,
    'sample.projection_iterations': 8,
    'train.devices': 1,
    'train.parts': 1,
    'train.log_every': 4,
    'train.validate_every': 4,
    'train.probes': 2,
    'train.probe_samples': 8,
    'train.sample.sampler': 'heun',
    'train.sample.steps': 4,
}

PRESETS = {'quick': {}, 'paper': PAPER, 'published': PUBLISHED, 'tiny': TINY}


def get_config(preset: str = 'quick'):
    return experiment(PRESETS, preset)
