"""A constraint as a value: the set M on which its distance is 0, made of functions.

Symbols: `l(x) >= 0` the distance of a field from M, 0 iff x is on M; `r(x)` a residual, 0 on M, of
m entries a sample; `u = (x - mean) / scale` standardised fields.
"""

import collections
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from namm_jax._arrays import (
    Constraint,
    Fields,
    Metrics,
    PerSample,
    Unit,
    as_pytree,
    at_least_single,
    axes,
    static,
)
from namm_jax._checks import OF_FIELDS, FunctionError, call, check_output, field_shape

Restore = Callable[[Fields], tuple[Fields, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A constraint made of functions of fields `(b, h, w, c)`; what they hold of arrays are leaves.

    Attributes are those of `rule`; `parts` are the terms, none for the mean of `|r|`.
    """

    residual: Callable[[Fields], Array]
    parts: Mapping[str, Callable[[Fields], PerSample]]
    restores: Mapping[str, Restore]
    name: str = static()

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the terms of the distance, `{name: (b,)}`, each 0 iff it is satisfied."""
        if not self.parts:
            return {self.name: mean_absolute(self.residual(x))}
        return {name: part(x) for name, part in self.parts.items()}

    def distance(self, x: Fields) -> PerSample:
        """Returns l, `(b,)`: the sum of the terms."""
        return functools.reduce(operator.add, self.terms(x).values())

    def restore(self, x: Fields) -> tuple[Fields, Metrics]:
        """Returns the first of `restores` of x."""
        return next(iter(self.restores.values()))(x)


def rule(
    name: str,
    residual: Callable[[Fields], Array],
    distance: Callable[[Fields], PerSample] | None = None,
    *,
    terms: Mapping[str, Callable[[Fields], PerSample]] | None = None,
    restores: Mapping[str, Restore] | None = None,
) -> Rule:
    """Returns the constraint `r(x) = 0`.

    Args:
        name: of the rule, and of its term where there is one.
        residual: r, `x (b, h, w, c) -> (b, ...)`, differentiable in both modes.
        distance: l, `x -> (b,)`, >= 0; the mean of `|r|` over its entries unless given.
        terms: l as the sum of several, by name.
        restores: exact ways back onto M by name, `x -> (x, information)`, the identity on M.
    """
    terms = terms or ({name: distance} if distance else {})
    return Rule(as_pytree(residual), _leaves(terms), _leaves(restores or {}), name)


def _leaves(functions: Mapping[str, Callable[..., Any]]) -> Mapping[str, Callable[..., Any]]:
    # A plain dict comes back from jax.tree in the order of its keys, with another one first.
    return collections.OrderedDict((name, as_pytree(f)) for name, f in functions.items())


def mean_absolute(residual: Float[Array, 'b *m']) -> PerSample:
    """Returns the mean of `|r|` over the entries of each sample, `(b,)`."""
    return jnp.mean(jnp.abs(residual), axes(residual))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Function:
    """A user's function, called with fields in float32 or better; what it returns is checked."""

    function: Callable[..., Any]
    kind: str = static()
    name: str = static()
    shape: tuple[int, int, int] | None = static(default=None)

    def __call__(self, x: Fields, *references: Array) -> Array:
        label = f'the {self.kind} {self.name!r}'
        if self.shape and x.shape[1:] != self.shape:
            raise FunctionError(
                f'{label}: got x of shape {x.shape}, expected '
                f'(b, {", ".join(map(str, self.shape))}), the shape of the data'
            )
        values = call(label, self.function, OF_FIELDS, *map(at_least_single, (x, *references)))
        return check_output(label, values, x.shape[0], self.kind)


def function_rule(
    distance: Any = None,
    residual: Any = None,
    *,
    name: str = 'own',
    shape: Sequence[int] | None = None,
) -> Rule:
    """Returns the constraint that a user's function be 0; `check_rule` checks what it must be.

    Args:
        distance: l, a pure JAX function `(b, h, w, c) -> (b,)`, >= 0 and 0 on the set; the mean of
            `|r|` unless given. A mean over the pixels is easier to weigh than a sum.
        residual: r, alike `(b, h, w, c) -> (b, ...)`, 0 on the set and changing sign across it; the
            distance as `(b, 1)` unless given.
        name: what logs and errors call it.
        shape: `(h, w, c)` of the data, so that other fields are refused; any unless given.

    Raises:
        ValueError: If there is no function, the name is empty, or the shape is none; and, where the
            rule is used, if a function returns something else.
    """
    functions = [f for f in (distance, residual) if f is not None]
    if not functions or not all(map(callable, functions)):
        raise ValueError(
            f'{name!r}: got a distance of type {type(distance).__name__} and a residual of type '
            f'{type(residual).__name__}, expected functions of fields: one of them or both'
        )
    if not name:
        raise ValueError('name: got an empty one, expected the word that logs show')
    shape = None if shape is None else field_shape(shape)
    own = lambda function, kind: _Function(as_pytree(function), kind, name, shape)
    measure = None if distance is None else own(distance, 'distance')
    gap = Partial(_column, measure) if residual is None else own(residual, 'residual')
    return rule(name, gap, measure)


def as_rule(rule: Any) -> Constraint:
    """Returns a rule itself; of a function, the rule that this distance be 0."""
    return rule if isinstance(rule, Constraint) else function_rule(rule)


def _column(distance: Callable[[Fields], PerSample], x: Fields) -> Float[Array, 'b 1']:
    return distance(x)[:, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The set on which a distance to a reference batch is 0, as `reference` says."""

    function: Callable[..., Any]
    name: str = static()
    x_ref: Any = None  # before `given`

    def given(self, x_ref: Array) -> 'Reference':
        """Returns the constraint for this reference: of any shape that the distance takes."""
        return dataclasses.replace(self, x_ref=x_ref)

    def distance(self, x: Fields) -> PerSample:
        """Returns `l(x, x_ref)`, `(b,)`; raises a ValueError if there is no reference yet."""
        if self.x_ref is None:
            raise ValueError(
                f'the distance {self.name!r}: got no reference batch, expected one; call '
                'given(x_ref), and use the constraint that it returns'
            )
        return self.function(x, self.x_ref)

    def residual(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns the distance as `(b, 1)`."""
        return _column(self.distance, x)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{name: (b,)}`."""
        return {self.name: self.distance(x)}


def reference(distance: Callable[..., Any], name: str = 'reference') -> Reference:
    """Returns the constraint that `l(x, x_ref) = 0`, to be used once it is `given` its reference.

    Args:
        distance: a pure JAX function `(x (b, h, w, c), x_ref) -> (b,)`, >= 0 and 0 on the set; a
            ValueError is raised if it is no function.
        name: what logs and errors call it.
    """
    if not callable(distance):
        raise ValueError(
            f'distance of {name!r}: got {type(distance).__name__}, expected a function (x, x_ref)'
        )
    return Reference(_Function(as_pytree(distance), 'distance', name), name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WeightedSum:
    """The points that obey several constraints at once, those of positive weight."""

    parts: tuple[Constraint, ...]
    names: tuple[str, ...] = static()
    weights: tuple[float, ...] = static()

    @property
    def name(self) -> str:
        """The names of the parts."""
        return '+'.join(self.names)

    @property
    def _weighted(self) -> list[tuple[float, Constraint]]:
        return [pair for pair in zip(self.weights, self.parts, strict=True) if pair[0]]

    def residual(self, x: Fields) -> Float[Array, 'b m']:
        """Returns the residuals of the parts, flattened, side by side, each times `w_i m / m_i`: so
        the mean of `|r|` is `sum_i w_i mean|r_i|`.
        """
        flat = [(w, part.residual(x).reshape(x.shape[0], -1)) for w, part in self._weighted]
        m = sum(r.shape[1] for _, r in flat)
        return jnp.concatenate([w * m / r.shape[1] * r for w, r in flat], 1)

    def distance(self, x: Fields) -> PerSample:
        """Returns `sum_i w_i l_i(x)`, `(b,)`."""
        return sum(w * part.distance(x) for w, part in self._weighted)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the terms of all parts, each before its weight; a name that several parts use
        becomes `part/name`, and two of one name even so raise a ValueError.
        """
        by_part = {name: part.terms(x) for name, part in zip(self.names, self.parts, strict=True)}
        uses = collections.Counter(term for terms in by_part.values() for term in terms)
        labelled = {}
        for name, terms in by_part.items():
            for term, value in terms.items():
                label = f'{name}/{term}' if uses[term] > 1 else term
                if label in labelled:
                    raise ValueError(
                        f'weighted_sum: got two terms called {label!r}, expected one; rename a part'
                    )
                labelled[label] = value
        return labelled

    def given(self, x_ref: Array) -> 'WeightedSum':
        """Returns the same sum with the reference batch passed on to the parts that take one."""
        return dataclasses.replace(self, parts=tuple(_given(part, x_ref) for part in self.parts))


def _given(constraint: Constraint, x_ref: Array) -> Constraint:
    return constraint.given(x_ref) if hasattr(constraint, 'given') else constraint


def weighted_sum(parts: Mapping[str, Any], weights: Mapping[str, float | int]) -> WeightedSum:
    """Returns the constraint with the distance `sum_i w_i l_i(x)`.

    Args:
        parts: constraints by name.
        weights: theirs by the same names, finite, >= 0, not all 0. A part of weight 0 is shown
            among the terms and acts on nothing.

    Raises:
        ValueError: If the names differ, a part is no constraint, or weights are out of range.
    """
    if not parts or set(parts) != set(weights):
        raise ValueError(
            f'weighted_sum: got weights of {sorted(weights)} for {sorted(parts)}, expected one for '
            'each of one part or more; use the same names in both'
        )
    for name, part in parts.items():
        if not isinstance(part, Constraint):
            raise ValueError(
                f'weighted_sum: {name}: got {type(part).__name__}, expected a constraint; make one '
                'of a function by function_rule'
            )
    if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
        raise ValueError(
            f'weighted_sum: got weights {dict(weights)}, expected finite numbers >= 0, not all 0; '
            'a part is switched off by 0'
        )
    in_order = tuple(float(weights[name]) for name in parts)
    return WeightedSum(tuple(parts.values()), tuple(parts), in_order)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Standardised:
    """A constraint on `x = mean + scale u`, of standardised fields u; distances keep x's unit."""

    constraint: Constraint
    mean: Any  # leaves of a pytree, a number or one a channel
    scale: Any

    def _fields(self, u: Fields) -> Fields:
        u = at_least_single(u)
        return jnp.asarray(self.mean, u.dtype) + jnp.asarray(self.scale, u.dtype) * u

    def terms(self, u: Fields) -> Mapping[str, PerSample]:
        """Returns the terms of the distance at `mean + scale u`."""
        return self.constraint.terms(self._fields(u))

    def distance(self, u: Fields) -> PerSample:
        """Returns `l(mean + scale u)`, `(b,)`."""
        return self.constraint.distance(self._fields(u))

    def residual(self, u: Fields) -> Array:
        """Returns `r(mean + scale u)`, `(b, ...)`."""
        return self.constraint.residual(self._fields(u))

    @property
    def restores(self) -> Mapping[str, Restore]:
        """The ways back of the constraint, from u to u; an entry that one leaves is kept."""
        ways = getattr(self.constraint, 'restores', {})
        return {name: functools.partial(self._restored, way) for name, way in ways.items()}

    def _restored(self, way: Restore, u: Fields) -> tuple[Fields, Metrics]:
        x = self._fields(u)
        back, information = way(x)
        moved = (back - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.scale, x.dtype)
        return jnp.where(back == x, at_least_single(u), moved), information

    def restore(self, u: Fields) -> tuple[Fields, Metrics]:
        """Returns the first of `restores` of u."""
        return next(iter(self.restores.values()))(u)

    def given(self, u_ref: Array) -> 'Standardised':
        """Returns the constraint given a batch of standardised fields, if it takes one."""
        return dataclasses.replace(self, constraint=_given(self.constraint, self._fields(u_ref)))


def standardised(constraint: Constraint, mean: Unit, scale: Unit) -> Constraint:
    """Returns the constraint on `u = (x - mean) / scale` of one on fields x, to the same distances.

    Args:
        constraint: on fields x `(b, h, w, c)`; itself returned for 0 and 1.
        mean, scale: of the data, finite, scale > 0: a number, or `(c,)`, one a channel.
    """
    mean, scale = np.asarray(mean), np.asarray(scale)
    if not (np.isfinite(mean).all() and np.all((0 < scale) & (scale < np.inf))):
        raise ValueError(f'Got mean = {mean}, scale = {scale}, expected finite ones, scale > 0.')
    if (mean == 0).all() and (scale == 1).all():
        return constraint
    return Standardised(constraint, mean, scale)
