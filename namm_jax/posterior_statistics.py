"""How good posterior samples are: errors of their mean, of their distribution, and of the spread
they claim.

Symbols: `x_i` the `k` samples `(n, k, h, w, c)` of the posteriors of n measurements, `t` the truths
`(n, h, w, c)`. Samples that `valid (n, k)` leaves out, finite or not, have no effect; the `m <= k`
others of a measurement are its ensemble. Samples that are not finite but valid make the statistics
not finite: nothing else is dropped.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from namm_jax._arrays import Fields, Metrics

Samples = Float[Array, 'n k h w c']
Truths = Float[Array, 'n h w c']
Valid = Bool[Array, 'n k']
Scalar = Float[Array, '']


def posterior_moments(samples: Samples, valid: Valid | None = None) -> tuple[Fields, Fields]:
    """Returns the mean of each ensemble, and its unbiased variance
    `sum_i (x_i - mean)^2 / (m - 1)`.

    Args:
        samples: `(n, k, h, w, c)`, in data units.
        valid: `(n, k)`, which samples count; None is all.

    Returns:
        Means and variances `(n, h, w, c)`. A mean of no sample and a variance of fewer than two are
        0.

    Raises:
        ValueError: If the shapes do not match.
    """
    x, weight, m = _weighed(samples, valid)
    mean = jnp.sum(weight * x, 1) / jnp.maximum(m, 1)
    return mean, jnp.sum(weight * (x - mean[:, None]) ** 2, 1) / jnp.maximum(m - 1, 1)


def rmse(truth: Truths, samples: Samples, valid: Valid | None = None) -> Scalar:
    """Returns the root of the mean over measurements and values of `(mean_i x_i - t)^2`, in data
    units.

    Args:
        truth: `(n, h, w, c)`, in data units.
        samples: `(n, k, h, w, c)`.
        valid: `(n, k)`, which samples count; None is all.

    Returns:
        A scalar, over the measurements that have a valid sample; NaN if none has.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check_truth(truth, samples)
    mean, m = posterior_moments(samples, valid)[0], _count(samples, valid)
    return _root(_mean_where(m >= 1, (mean - truth) ** 2))


def crps(truth: Truths, samples: Samples, valid: Valid | None = None) -> Scalar:
    """Returns the fair continuous ranked probability score, the mean over measurements and values.

    `mean_i |x_i - t| - sum_ij |x_i - x_j| / (2 m (m - 1))`, at each value by itself. Its
    expectation does not depend on m and is least where truth and samples have one distribution:
    `sigma / sqrt(pi)` for normal values of standard deviation sigma. One score can be negative. An
    ensemble of one sample scores its absolute error, which is larger.

    Args:
        truth: `(n, h, w, c)`, in data units.
        samples: `(n, k, h, w, c)`. The cost is that of sorting k numbers at each value.
        valid: `(n, k)`, which samples count; None is all.

    Returns:
        A scalar in data units, over the measurements that have a valid sample; NaN if none has.

    Raises:
        ValueError: If the shapes do not match.

    Reference:
        Ferro, "Fair scores for ensemble forecasts", Q. J. R. Meteorol. Soc. 140 (2014); Zamo &
        Naveau, "Estimation of the continuous ranked probability score ...", Math. Geosci. 50
        (2018), eq. 8 (by sorting).
    """
    _check_truth(truth, samples)
    x, weight, m = _weighed(samples, valid)
    difference = (
        x - truth[:, None]
    )  # pairs do not see the shift, and round-off is that of errors, not of values
    error = jnp.sum(weight * jnp.abs(difference), 1) / jnp.maximum(m, 1)
    rank = _per_value(jnp.arange(samples.shape[1])[None])
    last = jnp.sort(
        jnp.where(weight > 0, difference, jnp.inf), 1
    )  # samples left out come behind all others
    # sum_{i < j} |x_i - x_j| = sum_r (2 r - m + 1) x_(r): x_(r) is the larger of r pairs, the
    # smaller of m - 1 - r.
    inside = rank < m[:, None]
    pairs = jnp.sum(
        jnp.where(inside, (2 * rank - m[:, None] + 1) * jnp.where(inside, last, 0), 0), 1
    )
    return _mean_where(m >= 1, error - pairs / jnp.maximum(m * (m - 1), 1))


def spread_skill(truth: Truths, samples: Samples, valid: Valid | None = None) -> Scalar:
    """Returns the spread-skill ratio `sqrt(mean (m + 1)/m variance) / rmse`: 1 if calibrated, below
    1 overconfident.

    If truth and samples are drawn from one distribution of variance V, the unbiased variance of the
    samples is V on average and the squared error of their mean `V + V/m`: hence the factor
    `(m + 1)/m`. The means are over measurements and values before the root is taken.

    Args:
        truth: `(n, h, w, c)`, in data units.
        samples: `(n, k, h, w, c)`.
        valid: `(n, k)`, which samples count; None is all.

    Returns:
        A scalar without unit, both means over the measurements that have two valid samples; NaN if
        none has.

    Raises:
        ValueError: If the shapes do not match.

    Reference:
        Fortin et al., "Why should ensemble spread match the RMSE of the ensemble mean?", J.
        Hydrometeorol. 15 (2014).
    """
    _check_truth(truth, samples)
    (mean, variance), m = posterior_moments(samples, valid), _count(samples, valid)
    spread = _mean_where(m >= 2, (m + 1) / jnp.maximum(m, 1) * variance)
    return _root(spread / _mean_where(m >= 2, (mean - truth) ** 2))


def posterior_statistics(truth: Truths, samples: Samples, valid: Valid | None = None) -> Metrics:
    """Returns `{'rmse', 'crps', 'spread_skill'}`: scalars, the first two in data units.

    Args:
        truth: `(n, h, w, c)`, in data units.
        samples: `(n, k, h, w, c)`.
        valid: `(n, k)`, which samples count; None is all.

    Raises:
        ValueError: If the shapes do not match.
    """
    return {
        statistic.__name__: statistic(truth, samples, valid)
        for statistic in (rmse, crps, spread_skill)
    }


def _weighed(samples: Array, valid: Array | None) -> tuple[Array, Array, Array]:
    """Returns the samples, 0 where left out, their weights 1 or 0 `(n, k, 1, 1, 1)`, and m
    `(n, 1, 1, 1)`.
    """
    m = _count(samples, valid)
    if valid is None:
        return samples, jnp.ones((1,) * samples.ndim, samples.dtype), m
    counts = _per_value(valid)
    # Before any arithmetic: 0 times a NaN is NaN.
    return jnp.where(counts, samples, 0), counts.astype(samples.dtype), m


def _count(samples: Array, valid: Array | None) -> Array:
    """Returns the number of valid samples of each measurement, `(n, 1, 1, 1)`."""
    if samples.ndim != 5:
        raise ValueError(
            f'samples: got shape {samples.shape}, expected (n, k, h, w, c): samples of each '
            'measurement'
        )
    if valid is None:
        return jnp.full((len(samples), 1, 1, 1), samples.shape[1], samples.dtype)
    if valid.shape != samples.shape[:2] or valid.dtype != bool:
        raise ValueError(
            f'valid: got {valid.dtype} of shape {valid.shape}, expected bool of shape '
            f'{samples.shape[:2]}, one for each sample'
        )
    return jnp.sum(valid, 1, dtype=samples.dtype)[:, None, None, None]


def _check_truth(truth: Array, samples: Array) -> None:
    if truth.shape != samples.shape[:1] + samples.shape[2:]:
        raise ValueError(
            f'truth: got shape {truth.shape} for samples {samples.shape}, expected (n, h, w, c) '
            'for (n, k, h, w, c); pass one truth for the k samples of each measurement'
        )


def _per_value(per_sample: Array) -> Array:
    return per_sample[:, :, None, None, None]


def _mean_where(counts: Array, values: Array) -> Array:
    """Returns the mean of the values `(n, h, w, c)` of the measurements that count,
    `(n, 1, 1, 1)`.
    """
    return jnp.mean(values, where=jnp.broadcast_to(counts, values.shape))


def _root(value: Array) -> Array:
    """Returns the square root, whose derivative at 0 is taken to be 0."""
    return jnp.where(value == 0, 0, jnp.sqrt(jnp.where(value == 0, 1, value)))
