"""What a measurement operator is: a linear or nonlinear map of fields, its adjoint, and the shapes
that it takes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Fields

Shape = Sequence[int]  # (h, w, c), that of one field


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """A measurement operator A, called as `y = operator(x)`.

    Attributes:
        apply: `(b, h, w, c) -> (b, *m)`, a `jax.tree_util.Partial` whose arguments are the leaves.
        shape: `(h, w, c)` of the fields it takes. Static under `jax.jit`.
        linear: Whether A is linear, so that it has an adjoint. Static, too.

    Raises:
        ValueError: If `shape` is no such shape.
    """

    apply: Callable[[Array], Array]
    shape: tuple[int, int, int] = dataclasses.field(metadata={'static': True})
    linear: bool = dataclasses.field(default=True, metadata={'static': True})

    def __post_init__(self) -> None:
        checked_shape(self.shape)

    def __call__(self, x: Fields) -> Array:
        """Returns the measurement `(b, *m)`.

        Args:
            x: Fields `(b, *shape)`. Half precision is raised to float32, float64 kept.

        Raises:
            ValueError: If `x` has not the shape that the operator was built for.
        """
        if x.shape[1:] != self.shape:
            expected = ', '.join(map(str, self.shape))
            raise ValueError(
                f'x: got shape {x.shape}, expected (b, {expected}); build the operator for this '
                'shape'
            )
        return self.apply(at_least_single(x))

    def adjoint(self, y: Float[Array, 'b *m']) -> Fields:
        """Returns `A^T y`, fields `(b, *shape)`, with `<A x, y> = <x, A^T y>` for sums over all
        entries.

        Args:
            y: Measurements `(b, *m)`. Half precision is raised to float32, float64 kept.

        Raises:
            ValueError: If A is not linear, or `y` has not the shape of a measurement.
        """
        if not self.linear:
            raise ValueError(
                'adjoint: got an operator with linear=False, expected a linear one; for others '
                'use jax.vjp at a field'
            )
        y = at_least_single(y)
        x = jax.ShapeDtypeStruct((*y.shape[:1], *self.shape), y.dtype)
        check_shape(y.shape, jax.eval_shape(self, x).shape)
        return jax.linear_transpose(self, x)(y)[0]


def built(
    shape: Shape, function: Callable[..., Any], *arrays: ArrayLike, linear: bool = True
) -> Operator:
    """Returns the operator `x -> function(*arrays, x)`.

    Args:
        shape: `(h, w, c)` of the fields.
        function: `(*arrays, x (b, h, w, c)) -> (b, *m)`.
        *arrays: its fixed arguments, the operator's leaves.
        linear: whether it is linear in x.

    Raises:
        ValueError: If `shape` is no such shape.
    """
    return Operator(
        jax.tree_util.Partial(function, *map(jnp.asarray, arrays)), checked_shape(shape), linear
    )


def checked_shape(shape: Shape) -> tuple[int, int, int]:
    """Returns the shape `(h, w, c)` of one field, as integers; raises a ValueError if it is
    none.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f'shape: got {tuple(shape)}, expected (h, w, c), each at least 1, that of one field'
        )
    return tuple(map(int, shape))


def at_least_single(x: ArrayLike) -> Array:
    """Returns `x` with half precision and integers raised to float32, float64 kept."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises a ValueError unless a measurement of shape `got` is one of those of shape `expected`,
    `(b, *m)`.
    """
    if got != expected:
        axes = ', '.join(map(str, expected[1:]))
        remedy = (
            'add the batch axis, y[None]'
            if got == expected[1:]
            else 'take the operator that y was measured with'
        )
        raise ValueError(f'y: got shape {got}, expected (b, {axes}), b measurements; {remedy}')
