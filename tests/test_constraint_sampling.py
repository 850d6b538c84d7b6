"""Guidance and projection while sampling, on normal data, where what they should give is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.denoising.denoisers import gaussian_denoiser
from namm_jax.denoising.guidance import classifier_free, guided, projected, renoised
from namm_jax.denoising.samplers import make_sampler, sample_keys

MEAN, STD, SHAPE = 0.3, 0.7, (4, 4, 1)  # 16 independent pixels
NORMAL = gaussian_denoiser(MEAN, STD)
TOTAL = 2.0
AXES = (1, 2, 3)
ONE = jnp.float32(1)


def total(x):
    return x.sum(AXES, keepdims=True)


def plane(x):
    return jnp.abs(x.sum(AXES) - TOTAL)


def shift(x):
    return x + (TOTAL - total(x)) / 16


def same(x, sigma):
    return x


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.fixture
def x():
    return 2 * jax.random.normal(jax.random.key(1), (5, *SHAPE))


def test_guidance_of_scale_zero_is_the_denoiser(x):
    assert guided(NORMAL, plane, scale=0.0) is NORMAL
    traced = jax.jit(lambda scale: guided(NORMAL, plane, scale=scale)(x, 1.5 * ONE))(jnp.float32(0))
    close(traced, NORMAL(x, 1.5 * ONE), atol=1e-6)


@pytest.mark.parametrize('through', [False, True])
def test_scale_is_the_part_of_the_way_to_a_plane(x, through):
    """Independent pixels of one variance: their covariance has no preferred direction, so both ways
    are one.
    """
    sigma = jnp.linspace(0.1, 30, 5)
    estimate = NORMAL(x, sigma)
    close(guided(NORMAL, plane, scale=1.0, through=through)(x, sigma), shift(estimate))
    part = guided(NORMAL, plane, scale=0.25, through=through)(x, sigma)
    close(part, estimate + 0.25 * (shift(estimate) - estimate))


def test_through_the_network_scale_one_is_the_conditional_denoiser():
    rng = np.random.default_rng(0)
    mean, factor, normal, level, sigma = (
        rng.normal(size=6),
        rng.normal(size=(6, 6)) / 2,
        rng.normal(size=6),
        0.4,
        0.8,
    )
    covariance, x = factor @ factor.T, rng.normal(size=(4, 6))
    # The law of the data given x = x_0 + sigma noise and normal . x_0 = level, both as
    # measurements.
    seen = np.vstack([np.eye(6), normal])
    noise = np.diag([sigma**2] * 6 + [0])
    gain = covariance @ seen.T @ np.linalg.inv(seen @ covariance @ seen.T + noise)
    measured = np.hstack([x, np.full((4, 1), level)])
    expected = mean + (measured - mean @ seen.T) @ gain.T

    posterior = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(6))
    denoiser = lambda x, sigma: mean + (x - mean) @ posterior.T
    distance = lambda x: jnp.abs(x @ normal - level)
    close(
        guided(denoiser, distance, scale=1.0, through=True)(jnp.asarray(x), sigma * ONE),
        expected,
        atol=1e-4,
    )
    at_estimate = guided(denoiser, distance, scale=1.0)(jnp.asarray(x), sigma * ONE)
    assert float(distance(at_estimate).max()) < 1e-5
    assert float(jnp.abs(at_estimate - expected).max()) > 0.01, (
        'on the plane, but at the nearest point'
    )


@pytest.mark.parametrize('scale', [0.5, 1.0, 1.9])
def test_guidance_approaches_every_point_of_a_convex_set(scale):
    distance = lambda x: jnp.mean(jax.nn.relu(x - 1) + jax.nn.relu(-x), AXES)
    x = 2 * jax.random.normal(jax.random.key(2), (50, *SHAPE))
    inside = jax.random.uniform(jax.random.key(3), (50, *SHAPE))
    square = lambda x: (x**2).sum(AXES)
    whole = square(x - guided(same, distance, scale=1.0)(x, ONE))
    moved = guided(same, distance, scale=scale)(x, ONE)
    assert float(whole.min()) > 0
    assert (square(moved - inside) <= square(x - inside) - scale * (2 - scale) * whole + 1e-3).all()


def test_guidance_does_not_depend_on_the_unit_of_the_distance(x):
    expected = guided(same, plane, scale=0.7)(x, ONE)
    for unit in (1e-25, 1e25):
        close(guided(same, lambda x, unit=unit: unit * plane(x), scale=0.7)(x, ONE), expected)


def test_guidance_without_a_slope_is_the_denoiser():
    x = jnp.stack([jnp.ones(SHAPE), jnp.full(SHAPE, 2.0)])
    norm = lambda x: jnp.sqrt(((x - 1) ** 2).sum(AXES))  # its gradient is NaN where it is 0
    close(guided(same, norm, scale=1.0)(x, ONE), jnp.ones_like(x))
    close(guided(same, norm, scale=1.0, through=True)(x, ONE), jnp.ones_like(x))
    for flat in (lambda x: 3 + 0 * x.sum(AXES), lambda x: jnp.nan * x.sum(AXES)):
        assert (guided(same, flat, scale=1.0)(x, ONE) == x).all()
    close(guided(same, plane, scale=1.0)(shift(x), ONE), shift(x), atol=1e-6)  # there already
    # A direction through the network along which the distance grows.
    turned = guided(lambda x, sigma: -x, lambda x: x.mean(AXES), scale=1.0, through=True)
    assert (turned(-x, ONE) == x).all()


def test_guidance_goes_no_farther_than_its_limit():
    x = jnp.zeros((2, *SHAPE))
    far = lambda x: jnp.abs(x.sum(AXES) - jnp.asarray([1e4, 0.16]))  # steps of 625 and 0.01
    moved = guided(same, far, scale=0.5, limit=0.2)(x, ONE)
    close(moved, 0.5 * jnp.broadcast_to(jnp.asarray([0.2, 0.01])[:, None, None, None], x.shape))


def test_guided_samples_follow_the_guided_flow():
    """For a plane through the mean, the distance `w` from it obeys a linear equation.

    `dw/dr = w (1 - (1 - k) s^2 / (s^2 + r^2)) / r`, so `w` is a multiple of
    `r^k (s^2 + r^2)^((1 - k) / 2)`.
    """
    through_mean = lambda x: jnp.abs(x.sum(AXES) - 16 * MEAN)
    sampler, keys = (
        make_sampler('heun', steps=150, mean=MEAN, std=STD, grid='log'),
        sample_keys(jax.random.key(4), 6),
    )
    run = jax.jit(
        lambda scale: sampler.trajectory(keys, guided(NORMAL, through_mean, scale=scale), SHAPE)[0]
    )
    levels, last = np.asarray(sampler.levels(), float)[[0, -1]], []
    for k in (0.0, 0.1, 0.3, 0.6):
        w = np.asarray(run(jnp.float32(k)), float).sum((2, 3, 4)) - 16 * MEAN
        growth = levels**k * (STD**2 + levels**2) ** ((1 - k) / 2)
        close(w[-1] / w[0], growth[1] / growth[0], rtol=0.02)
        last.append(np.abs(w[-1]))
    assert (np.diff(last, axis=0) < 0).all(), 'the larger the scale, the nearer'


@pytest.mark.parametrize(('name', 'steps'), [('heun', 40), ('sde_dpm_solver_pp_2m', 60)])
def test_projected_samples_have_the_law_of_the_data_on_the_plane(name, steps):
    n, sampler = 3000, make_sampler(name, steps=steps, mean=MEAN, std=STD)
    keys = sample_keys(jax.random.key(5), n)
    samples = jax.jit(lambda keys: sampler(keys, projected(NORMAL, shift), SHAPE))(keys)
    assert float(plane(samples).max()) < 1e-4
    # Given their sum, independent pixels have its 16th part as mean and lose a 16th of their
    # variance.
    close(samples.mean(0), TOTAL / 16, atol=4 * STD / np.sqrt(n))
    close(samples.var(0).mean(), STD**2 * 15 / 16, rtol=0.05)


def test_a_projection_that_diverges_leaves_its_sample(x):
    broken = projected(
        same, lambda x: shift(x).at[1, 0, 0, 0].set(jnp.nan).at[2, 1, 1, 0].set(jnp.inf)
    )
    expected = shift(x).at[1:3].set(x[1:3])
    assert (broken(x, ONE) == expected).all()


def test_half_precision_stays(x):
    half = x.astype(jnp.bfloat16)
    raised = lambda x: plane(x.astype(jnp.float32))
    assert guided(same, raised, scale=0.5)(half, ONE).dtype == jnp.bfloat16
    project = lambda x: shift(x.astype(jnp.float32))
    assert projected(same, project)(half, ONE).dtype == jnp.bfloat16


def test_errors(x):
    for scale in (-0.1, float('inf'), float('nan')):
        with pytest.raises(ValueError, match=r'scale: got .*expected a number in \[0, inf\)'):
            guided(NORMAL, plane, scale=scale)
    with pytest.raises(ValueError, match='limit: got 0'):
        guided(NORMAL, plane, scale=1.0, limit=0.0)
    with pytest.raises(
        ValueError, match=r'project: got \(ShapeDtypeStruct.*lambda x: function\(x\)\[0\]'
    ):
        projected(NORMAL, lambda x: (x, {}))(x, ONE)
    with pytest.raises(ValueError, match=r'project: got .*shape=\(5,\).*expected fields like x'):
        projected(NORMAL, plane)(x, ONE)


def test_free_guidance_of_normal_data_moves_their_mean_by_the_weight(x):
    other = gaussian_denoiser(MEAN + 0.5, STD)
    for weight in (0.0, 1.0, 2.0):
        expected = gaussian_denoiser(MEAN + 0.5 * weight, STD)(x, 0.8 * ONE)
        close(classifier_free(other, NORMAL, weight)(x, 0.8 * ONE), expected)


def test_a_projected_and_renoised_estimate_has_its_law_on_a_plane():
    """Of normal data each round is linear: `x_m = P(c (x_{m-1} + sigma noise))` about the mean."""
    n, sigma, rounds = 20_000, 0.9, 2
    x = jnp.broadcast_to(0.4 + jnp.arange(16.0).reshape(1, *SHAPE) / 8, (n, *SHAPE))
    onto = projected(NORMAL, shift)
    found = renoised(onto, sample_keys(jax.random.key(2), n), rounds=rounds)(x, sigma * ONE)
    c = STD**2 / (STD**2 + sigma**2)
    along = (x - x.mean(AXES, keepdims=True))[0]  # within the plane; across it all is given
    close(found.sum(AXES), TOTAL, atol=1e-4)
    close(found.mean(0), TOTAL / 16 + c ** (rounds + 1) * along, atol=0.02)
    variance = 15 / 16 * sum(c ** (2 * m) * sigma**2 for m in range(1, rounds + 1))
    close(found.var(0), jnp.full(SHAPE, variance), rtol=0.06)
    assert (
        renoised(NORMAL, sample_keys(jax.random.key(2), n), rounds=0)(x, ONE)[0, 0, 0]
        == (NORMAL(x, ONE)[0, 0, 0])
    )


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['ancestral', 'heun'])
def test_renoised_samples_depend_on_their_key_alone_and_lie_on_the_plane(scheme):
    draw = make_sampler(scheme, steps=12, mean=MEAN, std=STD)
    onto = projected(NORMAL, shift)
    keys = sample_keys(jax.random.key(3), 6)
    x = draw(keys, renoised(onto, keys), SHAPE)
    close(x.sum(AXES), TOTAL, atol=1e-4)
    close(draw(keys[4:], renoised(onto, keys[4:]), SHAPE), x[4:])
    assert float(jnp.abs(x - draw(keys, onto, SHAPE)).max()) > 0.01


@pytest.mark.slow
def test_renoised_samples_scatter_as_the_recursion_says():
    """An ancestral step of a linear denoiser is linear, so the variance along the plane is known at
    each noise level, and that of the samples at the last.
    """
    n, rounds = 4000, 2
    draw = make_sampler('ancestral', steps=20, mean=MEAN, std=STD)
    keys = sample_keys(jax.random.key(5), n)
    x = draw(keys, renoised(projected(NORMAL, shift), keys, rounds=rounds), SHAPE)
    levels = np.asarray(draw.levels())

    def once(sigma):
        c = STD**2 / (STD**2 + sigma**2)
        return c ** (rounds + 1), sum(c ** (2 * m) * sigma**2 for m in range(1, rounds + 1))

    variance = levels[0] ** 2
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        (slope, noise), part = once(now), (after / now) ** 2
        kept = (1 - part) * slope + part
        variance = kept**2 * variance + (1 - part) ** 2 * noise + after**2 * (1 - part)
    slope, noise = once(levels[-1])
    expected = 15 / 16 * (slope**2 * variance + noise)
    assert expected < 0.95 * 15 / 16 * STD**2  # less than data, as the docstring says
    close(float(jnp.var(x - TOTAL / 16)), expected, rtol=0.03)
