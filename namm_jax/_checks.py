"""What names, keys, shapes and a user's functions must be: checks whose errors say what to do."""

import difflib
import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Constraint, Fields, Key, Unit

_T = TypeVar('_T')
NOISE = 0.1, 1.0, 10.0  # in scales: an inequality may leave room for the smaller ones

OF_FIELDS = 'a function jax.jit compiles and jax.grad can differentiate; call it on a few fields'
# What is raised where a function does what JAX cannot, and what to do in its place.
_FAULTS = {
    'TracerBool|truth value': 'no `if`, `and`, max() of numbers: take jnp.where(condition, a, b)',
    'TracerArray': 'no NumPy or SciPy: take jax.numpy and jax.scipy, as jnp.linalg.norm',
    'NonConcreteBoolean': 'no indexing by a mask: take jnp.where(mask, x, 0) for x[mask]',
    'TracerInt|Concret|__format__': 'no float(), int(), print of numbers: leave them in arrays',
    'immutable': 'no writing into an array: take x = x.at[i].set(value) for x[i] = value',
    "Tracer.* has no attr|'(keep)?dim'|'int' object is not call|`type` arg|Tensor": 'no PyTorch'
    ': take axis for dim, reshape for view, shape for size(), jnp.clip for clamp, stop_gradient',
    'Reverse-mode|JVP': 'no lax.while_loop, no callback: take lax.scan, lax.fori_loop from 0 to 9',
    'out of bounds': 'axes of fields (b, h, w, c), 0 to 3',
    'Errno': "files that are there: take a path from Path(__file__).parent, the file's own folder",
}
# Where no file of a user's is: this package, the installed ones, and Python's own.
_ENDS = {__file__: '_checks.py', jax.__file__: 'jax/__init__.py', inspect.__file__: 'inspect.py'}
_LIBRARIES = ('<frozen', '<@', *(path.removesuffix(end) for path, end in _ENDS.items()))
_FINITE = (
    'finite numbers; look for a division by 0, a logarithm of what may be negative, and a root or '
    'a norm at 0: take jnp.abs, or add a small number under the root'
)
POSITIVE = 'numbers >= 0, and 0 where the rule holds; take the absolute value or the square'


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


def check_within(interval: str, /, *, kinds: str = 'iuf', **values: Any) -> None:
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
    shape = ', '.join(['b', *map(str, expected[1:])])
    raise ValueError(f'y: got shape {got}, expected ({shape}), b measurements; {remedy}')


def check_key(key: Any) -> None:
    """Raises a ValueError unless a key is one PRNG key, typed or not."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if getattr(key, 'shape', None) != (() if typed else (2,)):
        got = f'an array {key.shape}' if hasattr(key, 'shape') else repr(key)
        raise ValueError(f'key: got {got}, expected one key; take jax.random.key(0)')


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
    elif values.shape[:1] != (b,) or not least <= values.ndim <= most or not values.size:
        got = f'shape {values.shape}'
        remedy = 'reduce over all axes but the first, as jnp.mean(..., (1, 2, 3)) does'
    elif not jnp.issubdtype(values.dtype, jnp.floating):
        got = values.dtype
        remedy = 'counts have no gradient; stack the parts of complex numbers on a last axis'
    else:
        return jnp.asarray(values)
    raise FunctionError(f'{label}: got {got}, {expected}; {remedy}')


def check_rule(constraint: Constraint, x: ArrayLike, key: Key, scale: Unit) -> dict[str, float]:
    """Returns the distance of data and of data with noise, after checking that it can be trained.

    It must trace under `jax.jit`; be one finite number >= 0 a sample, of that sample alone; and
    have finite gradients near the data, not all 0 off the set: a ValueError is raised otherwise.
    Returned are `floor_mean` and `floor_max`, the distance on the data; `perturbed_mean`, that
    after noise of a tenth of each channel's scale; and `unit`, that after noise of the first of
    `NOISE` at which it is not 0, over the latter.

    Args:
        constraint: of its methods only `distance` is called; one to a reference cannot be checked.
        x: fields `(b, h, w, c)` that should obey it: a few dozen of the data, at least 2, not
            constant.
        key: of the noise.
        scale: of each channel, > 0: its standard deviation.
    """
    label = f'the distance {getattr(constraint, "name", type(constraint).__name__)!r}'
    x = np.asarray(x, np.float32)
    size = x.std((0, 1, 2), dtype=np.float64).max()
    if len(x) < 2 or not 0 < size < np.inf:
        raise ValueError(
            f'data for {label}: got {len(x)} samples with standard deviation {size:.3g}, expected '
            'two or more finite samples that are not constant; give it some of the training data'
        )
    near = 10.0 ** np.rint(np.log10(size))
    hint = '' if 1e-9 < size < 1e9 else f'; divide your data by {near:.0e}, and the rule alike'
    measure = _measure(label, constraint.distance, 'distance', hint)
    noise = jnp.float32(scale) * jax.random.normal(key, x.shape)
    floor = measure(x, 'on the data')
    perturbed = measure(x + NOISE[0] * noise, 'near the data')
    for level in NOISE:
        off = x + level * noise
        if measure(off, where := f'at the data with noise of {level} standard deviations').any():
            break
    else:
        raise FunctionError(
            f'{label}: got 0 for the data and for the data with noise of up to 10 standard '
            f'deviations, expected a positive number off the set; does it read its argument?{hint}'
        )
    values = measure(off, where, slope=True)
    check_alone(label, measure, off, values)
    if not 1e-30 < (unit := values.mean() / level) < 1e30:
        got = f'{unit:.2g} where noise is one standard deviation'
        raise FunctionError(f'{label}: got {got}, expected from 1e-30 to 1e30{hint}')
    found = {'floor_mean': floor.mean(), 'floor_max': floor.max()}
    found |= {'perturbed_mean': perturbed.mean(), 'unit': unit}
    return {name: float(value) for name, value in found.items()}


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
    y = measure(x, 'at the fields', slope=True)
    check_alone('operator', measure, x, y)
    if getattr(operator, 'linear', False):
        gap = measure(2 * x[:1] - 3 * x[1:2], 'at a sum of two') - 2 * y[:1] + 3 * y[1:2]
        if np.abs(gap).max() > 5e-3 * np.abs(y).max():
            got = 'linear=True for one that is not'
            expected = 'A(2 a - 3 b) = 2 A(a) - 3 A(b); give linear=False'
            raise FunctionError(f'operator: got {got}, expected {expected}')
    return y.shape[1:]


def _measure(
    label: str, function: Callable[[Array], Any], kind: str, hint: str = ''
) -> Callable[..., np.ndarray]:
    """Returns `(x, where, *, slope=False) -> values` of a function, which are checked, and its
    gradients, which must not be all 0 where there has to be a slope.
    """
    output = lambda x: check_output(label, call(label, function, OF_FIELDS, x), len(x), kind)

    def both(x: Fields) -> tuple[Array, Fields]:
        values, pull_back = jax.vjp(output, x)
        weights = jnp.cos(jnp.arange(values.size, dtype=values.dtype))  # ones may cancel
        return values, pull_back(weights.reshape(values.shape))[0]

    compiled = strict(label, both)

    def measure(x: Fields, where: str, *, slope: bool = False) -> np.ndarray:
        values, gradients = map(np.asarray, compiled(x))
        least, finite = f'{values.min():.3g} {where}', _FINITE + hint
        refuse(label, ~np.isfinite(values), f'NaN or infinity {where}', finite)
        refuse(label, (values < 0) & (kind == 'distance'), least, POSITIVE)
        refuse(label, ~np.isfinite(gradients), f'a gradient of NaN or infinity {where}', finite)
        if slope and not gradients.any():
            raise FunctionError(
                f'{label}: got a gradient of 0 everywhere for values of up to '
                f'{np.abs(values).max():.3g}, expected one that changes them; rounding, comparing, '
                f'argmax and stop_gradient have none{hint}'
            )
        return values

    return measure


def strict(label: str, function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Returns a user's function compiled. It raises a FunctionError for what goes wrong in it, and
    for an index beyond an array, in whose place JAX takes the last one.
    """
    compiled = jax.jit(checkify.checkify(function, errors=checkify.index_checks))

    def checked(x: Array) -> Any:
        beyond, values = call(label, compiled, OF_FIELDS, x)
        if got := beyond.get():
            raise FunctionError(f'{label}: got {got.strip(" .")}, expected an index that exists')
        return values

    return checked


def check_alone(
    label: str, measure: Callable[..., np.ndarray], x: Fields, values: np.ndarray
) -> None:
    """Raises a FunctionError unless the values at x, those of `measure(x, where)`, depend each on
    its own sample alone.
    """
    elsewhere = measure(x[::-1], 'in reversed order')[::-1]
    alone = measure(x[-1:], 'for one sample alone')
    expected = 'one that depends on the sample alone; no mean, norm, index over axis 0, no chance'
    tolerance = 1e-3 * np.abs(values).max()  # sums in another order differ by round-off
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
    got = call(label, functools.partial(jax.eval_shape, function), expected, *like)
    real = hasattr(got, 'dtype') and jnp.issubdtype(got.dtype, jnp.floating)
    if not real or got.shape != like[0].shape:
        raise FunctionError(f'{label}: got {got}, expected {expected}')


def call(label: str, function: Callable[..., Any], expected: str, *args: Any) -> Any:
    """Returns `function(*args)`; whatever it raises becomes a FunctionError that says where, and
    what to do.
    """
    try:
        return function(*args)
    except FunctionError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        text = ' '.join(str(error).split('\nSee https')[0].split())
        got = f'{type(error).__name__}: {text}'
        if fault := next((text for sign, text in _FAULTS.items() if re.search(sign, got)), ''):
            got, expected = f'{got[:100]} ...', f'{expected}; {fault}'
        place = _place(error, function)
        raise FunctionError(f'{label}: {place}got {got[:500]}, expected {expected}') from error


def _place(error: BaseException, function: Callable[..., Any]) -> str:
    """Returns the last line of a user's own that an error has passed, else where the function
    begins: `FILE, line 3, x[0] = 1: `; empty where neither is known.
    """
    for one in filter(None, (error, error.__cause__)):  # a cause has the lines of a transposition
        for frame in reversed(traceback.extract_tb(one.__traceback__)):
            if not frame.filename.startswith(_LIBRARIES):
                return f'{frame.filename}, line {frame.lineno}, `{frame.line}`: '
    code = getattr(inspect.unwrap(getattr(function, 'func', function)), '__code__', None)
    known = code and not code.co_filename.startswith(_LIBRARIES)
    return f'{code.co_filename}, line {code.co_firstlineno}: ' if known else ''
