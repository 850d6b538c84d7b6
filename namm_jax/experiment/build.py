"""From a config to the objects of an experiment, and to the tasks that are trained: mirror,
finetune, mdm, dm.

Every value is checked by the function that takes it. Nothing here computes until it is called with
arrays.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax import mirror
from namm_jax._arrays import Constraint, Denoiser, Key, MirrorMap, Params, Task
from namm_jax._checks import choose
from namm_jax.denoising.denoisers import make_parameterisation
from namm_jax.experiment.config import schema
from namm_jax.experiment.own import load_function
from namm_jax.experiment.problem import make_problem
from namm_jax.networks import NETWORKS, fields_of, make_network
from namm_jax.networks.counter import COUNTERS
from namm_jax.networks.icnn import gradient_map, nonnegative_mask
from namm_jax.training import recipes
from namm_jax.training.optimizers import continued, make_optimizer

PADDINGS = {
    'periodic': lambda axes: axes,
    'circular': lambda axes: (True, True),
    'zeros': lambda axes: (False, False),
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def holds_network(config: ConfigDict) -> bool:
    """Returns whether the constraint holds a trained network, which the stage `counter` trains."""
    return 'counter' in config


def make_constraint(config: ConfigDict, params: Params = None) -> Constraint:
    """Returns the constraint that the config names, of its problem.

    Args:
        config: the config; `constraint.name` may name several, joined by `+`: their weighted sum.
        params: parameters of the network that it holds, where it holds one.
    """
    options = {}
    if holds_network(config):
        network = make_counters(config)['counter']
        options = {'counter': Partial(functools.partial(_count, network), params)}
    section = config.constraint
    return make_problem(config).constraint(section.name, section.weights, **options)


def _count(network: Any, params: Params, x: Array) -> Array:
    return network.apply({'params': params}, x)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def make_counters(config: ConfigDict) -> dict[str, Any]:
    """Returns both counting networks of the config: `counter`, which the constraint holds, and
    `second`, the other, to see samples that fool it.
    """
    section = config.counter
    classes = {'counter': choose('counter.network', section.network, COUNTERS)}
    classes['second'] = next(kind for name, kind in COUNTERS.items() if name != section.network)
    return {
        role: make_network(kind, **{name: _plain(section[name]) for name in fields_of(kind)})
        for role, kind in classes.items()
    }


class Role(NamedTuple):
    """What a network is for, and which part of the config describes it.

    Attributes:
        section: the section.
        name: its field that names the network: one of `classes`, or a user's own class of Flax
            modules, `path/to/file.py:Class` or `package.module:Class`.
        padding: its field that says how convolutions pad.
        fields: its fields that the network may have.
        classes: name -> key of `NETWORKS`.
        call: how the network is called.
    """

    section: str
    name: str
    padding: str
    fields: tuple[str, ...]
    classes: Mapping[str, str]
    call: str


_WIDE = ('channels', 'blocks', 'fold', 'head', 'norm', 'attention', 'global_convolution', 'dropout')
SCORE = Role(
    section='score',
    name='network',
    padding='padding',
    fields=_WIDE,
    classes={'unet': 'unet'},
    call='(x, label, *, train=False)',
)
F = Role(
    section='mirror',
    name='inverse',
    padding='inverse_padding',
    fields=_WIDE,
    classes={'unet': 'unet', 'resnet': 'resnet'},
    call='(z, *, train=False)',
)
G = Role(
    section='mirror',
    name='forward',
    padding='forward_padding',
    fields=('filters', 'layers', 'reduction'),
    classes={'icnn': 'icnn', 'resnet': 'resnet', 'identity': 'icnn'},
    call='(x)',
)


def _class_of(role: Role, name: str) -> Any:
    """Returns the class of modules that the config names for a role."""
    field = f'{role.section}.{role.name}'
    if ':' not in name:
        return NETWORKS[choose(field, name, role.classes)]
    network = load_function(name)
    fields_of(network)  # raises for anything but a class of modules
    parameters = inspect.signature(network.__call__).parameters
    if 'train' in role.call and 'train' not in parameters:
        raise ValueError(
            f'{field}={name}: got __call__({", ".join(parameters)}), expected the arguments '
            f'{role.call}'
        )
    return network


def _network(config: ConfigDict, role: Role, **shared: Any) -> Any:
    """Returns the network of a role, with those of its section's fields that its class has.

    Args:
        config: the config.
        role: what it is for.
        shared: fields that it has from another role.

    Raises:
        ValueError: if there is no such network, a value is bad, or a field that the class does not
            have is not at its default: nothing is ignored in silence.
    """
    section = config[role.section]
    name = section[role.name]
    kind = _class_of(role, name)
    own = fields_of(kind)
    field = f'{role.section}.{role.name}={name}'
    default = schema(config.data.problem)[role.section]
    lost = [k for k in role.fields if k not in own and _plain(section[k]) != _plain(default[k])]
    if lost:
        raise ValueError(
            f'{", ".join(f"{role.section}.{k}" for k in lost)}: got '
            f'{", ".join(str(section[k]) for k in lost)}, but {field} has no such field; set it '
            f'back to {", ".join(str(default[k]) for k in lost)}, or take another network'
        )
    values = {k: _plain(section[k]) for k in role.fields} | shared | _context(config, role)
    try:
        return make_network(kind, **{k: v for k, v in values.items() if k in own})
    except ValueError as error:
        raise ValueError(f'{field}: {error}') from error


def _context(config: ConfigDict, role: Role) -> dict[str, Any]:
    """Returns the fields of a network that come from the data and from how all are trained."""
    problem = make_problem(config)
    padding = config[role.section][role.padding]
    periodic = choose(f'{role.section}.{role.padding}', padding, PADDINGS)(problem.periodic)
    return {
        'periodic': periodic,
        'cell': tuple(n if wraps else 1 for n, wraps in zip(problem.cell, periodic, strict=True)),
        'remat': config.train.remat,
        'dtype': choose('train.compute_dtype', config.train.compute_dtype, DTYPES),
    }


def make_score(config: ConfigDict) -> Any:
    """Returns the network of both diffusion models."""
    return _network(config, SCORE)


def make_inverse(config: ConfigDict) -> Any:
    """Returns the network of f."""
    return _network(config, F)


def make_forward(config: ConfigDict) -> Any:
    """Returns the network of g; a ResNet (for ablations) has the sizes of f's first resolution."""
    section, shared = config.mirror, {}
    if section.forward == 'resnet':
        shared = {name: section[name] for name in ('blocks', 'dropout')}
        shared['channels'] = _plain(section.channels)[:1]
    return _network(config, G, **shared)


# What makes g of its network, if not the gradient.
FORWARD_MAPS = {'resnet': mirror.network_map, 'identity': mirror.unchanged}


def _learned_map(config: ConfigDict) -> MirrorMap:
    section = config.mirror
    return mirror.neural_mirror_map(
        make_forward(config),
        make_inverse(config),
        strong_convexity=section.strong_convexity,
        output=section.output,
        forward_map=FORWARD_MAPS.get(section.forward, gradient_map),
    )


def _simplex_map(config: ConfigDict) -> MirrorMap:
    return mirror.simplex_map(make_problem(config).total, floor=config.mirror.floor)


# The learned one comes first: the others have no parameters, and neither `mirror` nor `finetune` to
# train.
MAPS: dict[str, Callable[[ConfigDict], MirrorMap]] = {
    'namm': _learned_map,
    'identity': lambda config: mirror.identity_map(),
    'box': lambda config: mirror.box_map(0.0, 1.0, floor=config.mirror.floor),
    'simplex': _simplex_map,
}


def make_mirror(config: ConfigDict) -> MirrorMap:
    """Returns the mirror map of the config."""
    return choose('mirror.map', config.mirror.map, MAPS)(config)


def learns_map(config: ConfigDict) -> bool:
    """Returns whether the mirror map is learned, by the stages `mirror` and `finetune`."""
    return config.mirror.map == next(iter(MAPS))


def user_mirror(config: ConfigDict) -> MirrorMap:
    """Returns the mirror map from and to data in their own units; a closed form knows no others."""
    units = make_problem(config).units if learns_map(config) else recipes.UNITLESS
    return mirror.standardised(make_mirror(config), *units)


def fitted_mirror(config: ConfigDict, params: Params) -> mirror.Mirror:
    """Returns a learned mirror map with its parameters."""
    section, units = config.mirror, make_problem(config).units
    networks = make_forward(config), make_inverse(config)
    return mirror.Mirror(params, *networks, section.strong_convexity, section.output, units)


def optimizer_of(
    section: ConfigDict, steps: int, mask: Callable[[Params], PyTree] | None = None
) -> Any:
    """Returns the optimizer of a section of the config; see `training.optimizers`.

    Args:
        section: an optimizer section.
        steps: the length of the schedule.
        mask: `params -> tree of booleans`, those that stay non-negative.

    Raises:
        ValueError: if a value is out of range.
    """
    settings = section.to_dict()
    if not 0 <= (ema := settings.pop('ema')) < 1:
        raise ValueError(f'got ema {ema}, expected a number in [0, 1)')
    return make_optimizer(steps, mask=mask, **settings)


def mirror_init(config: ConfigDict) -> Callable[[Key], Params]:
    """Returns the initialisation of the mirror map's parameters."""
    mirror_map, shape = make_mirror(config), make_problem(config).shape
    return lambda key: mirror_map.init(key, jnp.zeros((1, *shape)))


def _weights(config: ConfigDict, section: ConfigDict, unit: float) -> dict[str, float]:
    """Returns the weights of the mirror map's loss: noise law and weight of the rule are a stage's
    own.
    """
    of_map = ('lambda_cycle', 'lambda_reg', 'strong_convexity')
    weights = {name: config.mirror[name] for name in of_map}
    weights |= {name: section[name] for name in ('sigma_max', 'sigma_power')}
    return weights | {'lambda_constr': section.lambda_constr / unit}


def mirror_task(config: ConfigDict, steps: int, constraint: Constraint, unit: float = 1.0) -> Task:
    """Returns the training of the mirror map, both networks.

    Args:
        config: the config.
        steps: the number of steps.
        constraint: the set M, of standardised fields; its shapes are enough for `init`.
        unit: of its distance.
    """
    optimizers = {
        'forward': optimizer_of(config.mirror.optimizer, steps, nonnegative_mask),
        'inverse': optimizer_of(config.mirror.optimizer, steps),
    }
    problem = make_problem(config)
    return recipes.namm_task(
        make_mirror(config),
        problem.shape,
        constraint,
        optimizers,
        units=problem.units,
        **_weights(config, config.mirror, unit),
    )


def finetune_task(
    config: ConfigDict,
    steps: int,
    constraint: Constraint,
    unit: float,
    params: Params,
    moments: PyTree,
) -> Task:
    """Returns the finetuning of f.

    Args:
        config: the config.
        steps: the number of steps.
        constraint: the set M, of standardised fields.
        unit: of its distance.
        params: the trained mirror map's `{'forward', 'inverse'}`.
        moments: of f's gradient, to go on from: `optimizers.moments_of`.
    """
    return recipes.finetune_task(
        make_mirror(config),
        params,
        constraint,
        continued(optimizer_of(config.finetune.optimizer, steps), moments),
        units=make_problem(config).units,
        **_weights(config, config.finetune, unit),
    )


def make_denoiser(
    config: ConfigDict, params: Params, mean: Array | float, std: Array | float
) -> Denoiser:
    """Returns the denoiser of a diffusion model.

    Args:
        config: the config.
        params: the score network's parameters.
        mean: mean of the model's training set, a scalar.
        std: its standard deviation, a scalar.
    """
    score = functools.partial(recipes.score, make_score(config), params)
    name = config.score.parameterisation
    return make_parameterisation(name, mean=mean, std=std).denoiser(score)


def denoising_task(config: ConfigDict, steps: int, mean: Array | float, std: Array | float) -> Task:
    """Returns the training of a diffusion model: dm and mdm are the same.

    Args:
        config: the config.
        steps: the number of steps.
        mean: mean of the training set, a scalar.
        std: its standard deviation, a scalar.
    """
    return recipes.denoising_task(
        make_score(config),
        make_problem(config).shape,
        optimizer_of(config.score.optimizer, steps),
        mean=mean,
        std=std,
        parameterisation=config.score.parameterisation,
        reduction=config.score.reduction,
    )
