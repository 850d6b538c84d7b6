"""What a measurement says of a field, by the residuals of unit variance that its noise's law makes.

Symbols: `y` a measurement, `A` its operator, `r(x) = whiten(y, A(x))` the residuals, independent
and of unit variance at the truth: `log p(y given x) = -|r(x)|^2 / 2`, but for a constant. Those who
sample see nothing of a measurement but r, so correlated, periodic and multiplicative errors are
only other laws. White noise of standard deviation s is `r = (y - A(x)) / s`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Key, Measure, Measurement, PerSample, as_pytree, at_least_single, root
from namm_jax._checks import check_shape
from namm_jax.denoising.denoisers import is_concrete, positive
from namm_jax.inverse.operators import Law, Operator


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What a measurement says of fields, made by `likelihood`.

    Another space or unit of x is another `measure`.
    """

    measure: Measure  # A, x (b, ...) -> (b, *m)
    whiten: Law  # of its noise, (y, A(x)) -> r (b, ...)
    y: Measurement  # (b, *m), one a sample, or (1, *m), one for all

    def residual(self, x: Array) -> Float[Array, 'b r']:
        """Returns r(x), flattened; a ValueError unless A gives real numbers of the shape of y."""
        Ax = self.measure(x)
        check_shape(self.y.shape, Ax.shape)
        r = self.whiten(jnp.broadcast_to(self.y, Ax.shape), Ax)
        for name, values in (('measure', Ax), ('whiten', r)):
            if not jnp.issubdtype(values.dtype, jnp.floating) or values.shape[:1] != x.shape[:1]:
                raise ValueError(
                    f'{name}: got {values.dtype} of shape {values.shape}, expected real '
                    f'floating-point numbers ({len(x)}, ...): others have no slope'
                )
        return r.reshape(len(x), -1)

    def misfit(self, x: Array) -> PerSample:
        """Returns `||r(x)||_2`, at the truth about the square root of the number of values; its
        gradient is 0 where it is 0.
        """
        return root(jnp.sum(self.residual(x) ** 2, -1))

    def misfit_per_value(self, x: Array) -> PerSample:
        """Returns the root mean square of r(x), about 1 at the truth."""
        r = self.residual(x)
        return root(jnp.sum(r**2, -1)) / r.shape[1] ** 0.5

    def log_density(self, x: Array) -> PerSample:
        """Returns `-|r(x)|^2 / 2`, the log-likelihood but for a constant."""
        return -jnp.sum(self.residual(x) ** 2, -1) / 2

    def precision(self) -> Array:
        """Returns the mean squared slope of r in A(x), there where `A(x) = y`: `1 / s^2` of white
        noise of standard deviation s. It is the gain (see `dps.discrepancy`) of selections; of laws
        that correlate values it is an estimate, by 16 random directions.
        """

        def of_direction(key: Key) -> Array:
            signs = jax.random.rademacher(key, self.y.shape, self.y.dtype)
            _, slopes = jax.jvp(lambda Ax: self.whiten(self.y, Ax), (self.y,), (signs,))
            return jnp.mean(slopes**2)

        return jnp.mean(jax.lax.map(of_direction, jax.random.split(jax.random.key(0), 16)))


def likelihood(operator: Measure, y: ArrayLike, noise_std: ArrayLike | None = None) -> Likelihood:
    """Returns what a measurement says of fields, after checking that it can be one.

    Args:
        operator: A, `x (b, ...) -> (b, *m)`, real and differentiable: an `Operator` or any function
            of x, whose law of noise is its attribute `whiten`, if it has one.
        y: measurements `(b, *m)`, one a sample, or `(1, *m)`, one for all. Raised to float32; of a
            traced one only shape and type are checked.
        noise_std: s > 0, one number in the unit of y, of white noise, `r = (y - A(x)) / s`; for
            operators without a law of their own.

    Raises:
        ValueError: if y is not finite, not real, or not of A's shape; if noise_std is out of its
            range, or given and the operator has a law, or neither.
    """
    law = getattr(operator, 'whiten', None)
    if (law is None) == (noise_std is None):
        got = 'none' if law is None else f'{noise_std} and an operator with a noise law of its own'
        raise ValueError(
            f'noise_std: got {got}, expected one of the two; leave noise_std out where the '
            'operator has an attribute `whiten`, and give it where it has none'
        )
    if law is None:
        remedy = ', in the unit of y; if y has no noise, give the misfit that you would accept'
        law = Partial(_white, positive('noise_std', noise_std, remedy))
    else:
        law = Partial(_with_weights_held, as_pytree(law))
    y = _measurement(y)
    if isinstance(operator, Operator):
        x = jax.ShapeDtypeStruct((len(y), *operator.shape), jnp.float32)
        check_shape(y.shape, jax.eval_shape(operator, x).shape)
    return Likelihood(as_pytree(operator), law, y)


def _white(s: Array, y: Measurement, Ax: Measurement) -> Array:
    return (y - Ax) / s


def _with_weights_held(law: Law, y: Measurement, Ax: Measurement) -> Array:
    # Where the size of the noise depends on A(x), a smaller residual by larger noise is no fit: its
    # slope in A(x) is minus that in y, as in iteratively reweighted least squares.
    weights_at = jax.lax.stop_gradient(Ax)
    return law(y + (weights_at - Ax), weights_at)


def _measurement(y: ArrayLike) -> Measurement:
    """Returns y, float32 at least, after checking that it is `(b, *m)`, real and finite."""
    y = y if isinstance(y, jax.Array) else np.asarray(y)
    if not (jnp.issubdtype(y.dtype, jnp.floating) or jnp.issubdtype(y.dtype, jnp.integer)):
        raise ValueError(
            f'y: got {y.dtype}, expected real numbers; stack the parts of complex ones on an axis'
        )
    if not y.ndim or not y.size:
        raise ValueError(
            f'y: got shape {y.shape}, expected (b, *m), b >= 1; add the batch axis, y[None]'
        )
    if isinstance(y, np.ndarray):
        # JAX takes neither long doubles nor another machine's order of bytes.
        native = np.float64 if y.dtype.itemsize > 8 else y.dtype.newbyteorder('=')
        with np.errstate(over='ignore', invalid='ignore'):  # counted below
            y = y.astype(jax.dtypes.canonicalize_dtype(jnp.promote_types(native, jnp.float32)))
    if is_concrete(y):
        bad = ~np.isfinite(np.asarray(y)).reshape(len(y), -1).all(1)
        if bad.any():
            raise ValueError(
                f'y: got NaN or infinity in {bad.sum()} of {len(y)} measurements, the first of '
                f'index {np.argmax(bad)}, expected finite numbers; what was not observed belongs '
                'out of the operator, as by inpainting'
            )
    return at_least_single(y)
