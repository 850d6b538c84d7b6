"""What an interferometer measures of an image: visibilities, amplitudes, and closures, which no
station's error touches.

Symbols: `V_ij` the visibility of stations i and j, of error `std_ij` in its real and its imaginary
part. Each station multiplies by a gain of its own, `V_ij -> g_i conj(g_j) V_ij`: around a triangle
the phases of gains cancel, `psi = arg(V_ij V_jk V_ki)`, and in a quadrangle their sizes,
`c = log |V_ij V_kl / (V_ik V_jl)|`. Closures of one scan share baselines. Where the error is small
beside V, that of `arg V` and of `log |V|` is `std / |V|` alike, so sums `T arg V` and `Q log |V|`
have the covariances `T diag(std^2 / |V|^2) T^T` and Q's: what is said of them is
`-1/2 r^T C^-1 r`, phases by the shorter way around the circle.

References: Thompson, Moran & Swenson, "Interferometry and Synthesis in Radio Astronomy", 3rd ed.
2017, chapter 10; Event Horizon Telescope Collaboration 2019, ApJL 875 L4; Blackburn et al. 2020,
ApJ 894, 31.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from namm_jax._arrays import Fields, Measurement, PerSample, matmul
from namm_jax._checks import check_within, choose
from namm_jax.inverse.interferometry import MICROARCSECOND
from namm_jax.inverse.operators import Operator, sparse_fourier

Visibility = Float[Array, 'b m 2']  # real and imaginary parts


class Observation(NamedTuple):
    """Visibilities `V = sum I exp(-2 pi i (u east + v north))`, one a baseline and scan."""

    time: np.ndarray  # (m,) hours
    scan: np.ndarray  # (m,) integers
    stations: np.ndarray  # (m, 2) names, of i and j
    uv: np.ndarray  # (m, 2) wavelengths, east and north
    visibility: np.ndarray  # (m,) complex, Jy
    std: np.ndarray  # (m,) Jy

    def __getitem__(self, rows: np.ndarray) -> 'Observation':
        """Returns some of them, by a mask or by indices."""
        return Observation(*(column[rows] for column in self))


class Product(NamedTuple):
    """What is made of visibilities."""

    values: Callable[[Visibility], Float[Array, 'b k']]
    combinations: Callable[[Observation], np.ndarray]  # -> (n, k), what is summed
    std: Callable[[Observation], np.ndarray]  # of the values, (k,)
    unit: str
    periodic: bool = False


def _amplitude(V: Visibility) -> Float[Array, 'b m']:
    return jnp.sqrt(jnp.sum(V**2, -1))


def _relative(observation: Observation) -> Float[np.ndarray, ' m']:
    return observation.std / np.abs(observation.visibility)


def triangles(observation: Observation) -> np.ndarray:
    """Returns T `(n, m)` of 0 and +-1, an independent set of triangles of each scan."""
    triangle = lambda i, j, k: [[(i, j, 1), (j, k, 1), (k, i, 1)]]
    return _independent(observation, 3, triangle)


def quadrangles(observation: Observation) -> np.ndarray:
    """Returns Q `(n, m)` of 0 and +-1, an independent set of quadrangles of each scan."""
    return _independent(observation, 4, _quadrangles)


def _quadrangles(i: str, j: str, k: str, l: str) -> list[list[tuple[str, str, int]]]:  # noqa: E741
    pairs = [((i, j), (k, l)), ((i, k), (j, l)), ((i, l), (j, k))]
    signed = lambda pairs, sign: [(*pair, sign) for pair in pairs]
    return [signed(a, 1) + signed(b, -1) for a, b in itertools.combinations(pairs, 2)]


def _independent(observation: Observation, size: int, loops: Callable) -> np.ndarray:
    """Returns the loops of `size` stations, those of least error first, as far as each says what
    the others do not: no more closures are independent than these.
    """
    rows = []
    variance = _relative(observation) ** 2
    for scan in np.unique(observation.scan):
        columns = {}
        for column in np.flatnonzero(observation.scan == scan):
            i, j = observation.stations[column]
            # A phase changes its sign with the direction, a size does not.
            columns[i, j], columns[j, i] = (column, 1), (column, -1 if size == 3 else 1)
        candidates = []
        sets = itertools.combinations(sorted({i for i, _ in columns}), size)
        for loop in itertools.chain.from_iterable(itertools.starmap(loops, sets)):
            if all((i, j) in columns for i, j, _ in loop):
                row = np.zeros(len(variance))
                for i, j, sign in loop:
                    column, way = columns[i, j]
                    row[column] = sign * way
                candidates.append(row)
        basis: list[np.ndarray] = []
        for row in sorted(candidates, key=lambda row: row**2 @ variance):
            rest = row - sum((row @ other * other for other in basis), np.zeros_like(row))
            if rest @ rest > 1e-9:
                basis.append(rest / np.sqrt(rest @ rest))
                rows.append(row)
    return np.reshape(rows, (-1, len(variance)))


PRODUCTS = {
    'visibilities': Product(
        lambda V: V.reshape(len(V), -1),
        lambda observation: np.eye(2 * len(observation.std)),
        lambda observation: np.repeat(observation.std, 2),
        'Jy',
    ),
    'amplitudes': Product(
        _amplitude,
        lambda observation: np.eye(len(observation.std)),
        lambda observation: observation.std,
        'Jy',
    ),
    'closure_phases': Product(
        lambda V: jnp.arctan2(V[..., 1], V[..., 0]), triangles, _relative, 'rad', periodic=True
    ),
    'log_closure_amplitudes': Product(lambda V: jnp.log(_amplitude(V)), quadrangles, _relative, ''),
}
# What a measurement may be: its products, in alphabetical order.
MEASUREMENTS = {name: (name,) for name in PRODUCTS} | {
    'closures': ('closure_phases', 'log_closure_amplitudes'),
    'amplitudes_and_closure_phases': ('amplitudes', 'closure_phases'),
}


def interferometer(
    shape: Sequence[int],
    observation: Observation,
    name: str = 'closures',
    *,
    field_of_view: float,
    unit: float = 1.0,
) -> tuple[Operator, Float[np.ndarray, '1 n']]:
    """Returns the operator of what is made of an observation, with its noise, and its measurement.

    Args:
        shape: of an image, `(h, w, 1)`, north up, east to the left.
        observation: visibilities far above their errors, for the law of closures to hold.
        name: a key of `MEASUREMENTS`.
        field_of_view: width of an image in microarcseconds, > 0.
        unit: Jy of a pixel of 1, > 0; closures do not see it.

    Raises:
        ValueError: if a number is out of its range, or there is nothing to measure.
    """
    names = choose('measurement', name, MEASUREMENTS)
    check_within('(0, inf)', field_of_view=field_of_view, unit=unit)
    uv = field_of_view * MICROARCSECOND * observation.uv * [-1, 1]
    fourier = sparse_fourier(shape, uv=uv)
    V = np.stack([observation.visibility.real, observation.visibility.imag], -1)[None]
    matrices, roots, y = {}, {}, []
    for name in names:
        product = PRODUCTS[name]
        matrix = product.combinations(observation)
        if not len(matrix):
            least = 'three stations' if product.periodic else 'four stations'
            raise ValueError(f'{name}: got none, expected a scan in which {least} saw each other')
        covariance = (matrix * product.std(observation) ** 2) @ matrix.T
        roots[name] = jnp.asarray(np.linalg.inv(np.linalg.cholesky(covariance)))
        matrices[name] = jnp.asarray(matrix)
        y.append(np.asarray(product.values(jnp.asarray(V, jnp.float32))) @ matrix.T)
    apply = Partial(_measured, matrices, jnp.asarray(unit), fourier)
    operator = Operator(apply, fourier.shape, names == ('visibilities',), Partial(_whitened, roots))
    return operator, np.concatenate(y, 1)


def _measured(
    matrices: dict[str, Array], unit: Array, fourier: Operator, x: Fields
) -> Float[Array, 'b n']:
    V = unit * fourier(x)
    product = lambda name: matmul(PRODUCTS[name].values(V), matrices[name].T.astype(V.dtype))
    return jnp.concatenate([product(name) for name in sorted(matrices)], -1)


def _whitened(roots: dict[str, Array], y: Measurement, Ax: Measurement) -> Float[Array, 'b n']:
    parts = _split(roots, y - Ax)
    for name, r in parts.items():
        turns = jnp.round(r / (2 * jnp.pi)) if PRODUCTS[name].periodic else 0
        parts[name] = matmul(r - 2 * jnp.pi * turns, roots[name].T)
    return jnp.concatenate(list(parts.values()), -1)


def _split(roots: dict[str, Array], r: Float[Array, 'b n']) -> dict[str, Array]:
    names = sorted(roots)
    ends = np.cumsum([len(roots[name]) for name in names])[:-1]
    return dict(zip(names, jnp.split(r, ends, -1), strict=True))


def chi_squares(operator: Operator, y: Measurement, x: Fields) -> dict[str, PerSample]:
    """Returns the mean squared residual of each product of an `interferometer`, about 1 at the
    truth: its chi-square over the number of its values, whitened by their covariance.
    """
    Ax = operator(x)
    r = operator.whiten(jnp.broadcast_to(y, Ax.shape), Ax)
    parts = _split(operator.whiten.args[0], r)
    return {name: jnp.mean(part**2, -1) for name, part in parts.items()}
