"""Checks of measurements, and of the functions that make them, before anything is sampled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Fields
from namm_jax.inverse.operators import Shape, check_shape
from namm_jax.inverse.operators import field_shape as checked_shape

# what an operation raises that needs the numbers in an array, which a compiled function does not
# have
NOT_JAX = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def check_measurement(
    operator: Callable[[Array], Array], y: ArrayLike, noise_std: ArrayLike, shape: Shape
) -> Array:
    """Returns `y` as an array, float32 at least, after checking that it can be a measurement.

    Args:
        operator: `(b, h, w, c) -> (b, *m)`.
        y: Measurements `(b, *m)`, b >= 1.
        noise_std: Standard deviation of their noise, one number > 0, in the unit of `y`.
        shape: `(h, w, c)` of the fields.

    Raises:
        ValueError: If `y` has another shape or is not finite, or `noise_std` is not one positive
            number.
    """
    y = np.asarray(y)
    if y.dtype.kind not in 'fiu':
        raise ValueError(
            f'y: got {y.dtype}, expected real numbers; of complex ones stack both parts on a last '
            'axis'
        )
    # JAX takes neither long doubles nor another machine's order of bytes.
    held = np.float64 if y.dtype.itemsize > 8 else y.dtype.newbyteorder('=')
    with np.errstate(
        over='ignore', invalid='ignore'
    ):  # what its precision cannot hold is counted below
        y = y.astype(jax.dtypes.canonicalize_dtype(jnp.promote_types(held, jnp.float32)))
    b = max(1, len(y)) if y.ndim else 1
    check_shape(
        y.shape, jax.eval_shape(operator, jax.ShapeDtypeStruct((b, *shape), jnp.float32)).shape
    )
    bad = ~np.isfinite(y).reshape(b, -1).all(1)
    if bad.any():
        raise ValueError(
            f'y: got NaN or infinity in {bad.sum()} of {b} measurements, the first of index '
            f'{np.argmax(bad)}, expected finite numbers; what was not observed belongs out of the '
            'operator, as by inpainting'
        )
    if np.shape(noise_std) or not 0 < float(noise_std) < np.inf:
        raise ValueError(
            f'noise_std: got {noise_std}, expected one finite number > 0, in the unit of y; if y '
            'has no noise, give the misfit that you would accept'
        )
    return jnp.asarray(y)


def check_operator(
    operator: Callable[[Array], Array], shape: Shape, *, x: ArrayLike | None = None
) -> tuple[int, ...]:
    """Returns the shape m of one measurement, after checking that the operator can guide a sampler.

    It must trace under `jax.jit`; return real numbers `(b, *m)`, row i of which depends on sample i
    alone; have finite values and gradients, not all 0; and be linear if it has an attribute
    `linear` that says so.

    Args:
        operator: `(b, h, w, c) -> (b, *m)`.
        shape: `(h, w, c)` of the fields.
        x: Where to check it, fields `(b, *shape)`, b >= 2: some of the data. None is standard
            normal noise.

    Raises:
        ValueError: If the operator is none of that: what was got, what was expected, what to do.
    """
    x = np.random.default_rng(0).normal(size=(3, *checked_shape(shape))) if x is None else x
    x = np.asarray(x, np.float32)
    if x.shape[1:] != tuple(shape) or len(x) < 2:
        raise ValueError(
            f'x: got shape {x.shape}, expected two or more fields of shape {tuple(shape)}'
        )
    _check_output(_translated(lambda: jax.eval_shape(operator, x)), len(x))
    compiled = jax.jit(lambda x: _value_and_gradient(operator, x))
    measure = lambda x: map(np.asarray, _translated(lambda: compiled(x)))
    y, gradient = measure(x)
    finite = (
        'look for a division by 0, a norm at 0, and a logarithm or a root of what may be negative'
    )
    _refuse(~np.isfinite(y), 'values of NaN or infinity', f'finite ones; {finite}')
    _refuse(~np.isfinite(gradient), 'a gradient of NaN or infinity', f'a finite one; {finite}')
    _refuse(
        ~gradient.any(),
        'a gradient of 0',
        'one that is not; rounding, comparing and argmax have none',
    )
    _check_rows(
        measure,
        x,
        y,
        bound=1e-3 * float(np.abs(y).max()),
        linear=getattr(operator, 'linear', False),
    )
    return y.shape[1:]


def _check_rows(
    measure: Callable[..., Any], x: np.ndarray, y: np.ndarray, bound: float, linear: bool
) -> None:
    """Raises unless each row of y is of its sample alone, and linear in it if so said; sums differ
    by round-off.
    """
    alone = 'rows that depend on their sample alone; take no mean, norm or index over axis 0'
    elsewhere, first = next(measure(x[::-1]))[::-1], next(measure(x[:1]))
    _refuse(np.abs(elsewhere - y) > bound, 'another value at another place in the batch', alone)
    _refuse(np.abs(first - y[:1]) > bound, 'another value for one sample', alone)
    if linear:
        wrong = np.abs(next(measure(2 * x[:1] - 3 * x[1:2])) - 2 * y[:1] + 3 * y[1:2]) > 5 * bound
        _refuse(
            wrong,
            'linear=True for one that is not',
            'A(2 a - 3 b) = 2 A(a) - 3 A(b); give linear=False',
        )


def _value_and_gradient(operator: Callable[[Array], Array], x: Fields) -> tuple[Array, Fields]:
    y, pull_back = jax.vjp(operator, x)
    return y, pull_back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[
        0
    ]  # ones may cancel


def _check_output(y: Any, b: int) -> None:
    expected = f'expected one floating-point array of shape ({b}, ...), batch first, for {b} fields'
    if not isinstance(y, jax.ShapeDtypeStruct):
        raise ValueError(
            f'operator: got {type(y).__name__}, {expected}; concatenate what it returns'
        )
    if y.shape[:1] != (b,):
        raise ValueError(
            f'operator: got shape {y.shape}, {expected}; reduce over no axis but the others'
        )
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f'operator: got {y.dtype}, {expected}; stack the parts of complex numbers on a last '
            'axis'
        )


def _refuse(wrong: np.ndarray | np.bool, got: str, expected: str) -> None:
    if wrong.any():
        raise ValueError(f'operator: got {got}, expected {expected}')


def _translated(call: Callable[[], Any]) -> Any:
    """Returns `call()`, which calls the operator; whatever that raises becomes an error that says
    what to do.
    """
    try:
        return call()
    except Exception as error:  # a user's function may raise anything
        summary = (
            f'{type(error).__name__}: {" ".join(str(error).split("See https")[0].split())[:500]}'
        )
        if isinstance(error, NOT_JAX):
            raise ValueError(
                f'operator: got an operation that is not JAX ({summary}), expected a function that '
                'jax.jit can compile; write jax.numpy for numpy, jnp.where for `if` and for '
                'indexing by a mask, and no float(), int() or .item()'
            ) from error
        raise ValueError(
            f'operator: got {summary}, expected a function of one array (b, h, w, c) that jax.jit '
            'can compile and jax.grad can differentiate; call it on a few fields to find the line'
        ) from error
