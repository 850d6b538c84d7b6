"""What updates parameters: clipping, a direction, the learning rate."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax
from jaxtyping import Array, PyTree
from optax.contrib import MuonDimensionNumbers, MuonState, scale_by_muon

from namm_jax._arrays import Params
from namm_jax._checks import check_within, choose

Transform: TypeAlias = optax.GradientTransformation
MUON_RMS = 0.2  # of Muon's updates at the learning rate 1: about Adam's


def learning_rate_schedule(
    steps: int, *, learning_rate: float, decay: str, warmup: float, accumulate: int
) -> optax.Schedule:
    """Returns a linear warm-up and a decay over so many steps, as a function of the update."""
    updates = -(-steps // accumulate)
    start = round(warmup * updates)
    cosine = optax.cosine_decay_schedule(learning_rate, max(1, updates - start))
    decays = {'cosine': cosine, 'constant': optax.constant_schedule(learning_rate)}
    rest = choose('optimizer.decay', decay, decays)
    rise = optax.linear_schedule(0.0, learning_rate, max(1, start))
    return optax.join_schedules([rise, rest], [start])


def make_optimizer(
    steps: int,
    *,
    name: str = 'adam',
    learning_rate: float = 2e-3,
    decay: str = 'cosine',
    warmup: float = 0.03,
    b1: float = 0.9,
    b2: float = 0.999,
    accumulate: int = 1,
    clip: float = 1.0,
    mask: Callable[[Params], PyTree] | None = None,
) -> Transform:
    """Returns clipping, Adam or Muon, the learning rate, and a projection onto masked `>= 0`.

    All act on the mean gradient of `accumulate` steps, and only on every so many.

    Args:
        steps: length of the schedule.
        name: `adam`, or `muon`.
        learning_rate: at the end of the warm-up, > 0.
        decay: after the warm-up, `cosine` (to 0 at the last step) or `constant`.
        warmup: part of the steps, in [0, 1], over which the rate rises from 0.
        b1, b2: Adam's decays of the first and second moment, in [0, 1).
        accumulate: batches whose mean gradient makes one update.
        clip: largest norm of the gradient; 0 for no clipping.
        mask: `params -> tree of booleans`, those that stay non-negative.
    """
    check_within('(0, inf)', learning_rate=learning_rate)
    check_within('[0, 1]', warmup=warmup)
    check_within('[0, inf)', clip=clip)
    check_within('[0, 1)', b1=b1, b2=b2)
    check_within('[1, inf)', kinds='iu', accumulate=accumulate)
    adam = optax.scale_by_adam(b1, b2)
    directions = {'adam': adam, 'muon': muon(adam)}
    settings = dict(decay=decay, warmup=warmup, accumulate=accumulate)
    schedule = learning_rate_schedule(steps, learning_rate=learning_rate, **settings)
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    chain.append(choose('optimizer.name', name, directions))
    chain.append(optax.scale_by_learning_rate(schedule))
    if mask is not None:
        chain.append(optax.masked(optax.keep_params_nonnegative(), mask))
    optimizer = optax.chain(*chain)
    if accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, accumulate).gradient_transformation()


def muon(otherwise: Transform) -> Transform:
    """Returns Muon's direction for matrices, and `otherwise` for biases, scales, rows and columns.

    Muon's is about the nearest (semi-)orthogonal matrix to the gradient's running mean, times
    `MUON_RMS` and the root of its larger side. Kernels are matrices from inputs at all offsets to
    outputs.

    References: Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; Liu et al.,
    "Muon is scalable for LLM training", arXiv 2502.16982, 2025 (the scale).
    """

    def each(function: Callable[[Array], Any]) -> Callable[..., PyTree]:
        return lambda tree, *_: jax.tree.map(function, tree)

    axes = each(lambda a: MuonDimensionNumbers(tuple(range(a.ndim - 1)), (a.ndim - 1,)))
    scaled = each(lambda a: MUON_RMS * math.sqrt(max(_sides(a))) * a)
    kinds = each(lambda a: 'matrix' if min(_sides(a)) > 1 else 'other')
    matrices = optax.chain(scale_by_muon(weight_dimension_numbers=axes), optax.stateless(scaled))
    return optax.partition({'matrix': matrices, 'other': otherwise}, kinds)


def _sides(array: Array) -> tuple[int, int]:
    """Returns the sides of an array as a matrix from all axes but the last to the last."""
    return math.prod(array.shape[:-1]), math.prod(array.shape[-1:])


def per_network(optimizers: Mapping[str, Transform]) -> Transform:
    """Returns the optimizer of a dict of networks, each with its own."""

    def init(params: Params) -> PyTree:
        return {name: optimizers[name].init(part) for name, part in params.items()}

    def update(updates: PyTree, state: PyTree, params: Params) -> tuple[PyTree, PyTree]:
        new, states = {}, {}
        for name, part in updates.items():
            new[name], states[name] = optimizers[name].update(part, state[name], params[name])
        return new, states

    return optax.GradientTransformation(init, update)


def _holds_moments(leaf: Any) -> bool:
    return isinstance(leaf, optax.ScaleByAdamState | MuonState)


def moments_of(opt_state: PyTree) -> list[optax.ScaleByAdamState | MuonState]:
    """Returns the states of Adam and Muon inside an optimizer's state."""
    leaves = jax.tree.leaves(opt_state, is_leaf=_holds_moments)
    return [leaf for leaf in leaves if _holds_moments(leaf)]


def continued(optimizer: Transform, moments: PyTree) -> Transform:
    """Returns `optimizer` started from another run's moments, as of `moments_of`, its schedule from
    0; raises a ValueError, when its state is made, if they are of another kind.
    """

    def init(params: Params) -> PyTree:
        state = optimizer.init(params)
        left = list(moments)
        got = [type(each).__name__ for each in left]
        expected = [type(each).__name__ for each in moments_of(state)]
        if got != expected:
            remedy = 'go on with the same optimizer.name'
            raise ValueError(f'got moments {got}, expected {expected}: {remedy}')
        replace = lambda leaf: left.pop(0) if _holds_moments(leaf) else leaf
        return jax.tree.map(replace, state, is_leaf=_holds_moments)

    return optax.GradientTransformation(init, optimizer.update)
