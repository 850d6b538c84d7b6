"""Measurement operators `y = A(x)`: fields `(b, h, w, c)` to real measurements `(b, *m)`, sample by
sample.

Most select entries of a field; the others are products with matrices along its axes, or a user's
function. All arrays are fixed when an operator is built, which is done outside of `jax.jit`; they
are its leaves, so operators of one kind and size share a compiled program.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from namm_jax._checks import choose
from namm_jax.inverse.operators.base import Operator, Shape, built
from namm_jax.inverse.operators.products import downsampling, sparse_fourier
from namm_jax.inverse.operators.selections import (
    first_last,
    first_states,
    gridded_sensors,
    inpainting,
    occluded_box,
    seeded_sensors,
    states,
)


def own(shape: Shape, *, function: Callable[[Array], Any], linear: bool = False) -> Operator:
    """Returns the operator of a user's function; what it must be, `check_operator` checks.

    Args:
        shape: `(h, w, c)` of the fields.
        function: A pure JAX function `(b, h, w, c) -> (b, *m)`, sample by sample.
        linear: Whether it is linear, without a constant term, so that it has an adjoint.

    Raises:
        ValueError: If it is no function.
    """
    if not callable(function):
        raise ValueError(
            f'function: got {type(function).__name__}, expected a function of fields (b, h, w, c)'
        )
    return built(shape, function, linear=linear)


OPERATORS: dict[str, Callable[..., Operator]] = {
    'states': states,
    'first_states': first_states,
    'first_last': first_last,
    'random_sensors': seeded_sensors,
    'gridded_sensors': gridded_sensors,
    'inpainting': inpainting,
    'occluded_box': occluded_box,
    'downsampling': downsampling,
    'sparse_fourier': sparse_fourier,
    'own': own,
}


def make_operator(name: str, shape: Shape, **options: Any) -> Operator:
    """Returns the operator called `name`.

    Args:
        name: One of `OPERATORS`.
        shape: `(h, w, c)` of the fields.
        **options: Of its builder. `states` needs `indices`, `inpainting` needs `occluded` and `own`
            needs `function`; all others have defaults.

    Raises:
        ValueError: If there is no such operator, or an option is out of its range.
    """
    return choose('operator', name, OPERATORS)(shape, **options)
