"""A prior given a measurement: the front door of posterior sampling."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Gain, Measure
from namm_jax.denoising.denoisers import is_concrete
from namm_jax.denoising.guidance import measurement_guided
from namm_jax.denoising.prior import Prior, wrapped
from namm_jax.inverse.dps import gain_at, measured_gain
from namm_jax.inverse.operators import Likelihood, after, likelihood

LEVELS = jnp.geomspace(80.0, 0.002, 24)  # of standardised fields, at which the gain is measured


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
    (`denoising.guidance.measurement_guided`). A measurement of the data of a mirror map f is one of
    its mirror points, `lambda z: A(f(z))`, or `after(A, f)`, which keeps an operator's noise.

    Args:
        prior: of fields `(h, w, c)`.
        operator: A, `(b, h, w, c) -> (b, *m)`, a JAX function; an operator of
            `inverse.operators` may have its own noise.
        y: the measurement `(1, *m)`, or one for each sample `(b, *m)`.
        noise_std: standard deviation of white noise, > 0, in the unit of y; None for the
            operator's own.
        gain: `|A|^2` in whitened units, a number or a function of the noise level of standardised
            fields; measured on the prior's examples, or 1 where it has none, unless given.

    Raises:
        ValueError: if y has not the shape of what A measures or is not finite, or there is no
            noise, or two.

    Reference: Song et al. 2023, ICLR, Pseudoinverse-guided diffusion models for inverse problems.
    """
    of = likelihood(after(operator, prior.restore), jnp.asarray(y), noise_std)
    if gain is None:
        gain = 1.0 if prior.examples is None else _measured(prior, of)
    around = lambda S: measurement_guided(S, of, prior_std=1.0, gain=gain, limit=1.0)
    return wrapped(prior, around)
