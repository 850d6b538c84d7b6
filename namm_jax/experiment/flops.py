"""Floating-point operations of a program, counted in its jaxpr.

XLA's own count takes the body of a loop once, however often it runs: a solver inside a rule would
cost next to nothing.
"""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Returns the operations of a program: two for each multiplication and addition of a product
    or a convolution, `5 n log2 n` for a Fourier transform of n points, one for each value that
    anything else makes. A scan counts as often as it runs, a while loop once, of branches the
    dearest.
    """
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, size = equation.primitive.name, sum(var.aval.size for var in equation.outvars)
    is_program = lambda value: isinstance(value, ClosedJaxpr | Jaxpr)
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
    if inner := [count(value) for value in values if is_program(value)]:
        times = equation.params['length'] if name == 'scan' else 1
        return times * (max(inner) if name == 'cond' else sum(inner))
    if name in ('dot_general', 'conv_general_dilated'):
        return 2 * size * _terms(equation)
    if name == 'fft':
        return round(5 * size * math.log2(max(2, math.prod(equation.params['fft_lengths']))))
    return size


def _terms(equation: Any) -> int:
    """Returns of how many products a value of a matrix product or a convolution is the sum."""
    left, right = (var.aval.shape for var in equation.invars)
    if equation.primitive.name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        return math.prod(left[axis] for axis in contracted)
    out_axis = equation.params['dimension_numbers'].rhs_spec[0]
    return math.prod(right) // right[out_axis]
