"""Constraints made of others: the weighted sum of several, and a distance that also takes a
reference batch.

Symbols: `l_i`, `r_i` and `w_i` the distance, the residual and the weight of part i; `m_i` the
entries of `r_i` a sample, `m` their sum.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, PerSample
from namm_jax.constraints.own import at_least_single, per_sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """The points that obey several constraints at once, those of positive weight.

    Attributes:
        parts: The constraints; what they hold of arrays are leaves.
        names: One a part. Static under `jax.jit`, as are the weights.
        weights: One a part, >= 0.
    """

    parts: tuple[Constraint, ...]
    names: tuple[str, ...] = dataclasses.field(metadata={'static': True})
    weights: tuple[float, ...] = dataclasses.field(metadata={'static': True})

    def residual(self, x: Fields) -> Float[Array, 'b m']:
        """Returns the residuals of the parts, flattened, each times `w_i m / m_i`, side by side.

        So the mean of `|r|` is `sum_i w_i mean|r_i|`, however many entries each part has: what
        Gauss-Newton compares with its tolerance is, where each `l_i` is `mean|r_i|`, the distance.

        Args:
            x: Fields `(b, h, w, c)`, of a shape that all parts take.

        Returns:
            Residuals `(b, m)`; those of a part of weight 0 are 0.
        """
        flat = [part.residual(x).reshape(x.shape[0], -1) for part in self.parts]
        m = sum(r.shape[1] for r in flat)
        return jnp.concatenate(
            [w * m / r.shape[1] * r for w, r in zip(self.weights, flat, strict=True)], 1
        )

    def distance(self, x: Fields) -> PerSample:
        """Returns `sum_i w_i l_i(x)`, shape `(b,)`."""
        return sum(w * part.distance(x) for w, part in zip(self.weights, self.parts, strict=True))

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the terms of all parts, each before its weight; a name that several parts use
        becomes `part/name`.

        Raises:
            ValueError: If two terms have one name even so.
        """
        by_part = {name: part.terms(x) for name, part in zip(self.names, self.parts, strict=True)}
        uses = collections.Counter(term for terms in by_part.values() for term in terms)
        named = {}
        for name, terms in by_part.items():
            for term, value in terms.items():
                label = f'{name}/{term}' if uses[term] > 1 else term
                if label in named:
                    raise ValueError(
                        f'weighted_sum: got two terms called {label!r}, expected one; rename a part'
                    )
                named[label] = value
        return named

    def given(self, x_ref: Array) -> 'WeightedSum':
        """Returns the same sum with the reference batch passed on to the parts that take one."""
        parts = (part.given(x_ref) if hasattr(part, 'given') else part for part in self.parts)
        return dataclasses.replace(self, parts=tuple(parts))


def weighted_sum(parts: Mapping[str, Any], weights: Mapping[str, float | int]) -> WeightedSum:
    """Returns the constraint with the distance `sum_i w_i l_i(x)`.

    Args:
        parts: Constraints by name.
        weights: Their weights by the same names, finite and >= 0. A part of weight 0 is shown among
            the terms and acts on nothing.

    Raises:
        ValueError: If the names differ, a part is no constraint, a weight is out of its range, or
            all are 0.
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
                'of a function by own'
            )
    if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
        raise ValueError(
            f'weighted_sum: got weights {dict(weights)}, expected finite numbers >= 0, not all 0; '
            'a part is switched off by 0'
        )
    return WeightedSum(
        tuple(parts.values()), tuple(parts), tuple(float(weights[name]) for name in parts)
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReferenceConstraint:
    """The set on which a distance to, or with regard to, a reference batch is 0.

    Attributes:
        x_ref: The reference, None before `given`.
        function: The distance `(x (b, h, w, c), x_ref) -> (b,)`. Static under `jax.jit`, and
            compared by identity.
        name: What logs and errors call it.
    """

    x_ref: Any
    function: Callable[..., Any] = dataclasses.field(metadata={'static': True})
    name: str = dataclasses.field(metadata={'static': True})

    def given(self, x_ref: Array) -> 'ReferenceConstraint':
        """Returns the constraint for this reference batch: of any shape that the distance takes."""
        return dataclasses.replace(self, x_ref=x_ref)

    def residual(self, x: Fields) -> Float[Array, 'b 1']:
        """Returns the distance as `(b, 1)`; Args and Raises as of `distance`."""
        return self.distance(x)[:, None]

    def distance(self, x: Fields) -> PerSample:
        """Returns `l(x, x_ref)`, shape `(b,)`.

        Args:
            x: Fields `(b, h, w, c)`. Half precision is raised to float32, float64 kept; so it is in
                `x_ref`.

        Raises:
            ValueError: If there is no reference yet, or the function returns no real number a
                sample.
        """
        if self.x_ref is None:
            raise ValueError(
                f'the distance {self.name!r}: got no reference batch, expected one; call '
                'given(x_ref), and use the constraint that it returns'
            )
        return per_sample(
            self.name, self.function(at_least_single(x), at_least_single(self.x_ref)), x
        )

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{name: (b,)}`."""
        return {self.name: self.distance(x)}


def reference(distance: Callable[..., Any], name: str = 'reference') -> ReferenceConstraint:
    """Returns the constraint that `l(x, x_ref) = 0`, which can be used once it is `given` its
    reference batch.

    Args:
        distance: A pure JAX function `(x (b, h, w, c), x_ref) -> (b,)`, >= 0 and 0 on the set.
            Where it pairs samples, `x` and `x_ref` must come in the same order.
        name: What logs and errors call it.

    Raises:
        ValueError: If the distance is no function.
    """
    if not callable(distance):
        raise ValueError(
            f'distance of {name!r}: got {type(distance).__name__}, expected a function of x and '
            'x_ref'
        )
    return ReferenceConstraint(None, distance, name)
