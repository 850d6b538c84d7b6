"""What is trained: the tasks `namm`, `finetune` and `diffusion`, and their recipes for `fit`.

Losses see standardised fields, `(x - mean) / scale` with the units of the data; batches, and what
`fit` returns, are in the user's units.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from namm_jax import mirror
from namm_jax._arrays import Constraint, Key, Loss, Metrics, MirrorMap, Params, Task, to_standard
from namm_jax._checks import check_function, check_kind, check_within, choose
from namm_jax.constraints.base import as_rule, standardised
from namm_jax.denoising.denoisers import denoising_loss, make_parameterisation
from namm_jax.denoising.prior import NetworkDenoiser, Prior
from namm_jax.networks import output_like
from namm_jax.networks.icnn import ICNN, nonnegative_mask
from namm_jax.networks.unet import UNet
from namm_jax.problems.base import Problem
from namm_jax.training.fit import Recipe
from namm_jax.training.optimizers import Transform, make_optimizer, per_network

Shape = tuple[int, int, int]
Units = tuple[Any, Any]  # mean and scale of the data, a number or one a channel each
UNITLESS: Units = (0.0, 1.0)
MODULES = 'instances of Flax modules, which have parameters alone'


def _mirror_loss(mirror_map: MirrorMap, units: Units, weights: Mapping[str, float]) -> Loss:
    check_within('[0, inf)', **weights)

    def loss(
        params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool
    ) -> tuple[Array, Metrics]:
        params = frozen['params'] | params
        x = to_standard(batch['x'], *units)
        rule = frozen['constraint']
        z = batch.get('z')
        return mirror.namm_loss(mirror_map, params, key, x, rule, z, train=train, **weights)

    return loss


def namm_task(
    mirror_map: MirrorMap,
    shape: Shape,
    constraint: Constraint,
    optimizers: Mapping[str, Transform],
    *,
    units: Units = UNITLESS,
    **weights: float,
) -> Task:
    """Returns the training of the mirror map, g and f together, on batches `{'x': data}`.

    Args:
        mirror_map, constraint: of standardised fields, `(x - mean) / scale` with `units`.
        optimizers: of g and f, `{'forward': ..., 'inverse': ...}`.
        **weights: of `mirror.namm_loss`, >= 0.
    """
    return Task(
        init=jax.jit(lambda key: mirror_map.init(key, jnp.zeros((1, *shape)))),
        loss=_mirror_loss(mirror_map, units, weights),
        optimizer=per_network(optimizers),
        frozen={'params': {}, 'constraint': constraint},
    )


def finetune_task(
    mirror_map: MirrorMap,
    params: Params,
    constraint: Constraint,
    optimizer: Transform,
    *,
    units: Units = UNITLESS,
    **weights: float,
) -> Task:
    """Returns the training of f alone, on batches `{'x': data, 'z': samples in mirror space}`.

    Args as of `namm_task`, with the `params` of the trained map and the optimizer of f.
    """
    return Task(
        init=lambda key: {'inverse': jax.tree.map(jnp.copy, params['inverse'])},
        loss=_mirror_loss(mirror_map, units, weights),
        optimizer=per_network({'inverse': optimizer}),
        frozen={'params': {'forward': params['forward']}, 'constraint': constraint},
    )


def score(
    network: Any, params: Params, x: Array, *of: Array, dropout_key: Key | None = None
) -> Array:
    """Returns the output of a score network, as of `networks.output_like`, given a label and, of
    a network that takes one, a level.
    """
    return output_like('score network', network, params, x, *of, dropout_key=dropout_key)


def _denoising(
    network: Any,
    params: Params,
    frozen: PyTree,
    keys: tuple[Key, Key | None],
    x: Array,
    *level: Array,
    parameterisation: str,
    reduction: str,
) -> tuple[Array, Metrics]:
    """Returns the denoising loss of a network on standardised points, by keys of noise and dropout;
    of one that takes a level, given theirs. `frozen` holds the `_moments`.
    """
    key, dropout_key = keys
    of = make_parameterisation(parameterisation, mean=frozen['mean'], std=frozen['std'])
    output = lambda u, label: score(network, params, u, label, *level, dropout_key=dropout_key)
    return denoising_loss(of.denoiser(output), of, key, x, reduction=reduction)


def _moments(mean: Array | float, std: Array | float) -> PyTree:
    return {'mean': jnp.asarray(mean, jnp.float32), 'std': jnp.asarray(std, jnp.float32)}


def denoising_task(
    network: Any,
    shape: Shape,
    optimizer: Transform,
    *,
    mean: Array | float = 0.0,
    std: Array | float = 1.0,
    parameterisation: str = 'edm',
    reduction: str = 'mean',
    units: Units = UNITLESS,
) -> Task:
    """Returns the training of a diffusion model, of data or of mirror points, `{'x': points}`.

    Args:
        network: a Flax module `(x, label, *, train) -> like x`.
        mean, std: of the standardised training set, scalars.
        parameterisation, reduction: keys of `PARAMETERISATIONS`, `REDUCTIONS` in `denoisers`.
        units: mean and scale by which the training set is standardised.
    """
    options = dict(parameterisation=parameterisation, reduction=reduction)
    of_points = functools.partial(_denoising, network, **options)

    def loss(
        params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool
    ) -> tuple[Array, Metrics]:
        key_loss, key_dropout = jax.random.split(key)
        keys = key_loss, key_dropout if train else None
        return of_points(params, frozen, keys, to_standard(batch['x'], *units))

    return Task(
        init=jax.jit(lambda key: network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))['params']),
        loss=loss,
        optimizer=optimizer,
        frozen=_moments(mean, std),
    )


def conditioned_task(
    network: Any,
    shape: Shape,
    params: Params,
    optimizer: Transform,
    *,
    mean: Array | float = 0.0,
    std: Array | float = 1.0,
    parameterisation: str = 'edm',
    reduction: str = 'mean',
    unlabelled: float = 0.2,
) -> Task:
    """Returns the training on of a diffusion model that is told how far a field is from a rule.

    Batches are `{'x': data, 'z': samples of the model, 'level': theirs (b,)}`, standardised, of
    which half are data, of level 0.

    Args:
        network: a Flax module `(x, label, level, *, train) -> like x`, to which a level below 0 is
            none, and at first any.
        params: of the model.
        unlabelled: part of a batch that has no level, for classifier-free guidance.
        Others are those of `denoising_task`.
    """
    check_within('[0, 1)', unlabelled=unlabelled)
    options = dict(parameterisation=parameterisation, reduction=reduction)
    of_points = functools.partial(_denoising, network, **options)

    def loss(
        params: Params, frozen: PyTree, key: Key, batch: PyTree, *, train: bool
    ) -> tuple[Array, Metrics]:
        key_loss, key_dropout, key_level = jax.random.split(key, 3)
        half = len(batch['x']) // 2
        x = jnp.concatenate([batch['x'][:half], batch['z'][half:]])
        level = jnp.where(jnp.arange(len(x)) < half, 0, batch['level'])
        level = jnp.where(jax.random.bernoulli(key_level, unlabelled, level.shape), -1, level)
        return of_points(params, frozen, (key_loss, key_dropout if train else None), x, level)

    def init(key: Key) -> Params:
        started = network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1))['params']
        return started | jax.tree.map(jnp.copy, params)

    return Task(jax.jit(init), loss, optimizer, _moments(mean, std))


def namm(
    problem: Problem,
    *,
    constraint: Constraint | Callable[..., Any] | None = None,
    forward: Any = None,
    inverse: Any = None,
    strong_convexity: float = 0.9,
    output: str = 'residual',
    sigma_max: float = 0.1,
    sigma_power: float = 2.0,
    lambda_cycle: float = 1.0,
    lambda_constr: float = 5.0,
    lambda_reg: float = 1e-3,
    batch_size: int = 8,
    ema: float = 0.999,
    optimizer: Mapping[str, Any] | None = None,
) -> Recipe:
    """Returns the recipe of a neural approximate mirror map, which `fit` makes a `Mirror` of.

    Args:
        problem: the data and their rule.
        constraint: the rule, or its distance `x -> (b,)`; the problem's own unless given.
        forward: the input-convex network of g, `x (b, h, w, c) -> (b,)`; an `ICNN` unless given.
        inverse: the network of f, `(z, *, train=False) -> like z`; a `UNet` unless given.
        strong_convexity: a in `g(x) = (1 - a) grad ICNN(x) + a x`, in (0, 1].
        output: a key of `mirror.OUTPUTS`; `centred` for a rule on the sum of the pixels.
        sigma_max, sigma_power: law of the noise in mirror space, as of `mirror.add_noise`, in
            standard deviations of the data where the problem has units.
        lambda_cycle, lambda_constr, lambda_reg: weights of the cycle terms, the rule's distance
            (per the problem's unit of it) and the regularisation.
        batch_size, ema: samples a step, and decay of the parameters' average, in [0, 1).
        optimizer: arguments of `optimizers.make_optimizer`.

    Reference: Feng, Baptista & Bouman, ICLR 2025, arXiv 2406.12816.
    """
    check_kind('problem', problem, Problem, 'nj.problem')
    forward = forward or ICNN(filters=16, layers=2, periodic=problem.periodic)
    inverse = inverse or _unet(problem, norm='none')
    of_map = dict(strong_convexity=strong_convexity, output=output)
    mirror_map = mirror.neural_mirror_map(forward, inverse, **of_map)
    key = jax.random.key(0)
    init = lambda x: mirror_map.init(key, x)
    cycle = lambda x: mirror_map.inverse(init(x), mirror_map.forward(init(x), x), key)
    expected = f'{MODULES}, x -> (b,) and (z, *, train=False) -> like z'
    check_function('forward, inverse', cycle, expected, jnp.zeros((2, *problem.shape)))
    units = (problem.mean, problem.scale)
    check_within('[0, inf)', sigma_max=sigma_max, lambda_constr=lambda_constr)
    rule = standardised(as_rule(constraint or problem.constraint()), *units)
    weights = dict(sigma_max=sigma_max, sigma_power=sigma_power, lambda_cycle=lambda_cycle)
    weights |= dict(lambda_reg=lambda_reg, lambda_constr=lambda_constr / problem.unit)
    weights |= dict(strong_convexity=strong_convexity)
    settings = _settings(optimizer, warmup=0.1)

    def task(arrays: Mapping[str, Array], steps: int) -> Task:
        masks = {'forward': nonnegative_mask, 'inverse': None}
        optimizers = {name: make_optimizer(steps, mask=m, **settings) for name, m in masks.items()}
        return namm_task(mirror_map, problem.shape, rule, optimizers, units=units, **weights)

    def result(params: Params, frozen: PyTree, held: Mapping[str, Array]) -> mirror.Mirror:
        return mirror.Mirror(params, forward, inverse, **of_map, units=units)

    return Recipe(task, result, problem.shape, batch_size, ema)


def finetune(
    problem: Problem,
    fitted: mirror.Mirror,
    z: Array,
    *,
    constraint: Constraint | Callable[..., Any] | None = None,
    sigma_max: float = 0.1,
    sigma_power: float = 3.0,
    lambda_cycle: float = 1.0,
    lambda_constr: float = 5.0,
    batch_size: int = 8,
    ema: float = 0.999,
    optimizer: Mapping[str, Any] | None = None,
) -> Recipe:
    """Returns the recipe of finetuning: f learns on samples of the mirror diffusion model.

    Args as of `namm`; of the mirror map `fitted`, g stays as it is; z are samples `(m, h, w, c)` of
    the prior in mirror space.
    """
    check_kind('fitted', fitted, mirror.Mirror, 'nj.fit of nj.namm')
    check_within('[0, inf)', sigma_max=sigma_max, lambda_constr=lambda_constr)
    rule = standardised(as_rule(constraint or problem.constraint()), *fitted.units)
    weights = dict(sigma_max=sigma_max, sigma_power=sigma_power, lambda_cycle=lambda_cycle)
    weights |= dict(lambda_constr=lambda_constr / problem.unit, lambda_reg=0.0)
    weights |= dict(strong_convexity=fitted.strong_convexity)
    settings = _settings(optimizer, learning_rate=1e-3, warmup=0.1)

    def task(arrays: Mapping[str, Array], steps: int) -> Task:
        of = fitted.map, fitted.params, rule, make_optimizer(steps, **settings)
        return finetune_task(*of, units=fitted.units, **weights)

    def result(params: Params, frozen: PyTree, held: Mapping[str, Array]) -> mirror.Mirror:
        return dataclasses.replace(fitted, params=fitted.params | params)

    return Recipe(task, result, problem.shape, batch_size, ema, {'z': z})


def diffusion(
    problem: Problem,
    *,
    network: Any = None,
    parameterisation: str = 'edm',
    reduction: str = 'mean',
    batch_size: int = 16,
    ema: float = 0.999,
    optimizer: Mapping[str, Any] | None = None,
) -> Recipe:
    """Returns the recipe of a diffusion model, which `fit` makes a `Prior` of.

    Fit on data it is an ordinary diffusion model, on mirror points a mirror diffusion model.

    Args:
        problem: of which the fields are: their shape, and which axes wrap.
        network: a Flax module `(x, label, *, train=False) -> like x`; a `UNet` unless given.
        parameterisation, reduction: as of `denoising_task`.
        batch_size, ema, optimizer: as of `namm`.
    """
    check_kind('problem', problem, Problem, 'nj.problem')
    network = network or _unet(problem, norm='group')
    settings = _settings(optimizer)
    key = jax.random.key(0)
    output = lambda *of: score(network, network.init(key, *of)['params'], *of, dropout_key=key)
    expected = f'{MODULES}, (x, label, *, train=False) -> like x'
    check_function('network', output, expected, jnp.zeros((2, *problem.shape)), jnp.zeros(2))

    def task(arrays: Mapping[str, Array], steps: int) -> Task:
        x = np.asarray(arrays['x'], np.float64)
        std = x.std((0, 1, 2))
        units = tuple(x.mean((0, 1, 2)).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
        of = network, problem.shape, make_optimizer(steps, **settings)
        options = dict(parameterisation=parameterisation, reduction=reduction)
        base = denoising_task(*of, units=units, **options)
        mean, width = (jnp.asarray(part, jnp.float32) for part in units)
        return base._replace(frozen=base.frozen | {'centre': mean, 'width': width})

    def result(params: Params, frozen: PyTree, held: Mapping[str, Array]) -> Prior:
        denoiser = NetworkDenoiser(params, network, parameterisation)
        examples = held['x'] if len(held['x']) else None
        return Prior(denoiser, frozen['centre'], frozen['width'], examples, problem.shape)

    return Recipe(task, result, problem.shape, batch_size, ema)


def _unet(problem: Problem, *, norm: str) -> UNet:
    """Returns a U-Net for a problem's fields."""
    pairs = zip(problem.cell, problem.periodic, strict=True)
    cell = tuple(pixels if wraps else 1 for pixels, wraps in pairs)
    return UNet((48, 96), periodic=problem.periodic, cell=cell, norm=norm)


def _settings(optimizer: Mapping[str, Any] | None, **defaults: float) -> dict[str, Any]:
    """Returns the arguments of `make_optimizer`, after a check of their names."""
    for name in optimizer or {}:
        choose('optimizer', name, inspect.signature(make_optimizer).parameters)
    return defaults | dict(optimizer or {})
