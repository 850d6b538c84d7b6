"""What the presets of all experiments share: dotted overrides of the schema's defaults."""

from typing import Any

Overrides = dict[str, Any]


def section(name: str, /, **fields: Any) -> Overrides:
    """Returns overrides of one section: `section('mdm', steps=9)` is `{'mdm.steps': 9}`."""
    return {f'{name}.{field}': value for field, value in fields.items()}


# Muon for all networks; its learning rates are twice Adam's.
MUON = (
    section('mirror.optimizer', name='muon', learning_rate=4e-3)
    | section('score.optimizer', name='muon', learning_rate=4e-3)
    | section('finetune.optimizer', name='muon', learning_rate=2e-3)
)

# Patches of 4x4 pixels become channels in the place of 2x2, for large fields.
FOLDED = section('mirror', fold=4) | section('score', fold=4)

# The paper's sizes and steps, this project's method.
PAPER = (
    section('data', train=10_000, validation=1000, test=1000)
    | section('mirror', filters=32, layers=3, reduction='row_sum')
    | section('mirror', channels=(64, 128, 256), blocks=2, batch_size=16)
    | section('mirror.optimizer', learning_rate=2e-4)
    | section('score', channels=(64, 160, 160, 160), blocks=4, fold=1, attention=True)
    | section('score', dropout=0.1, batch_size=64)
    | section('score.optimizer', learning_rate=2e-4, ema=0.9999)
    | section('finetune', samples=12_800, batch_size=16)
    | section('condition', samples=12_800, steps=20_000)
    | section('finetune.optimizer', learning_rate=2e-4)
    | section('train', parts=1, probes=16, probe_samples=128, validate_every=1000)
)

# The paper's method: every deviation switched back.
_OPTIMIZER = dict(decay='constant', warmup=0.0, clip=0.0, ema=0.0, b1=0.5)
_SAMPLER = dict(sampler='euler_maruyama', steps=1000)
PUBLISHED = (
    section('mirror', forward_padding='circular', inverse='resnet', inverse_padding='zeros')
    | section('mirror', channels=(64,), blocks=6, dropout=0.5, global_convolution=False)
    | section('mirror', output='residual_softplus', sigma_power=1.0)
    | section('mirror.optimizer', **_OPTIMIZER)
    | section('finetune', sigma_power=1.0)
    | section('finetune.optimizer', **_OPTIMIZER)
    | section('score', parameterisation='vp', reduction='half_sum', padding='zeros')
    | section('score', global_convolution=False)
    | section('score.optimizer', decay='constant')
    | section('sample', n=128, landing=0, **_SAMPLER)
    | section('train.sample', **_SAMPLER)
)

# Seconds; what the tests run.
TINY = (
    section('data', train=128, validation=32, test=32, shard_size=64, points=16)
    | section('mirror', filters=4, layers=1, channels=(8,), batch_size=8, steps=12)
    | section('score', channels=(8,), batch_size=8)
    | section('tune', steps=8, samples=16, batches=2)
    | section('mdm', steps=12)
    | section('finetune', samples=16, batch_size=8, steps=8)
    | section('dm', steps=16)
    | section('condition', samples=16, steps=8)
    | section('sample', sampler='heun', steps=4, n=16, batch_size=16, projection_iterations=8)
    | section('sample', rows=('dm', 'dm_projected', 'mdm', 'mdm_finetuned'))
    | section('evaluate', resamples=4, noise_levels=3, noise_fields=16)
    | section('assimilate', measurements=2, samples=2)
    | section('assimilate', steps=3, few_steps=3, langevin_steps=2, iterations=2)
    | section('train', devices=1, parts=1, log_every=4, validate_every=4)
    | section('train', probes=1, probe_samples=8)
    | section('train.sample', sampler='heun', steps=4)
)


def epochs(*, mirror: int, mdm: int, finetune: int, dm: int) -> Overrides:
    """Returns the steps of so many epochs of 10,000 samples: 625 of batches of 16, 156 of 64."""
    steps = {'mirror': 625 * mirror, 'mdm': 156 * mdm, 'finetune': 625 * finetune, 'dm': 156 * dm}
    return {f'{stage}.steps': number for stage, number in steps.items()}


def published(paper: Overrides) -> Overrides:
    """Returns the published method at a `paper` preset's sizes; 5,000 steps of the mirror diffusion
    model are warm-up, and the same part of the plain one's.
    """
    return paper | PUBLISHED | {'score.optimizer.warmup': 5000 / paper['mdm.steps']}
