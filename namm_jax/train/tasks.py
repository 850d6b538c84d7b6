"""From a config to the objects of an experiment, and to the tasks that are trained: mirror, finetune, mdm, dm.

Every value is checked by the function that takes it. Nothing here computes until it is called with arrays.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax import constraints, diffusion, layout, mirror
from namm_jax.choices import choose
from namm_jax.data.burgers import sample_burgers
from namm_jax.networks.icnn import ICNN, REDUCTIONS, nonnegative_mask
from namm_jax.networks.resnet import ResNet
from namm_jax.networks.unet import NORMS, UNet
from namm_jax.pdes import BurgersProblem
from namm_jax.train.state import continued, per_network
from namm_jax.types import Constraint, Key, Metrics, MirrorMap, Parameterisation, Params, Task


class Family(NamedTuple):
    """A family of data.

    Attributes:
        problem: what the fields solve.
        sample: `keys (n,) -> fields (n, h, w, c)`.
        shape: `(h, w, c)` of a field.
        periodic: which of the two spatial axes wrap.
        spatial_axes: axes of a batch along which the energy spectrum is taken.
        residual_map: `residual -> images (n, h', w')` to look at, oriented as the fields are.
    """

    problem: Any
    sample: Callable[[Key], Array]
    shape: tuple[int, int, int]
    periodic: tuple[bool, bool]
    spatial_axes: tuple[int, ...]
    residual_map: Callable[[Array], Array]


def burgers_family(config: ConfigDict) -> Family:
    """Returns the family of Burgers fields: rows are space, periodic, and columns are time, which is not."""
    data = config.data
    problem = BurgersProblem(
        points=data.points,
        states=data.states,
        inner_steps=data.inner_steps,
        dt=data.dt,
        mu=data.mu,
        nu=data.nu,
        length=data.length,
        stepper=config.constraint.stepper,
    )
    sample = lambda keys: sample_burgers(keys, problem=problem)
    residual_map = lambda residual: layout.states_to_image(residual)[..., 0]
    return Family(problem, sample, (data.points, data.states, 1), (True, False), (1,), residual_map)


FAMILIES = {'burgers': burgers_family}
PADDINGS = {'periodic': lambda axes: axes, 'circular': lambda axes: (True, True), 'zeros': lambda axes: (False, False)}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def make_family(config: ConfigDict) -> Family:
    """Returns the family of data that the config names."""
    return choose('data.family', config.data.family, FAMILIES)(config)


def make_constraint(config: ConfigDict) -> Constraint:
    """Returns the constraint that the config names, for its family's problem."""
    return constraints.make_constraint(config.constraint.name, problem=make_family(config).problem)


def _check_fold(what: str, section: ConfigDict, shape: tuple[int, int, int]) -> None:
    factor = section.fold * 2 ** (len(section.channels) - 1)
    if any(size % factor for size in shape[:2]):
        raise ValueError(
            f'{what}: got fields of {shape[0]}x{shape[1]} pixels, expected multiples of {factor}, which '
            f'fold = {section.fold} and {len(section.channels)} resolutions need; use fewer channels or another grid'
        )


def _unet(what: str, section: ConfigDict, config: ConfigDict, padding: str) -> UNet:
    family = make_family(config)
    choose(f'{what}.norm', section.norm, NORMS)
    _check_fold(what, section, family.shape)
    return UNet(
        channels=tuple(section.channels),
        blocks=section.blocks,
        fold=section.fold,
        head=section.head,
        periodic=choose(f'{what} padding', padding, PADDINGS)(family.periodic),
        norm=section.norm,
        attention=section.get('attention', False),
        dropout=section.dropout,
        dtype=choose('train.compute_dtype', config.train.compute_dtype, DTYPES),
    )


def _unet_inverse(config: ConfigDict) -> UNet:
    return _unet('mirror', config.mirror, config, config.mirror.inverse_padding)


def _resnet_inverse(config: ConfigDict) -> ResNet:
    return ResNet(
        filters=config.mirror.channels[0],
        blocks=config.mirror.blocks,
        dropout=config.mirror.dropout,
        periodic=choose('mirror.inverse_padding', config.mirror.inverse_padding, PADDINGS)(
            make_family(config).periodic
        ),
        dtype=choose('train.compute_dtype', config.train.compute_dtype, DTYPES),
    )


INVERSES = {'unet': _unet_inverse, 'resnet': _resnet_inverse}


def make_mirror(config: ConfigDict) -> MirrorMap:
    """Returns the mirror map of the config."""
    section = config.mirror
    choose('mirror.reduction', section.reduction, REDUCTIONS)
    forward = ICNN(
        filters=section.filters,
        layers=section.layers,
        periodic=choose('mirror.forward_padding', section.forward_padding, PADDINGS)(make_family(config).periodic),
        reduction=section.reduction,
    )
    inverse = choose('mirror.inverse', section.inverse, INVERSES)(config)
    return mirror.neural_mirror_map(forward, inverse, strong_convexity=section.strong_convexity, output=section.output)


def make_score(config: ConfigDict) -> UNet:
    """Returns the network of both diffusion models."""
    return _unet('score', config.score, config, config.score.padding)


def make_parameterisation(config: ConfigDict, mean: Array | float, std: Array | float) -> Parameterisation:
    """Returns the parameterisation of the config, for data of this mean and standard deviation."""
    return diffusion.make_parameterisation(config.score.parameterisation, mean=mean, std=std)


def learning_rate(section: ConfigDict, steps: int) -> optax.Schedule:
    """Returns the warm-up and decay of an optimizer section over so many steps."""
    warmup = round(section.warmup * steps)
    decays = {
        'cosine': lambda: optax.cosine_decay_schedule(section.learning_rate, max(1, steps - warmup)),
        'constant': lambda: optax.constant_schedule(section.learning_rate),
    }
    decay = choose('optimizer.decay', section.decay, decays)()
    return optax.join_schedules([optax.linear_schedule(0.0, section.learning_rate, max(1, warmup)), decay], [warmup])


def make_optimizer(section: ConfigDict, steps: int, mask: Callable[[Params], PyTree] | None = None) -> Any:
    """Returns clipping, Adam, the learning rate, and last the projection that keeps masked parameters non-negative.

    Args:
        section: an optimizer section of the config.
        steps: the length of the schedule.
        mask: `params -> tree of booleans`, or None for no projection.

    Raises:
        ValueError: if a value is out of range.
    """
    decays = {name: section[name] for name in ('b1', 'b2', 'ema')}
    if not (0 < section.learning_rate < math.inf and 0 <= section.warmup <= 1 and 0 <= section.clip < math.inf):
        raise ValueError(
            f'got learning_rate {section.learning_rate}, warmup {section.warmup}, clip {section.clip}; '
            'expected learning_rate > 0, warmup in [0, 1], clip >= 0, all finite'
        )
    if not all(0 <= decay < 1 for decay in decays.values()):
        raise ValueError(f'got {decays}, expected numbers in [0, 1)')
    chain = [optax.clip_by_global_norm(section.clip)] if section.clip else []
    chain += [optax.scale_by_adam(section.b1, section.b2), optax.scale_by_learning_rate(learning_rate(section, steps))]
    if mask is not None:
        chain.append(optax.masked(optax.keep_params_nonnegative(), mask))
    return optax.chain(*chain)


def _mirror_loss(config: ConfigDict, section: ConfigDict) -> Callable[..., tuple[Array, Metrics]]:
    """Returns the loss of the mirror map, noise law and constraint weight from a stage's own section."""
    mirror_map, of_map = make_mirror(config), ('lambda_cycle', 'lambda_reg', 'strong_convexity')
    weights = {name: config.mirror[name] for name in of_map}
    weights |= {name: section[name] for name in ('sigma_max', 'sigma_power', 'lambda_constr')}

    def loss(params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool) -> tuple[Array, Metrics]:
        everything = frozen['params'] | params
        x, z, constraint = batch['x'], batch.get('z'), frozen['constraint']
        return mirror.namm_loss(mirror_map, everything, key, x, constraint, z, train=train, **weights)

    return loss


def mirror_task(config: ConfigDict, steps: int) -> Task:
    """Returns the training of the mirror map: both networks, batches `{'x': data}`."""
    optimizers = {
        'forward': make_optimizer(config.mirror.optimizer, steps, nonnegative_mask),
        'inverse': make_optimizer(config.mirror.optimizer, steps),
    }
    mirror_map, shape = make_mirror(config), make_family(config).shape
    return Task(
        init=jax.jit(lambda key: mirror_map.init(key, jnp.zeros((1, *shape)))),
        loss=_mirror_loss(config, config.mirror),
        optimizer=per_network(optimizers),
        frozen={'params': {}, 'constraint': make_constraint(config)},
    )


def finetune_task(config: ConfigDict, steps: int, params: Params, moments: PyTree) -> Task:
    """Returns the finetuning of f: the mirror task with g frozen, batches `{'x': data, 'z': mirror samples}`.

    Args:
        config: the config.
        steps: the number of steps.
        params: the trained mirror map's `{'forward', 'inverse'}`.
        moments: the Adam moments of f to go on from, `state.adam_moments`.
    """
    optimizer = continued(make_optimizer(config.finetune.optimizer, steps), moments)
    return Task(
        init=lambda key: {'inverse': jax.tree.map(jnp.copy, params['inverse'])},
        loss=_mirror_loss(config, config.finetune),
        optimizer=per_network({'inverse': optimizer}),
        frozen={'params': {'forward': params['forward']}, 'constraint': make_constraint(config)},
    )


def bind_score(network: UNet, params: Params, train_key: Key | None = None) -> Callable[[Array, Array], Array]:
    """Returns `(x, label (b,)) -> like x`; a key switches dropout on."""
    rngs = None if train_key is None else {'dropout': train_key}
    return lambda x, label: network.apply({'params': params}, x, label, train=train_key is not None, rngs=rngs)


def denoising_task(config: ConfigDict, steps: int, mean: Array | float, std: Array | float) -> Task:
    """Returns the training of a diffusion model, batches `{'x': data or mirror points}`: dm and mdm are the same.

    Args:
        config: the config.
        steps: the number of steps.
        mean: mean of the training set, a scalar.
        std: its standard deviation, a scalar.
    """
    network, shape = make_score(config), make_family(config).shape

    def loss(params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool) -> tuple[Array, Metrics]:
        key_loss, key_dropout = jax.random.split(key)
        parameterisation = make_parameterisation(config, frozen['mean'], frozen['std'])
        denoiser = parameterisation.denoiser(bind_score(network, params, key_dropout if train else None))
        return diffusion.denoising_loss(
            denoiser, parameterisation, key_loss, batch['x'], reduction=config.score.reduction
        )

    return Task(
        init=jax.jit(lambda key: network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))['params']),
        loss=loss,
        optimizer=make_optimizer(config.score.optimizer, steps),
        frozen={'mean': jnp.asarray(mean, jnp.float32), 'std': jnp.asarray(std, jnp.float32)},
    )
