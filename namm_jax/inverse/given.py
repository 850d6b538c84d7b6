"""A prior given a measurement: the front door of posterior sampling."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Fields, Gain, Measure
from namm_jax._checks import check_kind, check_operator
from namm_jax.denoising.denoisers import positive
from namm_jax.denoising.guidance import measurement_guided
from namm_jax.denoising.prior import Prior, Rows, wrapped
from namm_jax.inverse.dps import gain_at, measured_gain
from namm_jax.inverse.likelihood import Likelihood, likelihood

ITERATIONS = 20  # of conjugate gradients, for an operator with a noise law of its own
LEVELS = (80.0, 0.002, 24)  # of standardised fields, at which the gain is measured
NO_EXAMPLES = (
    'nj.given: the prior has no examples, so that the gain is that of an operator that picks '
    'entries, which this one does not; give nj.prior(..., examples=x), or a gain'
)
_gains = jax.jit(functools.partial(measured_gain, std=1.0))


def given(
    prior: Prior,
    operator: Measure,
    y: Array,
    noise_std: ArrayLike | None = None,
    *,
    gain: Gain | None = None,
) -> Prior:
    """Returns the prior given a measurement `y = A(x) + noise`, which `sample` draws from.

    Its estimates are moved by the gradient of the measurement's likelihood, through the denoiser
    (`denoising.guidance.measurement_guided`: by the gain for white noise, by conjugate gradients
    for an operator's own law). A measurement of the data of a mirror map f is one of
    its mirror points, `lambda z: A(f(z))`, or `A.after(f)`, which keeps an operator's own noise.

    Args:
        prior: of fields `(h, w, c)`.
        operator: A, `(b, h, w, c) -> (b, *m)`, a JAX function, or an `Operator`.
        y: the measurement `(1, *m)`, or one for each sample `(b, *m)`.
        noise_std: of white noise, > 0, in the unit of y; None for the operator's own.
        gain: as of `dps.discrepancy`, of standardised fields. None measures it on the prior's
            examples; where it has none it is that of selections, with a warning for others.

    Raises:
        ValueError: as of `likelihood` and `check_operator`.

    Reference: Song et al. 2023, ICLR, Pseudoinverse-guided diffusion models for inverse problems.
    """
    check_kind('prior', prior, Prior, 'nj.fit or nj.prior')
    x = prior.restore(jax.random.normal(jax.random.key(0), (3, *prior.shape)))
    x = x if prior.examples is None else jnp.resize(prior.examples, x.shape)
    check_operator(operator, prior.shape, x)
    of_x = likelihood(operator, y, noise_std)
    if noise_std is not None:
        positive('(prior.std / noise_std)^2', (prior.std / noise_std) ** 2, '; change noise_std')
    measure = Partial(_measure, of_x.measure, prior.mean, prior.width)
    of = dataclasses.replace(of_x, measure=measure)
    jax.eval_shape(of.residual, jax.ShapeDtypeStruct((len(of.y), *prior.shape), jnp.float32))
    if gain is None and prior.examples is not None:
        gain = _measured_gain(prior, of)
    elif gain is None:
        gain = of.precision() * prior.std**2
        if not _selects(operator, jnp.zeros_like(x)):
            warnings.warn(NO_EXAMPLES, stacklevel=2)
    residual = lambda rows: dataclasses.replace(of, y=rows.values).residual
    # The gain is one number: a law of the operator's own may weigh its residuals far apart.
    settings = dict(gain=gain, iterations=ITERATIONS if noise_std is None else 0)
    around = lambda y, S: measurement_guided(S, residual(y), std=1.0, limit=1.0, **settings)
    return wrapped(prior, around, Rows(of.y))


def _selects(operator: Measure, x: Fields) -> bool:
    """Returns whether A picks entries of fields, `A A^T = 1`, by random measurements."""
    y, transposed = jax.vjp(operator, x)
    r = jax.random.normal(jax.random.key(0), y.shape)
    return jnp.allclose(operator(*transposed(r)), r, atol=1e-2)


def _measure(measure: Measure, mean: Array, width: Array, u: Fields) -> Array:
    return measure(mean + width * u)


def _measured_gain(prior: Prior, of: Likelihood) -> Gain:
    levels = jnp.geomspace(*LEVELS)
    keys = jax.random.split(jax.random.key(0), len(levels))
    u = prior.standardise(prior.examples)
    return gain_at(levels, _gains(keys, prior.standard, of, u, levels))
