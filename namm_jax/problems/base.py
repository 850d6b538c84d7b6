"""What a problem is: data of one kind, the rule that they obey, and what the rest needs to know.

Three forms of a field: as networks see it, `(h, w, c)`; as files hold it, `file_shape`, from one to
the other by `pack` and `unpack`; and an image to look at.
"""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, Key, PerSample, at_least_single
from namm_jax._checks import check_key, check_within, choose
from namm_jax.constraints.base import Rule, mean_absolute, rule, weighted_sum
from namm_jax.inverse.operators import OPERATORS, Operator

CHUNK = 256  # fields made at once by `sample`


class View(NamedTuple):
    """How fields are shown."""

    units: tuple[str, str] = ('x', '|residual|')  # of fields and of residual maps
    axis_names: tuple[str, str] = ('row', 'column')
    colours: str = 'viridis'
    centred: bool = False  # whether the scale of the colours is centred on 0


def parameter(
    default: Any, meaning: str, *, unit: str = '', choices: Iterable[str] = (), **limits: Any
) -> Any:
    """Returns a field of a problem's dataclass: its default, what it is, and what `Problem` checks:
    the `choices` for a text, and limits `least` (>=), `above` (>), `most` (<=) and `below` (<).
    """
    details = {'unit': unit, 'choices': tuple(choices), 'limits': limits}
    return dataclasses.field(default=default, metadata={'meaning': meaning, **details})


def parameters(problem: Any) -> dict[str, Any]:
    """Returns the parameters of a problem's class, which have a meaning, and their defaults."""
    fields = dataclasses.fields(problem)
    return {field.name: field.default for field in fields if 'meaning' in field.metadata}


class Problem:
    """Data of one kind: a frozen dataclass whose fields are their sizes and coefficients.

    A problem derives from this class, which holds defaults, and defines `fields`, and `rule` or
    `rules`. It is a pytree without leaves: static under `jax.jit`, compared by value. A parameter
    out of its range, or of its choices, is a ValueError.

    Attributes:
        name: what configs and folders call it.
        rule_name: the rule that is meant where none is named, a key of `rules()`.
        rule: builds that rule, from its options.
        operator: the usual measurement, a key of `inverse.operators.OPERATORS`.
        operator_options: of those operators that take them, such as `channels_per_state`.
        periodic: which of the two spatial axes wrap, as networks see fields.
        spatial_axes: axes of a batch along which energy spectra are taken.
        mean, scale: of the data, one number or one a channel: networks see `(x - mean) / scale`.
        unit: the distance where the data take noise of one standard deviation: weights in a loss
            are per that unit.
        view: how fields are shown.
        distance_words: what the distance is, for people, by the name of the rule.
        generated: whether `fields` makes them; else they are a user's, and so is the rule.
        rollout: first states `(b, ...) -> fields`, where there is a solver; else None.
        first_states: fields `-> (b, ...)`, alike.
    """

    name: ClassVar[str]
    rule_name: ClassVar[str]
    rule: Callable[..., Constraint]
    operator: ClassVar[str] = 'random_sensors'
    operator_options: ClassVar[Mapping[str, Any]] = {}
    periodic: tuple[bool, bool] = (False, False)
    spatial_axes: tuple[int, ...] = (1, 2)
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    unit: float = 1.0
    view: ClassVar[View] = View()
    distance_words: ClassVar[Mapping[str, str]] = {}
    generated: ClassVar[bool] = True
    rollout: Callable[[Array], Fields] | None = None
    first_states: Callable[[Fields], Array] | None = None

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_static(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if 'meaning' in field.metadata:
                value, limits = getattr(self, field.name), field.metadata['limits']
                check_range(field.name, value, limits, field.metadata['choices'])

    @property
    def units(self) -> tuple[Any, Any]:
        """Mean and scale of the data."""
        return self.mean or 0.0, self.scale or 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(h, w, c)` of a field as networks see it, here `(points, points, 1)`."""
        return self.points, self.points, 1

    @property
    def file_shape(self) -> tuple[int, int, int]:
        """`(h, w, c)` of a field in files."""
        return self.shape

    @property
    def cell(self) -> tuple[int, int]:
        """Pixels along each spatial axis by which data rolled are as probable as data, where that
        axis wraps: 1 where all pixels are alike, the axis's length where none are.
        """
        return self.shape[:2]

    def fields(self, keys: Key) -> Fields:
        """Returns fields `(n, *shape)` for keys `(n,)`, field i a function of key i alone."""
        raise NotImplementedError

    def rules(self) -> Mapping[str, Callable[..., Constraint]]:
        """Returns the rules that the data obey, by name, each a function that builds it."""
        return {self.rule_name: self.rule}

    def sample(self, key: Key, n: int) -> Fields:
        """Returns n fields `(n, *shape)`; field i is the same however many are asked for."""
        check_key(key)
        check_within('[1, inf)', kinds='iu', n=n)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(n))
        chunk = jax.jit(self.fields)
        return jnp.concatenate([chunk(keys[i : i + CHUNK]) for i in range(0, n, CHUNK)])

    def constraint(
        self, name: str = '', weights: Sequence[float] = (), **options: Any
    ) -> Constraint:
        """Returns the rule that the data obey.

        Args:
            name: a key of `rules()`, or several joined by `+` for their sum; `rule_name` if empty.
            weights: of a sum, one a rule; all 1 unless given.
            **options: of the rule, such as the network that it holds.

        Raises:
            ValueError: if there is no such rule, or the weights do not fit.
        """
        rules = self.rules()
        names = (name or self.rule_name).split('+')
        parts = {part: choose('constraint', part, rules)(**options) for part in names}
        weights = tuple(weights) or (1.0,) * len(parts)
        if len(weights) != len(parts):
            raise ValueError(
                f'constraint.weights: got {weights} for {names}, expected one a term, or none (1)'
            )
        if weights == (1,):
            return parts[names[0]]
        return weighted_sum(parts, dict(zip(names, weights, strict=True)))

    def distance(self, x: Fields) -> PerSample:
        """Returns the distance `(b,)` of fields from the set of its rule."""
        return self.constraint().distance(x)

    def measurement(self, name: str = '', **options: Any) -> Operator:
        """Returns the usual measurement operator, or that `name` of `inverse.operators`."""
        build = choose('operator', name or self.operator, OPERATORS)
        takes = inspect.signature(build).parameters
        own = {key: value for key, value in self.operator_options.items() if key in takes}
        return build(self.shape, **own | options)

    def pack(self, x: Float[Array, 'b H W C']) -> Fields:
        """Returns fields as networks see them, from fields as files hold them."""
        return x

    def unpack(self, x: Fields) -> Float[Array, 'b H W C']:
        """Returns fields as files hold them, from fields as networks see them."""
        return x

    def seamless(self, x: Fields) -> Array:
        """Returns fields whose spectrum along `spatial_axes` has no seams between states."""
        return x

    def features(self, x: Fields) -> Float[Array, 'b k']:
        """Returns further numbers of each field by which a two-sample test may tell it from data,
        beside `metrics.summaries` and principal components; none as a rule.
        """
        return jnp.zeros((len(x), 0))

    def image(self, x: Fields) -> Float[Array, 'b H W']:
        """Returns images of fields to look at."""
        return x[..., 0]

    @property
    def extent(self) -> tuple[float, float, float, float] | None:
        """Where an image's left, right, lower and upper edge lie, in the units of `view`'s axes;
        None to count its pixels.
        """
        return None

    def residual_map(self, constraint: Constraint, x: Fields) -> Float[Array, 'b H W']:
        """Returns images of what breaks the rule, oriented as `image`: what the rule's way back
        changes, x less it; `(b, 0, 0)` where it has none, and samples show their distance alone.
        """
        if getattr(constraint, 'restores', None):
            return (x - constraint.restore(x)[0])[..., 0]
        return jnp.zeros((len(x), 0, 0))


def given_first_state(problem: Problem, u_0: Float[Array, '*b h']) -> Rule:
    """Returns the rule that the first column of images `(b, h, w, 1)` is `u_0`, one or one a
    sample, beside the problem's, whose way back leaves that column: so both are kept exactly.
    """
    base = problem.constraint()
    started = lambda x: x.at[:, :, 0, 0].set(u_0)
    gap = lambda x: x[:, :, 0, 0] - u_0
    others = lambda x: base.residual(started(x)).reshape(len(x), -1)
    terms = {
        'first_state': lambda x: mean_absolute(gap(x)),
        problem.rule_name: lambda x: base.distance(started(x)),
    }
    both = lambda x: jnp.concatenate([gap(x), others(x)], 1)
    return rule('given', both, terms=terms, restores={'both': lambda x: base.restore(started(x))})


def check_fields(problem: Problem, x: Array) -> Fields:
    """Returns fields in float32 or better; raises a ValueError unless x is `(b, *shape)`."""
    if x.ndim != 4 or x.shape[1:] != problem.shape:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, {", ".join(map(str, problem.shape))}): take '
            'the problem that the data were made with; fields of files go through `pack` first.'
        )
    return at_least_single(x)


_LIMITS = {
    'least': (operator.ge, 'at least'),
    'above': (operator.gt, 'more than'),
    'most': (operator.le, 'at most'),
    'below': (operator.lt, 'less than'),
}


def check_range(
    name: str, value: Any, limits: Mapping[str, int | float], choices: Iterable[str]
) -> None:
    """Raises a ValueError unless a value's numbers are within limits, or it is one of choices."""
    for limit, bound in limits.items():
        within, words = _LIMITS[limit]
        if not all(within(item, bound) for item in np.ravel(value)):
            raise ValueError(f'{name}: got {value}, expected {words} {bound}')
    if choices:
        choose(name, value, dict.fromkeys(choices))
