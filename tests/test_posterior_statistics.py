"""Statistics of posterior samples, by hand and on ensembles whose scores are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.metrics import (
    crps,
    jackknife,
    posterior_moments,
    posterior_statistics,
    rmse,
    spread_skill,
)

STATISTICS = jax.jit(posterior_statistics)
SLOPE = jax.jit(
    jax.grad(lambda x, truth, valid: sum(posterior_statistics(truth, x, valid).values()))
)


def field(*values):
    """Returns `(..., 1, 1, 1)`: a field of one value for each number."""
    return jnp.asarray(values, jnp.float32)[..., None, None, None]


@pytest.fixture
def ensemble():
    """Returns truths `(3, 4, 5, 2)`, 6 samples each, and which count: 6, 3 and 2 of them."""
    keys = jax.random.split(jax.random.key(0))
    valid = jnp.arange(6) < jnp.array([6, 3, 2])[:, None]
    return (
        jax.random.normal(keys[0], (3, 4, 5, 2)),
        jax.random.normal(keys[1], (3, 6, 4, 5, 2)),
        valid,
    )


def test_by_hand():
    truth, samples = field(1.0, 0.0), field([0.0, 1.0, 5.0], [2.0, 4.0, 3.0])
    mean, variance = posterior_moments(samples)
    np.testing.assert_allclose(mean, field(2.0, 3.0))
    np.testing.assert_allclose(variance, field(7.0, 1.0))
    assert float(rmse(truth, samples)) == pytest.approx(5**0.5)
    # |x - t| are 1, 0, 4 and 2, 4, 3; the three pairs 1, 5, 4 and 2, 1, 1 are halved by m (m - 1) =
    # 6
    assert float(crps(truth, samples)) == pytest.approx((5 / 3 - 10 / 6 + 3 - 4 / 6) / 2)
    assert float(spread_skill(truth, samples)) == pytest.approx((4 / 3 * 4 / 5) ** 0.5)


def test_a_single_sample_scores_its_absolute_error_and_has_no_spread():
    statistics = posterior_statistics(field(1.0, 0.0), field([3.0], [-1.0]))
    assert float(statistics['crps']) == pytest.approx(1.5)
    assert float(statistics['rmse']) == pytest.approx(2.5**0.5)
    assert np.isnan(statistics['spread_skill'])


def test_sorting_gives_the_sum_over_pairs(ensemble):
    truth, samples, valid = (np.asarray(a, np.float64) for a in ensemble)
    valid = valid.astype(bool)
    scores = []
    for t, x, counts in zip(truth, samples, valid, strict=True):
        x = x[counts]
        pairs = np.abs(x[:, None] - x).sum((0, 1)) / (2 * len(x) * (len(x) - 1))
        scores.append(np.abs(x - t).mean(0) - pairs)
    assert float(crps(*ensemble)) == pytest.approx(np.mean(scores), rel=1e-5)


@pytest.mark.parametrize('k', [2, 3, 16])
def test_calibrated_ensembles_have_the_known_score_and_ratio_one(k):
    sigma = 0.7
    both = 5 + sigma * jax.random.normal(jax.random.key(k), (8, k + 1, 64, 64, 1))
    statistics = STATISTICS(both[:, 0], both[:, 1:])
    assert float(statistics['crps']) == pytest.approx(sigma / np.pi**0.5, rel=0.02)
    assert float(statistics['rmse']) == pytest.approx(sigma * (1 + 1 / k) ** 0.5, rel=0.02)
    assert float(statistics['spread_skill']) == pytest.approx(1, rel=0.02)


def test_calibrated_ensembles_of_different_sizes_have_ratio_one():
    both = jax.random.normal(jax.random.key(1), (8, 17, 64, 64, 1))
    valid = jnp.arange(16) < 2 + 2 * jnp.arange(8)[:, None]
    statistics = STATISTICS(both[:, 0], both[:, 1:], valid)
    assert float(statistics['crps']) == pytest.approx(1 / np.pi**0.5, rel=0.02)
    assert float(statistics['spread_skill']) == pytest.approx(1, rel=0.02)


def test_the_ratio_tells_the_overconfident_and_the_score_rewards_the_calibrated():
    both = jax.random.normal(jax.random.key(2), (8, 17, 64, 64, 1))
    scores = {}
    for factor in (0.5, 1.0, 2.0):
        scores[factor] = STATISTICS(both[:, 0], factor * both[:, 1:])
        spread, error = factor**2 * (1 + 1 / 16), 1 + factor**2 / 16
        assert float(scores[factor]['spread_skill']) == pytest.approx(
            (spread / error) ** 0.5, rel=0.02
        )
    assert min(scores, key=lambda factor: float(scores[factor]['crps'])) == 1.0


def test_the_order_of_samples_and_measurements_has_no_effect(ensemble):
    truth, samples, valid = ensemble
    order = jnp.array([3, 0, 5, 2, 4, 1])
    expected = STATISTICS(truth, samples, valid)
    for shuffled in (
        (truth, samples[:, order], valid[:, order]),
        (truth[::-1], samples[::-1], valid[::-1]),
    ):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5),
            STATISTICS(*shuffled),
            expected,
        )


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e30])
def test_samples_left_out_have_no_effect(ensemble, bad):
    truth, samples, valid = ensemble
    left_out = jnp.where(valid[..., None, None, None], samples, bad)
    jax.tree.map(
        np.testing.assert_array_equal,
        STATISTICS(truth, left_out, valid),
        STATISTICS(truth, samples, valid),
    )
    slope = SLOPE(left_out, truth, valid)
    assert jnp.isfinite(slope).all()
    np.testing.assert_array_equal(slope[~valid], 0)


def test_all_valid_is_the_default_and_leaving_out_is_dropping(ensemble):
    truth, samples, _ = ensemble
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    everything = jnp.ones((3, 6), bool)
    jax.tree.map(close, STATISTICS(truth, samples), STATISTICS(truth, samples, everything))
    four = STATISTICS(truth, samples[:, :4])
    jax.tree.map(close, STATISTICS(truth, samples, everything.at[:, 4:].set(False)), four)


def test_a_measurement_without_samples_is_left_out(ensemble):
    truth, samples, valid = ensemble
    rest = STATISTICS(truth[1:], samples[1:], valid[1:])
    without = STATISTICS(truth, samples.at[0].set(jnp.nan), valid.at[0].set(False))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), without, rest)
    assert all(
        np.isnan(value) for value in STATISTICS(truth, samples, jnp.zeros_like(valid)).values()
    )


def test_valid_samples_that_are_not_finite_are_not_dropped(ensemble):
    truth, samples, valid = ensemble
    statistics = STATISTICS(truth, samples.at[0, 0].set(jnp.nan), valid)
    assert all(np.isnan(value) for value in statistics.values())


def test_errors(ensemble):
    truth, samples, valid = ensemble
    with pytest.raises(
        ValueError, match=r'truth: got shape \(3, 4, 5\) for samples \(3, 6, 4, 5, 2\), expected'
    ):
        rmse(truth[..., 0], samples, valid)
    with pytest.raises(
        ValueError, match=r'valid: got bool of shape \(3, 5\), expected bool of shape \(3, 6\)'
    ):
        crps(truth, samples, valid[:, 1:])
    with pytest.raises(ValueError, match='valid: got float32 of shape'):
        spread_skill(truth, samples, valid.astype(jnp.float32))
    with pytest.raises(
        ValueError, match=r'samples: got shape \(6, 4, 5, 2\), expected \(n, k, h, w, c\)'
    ):
        posterior_moments(samples[0])


@pytest.mark.slow
def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(3).normal(size=50)
    found = jackknife(lambda x: {'mean': x.mean()}, jnp.asarray(x))['mean']
    assert found == pytest.approx(x.std(ddof=1) / 50**0.5, rel=1e-4)
