"""Interferometry: visibilities, amplitudes and closures of images, against sums written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.inverse.closures import (
    MEASUREMENTS,
    Observation,
    chi_squares,
    interferometer,
    quadrangles,
    triangles,
)
from namm_jax.inverse.likelihood import likelihood

SHAPE, WIDTH = (8, 8, 1), 100.0  # microarcseconds
RADIAN = np.pi / 180 / 3600 / 1e6  # a microarcsecond


def transform(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Returns `sum I exp(-2 pi i (u east + v north))`, pixel by pixel, in double precision."""
    V = np.zeros(len(uv), complex)
    h, w = image.shape
    for row, column in itertools.product(range(h), range(w)):
        east = -(column + 0.5 - w / 2) * WIDTH / w * RADIAN
        north = -(row + 0.5 - h / 2) * WIDTH / h * RADIAN
        V += image[row, column] * np.exp(-2j * np.pi * (uv[:, 0] * east + uv[:, 1] * north))
    return V


def observe(image, stations='ABCDE', scans=2, relative=0.01, missing=(), seed=0) -> Observation:
    """Returns an observation without noise, each baseline a random way around."""
    rng = np.random.default_rng(seed)
    pairs = [pair for pair in itertools.combinations(stations, 2) if pair not in missing]
    pairs = [pair[:: rng.choice([-1, 1])] for _ in range(scans) for pair in pairs]
    scan = np.repeat(np.arange(scans), len(pairs) // scans)
    places = {(k, s): rng.uniform(-3e9, 3e9, 2) for k in range(scans) for s in stations}
    uv = np.array([places[k, i] - places[k, j] for k, (i, j) in zip(scan, pairs, strict=True)])
    V = transform(image, uv)
    std = relative * rng.uniform(0.5, 1.5, len(V)) * np.abs(V)
    return Observation(0.5 * scan, scan, np.array(pairs), uv, V, std)


def with_gains(observation: Observation, seed: int = 1) -> Observation:
    """Returns it with the size and phase of each station's signal spoilt, scan by scan."""
    rng = np.random.default_rng(seed)
    keys = {
        (k, s) for k, pair in zip(observation.scan, observation.stations, strict=True) for s in pair
    }
    gain = {key: np.exp(rng.normal() + 1j * rng.uniform(0, 6)) for key in sorted(keys)}
    factors = [
        gain[k, i] * np.conj(gain[k, j])
        for k, (i, j) in zip(observation.scan, observation.stations, strict=True)
    ]
    return observation._replace(
        visibility=observation.visibility * factors, std=observation.std * np.abs(factors)
    )


@pytest.fixture(scope='module')
def image() -> np.ndarray:
    return np.random.default_rng(3).gamma(0.5, size=SHAPE[:2])


def wrapped(phase):
    return np.angle(np.exp(1j * phase))


def test_products_are_those_of_a_sum_written_out(image):
    observation = observe(image)
    V = observation.visibility
    expected = {
        'visibilities': np.stack([V.real, V.imag], -1).ravel(),
        'amplitudes': np.abs(V),
        'closure_phases': triangles(observation) @ np.angle(V),
        'log_closure_amplitudes': quadrangles(observation) @ np.log(np.abs(V)),
    }
    for name, values in expected.items():
        operator, y = interferometer(SHAPE, observation, name, field_of_view=WIDTH)
        for got in (operator(jnp.asarray(image[None, ..., None], jnp.float32))[0], y[0]):
            error = np.asarray(got, float) - values
            error = wrapped(error) if name == 'closure_phases' else error
            assert np.abs(error).max() < 3e-6 * max(1, np.abs(values).max())  # float32


def test_unit_scales_visibilities_and_no_closure(image):
    observation, x = observe(image), jnp.asarray(image[None, ..., None], jnp.float32)
    measured = lambda name, unit: interferometer(
        SHAPE, observation, name, field_of_view=WIDTH, unit=unit
    )[0](x)
    np.testing.assert_allclose(
        measured('amplitudes', 2.5), 2.5 * measured('amplitudes', 1.0), rtol=1e-5
    )
    moved = wrapped(np.asarray(measured('closures', 2.5) - measured('closures', 1.0)))
    assert np.abs(moved).max() < 1e-5


def test_closures_see_no_gain_and_no_shift_and_amplitudes_do(image):
    observation = observe(image)
    spoilt = with_gains(observation)
    for name, seen in (('closures', False), ('amplitudes', True)):
        operator, y = interferometer(SHAPE, observation, name, field_of_view=WIDTH)
        _, other = interferometer(SHAPE, spoilt, name, field_of_view=WIDTH)
        moved = np.abs(np.asarray(operator.whiten(jnp.asarray(y), jnp.asarray(other)))).max()
        assert (moved > 1) == seen and (seen or moved < 1e-2)
    small = np.zeros(SHAPE[:2])
    small[2:6, 2:6] = image[:4, :4]
    operator, _ = interferometer(SHAPE, observation, field_of_view=WIDTH)
    x = jnp.asarray(np.stack([small, np.roll(small, (1, -2), (0, 1))])[..., None], jnp.float32)
    here, there = operator(x)
    assert np.abs(wrapped(np.asarray(here - there))).max() < 1e-4


@pytest.mark.parametrize('missing', [(), [('A', 'B')], [('A', 'B'), ('C', 'D')]])
def test_closures_are_independent_and_as_many_as_there_are(image, missing):
    observation = observe(image, scans=1, missing=missing)
    m, n = len(observation.std), 5
    T, Q = triangles(observation), quadrangles(observation)
    # All combinations that no phase, or no size, of a station's gain changes.
    sign = np.zeros((m, n))
    for row, (i, j) in enumerate(observation.stations):
        sign[row, 'ABCDE'.index(i)], sign[row, 'ABCDE'.index(j)] = 1, -1
    assert not (T @ sign).any() and not (Q @ np.abs(sign)).any()
    assert len(T) == np.linalg.matrix_rank(T) == m - np.linalg.matrix_rank(sign)
    assert len(Q) == np.linalg.matrix_rank(Q) == m - np.linalg.matrix_rank(np.abs(sign))


def test_a_scan_has_its_own_stations(image):
    observation = observe(image)
    # In the second scan three stations are left: one triangle, no quadrangle.
    left = (observation.scan == 0) | (np.isin(observation.stations, list('ABC')).all(1))
    both, first = observation[left], observation[observation.scan == 0]
    assert len(triangles(both)) == len(triangles(first)) + 1
    assert len(quadrangles(both)) == len(quadrangles(first))


def test_residuals_of_noise_are_white(image):
    observation, rng = observe(image, relative=0.02), np.random.default_rng(5)
    draws = 4000
    noise = rng.normal(size=(draws, len(observation.std), 2)) @ [1, 1j] * observation.std
    V = observation.visibility + noise
    for name, (product,) in list(MEASUREMENTS.items())[:4]:
        operator, y = interferometer(SHAPE, observation, name, field_of_view=WIDTH)
        values = {
            'visibilities': np.stack([V.real, V.imag], -1).reshape(draws, -1),
            'amplitudes': np.abs(V),
            'closure_phases': np.angle(V) @ triangles(observation).T,
            'log_closure_amplitudes': np.log(np.abs(V)) @ quadrangles(observation).T,
        }[product]
        r = np.asarray(operator.whiten(jnp.asarray(values, jnp.float32), jnp.asarray(y)))
        assert np.abs(r.mean(0)).max() < 0.1
        assert np.abs(np.cov(r.T) - np.eye(r.shape[1])).max() < 0.12


def test_a_phase_is_the_same_after_a_turn_and_guides_by_the_shorter_way(image):
    operator, y = interferometer(SHAPE, observe(image), 'closure_phases', field_of_view=WIDTH)
    y = jnp.asarray(y)
    turned = operator.whiten(y + 2 * jnp.pi * jnp.arange(y.shape[1]), y)
    assert np.abs(turned).max() < 0.02
    ahead = operator.whiten(y + 2 * jnp.pi - 0.1, y)
    np.testing.assert_allclose(ahead, operator.whiten(y - 0.1, y), rtol=1e-3)


def test_chi_square_is_0_at_the_image_and_the_likelihood_says_the_same(image):
    observation = observe(image)
    operator, y = interferometer(SHAPE, observation, field_of_view=WIDTH)
    other = np.random.default_rng(9).gamma(0.5, size=SHAPE[:2])
    x = jnp.asarray(np.stack([image, other])[..., None], jnp.float32)
    each = chi_squares(operator, y, x)
    assert all(chi[0] < 1e-6 and chi[1] > 1 for chi in each.values())
    sizes = {'closure_phases': len(triangles(observation))}
    sizes['log_closure_amplitudes'] = len(quadrangles(observation))
    of_y = likelihood(operator, y)
    total = sum(sizes[name] * np.asarray(each[name]) for name in sizes)
    np.testing.assert_allclose(of_y.log_density(x), -total / 2, rtol=1e-4)
    gradient = jax.grad(lambda x: of_y.log_density(x).sum())(x)
    assert np.isfinite(gradient).all() and gradient[1].any()


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'name': 'closure'}, 'did you mean'),
        ({'field_of_view': 0.0}, 'field_of_view: got 0.0'),
        ({'unit': np.nan}, 'unit: got nan'),
    ],
)
def test_a_bad_measurement_is_refused(image, changes, told):
    with pytest.raises(ValueError, match=told):
        interferometer(SHAPE, observe(image), **({'field_of_view': WIDTH} | changes))


def test_too_few_stations_have_no_closure(image):
    observation = observe(image, stations='ABC')
    with pytest.raises(ValueError, match='four stations'):
        interferometer(SHAPE, observation, field_of_view=WIDTH)
    _, y = interferometer(SHAPE, observation, 'closure_phases', field_of_view=WIDTH)
    assert y.shape == (1, 2)
