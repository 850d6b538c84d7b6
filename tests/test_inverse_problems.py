"""Posterior sampling on linear-Gaussian problems, whose posterior is known, and what guidance
reduces to.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.denoising import denoisers as diffusion
from namm_jax.denoising import samplers, schedules
from namm_jax.denoising.guidance import measurement_guided
from namm_jax.inverse import dps as ip
from namm_jax.inverse.dps import gain_at, measured_gain
from namm_jax.inverse.likelihood import likelihood

MEAN, STD, SHAPE = 0.3, 0.7, (2, 2, 1)
NORMAL = diffusion.gaussian_denoiser(MEAN, STD)
STANDARD = diffusion.gaussian_denoiser(0.0, 1.0)
# Orthonormal rows that are no selection: the first three of a Hadamard matrix.
ROWS = np.asarray([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
Y = jnp.asarray([[1.2, -0.5, 0.4]])
T, S = jnp.float32(0.6), jnp.float32(0.5)
ONE_CALL = [name for name, scheme in samplers.SAMPLERS.items() if scheme.calls == 1]


def rows(count):
    return lambda x: x.reshape(len(x), 4) @ jnp.asarray(ROWS[:count], x.dtype).T


def weighted_guidance(denoiser, measure, y, *, noise_std, std, limit=None):
    of_y = likelihood(measure, y, noise_std)
    return measurement_guided(denoiser, of_y.residual, std=std, gain=of_y.precision(), limit=limit)


def test_measured_gain_is_that_of_isotropic_data_and_less_near_a_line():
    levels, keys = jnp.asarray([10.0, 1.0, 0.1]), jax.random.split(jax.random.key(0), 3)
    coefficients = jax.random.normal(jax.random.key(1), (20_000, 4))
    x = MEAN + STD * coefficients.reshape(-1, *SHAPE)
    found = measured_gain(keys, NORMAL, likelihood(rows(3), Y, 1.0), x, levels, std=STD)
    np.testing.assert_allclose(found, 1, rtol=0.05)

    # Data `a (1, 1, 1, 1)`, a ~ N(0, tau^2): the mean of n = 4 values estimates a, with variance 1
    # / (1 / tau^2 + n / sigma^2). The first row is the sum of the values over 2, so it measures 2
    # a; the others measure 0.
    def denoiser(x, sigma):
        a = jnp.mean(x, (1, 2, 3), keepdims=True) * 4 * STD**2 / (4 * STD**2 + sigma**2)
        return a * jnp.ones_like(x)

    line = STD * coefficients[:, :1].reshape(-1, 1, 1, 1) * jnp.ones(SHAPE)
    found = measured_gain(keys, denoiser, likelihood(rows(3), Y, 0.5), line, levels, std=STD)
    exact = 4 / 3 * (STD**2 + levels**2) / (4 * STD**2 + levels**2) / 0.5**2
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
        samplers.sample_keys(jax.random.key(seed), n)
    )


def curved(x, sigma):
    """A denoiser that is no exact one, for identities that hold for any."""
    return jnp.tanh(x) + 0.1 * jnp.roll(x, 1, axis=1)


def one_step(step, x, memory=(), denoiser=curved, t=T, s=S, seed=2):
    return step(denoiser, samplers.sample_keys(jax.random.key(seed), len(x)), x, memory, t, s)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (5, *SHAPE))


def test_misfit_of_the_truth_is_the_norm_of_the_noise():
    y = jax.random.normal(jax.random.key(0), (4, 50, 20))
    measure, truth = (lambda x: x * x), jnp.abs(y) ** 0.5 * (y > 0)
    noise = jax.random.normal(jax.random.key(1), y.shape)
    noisy = measure(truth) + 0.01 * noise
    close(
        likelihood(measure, noisy, 0.01).misfit(truth),
        jnp.linalg.norm(noise.reshape(4, -1), axis=1),
        rtol=1e-3,
    )
    close(likelihood(measure, noisy, 0.01).misfit_per_value(truth), 1, atol=5 / np.sqrt(2000))


def test_a_guided_step_by_white_noise_is_that_of_the_scaled_difference_to_the_bit(x):
    schedule = schedules.PATHS['edm'].schedule()
    y = jnp.asarray([[1.2, -0.5, 0.4]])

    def by_hand(x_0):
        square = jnp.sum(((y - rows(3)(x_0)) / 0.2) ** 2, -1)
        return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))

    step = lambda potential: ip.guided_step(
        samplers.ancestral(schedule), schedule, potential, ip.polyak(1.0)
    )
    ours = one_step(step(likelihood(rows(3), y, 0.2).misfit), x)[0]
    np.testing.assert_array_equal(ours, one_step(step(by_hand), x)[0])


def test_misfit_is_flat_where_it_is_zero_and_nan_where_it_is_not_finite():
    y = jnp.ones((3, 4))
    x = jnp.asarray([[1.0] * 4, [3.0] * 4, [jnp.nan] * 4])
    potential = likelihood(lambda x: x, y, 0.5).misfit
    close(potential(x), [0, 8, jnp.nan])
    gradient = jax.grad(lambda x: potential(x).sum())(x)
    close(gradient, np.asarray([[0] * 4, [1] * 4, [np.nan] * 4]))


def test_constraint_is_added_with_its_weight(x):
    potential, distance = likelihood(rows(3), Y, 0.2).misfit, lambda x: jnp.abs(x).mean((1, 2, 3))
    close(ip.with_constraint(potential, distance)(x), potential(x) + 200 * distance(x))
    close(ip.with_constraint(potential, distance, 0.0)(x), potential(x))


@pytest.mark.parametrize('name', ONE_CALL)
def test_scale_zero_is_the_step(name, x):
    schedule = schedules.PATHS[samplers.SAMPLERS[name].path].schedule()
    step, potential = samplers.SAMPLERS[name].step(schedule), likelihood(rows(3), Y, 0.2).misfit

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


@pytest.mark.parametrize('path', schedules.PATHS)
def test_dps_descends_the_potential_of_the_estimate(path, x):
    schedule, potential = schedules.PATHS[path].schedule(), likelihood(rows(3), Y, 0.2).misfit
    step = samplers.ancestral(schedule)
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    through = lambda x: potential(curved(x / alpha, sigma / alpha)).sum()
    expected = one_step(step, x)[0] - 0.05 * jax.grad(through)(x)
    close(one_step(ip.guided_step(step, schedule, potential, ip.fixed(0.05)), x)[0], expected)
    # The gradient itself, against a difference quotient.
    direction = jax.random.normal(jax.random.key(3), x.shape)
    unit = ip.guided_step(step, schedule, potential, ip.fixed(1.0))
    moved = one_step(step, x)[0] - one_step(unit, x)[0]
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
    sampler = samplers.make_sampler(name, steps=4)
    misfit = likelihood(rows(3), Y, 0.2).misfit
    step = ip.guided_step(sampler.step, sampler.schedule, misfit, ip.fixed(0.05))
    draw(sampler._replace(step=step), lambda x, sigma: network(x), 2).block_until_ready()
    jax.effects_barrier()
    assert sorted(made) == ['backward'] * 3 + ['forward'] * 3 + ['plain'], (
        'three steps, and the last denoising as is'
    )


@pytest.mark.parametrize('length', [ip.fixed(0.05), None])
def test_dps_is_the_guided_step_in_standardised_coordinates(length):
    """A fixed length in data units is one over the variance in those of the step, the target of
    the discrepancy principle is the same number.
    """
    of_y = likelihood(rows(3), Y, 0.2)
    keys = samplers.sample_keys(jax.random.key(0), 4)
    sampler = samplers.make_sampler('ancestral', steps=5, mean=MEAN, std=STD)
    target = ip.discrepancy(3, std=1.0, gain=STD**2 / 0.2**2)
    inside = ip.polyak(target) if length is None else ip.fixed(0.05 / STD**2)
    potential = ip.with_constraint(of_y.misfit, lambda x: x[:, 0, 0, 0] ** 2, 3.0)
    of_u = lambda u: potential(MEAN + STD * u)
    step = ip.guided_step(sampler.step, sampler.schedule, of_u, inside)
    expected = sampler._replace(step=step)(keys, NORMAL, SHAPE)
    rule = {'distance': lambda x: x[:, 0, 0, 0] ** 2, 'weight': 3.0}
    options = {'likelihood': of_y, 'mean': MEAN, 'std': STD, 'steps': 5, 'length': length}
    close(ip.dps(keys, NORMAL, SHAPE, **options, **rule), expected, atol=1e-5)
    assert float(jnp.abs(ip.dps(keys, NORMAL, SHAPE, **options) - expected).max()) > 1e-2


def test_scale_in_standardised_coordinates_is_divided_by_the_variance(x):
    """On the EDM path `x = MEAN + STD u` is one path of data and of standardised data."""
    schedule, potential = schedules.PATHS['edm'].schedule(), likelihood(rows(3), Y, 0.2).misfit
    step = samplers.ddim(schedule)
    raw = ip.guided_step(step, schedule, potential, ip.fixed(0.05))
    raw, _ = one_step(raw, MEAN + STD * x, t=STD * T, s=STD * S)
    standard = diffusion.rescaled(curved, mean=-MEAN / STD, std=1 / STD)
    of_u = lambda u: potential(MEAN + STD * u)
    inside = ip.guided_step(step, schedule, of_u, ip.fixed(0.05 / STD**2))
    close(MEAN + STD * one_step(inside, x, denoiser=standard)[0], raw)


def test_polyak_reaches_its_target_where_the_potential_is_linear(x):
    schedule = schedules.PATHS['edm'].schedule()
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
    target = ip.discrepancy(3, gain=1 / noise**2, std=STD)
    misfit = likelihood(rows(3), y, noise).misfit(estimate)
    close(jnp.mean(misfit**2), target(level) ** 2, rtol=0.03)
    close(target(1e-6), np.sqrt(3))
    # The same in standardised coordinates.
    standard = ip.discrepancy(3, std=1.0, gain=STD**2 / noise**2)
    close(standard(level / STD), target(level))


def test_a_broken_chain_stays_broken_alone(x):
    x = x.at[1].set(jnp.nan)
    schedule, potential = schedules.PATHS['edm'].schedule(), likelihood(rows(3), Y, 0.2).misfit
    for length in (ip.fixed(0.05), ip.polyak(1.0)):
        step = ip.guided_step(samplers.ancestral(schedule), schedule, potential, length)
        finite = jnp.isfinite(one_step(step, x)[0]).all((1, 2, 3))
        assert finite.tolist() == [True, False, True, True, True]
    for limit in (None, 0.1):
        guided = weighted_guidance(curved, rows(3), Y, noise_std=0.2, std=STD, limit=limit)
        assert jnp.isfinite(guided(x, T)).all((1, 2, 3)).tolist() == [True, False, True, True, True]


def test_a_sample_depends_on_its_key_and_measurement_alone():
    y = jnp.linspace(-1, 1, 15).reshape(5, 3)
    keys = samplers.sample_keys(jax.random.key(0), 5)

    def run(keys, y):
        of_y = likelihood(rows(3), y, 0.2)
        return ip.dps(keys, curved, SHAPE, likelihood=of_y, std=1.0, steps=5)

    run = jax.jit(run)
    whole = run(keys, y)
    close(run(keys[3:], y[3:]), whole[3:], atol=1e-6)
    changed = jnp.abs(run(keys, y.at[3].add(1)) - whole).max((1, 2, 3)) > 1e-2
    assert changed.tolist() == [False, False, False, True, False]


def test_a_measurement_after_the_identity_is_the_plain_one():
    f = lambda z: z @ jnp.eye(1)

    def run(measure, keys):
        of_y, length = likelihood(measure, Y, 0.2), ip.fixed(0.05)
        return ip.dps(
            keys, NORMAL, SHAPE, likelihood=of_y, mean=MEAN, std=STD, steps=20, length=length
        )

    both = jax.jit(lambda keys: (run(rows(3), keys), run(lambda z: rows(3)(f(z)), keys)))
    plain, mirrored = both(samplers.sample_keys(jax.random.key(0), 3))
    close(f(mirrored), plain)


@pytest.mark.parametrize('count', [1, 3, 4])
def test_weighted_guidance_is_the_denoiser_of_the_posterior(count, x):
    y, noise = jnp.asarray([[1.2, -0.5, 0.4, 0.1]])[:, :count], 0.3
    mean, covariance = posterior(count, y, noise)
    guided = jax.jit(weighted_guidance(NORMAL, rows(count), y, noise_std=noise, std=STD))
    for sigma in (1e-3, 0.4, 30.0):
        gain = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(4))
        expected = mean + (np.asarray(x).reshape(5, 4) - mean) @ gain.T
        close(guided(x, jnp.full(5, sigma, jnp.float32)).reshape(5, 4), expected, atol=2e-5)


def test_guidance_by_correlated_noise_is_exact_where_the_rows_are_correlated_alike(x):
    """`A = L Q` with noise of covariance `s^2 L L^T`, Q of orthonormal rows, is Q with noise s."""
    factor = jnp.asarray([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.7, 1.5]])
    mix = lambda x: rows(3)(x) @ factor.T
    mix.whiten = lambda y, Ax: (y - Ax) @ jnp.linalg.inv(factor).T / 0.3
    of_y = likelihood(mix, Y @ factor.T)
    mean, covariance = posterior(3, Y, 0.3)
    guided = measurement_guided(NORMAL, of_y.residual, std=STD, gain=1 / 0.3**2)
    gain = covariance @ np.linalg.inv(covariance + 0.4**2 * np.eye(4))
    expected = mean + (np.asarray(x).reshape(5, 4) - mean) @ gain.T
    close(guided(x, jnp.full(5, 0.4)).reshape(5, 4), expected, atol=2e-5)


@pytest.mark.parametrize('sigma', [1e-3, 0.4, 30.0])
def test_guidance_by_conjugate_gradients_is_exact_for_any_linear_residual(x, sigma):
    rng = np.random.default_rng(0)
    B, root = rng.normal(size=(3, 4)), rng.normal(size=(3, 3))  # noise of covariance root root^T
    law = jnp.asarray(np.linalg.inv(root), jnp.float32)
    mix = lambda x: x.reshape(len(x), 4) @ jnp.asarray(B.T, jnp.float32)
    mix.whiten = lambda y, Ax: (y - Ax) @ law.T
    gain = STD**2 * B.T @ np.linalg.inv(STD**2 * B @ B.T + root @ root.T)
    mean = MEAN + gain @ (np.asarray(Y)[0] - B @ np.full(4, MEAN))
    covariance = STD**2 * (np.eye(4) - gain @ B)
    of_y = likelihood(mix, Y)
    guided = measurement_guided(NORMAL, of_y.residual, std=STD, gain=1.0, iterations=6)
    kalman = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(4))
    expected = mean + (np.asarray(x).reshape(5, 4) - mean) @ kalman.T
    close(guided(x, jnp.full(5, sigma, jnp.float32)).reshape(5, 4), expected, atol=1e-3)


@pytest.mark.parametrize(('name', 'steps'), [('heun', 60), ('ddim', 400)])
def test_weighted_guidance_reaches_the_posterior(name, steps):
    n, noise = 4000, 0.2
    mean, covariance = posterior(3, Y, noise)
    guided = weighted_guidance(NORMAL, rows(3), Y, noise_std=noise, std=STD)
    sampler = samplers.make_sampler(name, steps=steps, mean=MEAN, std=STD)
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
    sampler = samplers.make_sampler('heun', steps=60, mean=MEAN, std=STD, sigma_min=1e-4)

    @jax.jit
    def run(noise):
        y = rows(4)(truth) + noise * jax.random.normal(jax.random.key(6), (1, 4))
        guided = weighted_guidance(NORMAL, rows(4), y, noise_std=noise, std=STD)
        return sampler(samplers.sample_keys(jax.random.key(7), n), guided, SHAPE)

    for noise in (1e-3, 1e-2):
        samples = run(jnp.float32(noise))
        close(samples.mean(0, keepdims=True), truth, atol=10 * noise, rtol=0)
        spread.append(float(samples.std(0).mean()))
    close(spread, [1e-3, 1e-2], rtol=0.1)
    close(spread[1] / spread[0], 10, rtol=0.03)


def test_weighted_guidance_goes_no_farther_than_its_limit(x):
    far = jnp.asarray([[1e3, 0.0, 0.0]])
    make = functools.partial(weighted_guidance, NORMAL, rows(3), noise_std=0.2, std=STD)
    shift = make(far, limit=0.1)(x, T) - NORMAL(x, T)
    close(jnp.sqrt((shift**2).mean((1, 2, 3))), 0.1, rtol=1e-3)
    close(make(Y, limit=1e3)(x, T), make(Y)(x, T))


@functools.cache
def standard_problem():
    y = jax.random.normal(jax.random.key(7), (1, 16)) + 0.2 * jax.random.normal(
        jax.random.key(8), (1, 16)
    )
    return y, np.asarray(y)[0] / 1.04, np.sqrt(0.04 / 1.04)


def statistics(step, steps, length, n=200):
    """Returns mean and standard deviation over the posterior's, and the misfit a value; all 16
    values measured.
    """
    y, mean, deviation = standard_problem()
    of_y = likelihood(lambda x: x.reshape(len(x), -1), y, 0.2)
    options = {'likelihood': of_y, 'std': 1.0, 'steps': steps, 'length': length, 'step': step}
    run = jax.jit(lambda keys: ip.dps(keys, STANDARD, (4, 4, 1), **options))
    samples = run(samplers.sample_keys(jax.random.key(0), n))
    flat = np.asarray(samples).reshape(n, 16)
    agreement = of_y.misfit_per_value(samples)
    return [
        flat.mean(0) @ mean / (mean @ mean),
        flat.std(0).mean() / deviation,
        float(agreement.mean()),
    ]


def test_the_bias_of_dps_is_the_documented_one():
    """The posterior's are 1, 1 and 0.98: DPS of the published scale fits the noise."""
    close(statistics('ancestral', 1000, ip.fixed(0.05)), [1.04, 0.17, 0.16], rtol=0, atol=0.015)


def test_the_discrepancy_principle_fits_the_data_to_one_noise_standard_deviation():
    close(statistics('ancestral', 1000, None), [0.995, 0.98, 0.98], rtol=0, atol=0.02)
    close(statistics('ddim', 100, None), [0.96, 0.94, 1.0], rtol=0, atol=0.03)


def test_half_precision_stays(x):
    half, raised = x.astype(jnp.bfloat16), lambda x: rows(3)(x.astype(jnp.float32))
    schedule = schedules.PATHS['edm'].schedule()
    step = ip.guided_step(
        samplers.ddim(schedule), schedule, likelihood(raised, Y, 0.2).misfit, ip.polyak(1.0)
    )
    dtypes = [
        jax.eval_shape(lambda x, now=now: one_step(now, x)[0], half).dtype
        for now in (step, samplers.ddim(schedule))
    ]
    assert dtypes[0] == dtypes[1]
    guided = weighted_guidance(lambda x, sigma: x, raised, Y, noise_std=0.2, std=STD)
    assert guided(half, T).dtype == jnp.bfloat16


SCHEDULE = schedules.PATHS['edm'].schedule()
FIELDS = jnp.zeros((5, *SHAPE))


def guided(step, potential, scale=0.1):
    return ip.guided_step(step(SCHEDULE), SCHEDULE, potential, ip.fixed(scale))


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (lambda: likelihood(rows(3), Y, 0.0), 'noise_std: got 0.0'),
        (lambda: likelihood(rows(3), Y, jnp.ones(3)), 'noise_std: got .*one finite number > 0'),
        (
            lambda: likelihood(rows(3), Y.at[0, 1].set(jnp.inf), 0.2),
            'y: got NaN or infinity in 1 of 1 measurements',
        ),
        (lambda: likelihood(rows(3), Y + 1j, 0.2), 'y: got complex64, expected real'),
        (
            lambda: likelihood(rows(3), jnp.ones(3), 0.2).misfit(FIELDS),
            r'y: got shape \(3,\), expected \(b, 3\)',
        ),
        (lambda: likelihood(rows(3), jnp.float32(1), 0.2), r'y: got shape \(\), expected \(b'),
        (
            lambda: likelihood(rows(4), Y, 0.2).misfit(FIELDS),
            r'y: got shape \(1, 3\), expected \(b, 4\), .*measured with',
        ),
        (
            lambda: likelihood(rows(3), jnp.ones((2, 3)), 0.2).misfit(FIELDS),
            r'y: got shape \(2, 3\), .*one for each of the 5 fields, or one for all',
        ),
        (
            lambda: likelihood(lambda x: rows(3)(x) > 0, Y, 0.2).misfit(FIELDS),
            'measure: got bool.*others have no slope',
        ),
        (lambda: ip.with_constraint(jnp.sum, jnp.sum, -1.0), 'weight: got -1.0'),
        (lambda: ip.fixed(float('nan')), 'scale: got nan'),
        (lambda: ip.fixed(-0.1), 'scale: got -0.1'),
        (lambda: ip.polyak(1.0, zeta=1.5), 'zeta 1.5'),
        (lambda: ip.polyak(1.0, limit=0.0), 'limit 0.0'),
        (lambda: ip.discrepancy(0, std=1.0, gain=1.0), 'count: got 0'),
        (lambda: ip.discrepancy(3, std=1.0, gain=0.0), 'gain: got 0.0'),
        (
            lambda: weighted_guidance(NORMAL, rows(3), Y, noise_std=0.2, std=-1.0),
            'std: got -1.0',
        ),
        (
            lambda: weighted_guidance(NORMAL, rows(3), Y, noise_std=0.2, std=1.0, limit=0.0),
            'limit: got 0.0',
        ),
        (
            lambda: one_step(guided(samplers.ddim, jnp.sum), FIELDS),
            r'potential: got shape \(\), expected one number a sample, \(5,\)',
        ),
        (
            lambda: one_step(guided(samplers.heun, likelihood(rows(3), Y, 0.2).misfit), FIELDS),
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
            likelihood(rows(3), y, noise).misfit, lambda x: x[:, 0, 0, 0] ** 2, jnp.float32(2)
        )
        moved = one_step(guided(samplers.ddim, potential, scale), x)[0]
        given_y = weighted_guidance(NORMAL, rows(3), y, noise_std=noise, std=jnp.float32(STD))
        return moved, given_y(x, T), ip.discrepancy(3, std=1.0, gain=1 / noise**2)(T)

    moved, x_0, target = jax.jit(run)(FIELDS)
    assert jnp.isfinite(moved).all() and jnp.isfinite(x_0).all() and target > 3**0.5
