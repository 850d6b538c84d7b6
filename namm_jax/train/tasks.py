"""From a config to the objects of an experiment, and to the tasks that are trained: mirror,
finetune, mdm, dm.

Every value is checked by the function that takes it. Nothing here computes until it is called with
arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax import closed_form, constraints, mirror
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
from namm_jax.networks.counter import Counter, DensityCounter
from namm_jax.networks.icnn import ICNN, REDUCTIONS, gradient_map, nonnegative_mask
from namm_jax.networks.resnet import ResNet
from namm_jax.networks.unet import NORMS, UNet
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


# The other of the two counts beside the constraint's, to see samples that fool it.
COUNTERS: dict[str, Callable[[ConfigDict], Any]] = {
    'density': lambda section: DensityCounter(tuple(section.channels), section.convolutions),
    'dense': lambda section: Counter(filters=tuple(section.filters), hidden=section.hidden),
}


def make_counters(config: ConfigDict) -> dict[str, Any]:
    """Returns both counting networks of the config: `counter`, which the constraint holds, and
    `second`.
    """
    own = config.counter.network
    builders = {'counter': choose('counter.network', own, COUNTERS)}
    builders['second'] = next(build for name, build in COUNTERS.items() if name != own)
    return {name: build(config.counter) for name, build in builders.items()}


def _check_fold(what: str, section: ConfigDict, shape: tuple[int, int, int]) -> None:
    factor = section.fold * 2 ** (len(section.channels) - 1)
    if any(size % factor for size in shape[:2]):
        raise ValueError(
            f'{what}: got fields of {shape[0]}x{shape[1]} pixels, expected multiples of {factor}, '
            f'which fold = {section.fold} and {len(section.channels)} resolutions need; use fewer '
            'channels or another grid'
        )


def _unet(what: str, section: ConfigDict, config: ConfigDict, padding: str) -> UNet:
    family = make_family(config)
    choose(f'{what}.norm', section.norm, NORMS)
    _check_fold(what, section, family.shape)
    periodic = choose(f'{what} padding', padding, PADDINGS)(family.periodic)
    return UNet(
        channels=tuple(section.channels),
        blocks=section.blocks,
        fold=section.fold,
        head=section.head,
        periodic=periodic,
        cell=tuple(n if wraps else 1 for n, wraps in zip(family.cell, periodic, strict=True)),
        norm=section.norm,
        attention=section.attention,
        global_convolution=section.global_convolution,
        dropout=section.dropout,
        remat=config.train.remat,
        dtype=choose('train.compute_dtype', config.train.compute_dtype, DTYPES),
    )


def _unet_inverse(config: ConfigDict) -> UNet:
    return _unet('mirror', config.mirror, config, config.mirror.inverse_padding)


def _resnet(config: ConfigDict, padding: str) -> ResNet:
    return ResNet(
        filters=config.mirror.channels[0],
        blocks=config.mirror.blocks,
        dropout=config.mirror.dropout,
        periodic=choose('mirror padding', padding, PADDINGS)(make_family(config).periodic),
        remat=config.train.remat,
        dtype=choose('train.compute_dtype', config.train.compute_dtype, DTYPES),
    )


INVERSES = {
    'unet': _unet_inverse,
    'resnet': lambda config: _resnet(config, config.mirror.inverse_padding),
}


def _learned_map(config: ConfigDict) -> MirrorMap:
    section = config.mirror
    network, forward_map = choose('mirror.forward', section.forward, FORWARDS)
    return mirror.neural_mirror_map(
        network(config),
        choose('mirror.inverse', section.inverse, INVERSES)(config),
        strong_convexity=section.strong_convexity,
        output=section.output,
        forward_map=forward_map,
    )


def _icnn(config: ConfigDict) -> ICNN:
    section = config.mirror
    choose('mirror.reduction', section.reduction, REDUCTIONS)
    return ICNN(
        filters=section.filters,
        layers=section.layers,
        periodic=choose('mirror.forward_padding', section.forward_padding, PADDINGS)(
            make_family(config).periodic
        ),
        reduction=section.reduction,
    )


# Networks of g, and what makes g of them.
FORWARDS = {
    'icnn': (_icnn, gradient_map),
    'resnet': (lambda config: _resnet(config, config.mirror.forward_padding), mirror.network_map),
    'identity': (_icnn, mirror.unchanged),
}


def _simplex_map(config: ConfigDict) -> MirrorMap:
    return closed_form.simplex_map(make_family(config).problem.total, floor=config.mirror.floor)


# The learned one comes first: the others have no parameters, and neither `mirror` nor `finetune` to
# train.
MAPS: dict[str, Callable[[ConfigDict], MirrorMap]] = {
    'namm': _learned_map,
    'identity': lambda config: mirror.identity_map(),
    'box': lambda config: closed_form.box_map(0.0, 1.0, floor=config.mirror.floor),
    'simplex': _simplex_map,
}


def make_mirror(config: ConfigDict) -> MirrorMap:
    """Returns the mirror map of the config."""
    return choose('mirror.map', config.mirror.map, MAPS)(config)


def learns_map(config: ConfigDict) -> bool:
    """Returns whether the mirror map is learned, by the stages `mirror` and `finetune`."""
    return config.mirror.map == next(iter(MAPS))


def make_score(config: ConfigDict) -> UNet:
    """Returns the network of both diffusion models."""
    return _unet('score', config.score, config, config.score.padding)


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
    network, rngs = make_score(config), None if train_key is None else {'dropout': train_key}
    return make_parameterisation(config, mean, std).denoiser(
        lambda x, label: network.apply(
            {'params': params}, x, label, train=train_key is not None, rngs=rngs
        )
    )


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
