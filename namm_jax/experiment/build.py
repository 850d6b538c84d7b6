"""From a config to the objects of an experiment, and to the tasks that are trained. Every value is
checked by the function that takes it; nothing computes until it is called with arrays.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax import mirror
from namm_jax._arrays import Constraint, Denoiser, Key, MirrorMap, Params, Task
from namm_jax._checks import choose
from namm_jax.denoising.denoisers import make_parameterisation
from namm_jax.denoising.prior import prior
from namm_jax.experiment.files import UserError
from namm_jax.experiment.own import load_function
from namm_jax.experiment.problem import make_problem, plain
from namm_jax.networks import NETWORKS, fields_of, make_network
from namm_jax.networks.counter import COUNTERS, DensityCounter
from namm_jax.networks.icnn import gradient_map, nonnegative_mask
from namm_jax.training import recipes
from namm_jax.training.optimizers import continued, make_optimizer

PADDINGS = {
    'periodic': lambda axes: axes,
    'circular': lambda axes: (True, True),
    'zeros': lambda axes: (False, False),
}
ROUNDING = 1e-6  # by which data may leave a set
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def counts(config: ConfigDict) -> bool:
    """Returns whether samples are counted, by networks that the stage `counter` trains."""
    return 'counter' in config


def holds_network(config: ConfigDict) -> bool:
    """Returns whether the constraint holds one of these networks."""
    return counts(config) and not config.data.maps


def make_constraint(config: ConfigDict, params: Params = None) -> Constraint:
    """Returns the constraint of the config; `params` are those of the network that it may hold."""
    options = {}
    if holds_network(config):
        network = make_counters(config)['counter']
        options = {'counter': Partial(functools.partial(_count, network), params)}
    section = config.constraint
    return make_problem(config).constraint(section.name, section.weights, **options)


def _count(network: Any, params: Params, x: Array) -> Array:
    return network.apply({'params': params}, x)


def make_counters(config: ConfigDict) -> dict[str, Any]:
    """Returns the counting networks: `counter`, where the constraint holds it, and `second`, of a
    build of its own, to see samples that fool the first.
    """
    section = config.counter
    kind = choose('counter.network', section.network, COUNTERS)
    fields = {name: plain(section[name]) for name in fields_of(kind)}
    second = {name: plain(section[f'second_{name}']) for name in fields_of(DensityCounter)}
    own = {'counter': kind(**fields)} if holds_network(config) else {}
    return own | {'second': DensityCounter(**second)}


class Role(NamedTuple):
    """What a network is for: the section that describes it, the fields there that name it (one of
    `kinds`, or a user's own class, `file.py:Class`) and say how it pads, those that it may have,
    and how it is called.
    """

    section: str
    name: str
    padding: str
    fields: tuple[str, ...]
    kinds: tuple[str, ...]
    call: str


_WIDE = ('channels', 'blocks', 'fold', 'head', 'norm', 'attention', 'global_convolution', 'dropout')
_ICNN = ('filters', 'layers', 'reduction')
SCORE = Role('score', 'network', 'padding', _WIDE, ('unet',), '(x, label, *, train=False)')
F = Role('mirror', 'inverse', 'inverse_padding', _WIDE, ('unet', 'resnet'), '(z, *, train=False)')
G = Role('mirror', 'forward', 'forward_padding', _ICNN, ('icnn', 'resnet', 'identity'), '(x)')


def _kind(config: ConfigDict, role: Role) -> Any:
    """Returns the class of modules that the config names for a role."""
    name = config[role.section][role.name]
    field = f'{role.section}.{role.name}'
    if ':' not in name:
        kinds = NETWORKS | {'identity': NETWORKS['icnn']}  # an identity asks no network
        return choose(field, name, {kind: kinds[kind] for kind in role.kinds})
    kind = load_function(name)
    fields_of(kind)  # raises for anything but a class of modules
    arguments = inspect.signature(kind.__call__).parameters
    if 'train' in role.call and 'train' not in arguments:
        got = ', '.join(arguments)
        raise ValueError(f'{field}={name}: got __call__({got}), expected the arguments {role.call}')
    return kind


def check_networks(config: ConfigDict, preset: ConfigDict) -> None:
    """Raises a ValueError if a field of a network is not that of the preset, and the network has no
    such field: nothing that a user says is ignored in silence.
    """
    for role in (SCORE, F, G):
        section = config[role.section]
        default = preset[role.section]
        own = fields_of(_kind(config, role))
        lost = [k for k in role.fields if k not in own and plain(section[k]) != plain(default[k])]
        if lost:
            names = ', '.join(f'{role.section}.{k}' for k in lost)
            got = ', '.join(str(section[k]) for k in lost)
            raise ValueError(
                f'{names}: got {got}, but {role.section}.{role.name}={section[role.name]} has no '
                'such field; leave it out, or take another network'
            )


def _network(config: ConfigDict, role: Role, **shared: Any) -> Any:
    """Returns the network of a role, with those of its section's fields, of `shared`, and of what
    the data and the training say, that its class has.
    """
    section = config[role.section]
    problem = make_problem(config)
    field = f'{role.section}.{role.padding}'
    periodic = choose(field, section[role.padding], PADDINGS)(problem.periodic)
    cell = tuple(n if wraps else 1 for n, wraps in zip(problem.cell, periodic, strict=True))
    dtype = choose('train.compute_dtype', config.train.compute_dtype, DTYPES)
    values = {name: plain(section[name]) for name in role.fields} | shared
    values |= {'periodic': periodic, 'cell': cell, 'remat': config.train.remat, 'dtype': dtype}
    kind = _kind(config, role)
    own = fields_of(kind)
    try:
        return make_network(kind, **{name: v for name, v in values.items() if name in own})
    except ValueError as error:
        raise ValueError(f'{role.section}.{role.name}={section[role.name]}: {error}') from error


def make_score(config: ConfigDict) -> Any:
    """Returns the network of both diffusion models."""
    return _network(config, SCORE)


def make_inverse(config: ConfigDict) -> Any:
    """Returns the network of f."""
    return _network(config, F)


def make_forward(config: ConfigDict) -> Any:
    """Returns the network of g; a ResNet (for ablations) has the sizes of f's first resolution."""
    section = config.mirror
    shared = {}
    if section.forward == 'resnet':
        channels = plain(section.channels)[:1]
        shared = dict(channels=channels, blocks=section.blocks, dropout=section.dropout)
    return _network(config, G, **shared)


# What makes g of its network, if not the gradient.
FORWARD_MAPS = {'resnet': mirror.network_map, 'identity': mirror.unchanged}


def _learned_map(config: ConfigDict) -> MirrorMap:
    section = config.mirror
    networks = make_forward(config), make_inverse(config)
    settings = dict(strong_convexity=section.strong_convexity, output=section.output)
    forward_map = FORWARD_MAPS.get(section.forward, gradient_map)
    return mirror.neural_mirror_map(*networks, **settings, forward_map=forward_map)


# The learned one comes first: the others have no parameters, and neither `mirror` nor `finetune`.
MAPS: dict[str, Callable[[ConfigDict], MirrorMap]] = {
    'namm': _learned_map,
    'identity': lambda config: mirror.identity_map(),
    'box': lambda config: mirror.box_map(0.0, 1.0, floor=config.mirror.floor),
    'simplex': lambda config: mirror.simplex_map(_total(config), floor=config.mirror.floor),
}


def _total(config: ConfigDict) -> float:
    if 'total' in config.data:
        return make_problem(config).total
    got = f'simplex for {config.data.problem}, whose fields have no total'
    raise UserError(f'mirror.map: got {got}, expected namm, identity or box')


def check_map(config: ConfigDict, data: Callable[[], np.ndarray]) -> None:
    """Raises a UserError unless data, which others do not need, are in the set of a closed form."""
    sets = {'box': (0.0, 1.0), 'simplex': (0.0, math.inf)}
    if config.mirror.map not in sets:
        return
    (least, most), x = sets[config.mirror.map], data()
    low, high = float(x.min()), float(x.max())
    if low < least - ROUNDING or high > most + ROUNDING:
        raise UserError(
            f'mirror.map: got {config.mirror.map} for data from {low:.4g} to {high:.4g}, expected '
            f'numbers from {least:g} to {most:g}; rescale them, or take namm'
        )


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
    section = config.mirror
    networks = make_forward(config), make_inverse(config)
    settings = section.strong_convexity, section.output, make_problem(config).units
    return mirror.Mirror(params, *networks, *settings)


def optimizer_of(
    section: ConfigDict, steps: int, mask: Callable[[Params], PyTree] | None = None
) -> Any:
    """Returns the optimizer of a section, its schedule `steps` long; `mask: params -> booleans`
    says which stay non-negative.
    """
    settings = {name: value for name, value in section.to_dict().items() if name != 'ema'}
    return make_optimizer(steps, mask=mask, **settings)


def mirror_init(config: ConfigDict) -> Callable[[Key], Params]:
    """Returns the initialisation of the mirror map's parameters."""
    mirror_map = make_mirror(config)
    shape = make_problem(config).shape
    return lambda key: mirror_map.init(key, jnp.zeros((1, *shape)))


def _loss(config: ConfigDict, section: ConfigDict, unit: float) -> dict[str, Any]:
    """Returns the settings of the mirror map's loss; noise law and weight of the rule are a
    stage's own.
    """
    of_map = ('lambda_cycle', 'lambda_reg', 'strong_convexity')
    settings = {name: config.mirror[name] for name in of_map}
    settings |= {name: section[name] for name in ('sigma_max', 'sigma_power')}
    units = make_problem(config).units
    return settings | {'lambda_constr': section.lambda_constr / unit, 'units': units}


def mirror_task(config: ConfigDict, steps: int, constraint: Constraint, unit: float = 1.0) -> Task:
    """Returns the training of the mirror map, both networks; the set M is of standardised fields,
    its distance in this unit, and its shapes are enough for `init`.
    """
    optimizers = {
        'forward': optimizer_of(config.mirror.optimizer, steps, nonnegative_mask),
        'inverse': optimizer_of(config.mirror.optimizer, steps),
    }
    of = make_mirror(config), make_problem(config).shape, constraint, optimizers
    return recipes.namm_task(*of, **_loss(config, config.mirror, unit))


def finetune_task(
    config: ConfigDict,
    steps: int,
    constraint: Constraint,
    unit: float,
    params: Params,
    moments: PyTree,
) -> Task:
    """Returns the finetuning of f, from the mirror map's parameters and the moments of f's gradient
    (`optimizers.moments_of`); constraint and unit as of `mirror_task`.
    """
    optimizer = continued(optimizer_of(config.finetune.optimizer, steps), moments)
    of = make_mirror(config), params, constraint, optimizer
    return recipes.finetune_task(*of, **_loss(config, config.finetune, unit))


def make_denoiser(
    config: ConfigDict, params: Params, mean: Array | float, std: Array | float, *level: Array
) -> Denoiser:
    """Returns the denoiser of a diffusion model trained on data of this mean and std, scalars; of
    one that is conditioned on a level `(b,)`, given that; a user's own denoiser as it is.
    """
    if callable(params):
        return params
    network = make_score(config)
    score = lambda x, label: recipes.score(network, params, x, label, *level)
    name = config.score.parameterisation
    return make_parameterisation(name, mean=mean, std=std).denoiser(score)


def external_denoiser(config: ConfigDict) -> Denoiser:
    """Returns the trained denoiser that a user brings, `(x, sigma) -> E[x_0 | x]` in the units of
    the data, as one of standardised fields.

    Raises:
        ValueError: if it does not return fields like x, or noise of one level for all channels is
            not one level of standardised fields.
    """
    problem = make_problem(config)
    mean, scale = problem.units
    if len(set(np.ravel(scale).tolist())) > 1:
        raise UserError(
            f'score.external: got data of the scales {scale}, expected one for all channels, as '
            'the noise of a denoiser has: --redo=data takes their root mean square'
        )
    moments = dict(mean=np.float32(mean), std=float(np.ravel(scale)[0]))
    return prior(load_function(config.score.external), problem.shape, **moments).standard


def denoising_task(config: ConfigDict, steps: int, mean: Array | float, std: Array | float) -> Task:
    """Returns the training of a diffusion model, DM or MDM, on data of this mean and std."""
    network, shape, optimizer, options = _denoising(config, steps)
    return recipes.denoising_task(network, shape, optimizer, mean=mean, std=std, **options)


def _denoising(config: ConfigDict, steps: int) -> tuple[Any, Any, Any, dict[str, str]]:
    """Returns what both denoising tasks take of the config: network, shape, optimizer, options."""
    options = {name: config.score[name] for name in ('parameterisation', 'reduction')}
    optimizer = optimizer_of(config.score.optimizer, steps)
    return make_score(config), make_problem(config).shape, optimizer, options


def conditioned_task(
    config: ConfigDict, steps: int, mean: Array | float, std: Array | float, params: Params = None
) -> Task:
    """Returns the training on of the DM that is told a field's level, from its parameters."""
    network, shape, optimizer, options = _denoising(config, steps)
    options |= {'mean': mean, 'std': std, 'unlabelled': config.condition.unlabelled}
    return recipes.conditioned_task(network, shape, params or {}, optimizer, **options)


def takes_level(config: ConfigDict) -> bool:
    """Returns whether the DM can be told a level, as a network of a user's own need not."""
    arguments = inspect.signature(_kind(config, SCORE).__call__).parameters
    return not config.score.external and 'level' in arguments
