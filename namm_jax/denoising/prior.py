"""Priors: a denoiser with what a sampler needs to know of its data.

Symbols: `u = (x - mean) / width` are standardised fields, mean and width one number or one a
channel; a prior holds `S(u, s) = E[u_0 given u_0 + s noise = u]`, and is itself a denoiser in the
user's units, `D(x, sigma) = mean + width S(u, sigma / std)` with `std` the root mean square of the
widths: noise of level sigma is `sigma / std` of the width of each channel.

A prior is made by training (`fit` of `diffusion`) or of any denoiser (`prior`). Guidance by a rule,
projection, and a measurement (`inverse.given`) make another prior of it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Denoiser, Fields, Key, Params, Step, static
from namm_jax._checks import (
    check_function,
    check_key,
    check_kind,
    check_shape,
    check_within,
    field_shape,
)
from namm_jax.constraints.base import as_rule
from namm_jax.denoising import guidance
from namm_jax.denoising.denoisers import make_parameterisation, positive_std
from namm_jax.denoising.samplers import Scheme, make_sampler, sample_keys

CHUNK = 64  # samples drawn at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """The law of data, as a denoiser; a pytree, in which the shape of a field is static.

    `given` measures on `examples`, which S was not trained on, how far to trust estimates.
    """

    standard: Denoiser  # S, of standardised fields; a pytree
    mean: Array  # of the data, a scalar or (c,)
    width: Array  # their standard deviation, alike
    examples: Array | None = dataclasses.field(repr=False)  # a few fields (k, h, w, c)
    shape: tuple[int, int, int] = static()  # (h, w, c)

    @property
    def std(self) -> Array:
        """The root mean square of the widths."""
        return jnp.sqrt(jnp.mean(self.width**2))

    def standardise(self, x: Fields) -> Fields:
        """Returns `u = (x - mean) / width`."""
        return (x - self.mean) / self.width

    def restore(self, u: Fields) -> Fields:
        """Returns `x = mean + width u`."""
        return self.mean + self.width * u

    def __call__(self, x: Fields, sigma: ArrayLike) -> Fields:
        """Returns the estimate `D(x, sigma)` in the user's units; sigma > 0, a scalar or `(b,)`."""
        return self.restore(self.standard(self.standardise(x), jnp.asarray(sigma) / self.std))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """The denoiser that a score network is trained to be, of standardised fields: a Flax module
    `(u, label, *, train=False) -> like u`, and a key of `denoisers.PARAMETERISATIONS`, both static.
    """

    params: Params = dataclasses.field(repr=False)
    network: Any = static()
    parameterisation: str = static(default='edm')

    def __call__(self, u: Fields, s: Array) -> Fields:
        """Returns `S(u, s)`."""
        network = lambda u, label: self.network.apply({'params': self.params}, u, label)
        parameterisation = make_parameterisation(self.parameterisation, mean=0.0, std=1.0)
        return parameterisation.denoiser(network)(u, s)


def prior(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    *,
    mean: ArrayLike = 0.0,
    std: float = 1.0,
    examples: Array | None = None,
) -> Prior:
    """Returns the prior of a denoiser of one's own, such as another project's trained model.

    Args:
        denoiser: `(x (b, h, w, c), sigma) -> E[x_0 given x_0 + sigma noise = x]`, a JAX function, x
            and sigma in the unit of the data, sigma a scalar or `(b,)`.
        shape: `(h, w, c)` of a field.
        mean, std: of the data, a scalar or `(c,)`, and one number > 0.
        examples: a few fields `(k, h, w, c)`, for `given`.

    Raises:
        ValueError: if the denoiser does not return fields like x, or a number is out of its range.
    """
    shape = field_shape(shape)
    positive_std(std)
    few = np.zeros((1, *shape)) if examples is None else examples
    if np.shape(few)[1:] != shape or not (np.isfinite(few).all() and np.isfinite(mean).all()):
        got = f'mean {mean} and examples of shape {np.shape(few)}'
        raise ValueError(f'prior: got {got}, expected finite ones, and the shape (k, h, w, c)')
    centre = jnp.asarray(mean, jnp.float32)
    width = jnp.asarray(std, jnp.float32)
    leaf = denoiser if isinstance(denoiser, Partial) else Partial(denoiser)
    standard = Partial(_standardised, leaf, centre, width)
    expected = 'a JAX function (x, sigma) -> fields like x, with sigma a scalar or (b,)'
    for sigma in (jnp.ones(()), jnp.ones(2)):
        check_function('denoiser', standard, expected, jnp.zeros((2, *shape)), sigma)
    return Prior(standard, centre, width, examples, shape)


def _standardised(denoiser: Denoiser, mean: Array, std: Array, u: Fields, s: Array) -> Fields:
    return (denoiser(mean + std * u, std * s) - mean) / std


def guided(prior: Prior, rule: Any, *, scale: ArrayLike = 1.0) -> Prior:
    """Returns the prior guided by a rule in its units, or a distance `(b, h, w, c) -> (b,)`: each
    estimate takes the part `scale >= 0` of its way to it, in steps no longer than the data are wide
    (see `denoising.guidance.guided`).
    """
    rule = as_rule(rule)
    distance = lambda u: rule.distance(prior.restore(u))
    return wrapped(prior, lambda S: guidance.guided(S, distance, scale=scale, limit=1.0))


def projected(prior: Prior, project: Callable[[Fields], Fields]) -> Prior:
    """Returns the prior whose estimates are projected by `(b, h, w, c) -> (b, h, w, c)`, the
    identity on the set, such as a rule's `restore` without its second output.
    """
    onto = lambda u: prior.standardise(project(prior.restore(u)))
    return wrapped(prior, lambda S: guidance.projected(S, onto))


def sample(
    prior: Prior,
    key: Key,
    n: int = 1,
    *,
    sampler: str | Scheme | Callable[..., Step] = 'sde_dpm_solver_pp_2m',
    steps: int = 40,
    **options: Any,
) -> Fields:
    """Returns n samples `(n, h, w, c)` of a prior, in its units; sample i depends on i alone.

    Args:
        sampler: as `step` of `make_sampler`.
        steps: of the sampler, >= 1; each is a call of the denoiser, of `heun` two.
        **options: of `make_sampler`, but for mean and std, which the prior has.
    """
    check_kind('prior', prior, Prior, 'nj.fit or nj.prior')
    check_key(key)
    check_within('[1, inf)', kinds='iu', n=n, steps=steps)
    keys = sample_keys(key, n)
    items = (('steps', int(steps)), *options.items())
    is_rows = lambda leaf: isinstance(leaf, Rows)
    cut = lambda i: lambda leaf: leaf.part(i, n) if is_rows(leaf) else leaf
    part = lambda i: jax.tree.map(cut(i), prior, is_leaf=is_rows)
    chunks = [_draw(part(i), keys[i : i + CHUNK], sampler, items) for i in range(0, n, CHUNK)]
    return jnp.concatenate(chunks)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _draw(prior: Prior, keys: Key, sampler: Any, options: tuple[tuple[str, Any], ...]) -> Fields:
    draw = make_sampler(sampler, mean=0.0, std=1.0, **dict(options))  # of standardised fields
    return prior.restore(draw(keys, prior.standard, prior.shape))


class Rows(NamedTuple):
    """Rows of which each sample of a prior has its own, or one for all."""

    values: Any

    def part(self, start: int, n: int) -> 'Rows':
        """Returns those of a chunk of n samples."""
        check_shape(self.values.shape, (n, *self.values.shape[1:]))
        return self if len(self.values) == 1 else Rows(self.values[start : start + CHUNK])


def wrapped(prior: Prior, around: Callable[..., Denoiser], *rows: Rows) -> Prior:
    """Returns the prior with the denoiser `around(*rows, S)` of standardised fields for its S."""
    check_kind('prior', prior, Prior, 'nj.fit or nj.prior')
    with_rows = Partial(around, *rows)
    return dataclasses.replace(prior, standard=Partial(_apply, with_rows, prior.standard))


def _apply(around: Callable[[Denoiser], Denoiser], S: Denoiser, u: Fields, s: Array) -> Fields:
    return around(S)(u, s)
