"""What the presets of all experiments share: dotted overrides of the schema, whose defaults are
those of `quick`.
"""

from typing import Any

Overrides = dict[str, Any]

# Muon for all networks; its learning rates are twice Adam's.
MUON: Overrides = {
    f'{section}.optimizer.name': 'muon' for section in ('mirror', 'score', 'finetune')
} | {
    'mirror.optimizer.learning_rate': 4e-3,
    'score.optimizer.learning_rate': 4e-3,
    'finetune.optimizer.learning_rate': 2e-3,
}

# The paper's sizes and steps, this project's method.
PAPER: Overrides = {
    'data.train': 10_000,
    'data.validation': 1000,
    'data.test': 1000,
    'mirror.filters': 32,
    'mirror.layers': 3,
    'mirror.reduction': 'row_sum',
    'mirror.channels': (64, 128, 256),
    'mirror.blocks': 2,
    'mirror.batch_size': 16,
    'mirror.optimizer.learning_rate': 2e-4,
    'score.channels': (64, 160, 160, 160),
    'score.blocks': 4,
    'score.fold': 1,
    'score.attention': True,
    'score.dropout': 0.1,
    'score.batch_size': 64,
    'score.optimizer.learning_rate': 2e-4,
    'score.optimizer.ema': 0.9999,
    'finetune.samples': 12_800,
    'finetune.batch_size': 16,
    'finetune.optimizer.learning_rate': 2e-4,
    'train.parts': 1,
    'train.probes': 16,
    'train.probe_samples': 128,
    'train.validate_every': 1000,
}

_PUBLISHED_OPTIMIZER = {'decay': 'constant', 'warmup': 0.0, 'clip': 0.0, 'ema': 0.0, 'b1': 0.5}

# The paper's method: every deviation switched back.
PUBLISHED: Overrides = {
    'mirror.forward_padding': 'circular',
    'mirror.inverse': 'resnet',
    'mirror.inverse_padding': 'zeros',
    'mirror.channels': (64,),
    'mirror.blocks': 6,
    'mirror.dropout': 0.5,
    'mirror.global_convolution': False,
    'mirror.output': 'residual_softplus',
    'mirror.sigma_power': 1.0,
    'finetune.sigma_power': 1.0,
    **{f'mirror.optimizer.{name}': value for name, value in _PUBLISHED_OPTIMIZER.items()},
    **{f'finetune.optimizer.{name}': value for name, value in _PUBLISHED_OPTIMIZER.items()},
    'score.parameterisation': 'vp',
    'score.reduction': 'half_sum',
    'score.padding': 'zeros',
    'score.global_convolution': False,
    'score.optimizer.decay': 'constant',
    'sample.sampler': 'euler_maruyama',
    'sample.steps': 1000,
    'sample.n': 128,
    'train.sample.sampler': 'euler_maruyama',
    'train.sample.steps': 1000,
}

# Seconds; what the tests run.
TINY: Overrides = {
    'data.train': 128,
    'data.validation': 32,
    'data.test': 32,
    'data.shard_size': 64,
    'data.points': 16,
    'mirror.filters': 4,
    'mirror.layers': 1,
    'mirror.channels': (8,),
    'mirror.batch_size': 8,
    'mirror.steps': 12,
    'score.channels': (8,),
    'score.batch_size': 8,
    'tune.steps': 8,
    'tune.samples': 16,
    'tune.batches': 2,
    'mdm.steps': 12,
    'finetune.samples': 16,
    'finetune.batch_size': 8,
    'finetune.steps': 8,
    'dm.steps': 16,
    'sample.sampler': 'heun',
    'sample.n': 16,
    'sample.rows': ('dm', 'dm_projected', 'mdm', 'mdm_finetuned'),
    'sample.batch_size': 16,
    'sample.steps': 4,
    'evaluate.resamples': 20,
    'evaluate.noise_levels': 3,
    'evaluate.noise_fields': 16,
    'sample.projection_iterations': 8,
    'assimilate.measurements': 2,
    'assimilate.long_measurements': 1,
    'assimilate.samples': 2,
    'assimilate.steps': 3,
    'assimilate.few_steps': 3,
    'assimilate.langevin_steps': 2,
    'assimilate.iterations': 2,
    'train.devices': 1,
    'train.parts': 1,
    'train.log_every': 4,
    'train.validate_every': 4,
    'train.probes': 2,
    'train.probe_samples': 8,
    'train.sample.sampler': 'heun',
    'train.sample.steps': 4,
}


def epochs(*, mirror: int, mdm: int, finetune: int, dm: int) -> Overrides:
    """Returns the steps of so many epochs over 10,000 samples: 625 of batches of 16, 156 of batches
    of 64.

    Args:
        mirror: epochs of the mirror map.
        mdm: epochs of the mirror diffusion model.
        finetune: further epochs of f.
        dm: epochs of the plain diffusion model.
    """
    steps = {'mirror': 625 * mirror, 'mdm': 156 * mdm, 'finetune': 625 * finetune, 'dm': 156 * dm}
    return {f'{stage}.steps': number for stage, number in steps.items()}


def published(paper: Overrides) -> Overrides:
    """Returns the published method at the sizes of a `paper` preset, its warm-up of 5,000 steps
    included.

    Args:
        paper: that preset.
    """
    return paper | PUBLISHED | {'score.optimizer.warmup': 5000 / paper['mdm.steps']}
