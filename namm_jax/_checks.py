"""What names, keys, shapes and a user's functions must be: checks whose errors say what to do."""

import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Constraint, Fields, Key

_T = TypeVar('_T')
NOISE = 0.1  # of the data's standard deviation: what is near the data

_OF_FIELDS = 'a function jax.jit compiles and jax.grad can differentiate; call it on a few fields'
# What operations raise that need the numbers in an array; a compiled function does not have them.
_NOT_JAX = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_IN_JAX = 'write jax.numpy for numpy, jnp.where for `if` and indexing by a mask; no float(), int()'
_FINITE = (
    'finite numbers; look for a division by 0, a logarithm of what may be negative, and a root or '
    'a norm at 0: take jnp.abs, or add a small number under the root'
)
_POSITIVE = 'numbers >= 0, and 0 where the rule holds; take the absolute value or the square'


def nearest(got: str, choices: Iterable[str]) -> str:
    """Returns the end of an error: what was got, all choices, and those most like it, if any is."""
    names = list(choices)
    near = difflib.get_close_matches(str(got), names, n=2, cutoff=0.5)
    hint = f'; did you mean {" or ".join(near)}?' if near else ''
    return f'got {got!r}, expected one of {", ".join(names)}{hint}'


def choose(kind: str, name: str, choices: Mapping[str, _T], error: type = ValueError) -> _T:
    """Returns `choices[name]`; raises an error that says the nearest if there is none."""
    if name not in choices:
        raise error(f'{kind}: {nearest(name, choices)}')
    return choices[name]


def check_kind(name: str, value: Any, kind: type, maker: str) -> None:
    """Raises a ValueError unless a value is an instance of a class, which the maker returns."""
    if not isinstance(value, kind):
        got = f'the class {value.__name__}' if isinstance(value, type) else type(value).__name__
        raise ValueError(f'{name}: got {got}, expected what {maker} returns, a {kind.__name__}')


def check_within(interval: str, *, kinds: str = 'iuf', **values: Any) -> None:
    """Raises a ValueError unless all values are numbers of the kinds in an interval: '[0, 1)'."""
    low, high = map(float, interval[1:-1].split(','))
    ends = [end for mark, end in (('[', low), (']', high)) if mark in interval]
    for name, value in values.items():
        x = np.asarray(value)
        if x.shape or x.dtype.kind not in kinds or not (low < x < high or x in ends):
            expected = f'{"a number" if "f" in kinds else "an integer"} in {interval}'
            raise ValueError(f'{name}: got {value!r}, expected {expected}')


def check_keys(keys: jax.Array) -> None:
    """Raises a ValueError unless the keys are `(n,)`, typed, one a sample."""
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        got = f'{keys.dtype}{list(keys.shape)}'
        raise ValueError(f'keys: got {got}, expected one typed key a sample; split jax.random.key')


def field_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape `(h, w, c)` of one field as integers; raises a ValueError if it is none."""
    sizes = np.ravel(shape)
    if np.shape(shape) != (3,) or sizes.dtype.kind not in 'iu' or min(sizes) < 1:
        raise ValueError(f'shape: got {shape}, expected (h, w, c), integers, each at least 1')
    return tuple(sizes.tolist())


def check_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises a ValueError unless y has the shape `expected`, `(b, *m)`, or is one for all."""
    if got[1:] == expected[1:] and got[:1] in ((1,), expected[:1]):
        return
    remedy = 'take the operator that y was measured with'
    if got == expected[1:]:
        remedy = 'add the batch axis, y[None]'
    elif got[1:] == expected[1:]:
        remedy = f'pass one for each of the {expected[0]} fields, or one for all'
    axes = ', '.join(map(str, expected[1:]))
    raise ValueError(f'y: got shape {got}, expected (b, {axes}), b measurements; {remedy}')


class FunctionError(ValueError):
    """What is wrong with a user's function or data."""


# What a function returns for b fields, and the least and most axes of it.
_OUTPUTS = {
    'distance': ('({b},), one number for each of {b} samples', 1, 1),
    'residual': ('({b}, ...), batch first, then at least one more axis', 2, np.inf),
    'operator': ('({b}, ...), batch first', 1, np.inf),
}


def check_output(label: str, values: Any, b: int, kind: str) -> Array:
    """Returns the values that a function gave for b fields, if they are an array of its kind."""
    shape, least, most = _OUTPUTS[kind]
    expected = f'expected one floating-point array of shape {shape.format(b=b)}'
    if not isinstance(values, jax.Array | np.ndarray):
        got, remedy = type(values).__name__, 'return one array, concatenate several'
    elif values.shape[:1] != (b,) or not least <= values.ndim <= most:
        got = f'shape {values.shape}'
        remedy = 'reduce over all axes but the first, as jnp.mean(..., (1, 2, 3)) does'
    elif not jnp.issubdtype(values.dtype, jnp.floating):
        got = values.dtype
        remedy = 'counts have no gradient; stack the parts of complex numbers on a last axis'
    else:
        return jnp.asarray(values)
    raise FunctionError(f'{label}: got {got}, {expected}; {remedy}')


def check_rule(constraint: Constraint, x: ArrayLike, key: Key) -> dict[str, float]:
    """Returns the distance of data and of data with noise, after checking that it can be trained.

    It must trace under `jax.jit`; be one finite number >= 0 a sample, of that sample alone; and
    have finite gradients near the data, not all 0 off the set: a ValueError is raised otherwise.
    Returned are `floor_mean` and `floor_max`, the distance on the data, and `perturbed_mean`, that
    after noise of 10 % of their standard deviation (0 where an inequality leaves that much room).

    Args:
        constraint: of its methods only `distance` is called; one to a reference cannot be checked.
        x: fields `(b, h, w, c)` that should obey it: a few dozen of the data, at least 2, not
            constant.
    """
    label = f'the distance {getattr(constraint, "name", type(constraint).__name__)!r}'
    x = jnp.asarray(x, jnp.float32)
    peak = 2.0 ** math.frexp(float(jnp.abs(x).max(initial=0)))[1]  # float32 holds squares near 1
    std = peak * float(jnp.std(x / peak))
    if len(x) < 2 or not 0 < std < np.inf:
        raise ValueError(
            f'data for {label}: got {len(x)} samples with standard deviation {std:.3g}, expected '
            'two or more finite samples that are not constant; give it some of the training data'
        )
    measure = _measure(label, constraint.distance, 'distance')
    noise = std * jax.random.normal(key, x.shape)
    floor, _ = measure(x, 'on the data')
    perturbed, _ = measure(x + NOISE * noise, 'near the data')
    for size in (NOISE, 1, 10):  # an inequality may leave room for small noise
        off = x + size * noise
        values, gradients = measure(off, f'at the data with noise of {size} standard deviations')
        if values.any():
            break
    else:
        raise FunctionError(
            f'{label}: got 0 for the data and for the data with noise of up to 10 standard '
            'deviations, expected a positive number off the set; does it read its argument?'
        )
    _check_dependence(label, measure, off, values, gradients)
    floors = {'floor_mean': floor.mean(), 'floor_max': floor.max()}
    return {name: float(v) for name, v in (floors | {'perturbed_mean': perturbed.mean()}).items()}


def check_operator(
    operator: Callable[[Array], Array], shape: Sequence[int], x: ArrayLike | None = None
) -> tuple[int, ...]:
    """Returns the shape m of a measurement, after checking that the operator can guide a sampler.

    It must trace under `jax.jit`; return real numbers `(b, *m)`, row i of sample i alone; have
    finite values and gradients, not all 0; and be linear if its attribute `linear` says so: a
    ValueError is raised otherwise.

    Args:
        operator: fields `(b, *shape)`, shape `(h, w, c)`, to `(b, *m)`.
        x: where to check it, b >= 2 fields; standard normal noise unless given.
    """
    x = np.random.default_rng(0).normal(size=(3, *field_shape(shape))) if x is None else x
    x = np.asarray(x, np.float32)
    if x.shape[1:] != tuple(shape) or len(x) < 2:
        raise ValueError(f'x: got shape {x.shape}, expected two or more fields of {tuple(shape)}')
    measure = _measure('operator', operator, 'operator')
    y, gradients = measure(x, 'at the fields')
    _check_dependence('operator', measure, x, y, gradients)
    if getattr(operator, 'linear', False):
        gap = measure(2 * x[:1] - 3 * x[1:2], 'at a sum of two')[0] - 2 * y[:1] + 3 * y[1:2]
        if np.abs(gap).max() > 5e-3 * np.abs(y).max():
            got = 'linear=True for one that is not'
            expected = 'A(2 a - 3 b) = 2 A(a) - 3 A(b); give linear=False'
            raise FunctionError(f'operator: got {got}, expected {expected}')
    return y.shape[1:]


def _measure(label: str, function: Callable[[Array], Any], kind: str) -> Callable[..., Any]:
    """Returns `(x, where) -> (values, gradients)` of a function, which are checked."""

    @jax.jit
    def compiled(x: Fields) -> tuple[Array, Fields]:
        values, pull_back = jax.vjp(lambda x: check_output(label, function(x), len(x), kind), x)
        weights = jnp.cos(jnp.arange(values.size, dtype=values.dtype))  # ones may cancel
        return values, pull_back(weights.reshape(values.shape))[0]

    def measure(x: Fields, where: str) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = map(np.asarray, _translated(label, compiled, _OF_FIELDS, x))
        least = f'{values.min():.3g} {where}'
        refuse(label, ~np.isfinite(values), f'NaN or infinity {where}', _FINITE)
        refuse(label, (values < 0) & (kind == 'distance'), least, _POSITIVE)
        refuse(label, ~np.isfinite(gradients), f'a gradient of NaN or infinity {where}', _FINITE)
        return values, gradients

    return measure


def _check_dependence(
    label: str, measure: Callable[..., Any], x: Fields, values: np.ndarray, gradients: np.ndarray
) -> None:
    """Raises unless the values at x depend on their samples, each on its own alone."""
    largest = np.abs(values).max()
    if not gradients.any():
        raise FunctionError(
            f'{label}: got a gradient of 0 everywhere for values of up to {largest:.3g}, expected '
            'one that changes them; rounding, comparing, argmax and stop_gradient have none'
        )
    elsewhere = measure(x[::-1], 'in reversed order')[0][::-1]
    alone = measure(x[-1:], 'for one sample alone')[0]
    expected = 'one that depends on the sample alone; take no mean, norm or index over axis 0'
    tolerance = 1e-3 * largest  # sums in another order differ by round-off
    moved = np.abs(elsewhere - values) > tolerance
    refuse(label, moved, 'another value at another place in the batch', expected)
    refuse(label, np.abs(alone - values[-1:]) > tolerance, 'another value alone', expected)


def refuse(label: str, bad: np.ndarray, got: str, expected: str) -> None:
    """Raises a FunctionError if any entry of `bad (b, ...)` is true, with the first such sample."""
    bad = bad.reshape(len(bad), -1).any(1)
    if bad.any():
        raise FunctionError(
            f'{label}: got {got} in {bad.sum()} of {len(bad)} samples, the first of index '
            f'{np.argmax(bad)}, expected {expected}'
        )


def check_function(label: str, function: Callable[..., Any], expected: str, *like: Array) -> None:
    """Raises a FunctionError, which says what is expected, unless a function of arrays like these
    can be traced and returns one like the first.
    """
    got = _translated(label, functools.partial(jax.eval_shape, function), expected, *like)
    real = hasattr(got, 'dtype') and jnp.issubdtype(got.dtype, jnp.floating)
    if not real or got.shape != like[0].shape:
        raise FunctionError(f'{label}: got {got}, expected {expected}')


def _translated(label: str, function: Callable[..., Any], expected: str, *args: Any) -> Any:
    """Returns `function(*args)`; whatever it raises becomes an error that says what to do."""
    try:
        return function(*args)
    except FunctionError:
        raise
    except Exception as error:  # a user's function may raise anything
        text = ' '.join(str(error).split('\nSee https')[0].split())
        got = f'{type(error).__name__}: {text[:500]}'
        if isinstance(error, _NOT_JAX):
            got, expected = f'an operation that is not JAX ({got})', f'{expected}; {_IN_JAX}'
        raise FunctionError(f'{label}: got {got}, expected {expected}') from error
