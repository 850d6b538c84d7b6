"""A constraint as a value: the set M on which its distance is 0, made of functions.

Symbols: `l(x) >= 0` the distance of a field from M, 0 iff x is on M; `r(x)` a residual, 0 on M.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from namm_jax._arrays import Fields, Metrics, PerSample, axes

Restore = Callable[[Fields], tuple[Fields, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A constraint made of functions of fields `(b, h, w, c)`; what they hold of arrays are leaves.

    Attributes:
        distance: l, `x -> (b,)`.
        residual: r, `x -> (b, ...)`, differentiable in both modes.
        parts: the terms of the distance by name, each `x -> (b,)`, >= 0, before its weight.
        restores: exact ways back onto M by name, `x -> (x, information)`, each the identity on M.
        name: what logs and errors call it. Static under `jax.jit`.
    """

    distance: Callable[[Fields], PerSample]
    residual: Callable[[Fields], Array]
    parts: Mapping[str, Callable[[Fields], PerSample]]
    restores: Mapping[str, Restore]
    name: str = dataclasses.field(metadata={'static': True})

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the terms of the distance, `{name: (b,)}`, each 0 iff it is satisfied."""
        return {name: part(x) for name, part in self.parts.items()}

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the first of `restores` of x."""
        return next(iter(self.restores.values()))(x)


def rule(
    name: str,
    residual: Callable[[Fields], Array],
    distance: Callable[[Fields], PerSample] | None = None,
    *,
    restores: Mapping[str, Restore] | None = None,
) -> Rule:
    """Returns the constraint `r(x) = 0`, of one term.

    Args:
        name: of the term.
        residual: r, `x (b, h, w, c) -> (b, ...)`.
        distance: l, `x -> (b,)`; the mean of `|r|` over its entries unless given.
        restores: exact ways back onto the set, by name.
    """
    residual = _leaf(residual)
    distance = Partial(_mean_absolute, residual) if distance is None else _leaf(distance)
    ways = {name: _leaf(way) for name, way in (restores or {}).items()}
    return Rule(distance, residual, {name: distance}, ways, name)


def _leaf(function: Callable[..., Any]) -> Partial:
    """Returns a function as a pytree: its arguments, if it is a `Partial`, are the leaves."""
    return function if isinstance(function, Partial) else Partial(function)


def _mean_absolute(residual: Callable[[Fields], Array], x: Fields) -> PerSample:
    r = residual(x)
    return jnp.mean(jnp.abs(r), axes(r))
