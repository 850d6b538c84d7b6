"""How far samples are from a constraint and from a reference set: arrays in, scalars out.

Symbols: `x` samples `(n, ...)`, `y` the reference set `(m, ...)`, `w` and `v` their weights `(n,)`
and `(m,)`. Every distribution distance here is a function of weights: what costs (Gram matrices,
sorted projections, power spectra) is computed once, and a bootstrap resample is only another pair
of weights, so that 200 of them are cheap. Samples that are not finite make the distances not
finite: nothing is dropped.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Key, Metrics

Statistic: TypeAlias = Callable[[Float[Array, ' n'], Float[Array, ' m']], Float[Array, '']]

_X: TypeAlias = Float[Array, 'n ...']
_Y: TypeAlias = Float[Array, 'm ...']
_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators otherwise multiply in about 3 digits


def distance_statistics(distances: Float[Array, '...']) -> Metrics:
    """Summarises the constraint distances of a set of samples.

    Args:
        distances: `(n,)` distances `l(x_i)`, in the constraint's own unit.

    Returns:
        `{'mean', 'median', 'max'}`, scalars in that unit.

    Raises:
        ValueError: if `distances` is not a non-empty vector.
    """
    if distances.ndim != 1 or not distances.size:
        raise ValueError(
            f'distances: got shape {distances.shape}, expected (n,), n >= 1; pass '
            'constraint.distance(x)'
        )
    return {'mean': jnp.mean(distances), 'median': jnp.median(distances), 'max': jnp.max(distances)}


@functools.partial(jax.jit, static_argnames='multiples')
def mmd(x: _X, y: _Y, *, multiples: tuple[float, ...] = _MULTIPLES) -> Float[Array, '']:
    """Unbiased estimate of the squared maximum mean discrepancy.

    `MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)` with
    `k(a, b) = mean_c exp(-|a - b|^2 / (2 (c h)^2))`, `c` in `multiples` and `h` the median distance
    between two members of the reference `y`. Its expectation is 0 for equal distributions, so it
    can be negative.

    Args:
        x: samples `(n, ...)`, `n >= 2`, in data units.
        y: reference `(m, ...)`, `m >= 2`; it alone sets the bandwidths, so that one kernel measures
            every row of a table. NaN results if more than half of its pairs coincide.
        multiples: the factors `c > 0`.

    Returns:
        A scalar without unit.

    Raises:
        ValueError: if the fields differ in shape or a set has fewer than 2 members.

    Reference:
        Gretton et al., "A kernel two-sample test", JMLR 13 (2012), eq. 3.
    """
    return _mmd_of_weights(x, y, multiples)(jnp.ones(len(x)), jnp.ones(len(y)))


@functools.partial(jax.jit, static_argnames='projections')
def sliced_wasserstein(key: Key, x: _X, y: _Y, *, projections: int = 128) -> Float[Array, '']:
    """Sliced Wasserstein-1 distance, exact along each direction also for sets of different sizes.

    `SW_1 = mean_theta integral |F_x(s) - F_y(s)| ds`, with `F` the empirical distribution functions
    of `x . theta` and `y . theta`, `theta` uniform on the unit sphere. Between finite sets of one
    distribution it is above 0 and falls as they grow: read it beside its value between two halves
    of the reference.

    Args:
        key: draws the directions; the same key and field shape give the same directions.
        x: samples `(n, ...)`, in data units.
        y: reference `(m, ...)`, in the same units.
        projections: the number of directions.

    Returns:
        A scalar >= 0, in data units; a shift of every coordinate by `delta` gives about
        `0.8 delta`.

    Raises:
        ValueError: if the fields differ in shape, or `projections < 1`.

    Reference:
        Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", JMIV 51 (2015).
    """
    return _sliced_wasserstein_of_weights(key, x, y, projections)(
        jnp.ones(len(x)), jnp.ones(len(y))
    )


@functools.partial(jax.jit, static_argnames='axes')
def spectrum(x: _X, axes: tuple[int, ...]) -> Float[Array, ' k']:
    """Ensemble-mean power spectrum along the spatial axes, summed over shells of equal wavenumber.

    `E(k) = mean sum_{round|q| = k} |x_hat(q)|^2` with `x_hat = fft(x) / N`, the mean over samples
    and all axes that are not transformed (time, channels), so that `sum_k E(k) = mean x^2`
    (Parseval). A radial average instead of the sum differs by a factor that ratios do not see.

    Args:
        x: fields `(n, ...)`; mosaics of several states must come with the states packed as
            channels.
        axes: the spatial axes, the batch being axis 0: `(1,)` for Burgers, `(1, 2)` for images and
            flows.

    Returns:
        `(k,)` powers in squared data units, for wavenumbers 0, 1, ... in cycles a domain.

    Raises:
        ValueError: if an axis is repeated, out of range, or the batch axis.
    """
    return jnp.mean(_spectra(x, axes), axis=0)


@functools.partial(jax.jit, static_argnames='axes')
def spectrum_distance(x: _X, y: _Y, axes: tuple[int, ...]) -> Float[Array, '']:
    """Mean over wavenumbers of `|log10(E_x(k) / E_y(k))|`: 1 is a factor 10 of power, at every
    scale.

    Powers below 1.2e-7 (single precision) of the strongest wavenumber of `y` are raised to that in
    both spectra: where a smooth or zero-mean field has only round-off there is nothing to compare.

    Args:
        x: samples `(n, ...)`, in data units.
        y: reference `(m, ...)`.
        axes: as in `spectrum`.

    Returns:
        A scalar >= 0, in decades of power.

    Raises:
        ValueError: if the fields differ in shape, or for bad `axes`.
    """
    return _spectrum_of_weights(x, y, axes)(jnp.ones(len(x)), jnp.ones(len(y)))


def bootstrap(key: Key, statistic: Statistic, n: int, m: int, *, resamples: int = 200) -> Metrics:
    """A statistic of two sets with its 95 % interval, by resampling the members of both.

    A resample weights each member by its number of draws, `w ~ Multinomial(n, 1/n)`. The resamples'
    2.5 % and 97.5 % quantiles are shifted by `value - median`: resampled sets are noisier than the
    sets, so that their distances are biased upwards and the plain percentile interval can miss the
    value. The interval says how far other samples would have moved the value, perhaps below 0; for
    what two sets of one distribution score, compare halves of the reference.

    Args:
        key: draws the resamples.
        statistic: `(w, v) -> scalar`, a function of the weights `(n,)` and `(m,)`, which sum to n
            and m.
        n: size of the first set.
        m: size of the second.
        resamples: how many; 200 fix the ends of the interval to about a tenth of its width.

    Returns:
        `{'value', 'low', 'high'}`, scalars in the statistic's unit; the value is that of weights 1.

    Raises:
        ValueError: if a size or `resamples` is less than 1.

    Reference:
        Efron and Tibshirani, "An introduction to the bootstrap" (1993), ch. 13.
    """
    if min(n, m, resamples) < 1:
        raise ValueError(
            f'bootstrap: got n={n}, m={m}, resamples={resamples}, expected all >= 1; pass '
            'non-empty sets'
        )

    def draws(key: Key, n: int) -> Array:
        return jnp.bincount(jax.random.randint(key, (n,), 0, n), length=n).astype(float)

    value = statistic(jnp.ones(n), jnp.ones(m))
    keys = jax.random.split(key, (resamples, 2))
    values = jax.lax.map(lambda pair: statistic(draws(pair[0], n), draws(pair[1], m)), keys)
    # nan-quantiles: a resample of a handful of members can be one member n times, which has no
    # pairs for the MMD
    low, middle, high = jnp.nanquantile(values, jnp.array([0.025, 0.5, 0.975]))
    return {'value': value, 'low': value + low - middle, 'high': value + high - middle}


@functools.partial(jax.jit, static_argnames=('spatial_axes', 'projections', 'resamples'))
def distribution_distances(
    key: Key,
    x: _X,
    y: _Y,
    *,
    spatial_axes: tuple[int, ...],
    projections: int = 128,
    resamples: int = 200,
) -> dict[str, Metrics]:
    """The three distances between samples and a reference set, each with its 95 % bootstrap
    interval.

    Args:
        key: draws directions and resamples.
        x: samples `(n, ...)`, `n >= 2`, in data units.
        y: reference `(m, ...)`, `m >= 2`, in the same units. Memory is that of both sets and of
            `(n + m)^2` numbers.
        spatial_axes: the axes of `spectrum`, a tuple.
        projections: as in `sliced_wasserstein`.
        resamples: as in `bootstrap`.

    Returns:
        `{'mmd', 'sliced_wasserstein', 'spectrum'}`, each `{'value', 'low', 'high'}`: squared; data
        units; decades.

    Raises:
        ValueError: for sets too small, of different field shapes, or bad axes.
    """
    key_directions, key_resamples = jax.random.split(key)
    statistics = {
        'mmd': _mmd_of_weights(x, y, _MULTIPLES),
        'sliced_wasserstein': _sliced_wasserstein_of_weights(key_directions, x, y, projections),
        'spectrum': _spectrum_of_weights(x, y, spatial_axes),
    }
    interval = functools.partial(
        bootstrap, key_resamples, n=len(x), m=len(y), resamples=resamples
    )  # of the same sets
    return {name: interval(statistic) for name, statistic in statistics.items()}


def _mmd_of_weights(x: Array, y: Array, multiples: tuple[float, ...]) -> Statistic:
    x, y = _flat_pair(x, y, least=2)
    squares = _square_distances(y, y)
    median = jnp.nanmedian(
        jnp.where(jnp.eye(len(y), dtype=bool), jnp.nan, squares)
    )  # of pairs, not of selves

    def kernel(squares: Array) -> Array:
        return sum(jnp.exp(-squares / (2 * c**2 * median)) for c in multiples) / len(multiples)

    kxx, kyy, kxy = (
        kernel(_square_distances(x, x)),
        kernel(squares),
        kernel(_square_distances(x, y)),
    )

    # A resample repeats members, and k(x_i, x_i) = 1 would count as a pair: the naive bootstrap of
    # this U-statistic is biased by about 1/n + 1/m, more than close distributions differ. So the
    # diagonal is left out whatever the weights, which centres the resamples on the value. Their
    # spread is right where the distributions differ, and too wide (up to about sqrt(3)) where they
    # do not.
    def pairs(k: Array, w: Array) -> Array:
        off_diagonal = _bilinear(w, k, w) - jnp.sum(w**2 * jnp.diagonal(k))
        return off_diagonal / (jnp.sum(w) ** 2 - jnp.sum(w**2))

    return lambda w, v: (
        pairs(kxx, w) + pairs(kyy, v) - 2 * _bilinear(w, kxy, v) / (jnp.sum(w) * jnp.sum(v))
    )


def _sliced_wasserstein_of_weights(key: Key, x: Array, y: Array, projections: int) -> Statistic:
    if projections < 1:
        raise ValueError(
            f'projections: got {projections}, expected >= 1; 128 resolves the distance to about 1 %'
        )
    x, y = _flat_pair(x, y, least=1)
    theta = jax.random.normal(key, (projections, x.shape[1]))
    theta = theta / jnp.linalg.norm(theta, axis=1, keepdims=True)
    both = jnp.matmul(theta, jnp.concatenate([x, y]).T, precision=_HIGHEST)  # (projections, n + m)
    order = jnp.argsort(both, axis=1)
    gaps = jnp.diff(jnp.take_along_axis(both, order, axis=1))

    def statistic(w: Array, v: Array) -> Array:
        signed = jnp.concatenate([w / jnp.sum(w), -v / jnp.sum(v)])
        difference = jnp.cumsum(signed[order], axis=1)[:, :-1]  # F_x - F_y between neighbours
        return jnp.mean(jnp.sum(jnp.abs(difference) * gaps, axis=1))

    return statistic


def _spectrum_of_weights(x: Array, y: Array, axes: tuple[int, ...]) -> Statistic:
    _check_pair(x, y, least=1)
    ex, ey = _spectra(x, axes), _spectra(y, axes)
    floor = jnp.finfo(ey.dtype).eps * jnp.max(jnp.mean(ey, axis=0))

    def decades(w: Array, e: Array) -> Array:
        return jnp.log10(jnp.maximum(w @ e / jnp.sum(w), floor))

    return lambda w, v: jnp.mean(jnp.abs(decades(w, ex) - decades(v, ey)))


def _spectra(x: Array, axes: tuple[int, ...]) -> Array:
    """Power spectra `(n, k)` of single fields; the mean over the axes that are not transformed is
    taken.
    """
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

    return jax.lax.map(
        power, x, batch_size=64
    )  # in batches: the transforms of a large set need not fit at once


def _square_distances(x: Array, y: Array) -> Array:
    product = jnp.matmul(x, y.T, precision=_HIGHEST)
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1) - 2 * product
    return jnp.maximum(squares, 0)  # round-off of a difference of equals


def _bilinear(w: Array, k: Array, v: Array) -> Array:
    return jnp.vdot(w, jnp.matmul(k, v, precision=_HIGHEST), precision=_HIGHEST)


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
