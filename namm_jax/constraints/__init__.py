"""Constraints: values with `terms`, `distance` and `residual`, and the projection onto them."""

from namm_jax._checks import choose
from namm_jax.constraints.base import function_rule, reference, rule, weighted_sum
from namm_jax.constraints.linear import at_most, each, equal, monotone, sum_to
from namm_jax.constraints.projection import gauss_newton_projection
from namm_jax.constraints.sets import ball, box, half_spaces, mass_below, simplex

__all__ = [
    'at_most',
    'ball',
    'box',
    'each',
    'equal',
    'function_rule',
    'gauss_newton_projection',
    'half_spaces',
    'mass_below',
    'monotone',
    'reference',
    'rule',
    'simplex',
    'sum_to',
    'weighted_sum',
]
__getattr__ = lambda name: choose('constraints', name, dict.fromkeys(__all__), AttributeError)
