"""From a config to the objects of an experiment, and to the tasks that are trained: mirror,
finetune, mdm, dm.

Every value is checked by the function that takes it. Nothing here computes until it is called with
arrays.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax import constraints, mirror
from namm_jax._arrays import (
    Constraint,
    Denoiser,
    Key,
    Metrics,
    MirrorMap,
    Parameterisation,
    Params,
    Task,
)
from namm_jax._checks import choose
from namm_jax.constraints.composition import weighted_sum
from namm_jax.denoising import denoisers as diffusion
from namm_jax.networks import NETWORKS, fields_of, make_network
from namm_jax.networks.counter import COUNTERS
from namm_jax.networks.icnn import gradient_map, nonnegative_mask
from namm_jax.train.config import schema
from namm_jax.train.families import make_family
from namm_jax.train.optimizers import continued, make_optimizer, per_network
from namm_jax.train.own import load_function

PADDINGS = {
    'periodic': lambda axes: axes,
    'circular': lambda axes: (True, True),
    'zeros': lambda axes: (False, False),
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def holds_network(config: ConfigDict) -> bool:
    """Returns whether the constraint holds a trained network, which the stage `counter` trains."""
    return 'counter' in config


def _problem(config: ConfigDict, params: Params) -> dict[str, Any]:
    return {'problem': make_family(config).problem}


def _count(config: ConfigDict, params: Params) -> dict[str, Any]:
    return _problem(config, params) | {
        'network': make_counters(config)['counter'],
        'params': params,
    }


def _own(config: ConfigDict, params: Params) -> dict[str, Any]:
    return _problem(config, params) | {'distance': load_function(config.constraint.distance)}


ARGUMENTS = {
    'count': _count,
    'own': _own,
}  # what the builder of a constraint takes, if not the problem alone


def make_constraint(config: ConfigDict, params: Params = None) -> Constraint:
    """Returns the constraint that the config names, for its family's problem.

    Args:
        config: the config; `constraint.name` may name several, joined by `+`: their weighted sum.
        params: parameters of the network that it holds, where it holds one.
    """
    names = config.constraint.name.split('+')
    arguments = {name: ARGUMENTS.get(name, _problem)(config, params) for name in names}
    parts = {name: constraints.make_constraint(name, **arguments[name]) for name in names}
    if len(parts) == 1:
        return parts[names[0]]
    weights = tuple(config.constraint.weights) or (1.0,) * len(parts)
    if len(weights) != len(parts):
        raise ValueError(
            f'constraint.weights: got {weights} for {names}, expected one a term, or none for all 1'
        )
    return weighted_sum(parts, dict(zip(names, weights, strict=True)))


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
    default = schema(config.data.family)[role.section]
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
    family = make_family(config)
    padding = config[role.section][role.padding]
    periodic = choose(f'{role.section}.{role.padding}', padding, PADDINGS)(family.periodic)
    return {
        'periodic': periodic,
        'cell': tuple(n if wraps else 1 for n, wraps in zip(family.cell, periodic, strict=True)),
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
    return mirror.simplex_map(make_family(config).problem.total, floor=config.mirror.floor)


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


def make_parameterisation(
    config: ConfigDict, mean: Array | float, std: Array | float
) -> Parameterisation:
    """Returns the parameterisation of the config, for data of this mean and standard deviation."""
    return diffusion.make_parameterisation(config.score.parameterisation, mean=mean, std=std)


def _mirror_loss(config: ConfigDict, section: ConfigDict) -> Callable[..., tuple[Array, Metrics]]:
    """Returns the loss of the mirror map, noise law and constraint weight from a stage's own
    section.
    """
    mirror_map, of_map = make_mirror(config), ('lambda_cycle', 'lambda_reg', 'strong_convexity')
    weights = {name: config.mirror[name] for name in of_map}
    weights |= {name: section[name] for name in ('sigma_max', 'sigma_power', 'lambda_constr')}

    def loss(
        params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool
    ) -> tuple[Array, Metrics]:
        everything = frozen['params'] | params
        x, z, constraint = batch['x'], batch.get('z'), frozen['constraint']
        return mirror.namm_loss(
            mirror_map, everything, key, x, constraint, z, train=train, **weights
        )

    return loss


def mirror_init(config: ConfigDict) -> Callable[[Key], Params]:
    """Returns the initialisation of the mirror map's parameters."""
    mirror_map, shape = make_mirror(config), make_family(config).shape
    return lambda key: mirror_map.init(key, jnp.zeros((1, *shape)))


def mirror_task(config: ConfigDict, steps: int, constraint: Constraint) -> Task:
    """Returns the training of the mirror map: both networks, batches `{'x': data}`.

    Args:
        config: the config.
        steps: the number of steps.
        constraint: the set M; its shapes are enough for `init`.
    """
    optimizers = {
        'forward': make_optimizer(config.mirror.optimizer, steps, nonnegative_mask),
        'inverse': make_optimizer(config.mirror.optimizer, steps),
    }
    return Task(
        init=jax.jit(mirror_init(config)),
        loss=_mirror_loss(config, config.mirror),
        optimizer=per_network(optimizers),
        frozen={'params': {}, 'constraint': constraint},
    )


def finetune_task(
    config: ConfigDict, steps: int, constraint: Constraint, params: Params, moments: PyTree
) -> Task:
    """Returns the finetuning of f: the mirror task with g frozen, batches
    `{'x': data, 'z': mirror samples}`.

    Args:
        config: the config.
        steps: the number of steps.
        constraint: the set M.
        params: the trained mirror map's `{'forward', 'inverse'}`.
        moments: of f's gradient, to go on from: `optimizers.moments_of`.
    """
    optimizer = continued(make_optimizer(config.finetune.optimizer, steps), moments)
    return Task(
        init=lambda key: {'inverse': jax.tree.map(jnp.copy, params['inverse'])},
        loss=_mirror_loss(config, config.finetune),
        optimizer=per_network({'inverse': optimizer}),
        frozen={'params': {'forward': params['forward']}, 'constraint': constraint},
    )


def make_denoiser(
    config: ConfigDict,
    params: Params,
    mean: Array | float,
    std: Array | float,
    train_key: Key | None = None,
) -> Denoiser:
    """Returns the denoiser of a diffusion model.

    Args:
        config: the config.
        params: the score network's parameters.
        mean: mean of the model's training set, a scalar.
        std: its standard deviation, a scalar.
        train_key: switches dropout on.
    """
    network = make_score(config)
    train = train_key is not None
    rngs = {'dropout': train_key} if train else None

    def score(x: Array, label: Array) -> Array:
        y = network.apply({'params': params}, x, label, train=train, rngs=rngs)
        if y.shape != x.shape:
            raise ValueError(
                f'score.network: got an output of shape {y.shape}, expected {x.shape}, that of x; '
                'let the network keep the shape of its input'
            )
        return y

    return make_parameterisation(config, mean, std).denoiser(score)


def denoising_task(config: ConfigDict, steps: int, mean: Array | float, std: Array | float) -> Task:
    """Returns the training of a diffusion model, batches `{'x': data or mirror points}`: dm and mdm
    are the same.

    Args:
        config: the config.
        steps: the number of steps.
        mean: mean of the training set, a scalar.
        std: its standard deviation, a scalar.
    """
    network, shape = make_score(config), make_family(config).shape

    def loss(
        params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool
    ) -> tuple[Array, Metrics]:
        key_loss, key_dropout = jax.random.split(key)
        parameterisation = make_parameterisation(config, frozen['mean'], frozen['std'])
        denoiser = make_denoiser(
            config, params, frozen['mean'], frozen['std'], key_dropout if train else None
        )
        return diffusion.denoising_loss(
            denoiser, parameterisation, key_loss, batch['x'], reduction=config.score.reduction
        )

    return Task(
        init=jax.jit(lambda key: network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))['params']),
        loss=loss,
        optimizer=make_optimizer(config.score.optimizer, steps),
        frozen={'mean': jnp.asarray(mean, jnp.float32), 'std': jnp.asarray(std, jnp.float32)},
    )
