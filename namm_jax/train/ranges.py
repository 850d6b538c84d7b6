"""The ranges of a config's numbers, so that a bad one fails before the first stage starts."""

from operator import attrgetter

from ml_collections import ConfigDict

# Smallest value of the numbers that their own function does not check, or checks only when their stage runs.
AT_LEAST = {
    0: 'seed data.seed mirror.dropout mirror.sigma_max mirror.sigma_power mirror.lambda_cycle mirror.lambda_constr '
    'mirror.lambda_reg score.dropout finetune.sigma_max finetune.sigma_power finetune.lambda_constr '
    'sample.projection_iterations sample.polish_iterations sample.projected_sampling_iterations report.frame_seconds '
    'assimilate.scale assimilate.constraint_weight',
    1: 'data.shard_size mirror.filters mirror.layers mirror.blocks mirror.fold mirror.head mirror.batch_size '
    'mirror.steps score.blocks score.fold score.head score.batch_size mdm.steps finetune.batch_size '
    'finetune.steps dm.steps sample.batch_size sample.steps evaluate.projections train.parts train.log_every '
    'train.validate_every train.checkpoints train.probes train.probe_samples train.sample.steps tune.steps '
    'tune.batches evaluate.noise_fields evaluate.frames assimilate.measurements assimilate.long_measurements '
    'mirror.optimizer.accumulate score.optimizer.accumulate finetune.optimizer.accumulate train.steps_per_call '
    'assimilate.steps assimilate.few_steps assimilate.langevin_steps assimilate.iterations',
    # a variance needs two, and so does a curve
    2: 'assimilate.samples tune.samples sample.n evaluate.resamples evaluate.noise_levels',
    4: 'data.test',  # two halves are compared
    30: 'report.dpi',  # below, no text can be read
}


def check_ranges(config: ConfigDict) -> None:
    """Raises unless numbers are in their ranges, each and together.

    Raises:
        ValueError: naming the field, what was got and what was expected.
    """
    largest = max(config[section].batch_size for section in ('mirror', 'score', 'finetune'))
    wanted = [(name, low, '') for low, names in AT_LEAST.items() for name in names.split()]
    wanted += [(f'data.{split}', largest, ', the largest batch') for split in ('train', 'validation')]
    wanted += [('finetune.samples', 2 * config.finetune.batch_size, ': a batch to train on, another held out')]
    for name, low, why in wanted:
        value = attrgetter(name)(config)
        if not value >= low:
            raise ValueError(f'{name}: got {value}, expected at least {low}{why}')
    positive = {'train.budget': config.train.budget, 'projection_tolerance': config.sample.projection_tolerance}
    positive |= {'assimilate.noise_std': config.assimilate.noise_std}
    positive |= {f'{name}.channels': min(config[name].channels, default=0) for name in ('mirror', 'score')}
    positive |= {f'1 - {name}.dropout': 1 - config[name].dropout for name in ('mirror', 'score')}
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f'{name}: got {value}, expected a positive number')
