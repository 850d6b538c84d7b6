"""The seams: array aliases, what acts sample by sample, and the roles that the package plays.

Symbols, used everywhere with the same meaning: `x` data, `z` mirror space, `y` measurement, `noise`
a standard normal draw, `t` diffusion time, `alpha_t` and `sigma_t` the signal and noise scales of
`x_t = alpha_t x_0 + sigma_t noise`. Arrays are batch first and channels last, `(b, h, w, c)`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

Key: TypeAlias = jax.Array  # a typed PRNG key, or a batch of them
Params: TypeAlias = PyTree
Metrics: TypeAlias = dict[str, Array]
Fields: TypeAlias = Float[Array, 'b h w c']  # data, mirror points, or images of any kind
Unit: TypeAlias = ArrayLike | tuple[float, ...]  # a mean or a scale: a number, or one a channel
PerSample: TypeAlias = Float[Array, ' b']

# (x, sigma) -> E[x_0 | x_0 + sigma noise = x], in data units; sigma a scalar or `(b,)`.
Denoiser: TypeAlias = Callable[[Array, Array], Array]

# (denoiser, keys `(b,)`, x_t, memory, t, s) -> (x_s, memory); memory starts as `()`.
Step: TypeAlias = Callable[[Denoiser, Key, Array, PyTree, Array, Array], tuple[Array, PyTree]]

Measurement: TypeAlias = Float[Array, 'b *m']
# x (b, ...) -> A(x) (b, *m), row by row, differentiable
Measure: TypeAlias = Callable[[Array], Measurement]
# |A|^2: a number, or a function of the noise level
Gain: TypeAlias = ArrayLike | Callable[[Array], Array]

# (params, frozen, key, batch, *, train) -> (scalar, named terms)
Loss: TypeAlias = Callable[..., tuple[Array, Metrics]]

# A field of a dataclass that is a pytree, compared by value under `jax.jit`.
static = functools.partial(dataclasses.field, metadata={'static': True})

# In full precision: accelerators would otherwise round to 10 bits or fewer.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@runtime_checkable
class Constraint(Protocol):
    """A set M, given by a differentiable distance. Implementations are pytrees.

    `terms(x)` maps fields `(b, h, w, c)` to named distances `(b,)`, each >= 0 and 0 iff satisfied;
    `distance(x)` is their weighted sum `(b,)`; `residual(x)` is `(b, ...)` and 0 on M. There may be
    `restores`, names of exact ways back `x -> (x, info)`, each the identity on M; `restore`, the
    first of them; and `given(x_ref) -> Constraint`.
    """

    def terms(self, x: Fields) -> Mapping[str, PerSample]: ...

    def distance(self, x: Fields) -> PerSample: ...

    def residual(self, x: Fields) -> Array: ...


class MirrorMap(NamedTuple):
    """A forward map g into mirror space and its (approximate) inverse f."""

    init: Callable[[Key, Array], Params]  # (key, x) -> {'forward', 'inverse'}; {} of closed forms
    forward: Callable[[Params, Array], Array]  # (params, x) -> z, the map g
    inverse: Callable[..., Array]  # (params, z, dropout_key=None) -> x, the map f; None: no dropout

    def bind(self, params: Params) -> tuple[jax.tree_util.Partial, jax.tree_util.Partial]:
        """Returns `(g, f)` as functions of arrays alone, which are themselves pytrees."""
        partial = jax.tree_util.Partial
        return partial(self.forward, params), partial(self.inverse, params)


class Schedule(NamedTuple):
    """A Gaussian noising path: `x_t = alpha(t) x_0 + sigma(t) noise`."""

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]


class Parameterisation(NamedTuple):
    """How a network becomes a denoiser, and how it is trained."""

    denoiser: Callable[[Callable[..., Array]], Denoiser]  # of a network (x, label) -> like x
    levels: Callable[[Key, int], Array]  # (key, n) -> training noise levels sigma (n,)
    weight: Callable[[Array], Array]  # sigma -> weight of the squared denoising error


class Task(NamedTuple):
    """What the training loop trains."""

    init: Callable[[Key], Params]
    loss: Loss
    optimizer: Any  # an optax gradient transformation
    frozen: PyTree = ()  # what the loss reads and training leaves alone


def axes(x: Array) -> tuple[int, ...]:
    """Returns the axes of `x (b, ...)` within a sample: all but the first."""
    return tuple(range(1, x.ndim))


def broadcast(level: ArrayLike, x: Array) -> Array:
    """Returns a scalar or `(b,)` in the shape that broadcasts against `x (b, ...)`."""
    level = jnp.asarray(level)
    return level.reshape(level.shape + (1,) * (x.ndim - 1)) if level.ndim else level


def fold_in(keys: Key, index: ArrayLike) -> Key:
    """Returns keys `(b,)` for step `index`, made of each sample's own."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)


def normal(keys: Key, x: Array) -> Array:
    """Returns standard normal noise like `x (b, ...)`, that of sample i from key i."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def to_standard(x: Array, mean: Unit, scale: Unit) -> Array:
    """Returns `(x - mean) / scale`, numbers or one a channel; x itself for 0 and 1."""
    return x if (mean, scale) == (0.0, 1.0) else (x - jnp.asarray(mean)) / jnp.asarray(scale)


def from_standard(u: Array, mean: Unit, scale: Unit) -> Array:
    """Returns `mean + scale u`, the inverse of `to_standard`."""
    return u if (mean, scale) == (0.0, 1.0) else jnp.asarray(mean) + jnp.asarray(scale) * u


def root(value: Array) -> Array:
    """Returns the square root, whose derivative at 0 is taken to be 0; that of NaN is NaN."""
    zero = value == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, value)))


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function as a pytree: itself if it is one, else a `Partial` of it; a method of a
    pytree, such as a problem, has that as its argument, and so compares by its value.
    """
    if inspect.ismethod(function) and not jax.tree_util.all_leaves([function.__self__]):
        return jax.tree_util.Partial(function.__func__, function.__self__)
    is_leaf = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_leaf else function


def at_least_single(x: ArrayLike) -> Array:
    """Returns `x` with half precision and integers raised to float32, float64 kept."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
