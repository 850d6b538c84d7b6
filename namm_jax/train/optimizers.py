"""From an optimizer section of the config to what updates parameters: clipping, a direction, the
learning rate.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, MuonState, scale_by_muon

from namm_jax._arrays import Params
from namm_jax._checks import choose

# of Muon's updates at the learning rate 1, about Adam's, so that one learning rate does for both
MUON_RMS = 0.2


def learning_rate(section: ConfigDict, steps: int) -> optax.Schedule:
    """Returns the warm-up and decay of an optimizer section over so many steps, as a function of
    the update.
    """
    steps = -(-steps // section.accumulate)
    warmup = round(section.warmup * steps)
    decays = {
        'cosine': lambda: optax.cosine_decay_schedule(
            section.learning_rate, max(1, steps - warmup)
        ),
        'constant': lambda: optax.constant_schedule(section.learning_rate),
    }
    decay = choose('optimizer.decay', section.decay, decays)()
    return optax.join_schedules(
        [optax.linear_schedule(0.0, section.learning_rate, max(1, warmup)), decay], [warmup]
    )


def make_optimizer(
    section: ConfigDict, steps: int, mask: Callable[[Params], PyTree] | None = None
) -> Any:
    """Returns clipping, Adam or Muon, the learning rate, and last the projection that keeps masked
    parameters >= 0.

    All act on the mean gradient of `accumulate` steps, and only on every so many.

    Args:
        section: an optimizer section of the config.
        steps: the length of the schedule.
        mask: `params -> tree of booleans`, or None for no projection.

    Raises:
        ValueError: if a value is out of range.
    """
    decays = {name: section[name] for name in ('b1', 'b2', 'ema')}
    if not (
        0 < section.learning_rate < math.inf
        and 0 <= section.warmup <= 1
        and 0 <= section.clip < math.inf
    ):
        raise ValueError(
            f'got learning_rate {section.learning_rate}, warmup {section.warmup}, clip '
            f'{section.clip}; expected learning_rate > 0, warmup in [0, 1], clip >= 0, all finite'
        )
    if not all(0 <= decay < 1 for decay in decays.values()):
        raise ValueError(f'got {decays}, expected numbers in [0, 1)')
    adam = optax.scale_by_adam(section.b1, section.b2)
    direction = choose(
        'optimizer.name', section.name, {'adam': lambda: adam, 'muon': lambda: muon(adam)}
    )()
    chain = [optax.clip_by_global_norm(section.clip)] if section.clip else []
    chain += [direction, optax.scale_by_learning_rate(learning_rate(section, steps))]
    if mask is not None:
        chain.append(optax.masked(optax.keep_params_nonnegative(), mask))
    optimizer = optax.chain(*chain)
    if section.accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, section.accumulate).gradient_transformation()


def muon(otherwise: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns Muon's direction for matrices, and another for the rest: biases, scales, rows and
    columns.

    Muon's is about the nearest (semi-)orthogonal matrix to the gradient's running mean, times
    `MUON_RMS` and the root of its larger side: all singular values alike. A convolution's kernel is
    the matrix from its inputs at all offsets to its outputs.

    Args:
        otherwise: the direction of what is no matrix.

    References:
        Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024.
        Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, 2025: the scale.
    """
    scale = lambda a: MUON_RMS * math.sqrt(max(_sides(a)))
    scaled = optax.stateless(lambda updates, params: jax.tree.map(lambda a: scale(a) * a, updates))
    axes = lambda params: jax.tree.map(
        lambda a: MuonDimensionNumbers(tuple(range(a.ndim - 1)), (a.ndim - 1,)), params
    )
    matrices = optax.chain(scale_by_muon(weight_dimension_numbers=axes), scaled)
    kinds = lambda params: jax.tree.map(
        lambda a: 'matrix' if min(_sides(a)) > 1 else 'other', params
    )
    return optax.partition({'matrix': matrices, 'other': otherwise}, kinds)


def _sides(array: Array) -> tuple[int, int]:
    """Returns the inputs and outputs of an array as a matrix from all of its axes but the last to
    the last.
    """
    return math.prod(array.shape[:-1]), math.prod(array.shape[-1:])


def per_network(
    optimizers: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Returns the optimizer of a dict of networks, each with its own:
    `{'forward': ..., 'inverse': ...}`.
    """

    def init(params: Params) -> PyTree:
        return {name: optimizers[name].init(part) for name, part in params.items()}

    def update(updates: PyTree, state: PyTree, params: Params) -> tuple[PyTree, PyTree]:
        results = {
            name: optimizers[name].update(updates[name], state[name], params[name])
            for name in updates
        }
        return {name: result[0] for name, result in results.items()}, {
            n: result[1] for n, result in results.items()
        }

    return optax.GradientTransformation(init, update)


def _holds_moments(leaf: Any) -> bool:
    return isinstance(leaf, optax.ScaleByAdamState | MuonState)


def continued(
    optimizer: optax.GradientTransformation, moments: PyTree
) -> optax.GradientTransformation:
    """Returns `optimizer` started from another run's moments of the gradient, its learning-rate
    schedule from 0.

    Args:
        optimizer: one of the same kind as that run's.
        moments: of that run, as `moments_of` returns them.
    """

    def init(params: Params) -> PyTree:
        state, left = optimizer.init(params), list(moments)
        got, expected = (
            [type(each).__name__ for each in part] for part in (left, moments_of(state))
        )
        if got != expected:
            raise ValueError(
                f'got moments {got}, expected {expected}: go on with the same optimizer.name'
            )
        return jax.tree.map(
            lambda s: left.pop(0) if _holds_moments(s) else s, state, is_leaf=_holds_moments
        )

    return optax.GradientTransformation(init, optimizer.update)


def moments_of(opt_state: PyTree) -> list[optax.ScaleByAdamState | MuonState]:
    """Returns the states of Adam and Muon inside an optimizer's state."""
    return [
        leaf for leaf in jax.tree.leaves(opt_state, is_leaf=_holds_moments) if _holds_moments(leaf)
    ]
