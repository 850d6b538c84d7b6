"""The fields of a config, by the names of the command line: default, meaning, unit and range, once.

The defaults are those of `quick`, a laptop CPU in minutes. A problem's parameters are the fields of
its dataclass, `data.NAME`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from namm_jax import problems
from namm_jax._checks import choose
from namm_jax.denoising.denoisers import PARAMETERISATIONS, REDUCTIONS
from namm_jax.denoising.samplers import SAMPLERS
from namm_jax.inverse.closures import MEASUREMENTS
from namm_jax.inverse.operators import OPERATORS
from namm_jax.problems.base import Problem, check_range, parameter

LARGEST = 2**31 - 1  # of integers: JAX counts steps in 32 bits
SIGNS = {'least': '>=', 'above': '>', 'most': '<=', 'below': '<'}


class Field(NamedTuple):
    """A field of a config; `items` is the type of those of a tuple whose default is empty."""

    default: Any
    meaning: str
    unit: str = ''
    limits: Mapping[str, float] = {}
    choices: tuple[str, ...] = ()
    items: type = float

    @property
    def range(self) -> str:
        """The range as text: `>= 0`, `(0, 1]`, `adam | muon`; empty where all values will do."""
        bounds = [(self.limits[name], sign) for name, sign in SIGNS.items() if name in self.limits]
        if len(bounds) < 2:
            return ' | '.join([*self.choices, *(f'{sign} {bound:g}' for bound, sign in bounds)])
        (low, above), (high, below) = bounds
        return f'{"[" if above == ">=" else "("}{low:g}, {high:g}{"]" if below == "<=" else ")"}'

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError unless the value has the default's type and is in the range."""
        listed = isinstance(self.default, tuple)
        items = value if isinstance(value, list | tuple) else [value]
        kind = type((*self.default, self.items())[0] if listed else self.default)
        kinds = (int, float) if kind is float else (kind,)
        largest = 2**63 - 1 if name.endswith('seed') else LARGEST
        expected = ''
        if (items is value) != listed or any(type(item) not in kinds for item in items):
            expected = f'items of type {kind.__name__}' if listed else kind.__name__
        elif any(type(item) is int and abs(item) > largest for item in items):
            expected = f'at most {largest}'
        elif kind is float and not all(map(math.isfinite, items)):
            expected = 'finite numbers'
        elif listed and self.default and not items:
            expected = 'at least one'
        if expected:
            raise ValueError(f'{name}: got {value!r}, expected {expected}')
        own = ':' in str(value) and ':' in ''.join(self.choices)  # a user's class or function
        free = own or value == self.default
        check_range(name, value, self.limits, () if free else self.choices)


def _section(name: str, fields: Mapping[str, Field], **defaults: Any) -> dict[str, Field]:
    """Returns the fields under the name of a section, with other defaults."""
    other = {key: fields[key]._replace(default=value) for key, value in defaults.items()}
    return {f'{name}.{key}': field for key, field in {**fields, **other}.items()}


_field = lambda default, meaning, **of: Field(default, **parameter(default, meaning, **of).metadata)
MAPS = ('namm', 'identity', 'box', 'simplex')
OUTPUTS = ('residual', 'centred', 'plain', 'softplus', 'residual_softplus')
STRENGTHS = ('discrepancy', 'fixed')  # to a misfit of one noise std, or as published
PADDINGS = ('periodic', 'circular', 'zeros')
CLASS = 'FILE.py:CLASS'  # of Flax modules

OPTIMIZER = {
    'name': _field('adam', 'muon: matrices by Muon, all else by Adam', choices=('adam', 'muon')),
    'learning_rate': _field(2e-3, 'at the end of the warm-up', above=0),
    'decay': _field('cosine', 'after it; to 0 at the last step', choices=('cosine', 'constant')),
    'warmup': _field(0.03, 'linear rise, as a part of the steps', least=0, most=1),
    'b1': _field(0.9, "Adam's decay of the first moment", least=0, below=1),
    'b2': _field(0.999, "Adam's decay of the second moment", least=0, below=1),
    'accumulate': _field(1, 'whose mean gradient makes one update', unit='batches', least=1),
    'clip': _field(1.0, "largest norm of each network's gradient; 0: no clipping", least=0),
    'ema': _field(0.999, "decay of the weights' average; 0: the last weights", least=0, below=1),
}
NETWORK = {
    'channels': _field((48, 96), 'a resolution each; of a resnet, one number', least=1),
    'blocks': _field(1, 'residual blocks a resolution', least=1),
    'fold': _field(2, 'factor by which pixels become channels', least=1),
    'head': _field(16, 'at full resolution', unit='channels', least=1),
    'norm': _field('group', 'of each block', choices=('group', 'none')),
    'attention': _field(False, 'at the lowest resolution'),
    'global_convolution': _field(False, 'for rules that compare distant places'),
    'dropout': _field(0.0, 'probability', least=0, below=1),
}
TRAINING = {
    'sigma_max': _field(0.1, 'largest noise in mirror space, in its units', least=0, most=1e6),
    'sigma_power': _field(2.0, 'p of sigma = sigma_max u^p; 1: published', least=0),
    'lambda_constr': _field(5.0, 'weight of the constraint term; 1: published', least=0, most=1e9),
    'batch_size': _field(8, 'a step', unit='samples', least=1),
    'steps': _field(1500, 'at budget 1', least=1),
    **_section('optimizer', OPTIMIZER, warmup=0.1),
}
SAMPLER = {
    'sampler': _field('sde_dpm_solver_pp_2m', 'scheme', choices=(*SAMPLERS, 'FILE.py:FUNCTION')),
    'steps': _field(40, 'the last denoising counted as one', least=1),
    'denoise_last': _field(True, "whether the last step's noise is removed"),
}
FIELDS = {
    'seed': _field(0, 'of initialisation, batches and samples', least=0),
    # the data and their number
    'data.problem': _field('', 'fixed by the config file', choices=tuple(problems.PROBLEMS)),
    'data.seed': _field(0, 'of the data', least=0),
    'data.train': _field(4000, 'to train on; 0: all others of your own', unit='samples', least=0),
    'data.validation': _field(1000, 'watched in training', unit='samples', least=1),
    'data.test': _field(1000, 'that the table compares with', unit='samples', least=4),
    'data.shard_size': _field(1000, 'in a part, while they are generated', unit='samples', least=1),
    # the set M
    'constraint.name': _field('', 'a rule of the problem, or several joined by +'),
    'constraint.weights': _field((), 'of the terms of a sum; (): all 1'),
    # the mirror map: networks, loss and training
    'mirror.map': _field('namm', 'learned (namm), or a closed form', choices=MAPS),
    'mirror.floor': _field(1e-3, "of a closed form: the centre's part", least=0, below=1),
    'mirror.forward': _field('icnn', 'network of g', choices=('icnn', 'resnet', 'identity', CLASS)),
    'mirror.filters': _field(16, 'of the ICNN', unit='channels', least=1),
    'mirror.layers': _field(2, 'of the ICNN: its convolutions w_k', least=1),
    'mirror.strong_convexity': _field(0.9, 'a in g = (1 - a) grad ICNN + a id', above=0, most=1),
    'mirror.reduction': _field('sum', 'of the ICNN', choices=('sum', 'row_sum', 'mean')),
    'mirror.forward_padding': _field('periodic', 'of g; circular: published', choices=PADDINGS),
    'mirror.inverse': _field('unet', 'network of f', choices=('unet', 'resnet', CLASS)),
    'mirror.inverse_padding': _field('periodic', 'of f; zeros: published', choices=PADDINGS),
    **_section('mirror', NETWORK, norm='none'),
    'mirror.output': _field('residual', 'of f; centred: for a rule on a sum', choices=OUTPUTS),
    'mirror.lambda_cycle': _field(1.0, 'weight of both cycle terms', least=0),
    'mirror.lambda_reg': _field(1e-3, 'weight of the regularisation term', least=0),
    **_section('mirror', TRAINING),
    # network and training of both diffusion models, DM and MDM
    'score.network': _field('unet', 'of both diffusion models', choices=('unet', CLASS)),
    'score.external': _field('', 'FILE.py:FUNCTION, a denoiser in place of the DM'),
    'score.parameterisation': _field('edm', 'vp: published', choices=tuple(PARAMETERISATIONS)),
    'score.reduction': _field('mean', 'of errors; half_sum: published', choices=tuple(REDUCTIONS)),
    'score.padding': _field('periodic', 'zeros: published', choices=PADDINGS),
    **_section('score', NETWORK),
    'score.batch_size': _field(16, 'a step', unit='samples', least=1),
    **_section('score.optimizer', OPTIMIZER),
    # what sigma_max and lambda_constr the experiment asks for
    'tune.steps': _field(500, 'of a short mirror diffusion model, at budget 1', least=1),
    'tune.samples': _field(128, 'drawn from it', least=2),
    'tune.batches': _field(8, "over which the loss's gradients are averaged", least=1),
    # the mirror diffusion model
    'mdm.steps': _field(3000, 'at budget 1', least=1),
    # the finetuning of f
    'finetune.samples': _field(1024, 'drawn from the MDM, which counts as training', least=2),
    **_section('finetune', TRAINING, **{'sigma_power': 3.0, 'optimizer.learning_rate': 1e-3}),
    # the plain diffusion model
    'dm.steps': _field(10_000, 'at budget 1: as long as mirror, mdm and finetune', least=1),
    # the same, trained on with the distance of a field as a condition
    'condition.samples': _field(1024, 'drawn from the DM, which counts as training', least=2),
    'condition.steps': _field(2000, 'at budget 1', least=1),
    'condition.unlabelled': _field(0.2, 'part of training without it', least=0, below=1),
    # sampling, and the projection of samples by Gauss-Newton
    **_section('sample', SAMPLER),
    'sample.n': _field(256, 'of each row of the table', unit='samples', least=2),
    'sample.rows': _field((), 'such as dm, mdm_finetuned; (): all')._replace(items=str),
    'sample.batch_size': _field(64, 'drawn at once', unit='samples', least=1),
    'sample.projection_tolerance': _field(1e-6, 'on the mean absolute residual', above=0),
    'sample.projection_iterations': _field(20, 'of a projection, at most', least=0),
    'sample.projected_sampling_iterations': _field(1, 'at a step of sampling', least=0),
    'sample.landing': _field(1, 'Gauss-Newton steps that end a learned f, for a residual', least=0),
    'sample.guidance_scales': _field(
        (0.0, 0.1, 0.3, 0.6, 1.0, 1.5), 'that dm_guided chooses from', least=0
    ),
    'sample.guidance_steps': _field((1, 4), 'a call, that dm_guided chooses from', least=1),
    'sample.level_weight': _field(2.0, 'of distance 0; 1: no guidance towards it', least=0),
    # the table
    'evaluate.resamples': _field(20, 'sets of true samples: the floor of each metric', least=2),
    'evaluate.projections': _field(128, 'of the sliced Wasserstein distance', least=1),
    'evaluate.noise_levels': _field(9, 'for f, from 0 to twice mirror.sigma_max', least=2),
    'evaluate.noise_fields': _field(128, 'test fields that f is measured on', least=1),
    'evaluate.frames': _field(24, 'of the animated trajectory, at most', least=1),
    # the figures and the page
    'report.dpi': _field(110, 'of figures 9 inches wide', unit='pixels an inch', least=30),
    'report.frame_seconds': _field(0.25, 'of each frame of the animation', unit='s', least=0),
    # posterior samples of test fields, given noisy measurements of them
    'assimilate.operator': _field(
        '', "empty: the problem's usual one", choices=(*OPERATORS, *MEASUREMENTS)
    ),
    'assimilate.function': _field('', 'of the operator own: FILE.py:FUNCTION or MODULE:FUNCTION'),
    'assimilate.sampler': _field('', 'a row such as dps, mirror_dps; all when empty'),
    'assimilate.noise_std': _field(0.2, 'of the measurements, in their unit', above=0),
    'assimilate.measurements': _field(8, 'test fields that are measured', least=1),
    'assimilate.samples': _field(16, 'of each posterior', least=1),
    'assimilate.steps': _field(1000, 'of DPS and its kin', least=1),
    'assimilate.few_steps': _field(50, 'network calls of the other samplers', least=1),
    'assimilate.langevin_steps': _field(20, 'of daps at a noise level, a gradient each', least=1),
    'assimilate.particles': _field(0, 'of a group of smc; 0: all samples are one', least=0),
    'assimilate.iterations': _field(100, "of 4D-Var's optimizer, at most", least=1),
    'assimilate.strength': _field('discrepancy', "of DPS's guidance", choices=STRENGTHS),
    'assimilate.scale': _field(0.05, 'of the fixed strength, in data units', least=0),
    'assimilate.constraint_weight': _field(200.0, "of CG-DPS's distance, in noise units", least=0),
    # what of the training state lies on which device; may change when a run goes on
    'sharding.parameters': _field('replicated', 'fsdp: split', choices=('replicated', 'fsdp')),
    'sharding.rules': _field((), 'PATTERN=AXES, as .*Dense.*/kernel=-,data')._replace(items=str),
    # what all training stages share
    'train.budget': _field(1.0, 'multiplies the steps of every training stage', above=0),
    'train.compute_dtype': _field('float32', 'of the networks', choices=('float32', 'bfloat16')),
    'train.devices': _field(0, 'of each process; 0: all', least=0),
    'train.remat': _field(False, 'whether blocks are computed twice, for less memory'),
    'train.steps_per_call': _field(1, 'of a device, for small fast models', least=1),
    'train.parts': _field(2, 'of a batch, side by side; more than 1 for a CPU alone', least=1),
    'train.log_every': _field(100, 'between records', unit='steps', least=1),
    'train.validate_every': _field(500, 'also between checkpoints', unit='steps', least=1),
    'train.checkpoints': _field(2, 'that are kept', least=1),
    'train.probes': _field(4, 'times at which mdm, finetune and dm draw samples', least=1),
    'train.probe_samples': _field(32, 'drawn at each of them', least=1),
    **_section('train.sample', SAMPLER),  # draws the probes and the set that f is finetuned on
}
# problem -> the fields that only it has, its parameters aside
OTHERS = {
    'black_holes': {
        'assimilate.field_of_view': _field(120.0, 'of an image', unit='microarcseconds', above=0),
        'assimilate.flux': _field(0.6, 'of an image, what its sum stands for', unit='Jy', above=0),
        'assimilate.scan_gap': _field(60.0, 'longest within a scan', unit='s', above=0),
        'assimilate.systematic': _field(0.02, 'error of visibilities, relative', least=0, below=1),
        'assimilate.least_snr': _field(3.0, 'amplitude over error of those used', least=0),
        'assimilate.least_baseline': _field(1e8, 'shorter ones see other sources too', least=0),
    },
    'galaxies': {
        'counter.samples': _field(10_000, 'to train on', unit='images', least=1),
        'counter.held_out': _field(1000, 'on which the error is measured', unit='images', least=1),
        'counter.most': _field(16, 'in an image, from 0 on', unit='sources', least=1),
        'counter.network': _field('density', "the rule's own", choices=('density', 'dense')),
        'counter.channels': _field((48, 64), 'of density, from half resolution on', least=1),
        'counter.convolutions': _field(3, 'of density, a resolution', least=1),
        'counter.filters': _field((32, 64), 'of dense: channels of its convolutions', least=1),
        'counter.hidden': _field(256, 'of dense: width of its hidden layer', least=1),
        'counter.second_channels': _field((32, 48), 'of the network that judges', least=1),
        'counter.second_convolutions': _field(2, 'of the network that judges', least=1),
        'counter.second_noise': _field(0.02, 'most that it is trained with', least=0),
        'counter.batch_size': _field(16, 'a step', unit='images', least=1),
        'counter.steps': _field(5000, 'at budget 1', least=1),
        **_section('counter.optimizer', OPTIMIZER),
    },
    'own': {
        'data.path': _field('', 'FILE.npy, .npz:NAME, .h5:DATASET, .nc:VARIABLE, or their folder'),
        'data.axes': _field('', 'of the file, such as n,c,h,w or n,time,lat,lon; empty: n,h,w,c'),
        'data.mask': _field('', 'a file like those, (h, w): 0 where there are no data, as on land'),
        'constraint.distance': _field(
            '', 'FILE.py:FUNCTION, (b, h, w, c) -> (b,), or FILE.py:RULE'
        ),
    },
}


def problem_class(name: str) -> type[Problem]:
    """Returns the class of a problem; a ValueError names the nearest if there is none."""
    choose('data.problem', name, problems.PROBLEMS)
    return getattr(problems, name)


@functools.cache
def fields(problem: str = 'burgers') -> dict[str, Field]:
    """Returns the fields of a problem's config by dotted name, section by section."""
    cls = problem_class(problem)
    found = dict(FIELDS)
    for field in dataclasses.fields(cls):
        if 'meaning' in field.metadata:
            found[f'data.{field.name}'] = Field(field.default, **field.metadata)
    for name, default in (('data.problem', problem), ('constraint.name', cls.rule_name)):
        found[name] = found[name]._replace(default=default)
    found |= OTHERS.get(problem, {})
    sections = [name.split('.')[0] for name in found]
    by_section = sorted(found, key=lambda name: sections.index(name.split('.')[0]))
    return {name: found[name] for name in by_section}


def schema(problem: str = 'burgers') -> ConfigDict:
    """Returns the config of a problem with every field at its default."""
    tree: dict[str, Any] = {}
    for name, field in fields(problem).items():
        *sections, last = name.split('.')
        section = functools.reduce(lambda node, part: node.setdefault(part, {}), sections, tree)
        section[last] = field.default
    return ConfigDict(tree)


def check_ranges(config: ConfigDict) -> None:
    """Raises a ValueError unless values have their types and ranges, and numbers fit together."""
    value = lambda name: attrgetter(name)(config)
    for name, field in fields(config.data.problem).items():
        field.check(name, value(name))
    batch = max(config[section].batch_size for section in ('mirror', 'score', 'finetune'))
    for name, least, why in (
        ('data.train', batch, 'the largest batch'),
        ('finetune.samples', 2 * config.finetune.batch_size, 'two batches: one is held out'),
        ('condition.samples', 2 * config.score.batch_size, 'two batches: one is held out'),
    ):
        if value(name) < least:
            raise ValueError(f'{name}: got {value(name)}, expected at least {least}, {why}')
    budget = config.train.budget
    for stage in ('counter', 'mirror', 'tune', 'mdm', 'finetune', 'dm', 'condition'):
        if stage in config and budget * (steps := config[stage].steps) > LARGEST:
            product = f'{budget} for {stage}.steps = {steps}'
            raise ValueError(f'train.budget: got {product}, expected at most {LARGEST} steps')
