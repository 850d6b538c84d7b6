"""Posterior samplers on normal data and linear measurements, where the posterior is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.denoising.denoisers import gaussian_denoiser
from namm_jax.denoising.samplers import edm_grid, sample_keys
from namm_jax.inverse.daps import daps, squared_gain
from namm_jax.inverse.likelihood import likelihood
from namm_jax.inverse.tds import _systematic, tds

MEAN = np.asarray([1.0, -2.0, 0.5])
FACTOR = np.asarray([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.5, 0.4, 0.2]])
COVARIANCE = FACTOR @ FACTOR.T
STD = np.sqrt(np.trace(COVARIANCE) / 3)
ISOTROPIC = gaussian_denoiser(MEAN, STD)
# A row of zeros measures nothing but noise: so all have one shape, and one program.
MASK, MIX = (
    np.diag([1.0, 0.0, 1.0]),
    np.asarray([[1.0, 0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 1.0]]),
)
FULL = np.asarray([[1.0, 0.3, 0.0], [0.0, 0.8, 0.2], [0.1, 0.0, 0.9]])
Y = np.asarray([2.0, 0.4, -0.7])
LEVELS, FINE = edm_grid(40, 20.0, 0.01), edm_grid(80, 20.0, 0.01)
N = 1_000
PRIOR = {'std': STD, 'mean': MEAN}


def correlated(x, sigma):
    """The exact denoiser of `N(MEAN, COVARIANCE)`."""
    variances, axes = np.linalg.eigh(COVARIANCE)
    return MEAN + (x - MEAN) @ axes @ jnp.diag(variances / (variances + sigma**2)) @ axes.T


def posterior(covariance, matrix, y, noise_std):
    gain = (
        covariance
        @ matrix.T
        @ np.linalg.inv(matrix @ covariance @ matrix.T + noise_std**2 * np.eye(len(matrix)))
    )
    return MEAN + gain @ (y - matrix @ MEAN), covariance - gain @ matrix @ covariance


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(sampler, denoiser, options, keys, matrix, y, noise_std, numbers):
    of_y = likelihood(lambda x: x @ matrix.T, y, noise_std)
    return sampler(keys, denoiser, (3,), likelihood=of_y, **PRIOR, **dict(options), **numbers)


def draw(
    sampler, denoiser, n, matrix=MASK, y=Y, *, noise_std=0.3, levels=LEVELS, start=0, **options
):
    """Returns n samples given `matrix x = y`, y `(m,)` or one a sample; compiled once for all
    numbers of a kind.
    """
    y = jnp.broadcast_to(jnp.asarray(y, jnp.float32), (n, 3))
    numbers = {'levels': levels}
    numbers |= {'spread': 1.0} if sampler is daps else {'guidance': 1.0}
    numbers |= {
        name: options.pop(name) for name in ('gain', 'guidance', 'spread') if name in options
    }
    keys = sample_keys(jax.random.key(0), n, start)
    matrix = jnp.asarray(matrix, jnp.float32)
    return run(sampler, denoiser, tuple(options.items()), keys, matrix, y, noise_std, numbers)


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def errors(x, mean, covariance):
    """Returns the largest errors of mean and covariance, in units of the standard deviations."""
    x, scale = np.asarray(x, float), np.sqrt(np.diag(covariance))
    assert np.isfinite(x).all()
    return (
        np.abs((x.mean(0) - mean) / scale).max(),
        np.abs((np.cov(x.T) - covariance) / np.outer(scale, scale)).max(),
    )


def assert_law(x, mean, covariance, atol=0.0):
    """Within four standard errors of independent samples, and `atol`."""
    in_mean, in_covariance = errors(x, mean, covariance)
    assert in_mean < 4 / np.sqrt(len(x)) + atol and in_covariance < 4 * np.sqrt(2 / len(x)) + atol


def test_daps_is_exact_on_isotropic_data():
    mean, covariance = posterior(STD**2 * np.eye(3), MIX, Y, 0.3)
    assert_law(draw(daps, ISOTROPIC, N, MIX, langevin_steps=10), mean, covariance, atol=0.01)


@pytest.mark.parametrize('step_size', [0.4, 1.6])
def test_langevin_steps_have_no_error_of_their_size(step_size):
    """At a level of nothing but noise, an estimate is the mean, and `x_0` is drawn from the
    posterior by them alone.
    """
    mean, covariance = posterior(STD**2 * np.eye(3), MASK, Y, 0.5)
    options = {
        'step_size': step_size,
        'gain': 1 / 0.5**2,
        'denoise_last': False,
        'levels': jnp.asarray([1e4]),
    }
    assert_law(draw(daps, ISOTROPIC, 8_000, noise_std=0.5, **options), mean, covariance, atol=0.005)


@pytest.mark.parametrize(
    ('options', 'factor'),
    [
        ({'spread': 1.0, 'langevin_steps': 10}, 1.0),
        ({'spread': 0.5, 'langevin_steps': 10}, (1 + 0.5**2) / 2),
        ({'spread': 0.5, 'ode_steps': 20, 'langevin_steps': 1}, 1 + 0.5**2),
        ({'spread': 1.0, 'ode_steps': 20, 'langevin_steps': 1}, 2.0),
    ],
)
def test_daps_without_measurement_has_the_stated_variance(options, factor):
    x = draw(daps, ISOTROPIC, N, noise_std=1e6, levels=edm_grid(40, 3.0, 0.05, rho=2.0), **options)
    assert_law(x, MEAN, factor * STD**2 * np.eye(3), atol=0.04)


@pytest.mark.parametrize('guidance', [1.0, 0.0])
def test_tds_is_exact_whatever_the_twist(guidance):
    mean, covariance = posterior(COVARIANCE, MASK, Y, 0.3)
    x, info = draw(tds, correlated, N, levels=FINE, particles=N, guidance=guidance)
    assert_law(x, mean, covariance, atol=0.05)
    assert info['effective'].shape == (1, 80) and float(info['effective'].min()) > 100
    assert int(info['lost'][0]) == 0


def test_the_twist_alone_is_biased():
    mean, covariance = posterior(COVARIANCE, MASK, Y, 0.3)
    x, info = draw(tds, correlated, N, levels=FINE, particles=1)
    assert errors(x, mean, covariance)[0] > 0.3
    close(info['effective'], 1)


def test_tds_without_measurement_gives_the_data():
    options = {'levels': FINE, 'particles': N, 'guidance': 1.0}
    x, info = draw(tds, correlated, N, noise_std=1e6, **options)
    assert_law(x, MEAN, COVARIANCE, atol=0.03)
    close(info['effective'], N, rtol=1e-3)


LAW = np.asarray([[0.4, 0.0, 0.0], [0.3, 0.2, 0.0], [-0.1, 0.1, 0.3]])  # a factor of C


@dataclasses.dataclass
class Correlated:
    """A user's own operator: all three values, with noise of covariance `C = LAW LAW^T`."""

    def __call__(self, x):
        return x @ MIX.T

    def whiten(self, y, Ax):
        return (y - Ax) @ np.linalg.inv(LAW).T.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('sampler', [daps, tds])
def test_correlated_noise_has_the_posterior_of_linear_algebra(sampler):
    prior = STD**2 * np.eye(3) if sampler is daps else COVARIANCE
    gain = prior @ MIX.T @ np.linalg.inv(MIX @ prior @ MIX.T + LAW @ LAW.T)
    mean, covariance = MEAN + gain @ (Y - MIX @ MEAN), prior - gain @ MIX @ prior
    of_y = likelihood(Correlated(), Y[None])
    white = posterior(prior, MIX, Y, np.sqrt(np.trace(LAW @ LAW.T) / 3))
    options = {'likelihood': of_y, 'std': STD, 'mean': MEAN}
    if sampler is daps:
        more = options | {'levels': LEVELS, 'langevin_steps': 20}
        run = jax.jit(lambda keys: daps(keys, ISOTROPIC, (3,), **more))
    else:
        more = options | {'levels': FINE, 'particles': 4 * N}
        run = jax.jit(lambda keys: tds(keys, correlated, (3,), **more)[0])
    x = run(sample_keys(jax.random.key(0), N if sampler is daps else 4 * N))
    assert_law(x, mean, covariance, atol=0.08)
    assert max(errors(x, *white)) > 0.3, 'white noise of the same size has another posterior'


@pytest.mark.parametrize('sampler', [daps, tds])
def test_a_full_measurement_of_little_noise_gives_the_truth(sampler):
    truth = np.asarray([1.7, -1.1, 0.2])
    spreads = []
    for noise_std in (1e-3, 4e-3):
        problem = {'matrix': FULL, 'y': FULL @ truth, 'noise_std': noise_std}
        if sampler is daps:
            x = draw(daps, ISOTROPIC, N, langevin_steps=10, **problem)
        else:
            x, _ = draw(tds, correlated, N, levels=edm_grid(80, 20.0, 5e-4), particles=N, **problem)
        close(x.mean(0), truth, rtol=0, atol=1e-2)
        spreads.append(x.std(0))
    close(spreads[1] / spreads[0], 4, rtol=0.25)


@pytest.mark.parametrize(
    ('sampler', 'options'), [(daps, {'langevin_steps': 2}), (tds, {'particles': 4})]
)
def test_samples_depend_on_their_keys_alone(sampler, options):
    """Numbers 4 to 11, two groups of particles, among others before and among others after them."""
    y = np.repeat(np.random.default_rng(0).normal(size=(4, 3)), 4, 0)
    before = draw(sampler, ISOTROPIC, 12, y=y[:12], **options)
    after = draw(sampler, ISOTROPIC, 12, y=y[4:], start=4, **options)
    before, after = (before, after) if sampler is daps else (before[0], after[0])
    close(after[:8], before[4:], atol=1e-4)
    assert float(jnp.abs(before[:4] - before[4:8]).max()) > 0.1


def test_daps_calls_the_network_as_often_as_stated_and_never_differentiates_it():
    made = []

    def network(x, sigma):
        made.append(1)
        return np.asarray(x) / 2

    def denoiser(x, sigma):  # a callback has no derivative
        return jax.pure_callback(network, jax.ShapeDtypeStruct(x.shape, x.dtype), x, sigma)

    draw(daps, denoiser, 2, levels=LEVELS[:5], ode_steps=3).block_until_ready()
    assert len(made) == 5 * 3 + 1


LOST = np.asarray([1, 4, 5, 6, 7])


def failing(x, sigma):
    """The rows `LOST` fail at levels in the middle, and only there."""
    fails = jnp.isin(jnp.arange(len(x)), LOST) & (sigma < 1) & (sigma > 0.5)
    return jnp.where(fails[:, None], jnp.inf, ISOTROPIC(x, sigma))


def test_what_fails_stays_failed_and_touches_nothing_else():
    x, expected = (draw(daps, denoiser, 12, langevin_steps=2) for denoiser in (failing, ISOTROPIC))
    assert jnp.isnan(x[LOST]).all()
    close(np.delete(x, LOST, 0), np.delete(expected, LOST, 0), atol=1e-4)


def test_a_failing_particle_has_no_descendants_and_a_failing_group_is_nan():
    (x, info), (expected, _) = (
        draw(tds, denoiser, 12, particles=4) for denoiser in (failing, ISOTROPIC)
    )
    assert info['lost'].tolist() == [1, 4, 0]
    assert jnp.isfinite(x[:4]).all() and jnp.isnan(x[4:8]).all()
    close(x[8:], expected[8:], atol=1e-4)


def test_systematic_resampling_takes_each_as_often_as_its_weight_says():
    weights = jnp.asarray([0.0, 3.0, 0.5, 0.0, 4.5, 2.0, 0.0])
    chosen = jax.vmap(lambda key: _systematic(key, weights))(sample_keys(jax.random.key(0), 2_000))
    counts = (chosen[:, :, None] == jnp.arange(7)).sum(1)
    expected = 7 * weights / weights.sum()
    assert (counts >= jnp.floor(expected)).all() and (counts <= jnp.ceil(expected)).all()
    close(counts.mean(0), expected, rtol=0, atol=0.05)


def test_squared_gain_is_the_largest_eigenvalue():
    keys, x = sample_keys(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (3, 3))
    measure = lambda x: jnp.stack([x[:, 0] ** 2, 2 * x[:, 1], x[:, 2]], 1)
    close(
        squared_gain(keys, measure, x, step=0.1, iterations=60),
        jnp.maximum(4 * x[:, 0] ** 2, 4),
        rtol=1e-3,
    )
    close(squared_gain(keys, lambda x: 0 * x, x, step=0.1), 0)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'y': jnp.zeros((4, 2))}, r'y: got shape \(4, 2\), expected \(b, 3\)'),
        ({'y': jnp.zeros((3, 3))}, r'y: got shape \(3, 3\), .*one for each of the 4 fields'),
        ({'y': jnp.full((4, 3), jnp.nan)}, 'y: got NaN or infinity in 4 of 4'),
        ({'y': jnp.zeros((4, 3), complex)}, 'y: got complex64'),
        ({'noise_std': 0.0}, 'noise_std: got 0.0'),
        ({'noise_std': jnp.ones(4)}, 'noise_std: got .* one finite number > 0'),
        ({'levels': jnp.asarray([1.0, 2.0])}, 'levels: got .* falling'),
        ({'levels': jnp.asarray([1.0, 0.0])}, 'levels: got .* above 0'),
        ({'std': -1.0}, 'std: got -1.0'),
        ({'keys': jax.random.key(0)}, 'keys: got .*one typed key a sample'),
        ({'step_size': 2.0}, 'step_size 2.0'),
        ({'ode_steps': 0}, 'ode_steps 0'),
        ({'particles': 3}, 'particles 3'),
        ({'particles': 4, 'y': jnp.arange(12.0).reshape(4, 3)}, 'y: got groups of 4 that differ'),
    ],
)
def test_mistakes_are_named(options, words):
    sampler = tds if 'particles' in options else daps
    keys = sample_keys(jax.random.key(0), 4)
    valid = {'keys': keys, 'y': jnp.zeros((4, 3)), 'noise_std': 0.1, 'levels': LEVELS, 'std': 1.0}
    arguments = valid | options
    with pytest.raises(ValueError, match=words):
        of_y = likelihood(lambda x: x, arguments.pop('y'), arguments.pop('noise_std'))
        sampler(arguments.pop('keys'), ISOTROPIC, (3,), likelihood=of_y, **arguments)
