"""How good samples are: arrays in, scalars out.

Of sets, how far samples `x (n, ...)` are from a constraint and from a reference `y (m, ...)`, in
one layout and in data units. A distance between finite sets of one distribution is not 0: read each
beside its values for true samples of the same number. Samples that are not finite make it not
finite.

Of posteriors, the errors of their mean, of their distribution, and of the spread they claim, given
the `truth (n, h, w, c)` of n measurements and k `samples (n, k, h, w, c)` of each, in data units.
Samples that `valid (n, k)` leaves out, finite or not, have no effect (None: all count); m others
remain. Other shapes raise a ValueError.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Key, Metrics, matmul, root

Scalar: TypeAlias = Float[Array, '']
Samples: TypeAlias = Float[Array, '...']  # (n, k, h, w, c)
Truths: TypeAlias = Float[Array, '...']  # (n, h, w, c)
Valid: TypeAlias = Array  # booleans (n, k)

_X: TypeAlias = Float[Array, 'n ...']
_Y: TypeAlias = Float[Array, 'm ...']
_Axes: TypeAlias = tuple[int, ...]
_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


def distance_statistics(distances: Float[Array, '...']) -> Metrics:
    """Returns `{'mean', 'median', 'max'}` of constraint distances `(n,)`, n >= 1, in their unit."""
    if distances.ndim != 1 or not distances.size:
        remedy = 'pass constraint.distance(x)'
        raise ValueError(f'distances: got shape {distances.shape}, expected (n,), n >= 1; {remedy}')
    return {'mean': jnp.mean(distances), 'median': jnp.median(distances), 'max': jnp.max(distances)}


@functools.partial(jax.jit, static_argnames='multiples')
def mmd(x: _X, y: _Y, *, multiples: tuple[float, ...] = _MULTIPLES) -> Scalar:
    """Returns an unbiased estimate of the squared maximum mean discrepancy, without unit.

    `MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)` with
    `k(a, b) = mean_c exp(-|a - b|^2 / (2 (c h)^2))`, `c > 0` in `multiples` and `h` the median
    distance between two members of y (NaN results if more than half of its pairs coincide). Its
    expectation is 0 for equal distributions: it can be negative. Sets that differ in field shape or
    have fewer than 2 members raise a ValueError.

    Reference: Gretton et al., "A kernel two-sample test", JMLR 13 (2012), eq. 3.
    """
    x, y = _flat_pair(x, y, least=2)
    squares = _square_distances(y, y)
    median = jnp.nanmedian(jnp.where(jnp.eye(len(y), dtype=bool), jnp.nan, squares))  # of pairs
    exponential = lambda squares, c: jnp.exp(-squares / (2 * c**2 * median))
    kernel = lambda squares: sum(exponential(squares, c) for c in multiples) / len(multiples)
    pairs = lambda k: (jnp.sum(k) - jnp.trace(k)) / (len(k) * (len(k) - 1))
    across = jnp.mean(kernel(_square_distances(x, y)))
    return pairs(kernel(_square_distances(x, x))) + pairs(kernel(squares)) - 2 * across


@functools.partial(jax.jit, static_argnames='projections')
def sliced_wasserstein(key: Key, x: _X, y: _Y, *, projections: int = 128) -> Scalar:
    """Returns the sliced Wasserstein-1 distance >= 0, in data units, for sets of any two sizes.

    `SW_1 = mean_theta integral |F_x(s) - F_y(s)| ds`, with `F` the empirical distribution functions
    of `x . theta` and `y . theta`, and `projections >= 1` directions `theta` uniform on the unit
    sphere. Sets that differ in field shape raise a ValueError.

    Reference: Bonneel et al., "Sliced and Radon Wasserstein barycenters", JMIV 51 (2015).
    """
    if projections < 1:
        raise ValueError(f'projections: got {projections}, expected >= 1; 128 give it to about 1 %')
    x, y = _flat_pair(x, y, least=1)
    theta = jax.random.normal(key, (projections, x.shape[1]))
    theta = theta / jnp.linalg.norm(theta, axis=1, keepdims=True)
    both = matmul(theta, jnp.concatenate([x, y]).T)  # (projections, n + m)
    order = jnp.argsort(both, axis=1)
    gaps = jnp.diff(jnp.take_along_axis(both, order, axis=1))
    signed = jnp.concatenate([jnp.full(len(x), 1 / len(x)), jnp.full(len(y), -1 / len(y))])
    difference = jnp.cumsum(signed[order], axis=1)[:, :-1]  # F_x - F_y between neighbours
    return jnp.mean(jnp.sum(jnp.abs(difference) * gaps, axis=1))


@functools.partial(jax.jit, static_argnames='axes')
def spectrum(x: _X, axes: _Axes) -> Float[Array, ' k']:
    """Returns the mean power spectrum of fields `(n, ...)`, summed over shells of equal wavenumber.

    `E(k) = mean sum_{round|q| = k} |x_hat(q)|^2` with `x_hat = fft(x) / N`, k = 0, 1, ... cycles a
    domain, in squared data units. The mean is over samples and axes that are not transformed (time,
    channels): `sum_k E(k) = mean x^2`. States in a mosaic must be packed as channels first.

    Args:
        axes: the spatial ones, the batch being axis 0: `(1,)` for Burgers, `(1, 2)` for images.
            Others, or one twice, raise a ValueError.
    """
    return jnp.mean(_spectra(x, axes), axis=0)


@functools.partial(jax.jit, static_argnames='axes')
def spectrum_distance(x: _X, y: _Y, axes: _Axes) -> Scalar:
    """Returns the mean over wavenumbers of `|log10(E_x(k) / E_y(k))|`, in decades of power, with
    powers raised to 1.2e-7 (single precision) of the strongest of `y`. Axes as of `spectrum`.
    """
    _check_pair(x, y, least=1)
    ex, ey = spectrum(x, axes), spectrum(y, axes)
    floor = jnp.finfo(ey.dtype).eps * jnp.max(ey)
    decades = lambda e: jnp.log10(jnp.maximum(e, floor))
    return jnp.mean(jnp.abs(decades(ex) - decades(ey)))


@functools.partial(jax.jit, static_argnames=('spatial_axes', 'projections'))
def distribution_distances(
    key: Key, x: _X, y: _Y, *, spatial_axes: _Axes, projections: int = 128
) -> Metrics:
    """Returns `{'mmd', 'sliced_wasserstein', 'spectrum'}` between samples and a reference set, with
    the arguments and errors of the three; memory is that of both and of `(n + m)^2` numbers.
    """
    return {
        'mmd': mmd(x, y),
        'sliced_wasserstein': sliced_wasserstein(key, x, y, projections=projections),
        'spectrum': spectrum_distance(x, y, spatial_axes),
    }


@functools.partial(jax.jit, static_argnames='axes')
def summaries(x: _X, axes: _Axes) -> Float[Array, 'n k']:
    """Returns numbers of each field by which sets can be told apart, for `two_sample_area`.

    The logarithms of its power spectrum, quantiles of its values, and the mean, root mean square
    and maximum of its absolute increments along each axis. Axes as of `spectrum`.
    """
    power = _spectra(x, axes)
    whole = jnp.sum(power, axis=1, keepdims=True)
    spectra = jnp.log(power + 1e-7 * whole + jnp.finfo(x.dtype).tiny)
    values = jnp.quantile(x.reshape(len(x), -1), jnp.linspace(0, 1, 9), axis=1).T
    increments = []
    for axis in (axis for axis in axes if x.shape[axis] > 1):
        steps = jnp.abs(jnp.diff(x, axis=axis)).reshape(len(x), -1)
        increments += [steps.mean(1), jnp.sqrt((steps**2).mean(1)), steps.max(1)]
    columns = [column[:, None] for column in increments]
    return jnp.concatenate([spectra, values, *columns], axis=1)


@functools.partial(jax.jit, static_argnames='k')
def principal_axes(x: _X, k: int) -> tuple[Float[Array, ' d'], Float[Array, 'd k']]:
    """Returns the mean of fields, as vectors of d values, and the k directions, of length 1, in
    which they vary most; fewer where n or d are less than k.
    """
    x = x.reshape(len(x), -1)
    mean = jnp.mean(x, axis=0)
    _, _, axes = jnp.linalg.svd(x - mean, full_matrices=False)
    return mean, axes[:k].T


@functools.partial(jax.jit, static_argnames=('folds', 'repeats', 'iterations'))
def two_sample_area(
    key: Key,
    x: Float[Array, 'n k'],
    y: Float[Array, 'm k'],
    *,
    folds: int = 5,
    repeats: int = 5,
    ridge: float = 0.03,
    iterations: int = 12,
) -> Metrics:
    """Returns how well a classifier tells two sets of features apart: `{'value', 'std'}` of the
    area under its receiver operating characteristic, 1/2 for one distribution, 1 at best.

    The classifier is a logistic regression, `min_w mean log(1 + exp(-s w . phi)) + ridge/2 |w|^2`
    with `s = +1` for x and -1 for y and `phi` the features, standardised over both sets, and 1; by
    Newton's method. It is fitted to all folds but one, and the area is the part of the pairs of
    that one, of a member of x and one of y, that it puts in order. The mean is over folds and
    `repeats` partitions, the standard deviation over these. Sets of different sizes, or of fewer
    members than twice the folds, raise a ValueError.

    Reference: Lopez-Paz & Oquab, "Revisiting classifier two-sample tests", ICLR 2017.
    """
    n = len(x)
    if x.shape != y.shape or n < 2 * folds:
        raise ValueError(
            f'sets: got features of shape {x.shape} and {y.shape}, expected as many of both, at '
            f'least {2 * folds}; take equal numbers'
        )
    both = jnp.concatenate([x, y])
    scale = jnp.std(both, axis=0)
    both = (both - jnp.mean(both, axis=0)) / jnp.where(scale > 0, scale, 1)
    both = jnp.concatenate([both, jnp.ones((2 * n, 1))], axis=1)
    sign = jnp.repeat(jnp.array([1.0, -1.0]), n)

    def fit(weight: Array) -> Array:
        def newton(w: Array, _: None) -> tuple[Array, None]:
            p = jax.nn.sigmoid(-sign * matmul(both, w))
            slope = -matmul(both.T, weight * sign * p) + ridge * w
            curved = both * (weight * p * (1 - p))[:, None]
            hessian = matmul(both.T, curved) + ridge * jnp.eye(len(w))
            return w - jax.scipy.linalg.solve(hessian, slope, assume_a='pos'), None

        start = jnp.zeros(both.shape[1])
        return jax.lax.scan(newton, start, length=iterations)[0]

    def area(pair: tuple[Array, Array]) -> Array:
        parts, fold = pair
        held = parts == fold
        train = jnp.tile(~held, 2)
        found = matmul(both, fit(train / jnp.sum(train)))
        order = jnp.sign(found[:n, None] - found[n:]) / 2 + 0.5
        pairs = held[:, None] & held
        return jnp.sum(jnp.where(pairs, order, 0)) / jnp.sum(pairs)

    part = lambda key: jax.random.permutation(key, jnp.arange(n) % folds)
    parts = jax.vmap(part)(jax.random.split(key, repeats))
    pairs = jnp.repeat(parts, folds, axis=0), jnp.tile(jnp.arange(folds), repeats)
    areas = jax.lax.map(area, pairs).reshape(repeats, folds).mean(1)
    return {'value': areas.mean(), 'std': areas.std()}


@jax.jit
def memorisation(x: _X, train: _Y, held_out: _Y) -> Scalar:
    """Returns the mean distance of samples to the nearest training field over that to the nearest
    held-out one: 1 for samples that know the distribution alone, 0 for copies.

    Euclidean distances; both sets must have one number of fields, or the larger is nearer.
    """

    def nearest(reference: Array) -> Array:
        squares = _square_distances(*_flat_pair(x, reference, least=1))
        return jnp.mean(jnp.sqrt(jnp.min(squares, axis=1)))

    return nearest(train) / nearest(held_out)


def _spectra(x: Array, axes: _Axes) -> Array:
    """Returns the power spectra `(n, k)` of single fields, means over axes not transformed."""
    if not axes or len(set(axes)) < len(axes) or not all(0 < axis < x.ndim for axis in axes):
        raise ValueError(
            f'axes: got {axes} for fields of shape {x.shape}, expected different axes from 1 to '
            f'{x.ndim - 1}; axis 0 is the batch: pass (1,) for Burgers, (1, 2) for images'
        )
    sizes = [x.shape[axis] for axis in axes]
    grids = jnp.meshgrid(*(jnp.fft.fftfreq(size, 1 / size) for size in sizes), indexing='ij')
    shells = jnp.rint(jnp.sqrt(sum(q**2 for q in grids))).astype(int).ravel()
    count = round(math.hypot(*(size // 2 for size in sizes))) + 1

    def power(field: Array) -> Array:
        modes = jnp.moveaxis(field, [axis - 1 for axis in axes], range(len(axes)))
        modes = jnp.fft.fftn(modes, axes=range(len(axes)), norm='forward')
        modes = jnp.mean(jnp.abs(modes.reshape(shells.size, -1)) ** 2, axis=1)
        return jax.ops.segment_sum(modes, shells, num_segments=count)

    # In batches: the transforms of a large set need not fit at once.
    return jax.lax.map(power, x, batch_size=64)


def _square_distances(x: Array, y: Array) -> Array:
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1) - 2 * matmul(x, y.T)
    return jnp.maximum(squares, 0)  # round-off of a difference of equals


def _flat_pair(x: Array, y: Array, least: int) -> tuple[Array, Array]:
    _check_pair(x, y, least)
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    centre = jnp.mean(y, axis=0)  # distances do not see it, their round-off does
    return x - centre, y - centre


def _check_pair(x: Array, y: Array, least: int) -> None:
    if x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < least:
        raise ValueError(
            f'sets: got shapes {x.shape} and {y.shape}, expected equal shapes after the first axis '
            f'and at least {least} members each; pass samples and reference in one layout'
        )


@jax.jit
def line(x: Array, z: Array) -> Metrics:
    """Returns the straight line `z = slope x + offset` of least squares through all values of two
    arrays of one shape, and the part `r2` of z's variance that it explains.
    """
    x_0, z_0 = x - jnp.mean(x), z - jnp.mean(z)
    slope = jnp.vdot(x_0, z_0) / jnp.vdot(x_0, x_0)
    rest = jnp.mean((z_0 - slope * x_0) ** 2) / jnp.mean(z_0**2)
    return {'slope': slope, 'offset': jnp.mean(z) - slope * jnp.mean(x), 'r2': 1 - rest}


def posterior_moments(samples: Samples, valid: Valid | None = None) -> tuple[Fields, Fields]:
    """Returns the mean of each ensemble, and its variance `sum_i (x_i - mean)^2 / (m - 1)`, both
    `(n, h, w, c)`: 0 for a mean of no sample and a variance of fewer than two.
    """
    x, weight, m = _weigh(samples, valid)
    mean = jnp.sum(weight * x, 1) / jnp.maximum(m, 1)
    return mean, jnp.sum(weight * (x - mean[:, None]) ** 2, 1) / jnp.maximum(m - 1, 1)


def rmse(truth: Truths, samples: Samples, valid: Valid | None = None) -> Scalar:
    """Returns the root of the mean of `(mean_i x_i - truth)^2` over values and the measurements
    that have a valid sample, in data units; NaN if none has.
    """
    _check_truth(truth, samples)
    mean, _ = posterior_moments(samples, valid)
    _, _, m = _weigh(samples, valid)
    return root(_mean_where(m >= 1, (mean - truth) ** 2))


def crps(truth: Truths, samples: Samples, valid: Valid | None = None) -> Scalar:
    """Returns the fair continuous ranked probability score, the mean over measurements and values.

    `mean_i |x_i - truth| - sum_ij |x_i - x_j| / (2 m (m - 1))`, at each value by itself, in data
    units. Its expectation does not depend on m and is least where truth and samples have one law:
    `sigma / sqrt(pi)` for a normal one. It can be negative; one sample scores its absolute error.
    NaN if no measurement has a valid sample.

    References: Ferro, "Fair scores for ensemble forecasts", Q. J. R. Meteorol. Soc. 140 (2014);
    Zamo & Naveau, Math. Geosci. 50 (2018), eq. 8 (by sorting).
    """
    _check_truth(truth, samples)
    x, weight, m = _weigh(samples, valid)
    # Pairs do not see the shift, and round-off is that of errors, not of values.
    difference = x - truth[:, None]
    error = jnp.sum(weight * jnp.abs(difference), 1) / jnp.maximum(m, 1)
    rank = jnp.arange(samples.shape[1])[None, :, None, None, None]
    # Samples left out come behind all others.
    ordered = jnp.sort(jnp.where(weight > 0, difference, jnp.inf), 1)
    # sum_{i < j} |x_i - x_j| = sum_r (2 r - m + 1) x_(r), with r from 0
    inside = rank < m[:, None]
    terms = (2 * rank - m[:, None] + 1) * jnp.where(inside, ordered, 0)
    pairs = jnp.sum(jnp.where(inside, terms, 0), 1)
    return _mean_where(m >= 1, error - pairs / jnp.maximum(m * (m - 1), 1))


def spread_skill(truth: Truths, samples: Samples, valid: Valid | None = None) -> Scalar:
    """Returns the spread-skill ratio: 1 if calibrated, below 1 overconfident.

    `sqrt(mean (m + 1)/m variance) / rmse`, means over values and the measurements with two valid
    samples (NaN if none): where truth and samples have one law of variance V, the squared error of
    the mean of m samples is `V + V/m` on average.

    Reference: Fortin et al., J. Hydrometeorol. 15 (2014).
    """
    _check_truth(truth, samples)
    mean, variance = posterior_moments(samples, valid)
    _, _, m = _weigh(samples, valid)
    spread = _mean_where(m >= 2, (m + 1) / jnp.maximum(m, 1) * variance)
    return root(spread / _mean_where(m >= 2, (mean - truth) ** 2))


def posterior_statistics(truth: Truths, samples: Samples, valid: Valid | None = None) -> Metrics:
    """Returns `{'rmse', 'crps', 'spread_skill'}`; raises a ValueError as they do."""
    statistics = {'rmse': rmse, 'crps': crps, 'spread_skill': spread_skill}
    return {name: statistic(truth, samples, valid) for name, statistic in statistics.items()}


def jackknife(statistics: Callable[..., Metrics], *arrays: Array) -> Metrics:
    """Returns the standard errors of `statistics(*arrays)`, arrays `(n, ...)` of n >= 2
    measurements: `sqrt((n - 1) / n sum_i (s_i - mean s)^2)`, with s_i those without measurement i.

    Reference: Efron & Stein, "The jackknife estimate of variance", Ann. Stat. 9 (1981).
    """
    n = len(arrays[0])
    without = [statistics(*(jnp.delete(array, i, axis=0) for array in arrays)) for i in range(n)]
    spread = lambda *values: jnp.std(jnp.stack(values)) * (n - 1) ** 0.5
    return jax.tree.map(spread, *without)


def _weigh(samples: Array, valid: Array | None) -> tuple[Array, Array, Array]:
    """Returns the samples, 0 where left out, weights 1 or 0 `(n, k, 1, 1, 1)`, and the number of
    valid samples of each measurement, `(n, 1, 1, 1)`.
    """
    if samples.ndim != 5:
        raise ValueError(f'samples: got shape {samples.shape}, expected (n, k, h, w, c), k of each')
    if valid is None:
        valid = jnp.ones(samples.shape[:2], bool)
    if valid.shape != samples.shape[:2] or valid.dtype != bool:
        expected = f'bool of shape {samples.shape[:2]}, one for each sample'
        raise ValueError(f'valid: got {valid.dtype} of shape {valid.shape}, expected {expected}')
    weight = valid[:, :, None, None, None].astype(samples.dtype)
    # Before any arithmetic: 0 times a NaN is NaN.
    return jnp.where(weight > 0, samples, 0), weight, jnp.sum(weight, 1)


def _check_truth(truth: Array, samples: Array) -> None:
    if truth.shape != samples.shape[:1] + samples.shape[2:]:
        raise ValueError(
            f'truth: got shape {truth.shape} for samples {samples.shape}, expected (n, h, w, c) '
            'for (n, k, h, w, c); pass one truth for the k samples of each measurement'
        )


def _mean_where(counts: Array, values: Array) -> Array:
    """Returns the mean of values `(n, h, w, c)` where measurements count, `(n, 1, 1, 1)`."""
    return jnp.mean(values, where=jnp.broadcast_to(counts, values.shape))
