"""Constraints: one file each, and the dictionary of their builders.

A constraint is a pytree with `terms`, `distance` and `residual` (see `types.Constraint`).
`projection` finds the point of any differentiable constraint that is nearest to a given one.
"""

from collections.abc import Callable
from typing import Any

from namm_jax._arrays import Constraint
from namm_jax._checks import choose
from namm_jax.constraints.burgers import burgers
from namm_jax.constraints.count import count
from namm_jax.constraints.flow import divergence, kolmogorov
from namm_jax.constraints.own import own
from namm_jax.constraints.periodic import periodic
from namm_jax.constraints.total_brightness import total_brightness

CONSTRAINTS: dict[str, Callable[..., Constraint]] = {
    'burgers': burgers,
    'divergence': divergence,
    'kolmogorov': kolmogorov,
    'total_brightness': total_brightness,
    'periodic': periodic,
    'count': count,
    'own': own,
}


def make_constraint(name: str, **kwargs: Any) -> Constraint:
    """Returns the constraint called `name`.

    Args:
        name: A key of `CONSTRAINTS`.
        **kwargs: What its builder takes.

    Returns:
        The constraint that the builder makes.

    Raises:
        ValueError: If `name` is not in `CONSTRAINTS`.
    """
    return choose('constraint', name, CONSTRAINTS)(**kwargs)
