"""The ranges of a config's numbers, so that a bad one fails before the first stage starts."""

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from ml_collections import ConfigDict

from namm_jax.experiment.resolve import flatten

# Smallest value of the numbers that their own function does not check, or checks only when their
# stage runs.
AT_LEAST = {
    0: (
        'seed data.seed mirror.dropout mirror.sigma_max mirror.sigma_power mirror.lambda_cycle '
        'mirror.lambda_constr mirror.lambda_reg score.dropout finetune.sigma_max '
        'finetune.sigma_power finetune.lambda_constr sample.projection_iterations '
        'sample.polish_iterations sample.projected_sampling_iterations report.frame_seconds '
        'assimilate.scale assimilate.constraint_weight'
    ),
    1: (
        'data.shard_size mirror.filters mirror.layers mirror.blocks mirror.fold mirror.head '
        'mirror.batch_size mirror.steps score.blocks score.fold score.head score.batch_size '
        'mdm.steps finetune.batch_size finetune.steps dm.steps sample.batch_size sample.steps '
        'evaluate.projections train.parts train.log_every train.validate_every train.checkpoints '
        'train.probes train.probe_samples train.sample.steps tune.steps tune.batches '
        'evaluate.noise_fields evaluate.frames assimilate.measurements '
        'assimilate.long_measurements mirror.optimizer.accumulate score.optimizer.accumulate '
        'finetune.optimizer.accumulate train.steps_per_call assimilate.steps assimilate.few_steps '
        'assimilate.langevin_steps assimilate.iterations'
    ),
    # a variance needs two, and so does a curve
    2: 'assimilate.samples tune.samples sample.n evaluate.resamples evaluate.noise_levels',
    4: 'data.test',  # two halves are compared
    30: 'report.dpi',  # below, no text can be read
}

# What the items of the fields that are lists have to be: the command line takes any.
ITEMS = {
    int: 'mirror.channels score.channels counter.channels counter.filters',
    float: 'sample.guidance_scales constraint.weights data.spin data.inclination data.diameter '
    'data.exponent data.boost data.orientation data.shift data.mean data.scale',
    str: 'sample.rows sharding.rules',
    bool: 'data.periodic',
}
LARGEST = 2**31 - 1  # of integers: JAX counts steps in 32 bits
LARGEST_SEED = 2**63 - 1


def check_ranges(config: ConfigDict) -> None:
    """Raises unless numbers are in their ranges, each and together.

    Raises:
        ValueError: naming the field, what was got and what was expected.
    """
    fields = flatten(config.to_dict())
    _check_items(fields)
    largest = max(config[section].batch_size for section in ('mirror', 'score', 'finetune'))
    wanted = [(name, low, '') for low, names in AT_LEAST.items() for name in names.split()]
    wanted += [
        (f'data.{split}', largest, ', the largest batch') for split in ('train', 'validation')
    ]
    wanted += [
        (
            'finetune.samples',
            2 * config.finetune.batch_size,
            ': a batch to train on, another held out',
        )
    ]
    for name, low, why in wanted:
        value = attrgetter(name)(config)
        if not value >= low:
            raise ValueError(f'{name}: got {value}, expected at least {low}{why}')
    positive = {
        'train.budget': config.train.budget,
        'projection_tolerance': config.sample.projection_tolerance,
    }
    positive |= {'assimilate.noise_std': config.assimilate.noise_std}
    positive |= {
        f'{name}.channels': min(config[name].channels, default=0) for name in ('mirror', 'score')
    }
    positive |= {f'1 - {name}.dropout': 1 - config[name].dropout for name in ('mirror', 'score')}
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f'{name}: got {value}, expected a positive number')
    _check_sizes(fields)
    for stage in ('counter', 'mirror', 'tune', 'mdm', 'finetune', 'dm'):
        if stage in config and not config[stage].steps * config.train.budget <= LARGEST:
            raise ValueError(
                f'train.budget: got {config.train.budget} for {stage}.steps = '
                f'{config[stage].steps}, expected a product of at most {LARGEST}'
            )


def _check_items(fields: Mapping[str, Any]) -> None:
    """Raises unless the items of each list are of its type."""
    for kind, names in ITEMS.items():
        for name in fields.keys() & set(names.split()):
            if not all(
                type(item) is kind or (kind is float and type(item) is int) for item in fields[name]
            ):
                raise ValueError(
                    f'{name}: got {fields[name]}, expected items of type {kind.__name__}'
                )


def _check_sizes(fields: Mapping[str, Any]) -> None:
    """Raises unless numbers are finite, and integers such as the machine can count to."""
    for name, value in fields.items():
        largest = LARGEST_SEED if name in ('seed', 'data.seed') else LARGEST
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f'{name}: got {value}, expected finite numbers')
            if isinstance(item, int) and not abs(item) <= largest:
                raise ValueError(f'{name}: got {value}, expected at most {largest}')
