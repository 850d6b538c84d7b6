"""Arrays of a user's own, with a rule of their own: `problem(x, distance=f)`.

The rule is a plain JAX function of fields `(b, h, w, c)`: a distance `(b,)`, 0 where the rule holds
and positive elsewhere, or a residual `(b, ...)`, whose mean size is the distance.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from namm_jax._arrays import Constraint, Fields, Key
from namm_jax._checks import check_rule
from namm_jax.constraints.base import function_rule
from namm_jax.problems.base import Problem, parameter

SAMPLES = 64  # of the data, at most, on which a rule is checked
LARGEST = float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Arrays(Problem):
    """Fields `(height, width, channels)` of a user's own, in their own units."""

    height: int = parameter(0, 'pixels; 0: any', least=0)
    width: int = parameter(0, 'pixels; 0: any', least=0)
    channels: int = parameter(0, '0: any', least=0)
    periodic: tuple[bool, bool] = parameter((False, False), 'which of the two spatial axes wrap')
    mean: float | tuple[float, ...] = parameter((), 'of the data, one a channel; (): 0')
    scale: float | tuple[float, ...] = parameter((), 'their standard deviation; (): 1', above=0)
    unit: float = 1.0
    distance_function: Any = None  # x (b, h, w, c) -> (b,), or a rule
    residual_function: Callable[..., Any] | None = None  # x -> (b, ...); one of the two is given
    name: str = 'own'  # of the rule

    rule_name = 'own'
    generated = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in (('mean', 0.0), ('scale', 1.0)):
            value = getattr(self, name)
            if value == ():
                object.__setattr__(self, name, default)
            elif self.channels and np.ndim(value) and len(value) != self.channels:
                raise ValueError(f'Got {name} = {value}, expected {self.channels}, one a channel.')

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.height, self.width, self.channels

    def fields(self, keys: Key) -> Fields:
        """Raises a ValueError: they are not generated."""
        raise ValueError('fields: arrays of your own are not generated; take the arrays themselves')

    def rule(self) -> Constraint:
        """Returns the rule that the functions say; raises a ValueError if there is none."""
        functions = self.distance_function, self.residual_function
        if isinstance(self.distance_function, Constraint):
            return self.distance_function
        if functions == (None, None):
            raise ValueError(
                f'the rule {self.name!r}: got no function of fields (b, h, w, c), expected '
                'distance= or residual= of `problem`, or --config.constraint.distance of a run'
            )
        shape = self.shape if all(self.shape) else None
        return function_rule(*functions, name=self.name, shape=shape)


def problem(
    x: ArrayLike,
    *,
    distance: Callable[..., Any] | Constraint | None = None,
    residual: Callable[..., Any] | None = None,
    periodic: tuple[bool, bool] = (False, False),
    name: str = 'own',
) -> Arrays:
    """Returns arrays and their rule as a problem, with their mean, scale and unit, after checks.

    Args:
        x: data that obey the rule `(n, h, w, c)`, real and finite, n >= 2.
        distance: `x -> (b,)`, 0 where the rule holds, positive elsewhere; the mean of `|residual|`
            unless given. Or a rule as it is, such as one of `constraints`, with its ways back.
        residual: `x -> (b, ...)`, 0 where the rule holds; the distance unless given.
        periodic: which of the two spatial axes wrap.
        name: of the rule, in logs and errors.

    Raises:
        ValueError: if x is no such array or constant, or nothing can be trained with a function.
    """
    x = np.asarray(x)
    _check_data(x)
    if np.shape(periodic) != (2,):
        raise ValueError(f'periodic: got {periodic}, expected two, one for each spatial axis')
    functions = {'distance_function': distance, 'residual_function': residual}
    wraps = tuple(map(bool, periodic))
    own = Arrays(*x.shape[1:], wraps, *units([x]), name=name, **functions)
    some = np.linspace(0, len(x) - 1, min(len(x), SAMPLES)).astype(int)
    few = jnp.asarray(x[some], jnp.float32)
    key_check, key_unit = jax.random.split(jax.random.key(0))
    if distance and residual:  # each alone
        check_rule(function_rule(residual=residual, name=name), few, key_check, own.scale)
    unit = check_rule(own.constraint(), few, key_unit, own.scale)['unit']
    return dataclasses.replace(own, unit=unit)


def units(blocks: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation (of a constant: 1), by channel, of the blocks
    `(m, h, w, c)` that data are.
    """
    mean, scale, low, high = moments(blocks, (0, 1, 2))
    return tuple(mean.tolist()), tuple(np.where(low < high, scale, 1).tolist())


def moments(
    blocks: Iterable[np.ndarray], over: tuple[int, ...] | None
) -> tuple[Any, Any, Any, Any]:
    """Returns mean, standard deviation, least and greatest value of blocks together, over axes."""
    n = 0
    for x in blocks:
        mean_x, variance_x = x.mean(over, dtype=np.float64), x.std(over, dtype=np.float64) ** 2
        low_x, high_x = x.min(over), x.max(over)
        if not n:
            mean, variance, low, high = mean_x, variance_x, low_x, high_x
        n += len(x)
        part = len(x) / n  # all of the first, to which this adds 0
        gap = mean_x - mean
        variance = variance + part * (variance_x - variance) + part * (1 - part) * gap**2
        mean = mean + part * gap
        low, high = np.minimum(low, low_x), np.maximum(high, high_x)
    return mean, np.sqrt(variance), low, high


def _check_data(x: np.ndarray) -> None:
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (np.bool_, jnp.integer, jnp.floating)):
        raise ValueError(
            f'x: got values of type {x.dtype}, expected real numbers; nj.read reads those of a file'
        )
    if x.ndim != 4 or len(x) < 2 or not x.size:
        raise ValueError(
            f'x: got shape {x.shape}, expected (n, h, w, c) of two samples or more; one channel is '
            'x[..., None]'
        )
    if bad := np.count_nonzero(~(np.abs(x) <= LARGEST)):
        raise ValueError(
            f'x: got {bad} of {x.size} values NaN or infinite in float32, expected finite ones; '
            'leave those samples out'
        )
    if x.min() == x.max():
        raise ValueError(f'x: got {float(x.flat[0]):.6g} in every pixel, expected data that vary')
