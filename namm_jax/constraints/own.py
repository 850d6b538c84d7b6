"""A constraint from a user's own distance, and the check that a distance can be trained with.

A distance is a pure JAX function of fields `(b, h, w, c)`, one number `(b,)` a sample: 0 on the set
M, positive off it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, Key, PerSample

NOISE = (
    0.1  # of the data's standard deviation: what `check_distance` compares the residual floor with
)
# what an operation raises that needs the numbers in an array, which a compiled function does not
# have
NOT_JAX = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class DistanceError(ValueError):
    """What is wrong with a distance: the object, what was got, what was expected, what to do."""


@dataclasses.dataclass(frozen=True)
class OwnProblem:
    """The shape of a user's own fields.

    Attributes:
        shape: `(h, w, c)`, each >= 1.

    Raises:
        ValueError: If it is no such shape.
    """

    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(
                f'Got shape = {self.shape}, expected (h, w, c), each at least 1; read it from the '
                'data.'
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnConstraint:
    """The set on which a function of the user's is 0.

    Attributes:
        function: The distance, `(b, h, w, c) -> (b,)`. Static under `jax.jit`, and compared by
            identity.
        name: What logs and errors call it.
        residual_function: The residual, `(b, h, w, c) -> (b, ...)`, or None for the distance.
            Static, too.
        problem: The shape of the data, or None for any. Static, too.
    """

    function: Callable[..., Any] = dataclasses.field(metadata={'static': True})
    name: str = dataclasses.field(metadata={'static': True})
    residual_function: Callable[..., Any] | None = dataclasses.field(
        default=None, metadata={'static': True}
    )
    problem: OwnProblem | None = dataclasses.field(default=None, metadata={'static': True})

    def _input(self, x: Fields) -> Fields:
        if self.problem and x.shape[1:] != self.problem.shape:
            raise DistanceError(
                f'the distance {self.name!r}: got x of shape {x.shape}, expected '
                f'(b, {", ".join(map(str, self.problem.shape))}), the shape of the data'
            )
        return at_least_single(x)

    def residual(self, x: Fields) -> Array:
        """Returns the residual `(b, ...)`; the distance as `(b, 1)` where the user gave no other.

        Args:
            x: Fields `(b, h, w, c)`. Half precision is raised to float32, float64 kept.

        Raises:
            ValueError: If `x` has not the shape of the data, or the residual is not one entry or
                more a sample.
        """
        if self.residual_function is None:
            return self.distance(x)[:, None]
        values = self.residual_function(self._input(x))
        if not isinstance(values, jax.Array) or values.ndim < 2 or values.shape[0] != x.shape[0]:
            got = (
                f'shape {values.shape}' if isinstance(values, jax.Array) else type(values).__name__
            )
            raise DistanceError(
                f'the residual {self.name!r}: got {got}, expected an array of shape ({x.shape[0]}, '
                '...): batch first, then at least one more axis'
            )
        return values

    def distance(self, x: Fields) -> PerSample:
        """Returns the user's distance, shape `(b,)`.

        Args:
            x: Fields `(b, h, w, c)`. Half precision is raised to float32, float64 kept.

        Raises:
            ValueError: If `x` has not the shape of the data, or the function returns no real number
                a sample.
        """
        return per_sample(self.name, self.function(self._input(x)), x)

    def terms(self, x: Fields) -> dict[str, PerSample]:
        """Returns the one term of the distance, `{name: (b,)}`."""
        return {self.name: self.distance(x)}


def own(
    distance: Callable[..., Any],
    name: str = 'own',
    residual: Callable[..., Any] | None = None,
    *,
    problem: OwnProblem | None = None,
) -> OwnConstraint:
    """Returns the constraint that a distance be 0; what the distance must be, `check_distance`
    checks.

    Args:
        distance: A pure JAX function `(b, h, w, c) -> (b,)`, >= 0 and 0 on the set. A mean over the
            pixels is easier to weigh than a sum.
        name: What logs and errors call it.
        residual: A JAX function `(b, h, w, c) -> (b, ...)` that is 0 on the set and changes sign
            across it, for projections by Gauss-Newton, which see more in many signed entries than
            in one distance; None is the distance itself, as `(b, 1)`.
        problem: The shape of the data, so that fields of another are refused; None takes any.

    Raises:
        ValueError: If a function is none, or the name is empty.
    """
    if not callable(distance) or not (residual is None or callable(residual)):
        raise ValueError(
            f'{name!r}: got a distance of type {type(distance).__name__} and a residual of type '
            f'{type(residual).__name__}, expected functions of fields, or no residual'
        )
    if not name:
        raise ValueError(
            'name: got an empty one, expected the word under which logs show the distance'
        )
    return OwnConstraint(distance, name, residual, problem)


def at_least_single(x: Array) -> Array:
    """Returns `x` with half precision and integers raised to float32, float64 kept."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_sample(name: str, values: Any, x: Array) -> PerSample:
    """Returns what the distance called `name` gave for `x`, if that is one real number a sample.

    Raises:
        ValueError: If it is no array, has another shape than `(b,)`, or is not of a floating type.
    """
    expected = (
        f'expected a floating-point array of shape ({x.shape[0]},), one number for each of '
        f'{x.shape[0]} samples'
    )
    if not isinstance(values, jax.Array | np.ndarray):
        raise DistanceError(
            f'the distance {name!r}: got {type(values).__name__}, {expected}; return one array'
        )
    if values.shape != x.shape[:1]:
        raise DistanceError(
            f'the distance {name!r}: got shape {values.shape}, {expected}; '
            'reduce over all axes but the first, as jnp.mean(..., (1, 2, 3)) does'
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise DistanceError(
            f'the distance {name!r}: got {values.dtype}, {expected}; counts and comparisons have '
            'no gradient'
        )
    return jnp.asarray(values)


def check_distance(
    constraint: Constraint, x: Float[np.ndarray | jax.Array, 'b h w c'], key: Key
) -> dict[str, float]:
    """Returns the residual floor on data and what noise makes of it, after checking that the
    distance can be trained.

    The distance must trace under `jax.jit`; be one finite number >= 0 a sample, which depends on
    that sample alone; and have finite gradients on the data and near them, not all 0 off the set. A
    floor that is not small beside the value under noise means that the data do not obey the rule;
    that is for the caller to say. A distance that pairs samples with a reference cannot be checked:
    it does not depend on the sample alone.

    Args:
        constraint: The constraint; of its methods only `distance` is called.
        x: Data that should obey it, some of it: a few dozen samples, at least 2.
        key: A PRNG key, for the noise.

    Returns:
        `floor_mean` and `floor_max`, the distance on the data; `perturbed_mean`, that after noise
        of 10 % of the data's standard deviation: 0 where an inequality leaves that much room.

    Raises:
        ValueError: If the distance is none of that: which one, what was got, what was expected,
            what to do.
    """
    name, x = getattr(constraint, 'name', type(constraint).__name__), jnp.asarray(x, jnp.float32)
    std = float(jnp.std(x))
    if len(x) < 2 or not 0 < std < np.inf:
        raise ValueError(
            f'data for the distance {name!r}: got {len(x)} samples with standard deviation '
            f'{std:.3g}, expected two or more finite samples that are not constant; give it some '
            'of the training data'
        )
    _translated(name, jax.eval_shape, lambda x: per_sample(name, constraint.distance(x), x), x)
    measure = functools.partial(_measure, name, constraint)
    noise = std * jax.random.normal(key, x.shape)
    floor, _ = measure(x, 'on the data')
    perturbed, _ = measure(x + NOISE * noise, 'near the data')
    _check_per_sample(name, measure, *_off_the_set(name, measure, x, noise))
    summary = {
        'floor_mean': floor.mean(),
        'floor_max': floor.max(),
        'perturbed_mean': perturbed.mean(),
    }
    return {statistic: float(value) for statistic, value in summary.items()}


@jax.jit
def _values_and_gradients(constraint: Constraint, x: Fields) -> tuple[PerSample, Fields]:
    def total(x: Fields) -> tuple[Array, PerSample]:
        values = constraint.distance(x)
        return values.sum(), values

    gradients, values = jax.grad(total, has_aux=True)(x)
    return values, gradients


def _measure(
    name: str, constraint: Constraint, x: Fields, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances `(b,)` and their gradients like `x`, checked."""
    values, gradients = map(np.asarray, _translated(name, _values_and_gradients, constraint, x))
    _refuse(
        ~np.isfinite(values),
        name,
        f'NaN or infinity {where}',
        'finite numbers',
        'look for a division by 0, and a logarithm or a root of what may be negative',
    )
    _refuse(
        values < 0,
        name,
        f'{values.min():.3g} {where}',
        'numbers >= 0, and 0 where the rule holds',
        'take the absolute value or the square of what should vanish',
    )
    _refuse(
        ~np.isfinite(gradients).all((1, 2, 3)),
        name,
        f'a gradient of NaN or infinity {where}',
        'finite gradients',
        'look for a root or a norm at 0: take jnp.abs, or add a small number under the root',
    )
    return values, gradients


def _refuse(bad: np.ndarray, name: str, got: str, expected: str, remedy: str) -> None:
    if bad.any():
        raise DistanceError(
            f'the distance {name!r}: got {got} in {bad.sum()} of {len(bad)} samples, the first of '
            f'index {np.argmax(bad)}, expected {expected}; {remedy}'
        )


def _off_the_set(
    name: str, measure: Callable[..., Any], x: Fields, noise: Fields
) -> tuple[Fields, np.ndarray]:
    """Returns points off the set and their distances; raises if there are none, or no gradient
    leads back.
    """
    for size in (NOISE, 1, 10):  # an inequality may leave room for small noise
        off = x + size * noise
        values, gradients = measure(off, f'at the data with noise of {size} standard deviations')
        if values.any():
            break
    else:
        raise DistanceError(
            f'the distance {name!r}: got 0 for the data and for the data with noise of up to 10 '
            'standard deviations, expected a positive number off the set; does it read its '
            'argument?'
        )
    if not gradients.any():
        raise DistanceError(
            f'the distance {name!r}: got a gradient of 0 everywhere although the distance is '
            f'{values.max():.3g}, expected one that leads back to the set; rounding, comparing, '
            'argmax and stop_gradient have none'
        )
    return off, values


def _check_per_sample(
    name: str, measure: Callable[..., Any], x: Fields, values: np.ndarray
) -> None:
    """Raises unless the distance of a sample is the same at another place in the batch, and
    alone.
    """
    tolerance = 1e-3 * values.max()  # sums in another order differ by round-off
    elsewhere, alone = (
        measure(x[::-1], 'in reversed order')[0][::-1],
        measure(x[-1:], 'for one sample alone')[0],
    )
    for got, expected, what in (
        (elsewhere, values, 'at another place in the batch'),
        (alone, values[-1:], 'alone'),
    ):
        _refuse(
            np.abs(got - expected) > tolerance,
            name,
            f'another value {what}',
            'one that depends on the sample alone',
            'take no mean, norm or index over axis 0',
        )


def _translated(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `function(*arguments)`, which calls the distance; whatever that raises becomes an
    error that names it.
    """
    try:
        return function(*arguments)
    except DistanceError:
        raise
    except NOT_JAX as error:
        raise DistanceError(
            f'the distance {name!r}: got an operation that is not JAX ({_summary(error)}), '
            'expected a function that jax.jit can compile; write jax.numpy for numpy, jnp.where '
            'for `if` and for indexing by a mask, and no float(), int() or .item()'
        ) from error
    except Exception as error:  # a user's function may raise anything
        raise DistanceError(
            f'the distance {name!r}: got {_summary(error)}, expected a function of one array (b, '
            'h, w, c) that jax.jit can compile and jax.grad can differentiate; call it on a few '
            'samples to find the line'
        ) from error


def _summary(error: Exception) -> str:
    """Returns an exception's type and message in one line, without the link that JAX adds."""
    text = ' '.join(str(error).split('\nSee https')[0].split())
    return f'{type(error).__name__}: {text[:500]}'
