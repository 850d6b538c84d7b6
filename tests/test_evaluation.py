"""Distances between sets of samples: closed forms, exact cases, invariances, and what a
classifier must find.
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


@pytest.mark.slow
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


def test_distribution_distances_are_the_single_ones():
    x, y = 1.5 * normal(20, 64, 8, 8, 1), normal(19, 90, 8, 8, 1)
    found = evaluation.distribution_distances(KEY, x, y, spatial_axes=(1,), projections=32)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {
            'mmd': float(evaluation.mmd(x, y)),
            'sliced_wasserstein': float(evaluation.sliced_wasserstein(KEY, x, y, projections=32)),
            'spectrum': float(evaluation.spectrum_distance(x, y, (1,))),
        },
        rel=1e-4,
    )


def area(x, y, **options):
    return {k: float(v) for k, v in evaluation.two_sample_area(KEY, x, y, **options).items()}


@pytest.mark.parametrize('shift', [0.0, 0.5, 1.5])
def test_area_of_two_normal_laws_is_that_of_their_best_classifier(shift):
    x, y = normal(30, 1500, 6), normal(31, 1500, 6)
    x[:, 2] += shift
    best = scipy.stats.norm.cdf(shift / math.sqrt(2))  # P(x_2 > y_2)
    found = area(x, y)
    # a standard error, and what five useless features cost a fit
    assert found['value'] == pytest.approx(best, abs=3 * math.sqrt(1 / (12 * 750)))
    assert 0 < found['std'] < 0.02


def test_area_sees_neither_units_nor_constants_and_is_one_for_sets_apart():
    x, y = normal(32, 60, 4), normal(33, 60, 4) + 1
    units = np.array([1e-3, 1.0, 1e4, 7.0], np.float32)
    same = np.ones((60, 1), np.float32)
    moved = [np.concatenate([units * part + 3 * units, same], 1) for part in (x, y)]
    assert area(*moved)['value'] == pytest.approx(area(x, y)['value'], abs=2e-3)
    assert area(x, y + 20)['value'] == 1
    assert math.isnan(area(np.where(np.arange(60)[:, None] == 3, np.nan, x), y)['value'])


def test_principal_axes_are_those_of_the_covariance():
    rotation = np.linalg.qr(normal(34, 6, 6))[0]
    x = normal(35, 4000, 6) * np.array([5, 3, 1, 0.1, 0.1, 0.1]) @ rotation.T + 2
    mean, axes = evaluation.principal_axes(x.reshape(-1, 3, 2, 1), 2)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(axes * rotation[:, :2], 0)), 1, atol=2e-3)
    assert axes.shape == (6, 2)


def test_summaries_tell_spectrum_values_and_increments_by_hand():
    x = np.tile(3 * wave(32, 5)[:, None, None], (2, 1, 4, 1))
    found = np.asarray(evaluation.summaries(x, (1,)))
    powers, values, increments = np.split(found[0], [17, 26])
    assert powers.argmax() == 5 and np.exp(powers[5]) == pytest.approx(4.5, rel=1e-5)
    assert values[[0, 4, 8]] == pytest.approx([x.min(), 0, x.max()], abs=1e-5)
    steps = np.abs(np.diff(x[0, :, 0, 0]))
    root = math.sqrt(np.mean(steps**2))
    assert increments == pytest.approx([steps.mean(), root, steps.max()], rel=1e-4)


def test_an_axis_of_one_pixel_has_no_increments():
    x = normal(7, 3, 8, 1)[..., None]
    both, one = (np.asarray(evaluation.summaries(x, axes)) for axes in ((1, 2), (1,)))
    np.testing.assert_array_equal(both[:, -3:], one[:, -3:])
    assert np.asarray(evaluation.summaries(x[:, :1], (1, 2))).shape[1] < both.shape[1]


def test_memorisation_is_zero_for_copies_and_one_for_the_law():
    train, held_out, x = normal(36, 3, 300, 5)
    assert evaluation.memorisation(train[:100], train, held_out) < 1e-3
    assert evaluation.memorisation(x, train, held_out) == pytest.approx(1, abs=0.05)


def test_line_through_points_on_a_line_and_beside_it():
    x, noise = normal(37, 2, 4000)
    found = evaluation.line(x, 1.8 * x + 0.04)
    assert [float(found[k]) for k in ('slope', 'offset', 'r2')] == pytest.approx(
        [1.8, 0.04, 1], abs=1e-5
    )
    assert evaluation.line(x, x + noise)['r2'] == pytest.approx(0.5, abs=0.03)


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
        (lambda: evaluation.two_sample_area(KEY, FIELDS[..., 0, 0], FIELDS[:2, :, 0, 0]), 'equal'),
        (lambda: evaluation.two_sample_area(KEY, *FIELDS[:2, ..., 0]), 'at least 10'),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
