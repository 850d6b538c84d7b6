"""Posterior sampling on linear-Gaussian problems, whose posterior is known, and what guidance
reduces to.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.denoising import denoisers as diffusion
from namm_jax.denoising import sampling
from namm_jax.inverse import dps as ip
from namm_jax.inverse.gains import gain_at, measured_gain

MEAN, STD, SHAPE = 0.3, 0.7, (2, 2, 1)
NORMAL = diffusion.gaussian_denoiser(MEAN, STD)
STANDARD = diffusion.gaussian_denoiser(0.0, 1.0)
# Orthonormal rows that are no selection: the first three of a Hadamard matrix.
ROWS = np.asarray([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
Y = jnp.asarray([[1.2, -0.5, 0.4]])
T, S = jnp.float32(0.6), jnp.float32(0.5)
ONE_CALL = [name for name, scheme in sampling.SAMPLERS.items() if scheme.calls == 1]


def rows(count):
    return lambda x: x.reshape(len(x), 4) @ jnp.asarray(ROWS[:count], x.dtype).T


def test_measured_gain_is_that_of_isotropic_data_and_less_near_a_line():
    levels, keys = jnp.asarray([10.0, 1.0, 0.1]), jax.random.split(jax.random.key(0), 3)
    coefficients = jax.random.normal(jax.random.key(1), (20_000, 4))
    x = MEAN + STD * coefficients.reshape(-1, *SHAPE)
    found = measured_gain(keys, NORMAL, rows(3), x, levels, prior_std=STD)
    np.testing.assert_allclose(found, 1, rtol=0.05)

    # Data `a (1, 1, 1, 1)`, a ~ N(0, tau^2): the mean of n = 4 values estimates a, with variance 1
    # / (1 / tau^2 + n / sigma^2). The first row is the sum of the values over 2, so it measures 2
    # a; the others measure 0.
    def denoiser(x, sigma):
        a = jnp.mean(x, (1, 2, 3), keepdims=True) * 4 * STD**2 / (4 * STD**2 + sigma**2)
        return a * jnp.ones_like(x)

    line = STD * coefficients[:, :1].reshape(-1, 1, 1, 1) * jnp.ones(SHAPE)
    found = measured_gain(keys, denoiser, rows(3), line, levels, prior_std=STD)
    exact = 4 / 3 * (STD**2 + levels**2) / (4 * STD**2 + levels**2)
    np.testing.assert_allclose(found, exact, rtol=0.05)
    np.testing.assert_allclose(gain_at(levels, found)(levels[1]), found[1], rtol=1e-5)
    between = gain_at(levels, jnp.asarray([1.0, 0.1, 0.01]))
    np.testing.assert_allclose(between(jnp.asarray([10**0.5, 20.0])), [10**-0.5, 1.0], rtol=1e-4)


def posterior(count, y, noise_std):
    """Returns the mean and covariance of `N(MEAN, STD^2 I)` given the first rows of it, with
    noise.
    """
    seen = ROWS[:count]
    gain = STD**2 * seen.T @ np.linalg.inv(STD**2 * seen @ seen.T + noise_std**2 * np.eye(count))
    mean = MEAN + gain @ (np.asarray(y)[0] - MEAN * seen.sum(1))
    return mean, STD**2 * (np.eye(4) - gain @ seen)


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def draw(sampler, denoiser, n, shape=SHAPE, seed=0):
    return jax.jit(lambda keys: sampler(keys, denoiser, shape))(
        sampling.sample_keys(jax.random.key(seed), n)
    )


def curved(x, sigma):
    """A denoiser that is no exact one, for identities that hold for any."""
    return jnp.tanh(x) + 0.1 * jnp.roll(x, 1, axis=1)


def one_step(step, x, memory=(), denoiser=curved, t=T, s=S, seed=2):
    return step(denoiser, sampling.sample_keys(jax.random.key(seed), len(x)), x, memory, t, s)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (5, *SHAPE))


def test_misfit_of_the_truth_is_the_norm_of_the_noise():
    y = jax.random.normal(jax.random.key(0), (4, 50, 20))
    measure, truth = (lambda x: x * x), jnp.abs(y) ** 0.5 * (y > 0)
    noise = jax.random.normal(jax.random.key(1), y.shape)
    noisy = measure(truth) + 0.01 * noise
    close(
        ip.misfit(measure, noisy, 0.01)(truth),
        jnp.linalg.norm(noise.reshape(4, -1), axis=1),
        rtol=1e-3,
    )
    close(ip.misfit_per_value(measure, noisy, 0.01)(truth), 1, atol=5 / np.sqrt(2000))


def test_misfit_is_flat_where_it_is_zero_and_nan_where_it_is_not_finite():
    y = jnp.ones((3, 4))
    x = jnp.asarray([[1.0] * 4, [3.0] * 4, [jnp.nan] * 4])
    potential = ip.misfit(lambda x: x, y, 0.5)
    close(potential(x), [0, 8, jnp.nan])
    gradient = jax.grad(lambda x: potential(x).sum())(x)
    close(gradient, np.asarray([[0] * 4, [1] * 4, [np.nan] * 4]))


def test_constraint_is_added_with_its_weight(x):
    potential, distance = ip.misfit(rows(3), Y, 0.2), lambda x: jnp.abs(x).mean((1, 2, 3))
    close(ip.with_constraint(potential, distance)(x), potential(x) + 200 * distance(x))
    close(ip.with_constraint(potential, distance, 0.0)(x), potential(x))


@pytest.mark.parametrize('name', ONE_CALL)
def test_scale_zero_is_the_step(name, x):
    schedule = sampling.PATHS[sampling.SAMPLERS[name].path].schedule()
    step, potential = sampling.SAMPLERS[name].step(schedule), ip.misfit(rows(3), Y, 0.2)
    assert ip.dps(step, schedule, potential, scale=0.0) is step

    @jax.jit
    def two_steps(scale):
        """Two, so that the memory is used."""
        results = []
        for length in (ip.fixed(scale), ip.polyak(1e9), None):
            now = step if length is None else ip.guided_step(step, schedule, potential, length)
            x_s, memory = one_step(now, x)
            results.append(one_step(now, x_s, memory, t=S, s=S / 2))
        return results

    fixed, polyak, plain = two_steps(jnp.float32(0))
    jax.tree.map(close, (fixed, polyak), (plain, plain))


@pytest.mark.parametrize('path', sampling.PATHS)
def test_dps_descends_the_potential_of_the_estimate(path, x):
    schedule, potential = sampling.PATHS[path].schedule(), ip.misfit(rows(3), Y, 0.2)
    step = sampling.ancestral(schedule)
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    through = lambda x: potential(curved(x / alpha, sigma / alpha)).sum()
    expected = one_step(step, x)[0] - 0.05 * jax.grad(through)(x)
    close(one_step(ip.dps(step, schedule, potential, scale=0.05), x)[0], expected)
    # The gradient itself, against a difference quotient.
    direction = jax.random.normal(jax.random.key(3), x.shape)
    moved = one_step(step, x)[0] - one_step(ip.dps(step, schedule, potential, scale=1.0), x)[0]
    quotient = (through(x + 1e-2 * direction) - through(x - 1e-2 * direction)) / 2e-2
    close((moved * direction).sum(), quotient, rtol=5e-3)


@pytest.mark.parametrize('name', ['ancestral', 'ddim', 'dpm_solver_pp_2m'])
def test_a_step_costs_one_call_and_one_backward_pass(name):
    made = []

    def count(kind):
        jax.debug.callback(lambda: made.append(kind))

    @jax.custom_vjp
    def network(x):
        count('plain')
        return x / 2

    def forward(x):
        count('forward')
        return x / 2, None

    def backward(_, ct):
        count('backward')
        return (ct / 2,)

    network.defvjp(forward, backward)
    sampler = sampling.make_sampler(name, steps=4)
    step = ip.dps(sampler.step, sampler.schedule, ip.misfit(rows(3), Y, 0.2), scale=0.05)
    draw(sampler._replace(step=step), lambda x, sigma: network(x), 2).block_until_ready()
    jax.effects_barrier()
    assert sorted(made) == ['backward'] * 3 + ['forward'] * 3 + ['plain'], (
        'three steps, and the last denoising as is'
    )


def test_scale_in_standardised_coordinates_is_divided_by_the_variance(x):
    """On the EDM path `x = MEAN + STD u` is one path of data and of standardised data."""
    schedule, potential = sampling.PATHS['edm'].schedule(), ip.misfit(rows(3), Y, 0.2)
    step = sampling.ddim(schedule)
    raw = one_step(
        ip.dps(step, schedule, potential, scale=0.05), MEAN + STD * x, t=STD * T, s=STD * S
    )[0]
    standard = diffusion.rescaled(curved, mean=-MEAN / STD, std=1 / STD)
    inside = ip.dps(step, schedule, lambda u: potential(MEAN + STD * u), scale=0.05 / STD**2)
    close(MEAN + STD * one_step(inside, x, denoiser=standard)[0], raw)


def test_polyak_reaches_its_target_where_the_potential_is_linear(x):
    schedule = sampling.PATHS['edm'].schedule()
    slope = jnp.arange(1.0, 5.0).reshape(SHAPE)
    linear = lambda x: (slope * x).sum((1, 2, 3)) + 50
    stay = lambda denoiser, keys, x, memory, t, s: (x + 0 * denoiser(x, t), memory)
    move = lambda potential, target=10.0, **options: one_step(
        ip.guided_step(stay, schedule, potential, ip.polyak(target, **options)),
        x,
        denoiser=lambda x, sigma: x,
    )[0]
    for unit in (1e-25, 1.0, 1e12):
        close(
            linear(move(lambda x, unit=unit: unit * linear(x), unit * 10, limit=1e3)), 10, rtol=1e-4
        )
    close(
        linear(move(linear, zeta=0.25, limit=1e3)), linear(x) - 0.25 * (linear(x) - 10), rtol=1e-4
    )
    shift = move(linear) - x
    close(jnp.sqrt((shift**2).mean((1, 2, 3))), T, rtol=1e-4)
    assert (move(lambda x: linear(x) - 1e4) == x).all(), 'below the target there is no guidance'
    assert (move(lambda x: 0 * linear(x) + 20) == x).all(), 'nor without a slope'


def test_discrepancy_is_the_misfit_along_a_posterior_trajectory():
    """Draws of data, measurement and state together: whatever y, the state is one of its posterior
    trajectory.
    """
    n, level, noise = 20_000, 0.5, 0.2
    key_data, key_noise, key_state = jax.random.split(jax.random.key(0), 3)
    x_0 = MEAN + STD * jax.random.normal(key_data, (n, *SHAPE))
    y = rows(3)(x_0) + noise * jax.random.normal(key_noise, (n, 3))
    estimate = NORMAL(x_0 + level * jax.random.normal(key_state, x_0.shape), jnp.float32(level))
    target = ip.discrepancy(3, noise_std=noise, prior_std=STD)
    close(jnp.mean(ip.misfit(rows(3), y, noise)(estimate) ** 2), target(level) ** 2, rtol=0.03)
    close(target(1e-6), np.sqrt(3))
    standard = ip.discrepancy(
        3, noise_std=noise, gain=STD**2
    )  # the same in standardised coordinates
    close(standard(level / STD), target(level))


def test_a_broken_chain_stays_broken_alone(x):
    x = x.at[1].set(jnp.nan)
    schedule, potential = sampling.PATHS['edm'].schedule(), ip.misfit(rows(3), Y, 0.2)
    for length in (ip.fixed(0.05), ip.polyak(1.0)):
        step = ip.guided_step(sampling.ancestral(schedule), schedule, potential, length)
        finite = jnp.isfinite(one_step(step, x)[0]).all((1, 2, 3))
        assert finite.tolist() == [True, False, True, True, True]
    for limit in (None, 0.1):
        guided = ip.weighted_guidance(curved, rows(3), Y, noise_std=0.2, prior_std=STD, limit=limit)
        assert jnp.isfinite(guided(x, T)).all((1, 2, 3)).tolist() == [True, False, True, True, True]


def test_a_sample_depends_on_its_key_and_measurement_alone():
    y = jnp.linspace(-1, 1, 15).reshape(5, 3)
    keys, sampler = (
        sampling.sample_keys(jax.random.key(0), 5),
        sampling.make_sampler('ancestral', steps=5),
    )

    def run(keys, y):
        length = ip.polyak(ip.discrepancy(3, noise_std=0.2))
        step = ip.guided_step(sampler.step, sampler.schedule, ip.misfit(rows(3), y, 0.2), length)
        return sampler._replace(step=step)(keys, curved, SHAPE)

    run = jax.jit(run)
    whole = run(keys, y)
    close(run(keys[3:], y[3:]), whole[3:], atol=1e-6)
    changed = jnp.abs(run(keys, y.at[3].add(1)) - whole).max((1, 2, 3)) > 1e-2
    assert changed.tolist() == [False, False, False, True, False]


def test_a_measurement_after_the_identity_is_the_plain_one():
    f = lambda z: z @ jnp.eye(1)
    sampler = sampling.make_sampler('ancestral', steps=20, mean=MEAN, std=STD)

    def run(measure, keys):
        potential = ip.misfit(measure, Y, 0.2)
        step = ip.dps(
            sampler.step, sampler.schedule, lambda u: potential(MEAN + STD * u), scale=0.05
        )
        return sampler._replace(step=step)(keys, NORMAL, SHAPE)

    both = jax.jit(lambda keys: (run(rows(3), keys), run(lambda z: rows(3)(f(z)), keys)))
    plain, mirrored = both(sampling.sample_keys(jax.random.key(0), 3))
    close(f(mirrored), plain)


@pytest.mark.parametrize('count', [1, 3, 4])
def test_weighted_guidance_is_the_denoiser_of_the_posterior(count, x):
    y, noise = jnp.asarray([[1.2, -0.5, 0.4, 0.1]])[:, :count], 0.3
    mean, covariance = posterior(count, y, noise)
    guided = jax.jit(ip.weighted_guidance(NORMAL, rows(count), y, noise_std=noise, prior_std=STD))
    for sigma in (1e-3, 0.4, 30.0):
        gain = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(4))
        expected = mean + (np.asarray(x).reshape(5, 4) - mean) @ gain.T
        close(guided(x, jnp.full(5, sigma, jnp.float32)).reshape(5, 4), expected, atol=2e-5)


@pytest.mark.parametrize(('name', 'steps'), [('heun', 60), ('ddim', 400)])
def test_weighted_guidance_reaches_the_posterior(name, steps):
    n, noise = 4000, 0.2
    mean, covariance = posterior(3, Y, noise)
    guided = ip.weighted_guidance(NORMAL, rows(3), Y, noise_std=noise, prior_std=STD)
    sampler = sampling.make_sampler(name, steps=steps, mean=MEAN, std=STD)
    samples = np.asarray(draw(sampler, guided, n), float).reshape(n, 4)
    deviation = np.sqrt(np.diag(covariance))
    # Four standard errors of the Monte Carlo mean and covariance, and 3 % for finitely many steps.
    close((samples.mean(0) - mean) / deviation, 0, atol=4 / np.sqrt(n) + 0.01)
    close(
        (np.cov(samples.T) - covariance) / np.outer(deviation, deviation),
        0,
        atol=4 * np.sqrt(2 / n) + 0.03,
    )


def test_little_noise_and_all_measured_give_the_truth():
    truth, n, spread = MEAN + STD * jax.random.normal(jax.random.key(5), (1, *SHAPE)), 500, []
    sampler = sampling.make_sampler('heun', steps=60, mean=MEAN, std=STD, sigma_min=1e-4)

    @jax.jit
    def run(noise):
        y = rows(4)(truth) + noise * jax.random.normal(jax.random.key(6), (1, 4))
        guided = ip.weighted_guidance(NORMAL, rows(4), y, noise_std=noise, prior_std=STD)
        return sampler(sampling.sample_keys(jax.random.key(7), n), guided, SHAPE)

    for noise in (1e-3, 1e-2):
        samples = run(jnp.float32(noise))
        close(samples.mean(0, keepdims=True), truth, atol=10 * noise, rtol=0)
        spread.append(float(samples.std(0).mean()))
    close(spread, [1e-3, 1e-2], rtol=0.1)
    close(spread[1] / spread[0], 10, rtol=0.03)


def test_weighted_guidance_goes_no_farther_than_its_limit(x):
    far = jnp.asarray([[1e3, 0.0, 0.0]])
    make = functools.partial(ip.weighted_guidance, NORMAL, rows(3), noise_std=0.2, prior_std=STD)
    shift = make(far, limit=0.1)(x, T) - NORMAL(x, T)
    close(jnp.sqrt((shift**2).mean((1, 2, 3))), 0.1, rtol=1e-3)
    close(make(Y, limit=1e3)(x, T), make(Y)(x, T))


@functools.cache
def standard_problem():
    y = jax.random.normal(jax.random.key(7), (1, 16)) + 0.2 * jax.random.normal(
        jax.random.key(8), (1, 16)
    )
    return y, np.asarray(y)[0] / 1.04, np.sqrt(0.04 / 1.04)


def statistics(name, steps, length, n=200):
    """Returns mean and standard deviation over the posterior's, and the misfit a value; all 16
    values measured.
    """
    y, mean, deviation = standard_problem()
    measure = lambda x: x.reshape(len(x), -1)
    sampler = sampling.make_sampler(name, steps=steps)
    step = ip.guided_step(sampler.step, sampler.schedule, ip.misfit(measure, y, 0.2), length)
    samples = draw(sampler._replace(step=step), STANDARD, n, (4, 4, 1))
    flat = np.asarray(samples).reshape(n, 16)
    agreement = ip.misfit_per_value(measure, y, 0.2)(samples)
    return [
        flat.mean(0) @ mean / (mean @ mean),
        flat.std(0).mean() / deviation,
        float(agreement.mean()),
    ]


def test_the_bias_of_dps_is_the_documented_one():
    """The posterior's are 1, 1 and 0.98: DPS of the published scale fits the noise."""
    close(statistics('ancestral', 1000, ip.fixed(0.05)), [1.04, 0.17, 0.16], rtol=0, atol=0.015)


def test_the_discrepancy_principle_fits_the_data_to_one_noise_standard_deviation():
    length = ip.polyak(ip.discrepancy(16, noise_std=0.2))
    close(statistics('ancestral', 1000, length), [0.995, 0.98, 0.98], rtol=0, atol=0.02)
    close(statistics('ddim', 100, length), [0.96, 0.94, 1.0], rtol=0, atol=0.03)


def test_half_precision_stays(x):
    half, raised = x.astype(jnp.bfloat16), lambda x: rows(3)(x.astype(jnp.float32))
    schedule = sampling.PATHS['edm'].schedule()
    step = ip.guided_step(
        sampling.ddim(schedule), schedule, ip.misfit(raised, Y, 0.2), ip.polyak(1.0)
    )
    dtypes = [
        jax.eval_shape(lambda x, now=now: one_step(now, x)[0], half).dtype
        for now in (step, sampling.ddim(schedule))
    ]
    assert dtypes[0] == dtypes[1]
    guided = ip.weighted_guidance(lambda x, sigma: x, raised, Y, noise_std=0.2, prior_std=STD)
    assert guided(half, T).dtype == jnp.bfloat16


SCHEDULE = sampling.PATHS['edm'].schedule()
FIELDS = jnp.zeros((5, *SHAPE))


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (lambda: ip.misfit(rows(3), Y, 0.0), 'noise_std: got 0.0'),
        (lambda: ip.misfit(rows(3), Y, jnp.ones(3)), 'noise_std: got .*one finite positive'),
        (
            lambda: ip.misfit(rows(3), Y.at[0, 1].set(jnp.inf), 0.2),
            'y: got values that are not finite',
        ),
        (lambda: ip.misfit(rows(3), Y + 1j, 0.2), r'y: got complex64\[1, 3\]'),
        (lambda: ip.misfit(rows(3), jnp.ones(3), 0.2), r'y: got float32\[3\]'),
        (
            lambda: ip.misfit(rows(4), Y, 0.2)(FIELDS),
            r'measure: got shape \(5, 4\).*y has shape \(1, 3\)',
        ),
        (lambda: ip.misfit(rows(3), jnp.ones((2, 3)), 0.2)(FIELDS), r'y has shape \(2, 3\)'),
        (
            lambda: ip.misfit(lambda x: rows(3)(x) > 0, Y, 0.2)(FIELDS),
            'measure: got bool.*others have no slope',
        ),
        (lambda: ip.with_constraint(jnp.sum, jnp.sum, -1.0), 'weight: got -1.0'),
        (lambda: ip.fixed(float('nan')), 'scale: got nan'),
        (lambda: ip.dps(sampling.ddim(SCHEDULE), SCHEDULE, jnp.sum, scale=-0.1), 'scale: got -0.1'),
        (lambda: ip.polyak(1.0, zeta=1.5), 'zeta 1.5'),
        (lambda: ip.polyak(1.0, limit=0.0), 'limit 0.0'),
        (lambda: ip.discrepancy(0, noise_std=0.2), 'count: got 0'),
        (lambda: ip.discrepancy(3, noise_std=0.2, gain=0.0), 'gain: got 0.0'),
        (
            lambda: ip.weighted_guidance(NORMAL, rows(3), Y, noise_std=0.2, prior_std=-1.0),
            'prior_std: got -1.0',
        ),
        (
            lambda: ip.weighted_guidance(
                NORMAL, rows(3), Y, noise_std=0.2, prior_std=1.0, limit=0.0
            ),
            'limit: got 0.0',
        ),
        (
            lambda: one_step(ip.dps(sampling.ddim(SCHEDULE), SCHEDULE, jnp.sum, scale=0.1), FIELDS),
            r'potential: got shape \(\), expected one number a sample, \(5,\)',
        ),
        (
            lambda: one_step(
                ip.dps(sampling.heun(SCHEDULE), SCHEDULE, ip.misfit(rows(3), Y, 0.2), scale=0.1),
                FIELDS,
            ),
            'step: it called its denoiser 2 times, expected once',
        ),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_everything_may_be_built_inside_a_compiled_function():
    noise, y, scale = jnp.float32(0.2), Y, jnp.float32(0.05)

    def run(x):
        potential = ip.with_constraint(
            ip.misfit(rows(3), y, noise), lambda x: x[:, 0, 0, 0] ** 2, jnp.float32(2)
        )
        moved = one_step(ip.dps(sampling.ddim(SCHEDULE), SCHEDULE, potential, scale=scale), x)[0]
        guided = ip.weighted_guidance(
            NORMAL, rows(3), y, noise_std=noise, prior_std=jnp.float32(STD)
        )
        return moved, guided(x, T), ip.discrepancy(3, noise_std=noise)(T)

    moved, guided, target = jax.jit(run)(FIELDS)
    assert jnp.isfinite(moved).all() and jnp.isfinite(guided).all() and target > 3**0.5
