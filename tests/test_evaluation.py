"""Distances between sets of samples: closed forms, exact cases, invariances, and intervals that
cover.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from namm_jax import metrics as evaluation

KEY = jax.random.key(0)


def normal(seed, *shape):
    return (
        np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    )  # numpy: nothing to compile


def wave(size, cycles):
    return np.sin(2 * np.pi * cycles * np.arange(size) / size).astype(np.float32)


def test_distance_statistics_of_known_numbers():
    statistics = evaluation.distance_statistics(jnp.array([4.0, 1.0, 10.0, 1.0]))
    assert {name: float(value) for name, value in statistics.items()} == {
        'mean': 4.0,
        'median': 2.5,
        'max': 10.0,
    }


def test_distance_statistics_hides_no_failed_sample():
    assert all(
        jnp.isnan(value)
        for value in evaluation.distance_statistics(jnp.array([1.0, jnp.nan])).values()
    )


def test_mmd_of_one_distribution_is_zero_on_average_and_negative_at_times():
    values = jax.vmap(evaluation.mmd)(normal(1, 300, 25, 3), normal(2, 300, 50, 3))
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
    assert (values < 0).mean() > 0.3


def test_mmd_of_two_gaussians_is_the_closed_form():
    x, y = 1 + 2 * normal(3, 1500, 1), normal(4, 1500, 1)
    h = math.sqrt(2) * scipy.stats.norm.ppf(0.75)  # median of |y - y'|

    def expected_kernel(mean, variance):
        return h / math.sqrt(h**2 + variance) * math.exp(-(mean**2) / (2 * (h**2 + variance)))

    expected = expected_kernel(0, 8) + expected_kernel(0, 2) - 2 * expected_kernel(1, 5)
    assert evaluation.mmd(x, y, multiples=(1.0,)) == pytest.approx(
        expected, abs=0.012
    )  # 3 standard errors


def test_mmd_of_two_pairs_by_hand():
    x, y = jnp.array([[0.0], [2.0]]), jnp.array([[0.0], [1.0]])  # h = 1
    kernel = [math.exp(-(d**2) / 2) for d in (0, 1, 2)]
    expected = kernel[2] + kernel[1] - (kernel[0] + kernel[1] + kernel[2] + kernel[1]) / 2
    assert evaluation.mmd(x, y, multiples=(1.0,)) == pytest.approx(expected, rel=1e-5)


def test_mmd_grows_with_the_shift_and_sees_neither_unit_nor_origin_nor_rotation():
    x, y = normal(5, 60, 4), normal(6, 80, 4)
    values = [float(evaluation.mmd(x + shift, y)) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    rotation = np.linalg.qr(normal(7, 4, 4))[0]
    moved = evaluation.mmd(30 * (x + 2) @ rotation + 500, 30 * y @ rotation + 500)
    assert moved == pytest.approx(values[3], rel=1e-4)


def test_sliced_wasserstein_of_a_set_with_itself_repeated_and_shuffled_is_zero():
    x = normal(8, 50, 4, 4, 1)
    assert evaluation.sliced_wasserstein(KEY, x, x) == 0
    assert evaluation.sliced_wasserstein(KEY, x, np.concatenate([x, x[::-1], x])) < 1e-6


def test_sliced_wasserstein_in_one_dimension_is_exact_for_unequal_sizes():
    x, y = normal(9, 37, 1), 2 * normal(10, 90, 1) + 1
    expected = scipy.stats.wasserstein_distance(np.ravel(x), np.ravel(y))
    assert evaluation.sliced_wasserstein(KEY, x, y) == pytest.approx(expected, rel=1e-5)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    d, delta = 16, 0.3
    x = normal(11, 40, d)
    value = evaluation.sliced_wasserstein(KEY, x, x + delta, projections=4000)
    mean_projection = (
        math.sqrt(d / math.pi) * math.gamma(d / 2) / math.gamma((d + 1) / 2)
    )  # E|sum theta|
    assert value == pytest.approx(delta * mean_projection, rel=0.05)


def test_sliced_wasserstein_is_symmetric_and_in_data_units():
    x, y = normal(12, 30, 5), normal(13, 70, 5) + 1
    value = evaluation.sliced_wasserstein(KEY, x, y)
    assert evaluation.sliced_wasserstein(KEY, y, x) == pytest.approx(float(value), rel=1e-5)
    assert evaluation.sliced_wasserstein(KEY, 7 * x, 7 * y) == pytest.approx(
        7 * float(value), rel=1e-5
    )


def test_spectrum_of_a_sine_sits_in_its_wavenumber():
    x = np.tile(3 * wave(32, 5)[:, None, None], (2, 1, 7, 1))  # constant along the other axis
    powers = evaluation.spectrum(x, (1,))
    assert powers.shape == (17,)
    np.testing.assert_allclose(powers, 4.5 * (np.arange(17) == 5), atol=1e-6)


def test_spectrum_of_a_plane_wave_sits_in_the_shell_of_its_length():
    phase = 2 * np.pi / 32 * (3 * np.arange(32)[:, None] + 4 * np.arange(32))
    powers = evaluation.spectrum(np.cos(phase)[None, :, :, None], (1, 2))
    np.testing.assert_allclose(powers, 0.5 * (np.arange(len(powers)) == 5), atol=1e-6)


@pytest.mark.parametrize('axes', [(1,), (2,), (1, 2)])
@pytest.mark.parametrize('shape', [(3, 16, 24, 2), (2, 15, 9, 1)])
def test_spectrum_sums_to_the_mean_square(shape, axes):
    x = normal(14, *shape) + 1
    assert evaluation.spectrum(x, axes).sum() == pytest.approx(float(np.mean(x**2)), rel=1e-5)


def test_spectrum_distance_of_a_tenfold_field_is_two_decades():
    x = normal(15, 70, 16, 16, 1)
    assert evaluation.spectrum_distance(10 * x, x, (1, 2)) == pytest.approx(2, rel=1e-5)
    assert evaluation.spectrum_distance(x, 10 * x, (1,)) == pytest.approx(2, rel=1e-5)
    assert (
        evaluation.spectrum_distance(x, np.roll(x, 3, axis=1), (1,)) < 1e-5
    )  # a shift moves phases only


def test_spectrum_distance_compares_no_round_off():
    x = np.tile(wave(32, 5)[:, None, None], (4, 1, 1, 1))
    assert evaluation.spectrum_distance(x + 1e-7 * normal(16, *x.shape), x, (1,)) < 1e-5


def difference_of_means(x, y):
    return lambda w, v: w @ x / jnp.sum(w) - v @ y / jnp.sum(v)


def test_bootstrap_interval_of_a_difference_of_means_covers_the_truth_at_its_rate():
    def interval(key, x, y):
        return evaluation.bootstrap(key, difference_of_means(x, y), 40, 80)

    found = jax.jit(jax.vmap(interval))(
        jax.random.split(KEY, 300), normal(21, 300, 40) + 0.5, normal(22, 300, 80)
    )
    low, high = np.asarray(found['low']), np.asarray(found['high'])
    assert 0.89 < np.mean((low < 0.5) & (high > 0.5)) < 0.98
    width = np.mean(high - low)
    assert width == pytest.approx(2 * 1.96 * math.sqrt(1 / 40 + 1 / 80), rel=0.06)


def test_bootstrap_intervals_hold_the_value_and_shrink_with_the_root_of_the_size():
    def widths(n):
        x, y = (
            normal(17, n, 8, 8, 1) + 1,
            normal(18, n, 8, 8, 1),
        )  # far apart: the MMD of near ones falls as 1 / n
        found = evaluation.distribution_distances(KEY, x, y, spatial_axes=(1, 2), projections=32)
        assert all(
            distance['low'] < distance['value'] < distance['high'] for distance in found.values()
        )
        return {name: float(distance['high'] - distance['low']) for name, distance in found.items()}

    few, many = widths(64), widths(576)
    for name in few:
        assert few[name] / many[name] == pytest.approx(3, rel=0.3), name


def test_distribution_distances_are_the_single_ones_and_tell_near_from_far():
    y = normal(19, 90, 8, 8, 1)
    near, far = (
        evaluation.distribution_distances(
            KEY, scale * normal(20, 64, 8, 8, 1), y, spatial_axes=(1,), projections=32
        )
        for scale in (1.0, 1.5)
    )
    assert set(near) == {'mmd', 'sliced_wasserstein', 'spectrum'}
    for name, distance in far.items():
        assert set(distance) == {'value', 'low', 'high'}
        assert distance['low'] > near[name]['high'], name
    assert far['mmd']['value'] == pytest.approx(
        float(evaluation.mmd(1.5 * normal(20, 64, 8, 8, 1), y)), rel=1e-4
    )


FIELDS = jnp.zeros((3, 8, 8, 1))


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: evaluation.distance_statistics(FIELDS), r'got shape \(3, 8, 8, 1\)'),
        (lambda: evaluation.distance_statistics(jnp.zeros(0)), r'got shape \(0,\)'),
        (lambda: evaluation.mmd(FIELDS, FIELDS[:, :4]), 'expected equal shapes'),
        (lambda: evaluation.mmd(FIELDS[:1], FIELDS), 'at least 2 members'),
        (
            lambda: evaluation.sliced_wasserstein(KEY, FIELDS, FIELDS, projections=0),
            'got 0, expected >= 1',
        ),
        (lambda: evaluation.spectrum(FIELDS, (0, 1)), 'axis 0 is the batch'),
        (lambda: evaluation.spectrum(FIELDS, (1, 1)), 'different axes'),
        (
            lambda: evaluation.spectrum_distance(FIELDS, FIELDS[..., 0], (1,)),
            'expected equal shapes',
        ),
        (lambda: evaluation.bootstrap(KEY, lambda w, v: 0.0, 0, 3), 'got n=0, m=3'),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
