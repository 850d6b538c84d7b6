"""Orders of convergence, reductions and distributions of the samplers, on normal data whose
denoiser is known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.denoising import denoisers as diffusion
from namm_jax.denoising import samplers, schedules

MEAN = np.asarray([1.0, -2.0, 0.5])
FACTOR = np.asarray([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.5, 0.4, 0.2]])
COVARIANCE = FACTOR @ FACTOR.T


def correlated(mean, covariance):
    """Returns the exact denoiser of `N(mean, covariance)`, vectors `(b, d)`."""
    variances, axes = np.linalg.eigh(covariance)

    def denoise(x, sigma):
        return mean + (x - mean) @ axes @ jnp.diag(variances / (variances + sigma**2)) @ axes.T

    return denoise


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def draw(sampler, denoiser, n, shape=(3,), seed=0):
    return jax.jit(lambda keys: sampler(keys, denoiser, shape))(
        samplers.sample_keys(jax.random.key(seed), n)
    )


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('euler_maruyama', {'steps': 400}),
        ('ancestral', {'steps': 300}),
        ('ddim', {'steps': 300}),
        ('ddim', {'steps': 300, 'eta': 0.5}),
        ('heun', {'steps': 40}),
        ('dpm_solver_pp_2m', {'steps': 30}),
        ('sde_dpm_solver_pp_2m', {'steps': 60}),
        ('heun', {'steps': 100, 'path': 'vp', 'grid': 'edm'}),
    ],
)
def test_samples_have_the_mean_and_covariance_of_the_data(name, options):
    n = 5_000
    sampler = samplers.make_sampler(
        name, mean=MEAN, std=np.sqrt(np.trace(COVARIANCE) / 3), **options
    )
    x = np.asarray(draw(sampler, correlated(MEAN, COVARIANCE), n), float)
    scale = np.sqrt(np.diag(COVARIANCE))
    close((x.mean(0) - MEAN) / scale, 0, atol=5 / np.sqrt(n))
    # Four standard errors, and 2 % for the error of finitely many steps.
    close((np.cov(x.T) - COVARIANCE) / np.outer(scale, scale), 0, atol=4 * np.sqrt(2 / n) + 0.02)


def flow_error(name, n, path):
    """Returns the error against the exact flow `u(r) = u(R) ((c^2 + r^2) / (c^2 + R^2))^(1/2)` of
    `N(0, c^2)`.
    """
    c, ends = 0.7, {'edm': (8.0, 0.05), 'vp': (0.9, 0.01)}[path]
    schedule = schedules.PATHS[path].schedule()
    keys, denoiser = samplers.sample_keys(jax.random.key(0), 1), diffusion.gaussian_denoiser(0.0, c)
    grid = samplers.edm_grid(n + 1, *ends, rho=4.0)
    step = samplers.SAMPLERS[name].step(schedule)
    sampler = samplers.Sampler(schedule, step, grid, calls=n, denoise_last=False)
    start, end = (now(keys, denoiser, (1,)) for now in (sampler._replace(grid=grid[:1]), sampler))
    alpha, sigma = (
        schedule.alpha(grid[jnp.asarray([0, -1])]),
        schedule.sigma(grid[jnp.asarray([0, -1])]),
    )
    variance = (alpha * c) ** 2 + sigma**2
    return abs(end / (start * jnp.sqrt(variance[1] / variance[0])) - 1).item()


@pytest.mark.parametrize(
    ('name', 'path', 'order'),
    [
        ('ddim', 'edm', 1),
        ('heun', 'edm', 2),
        ('dpm_solver_pp_2m', 'edm', 2),
        ('ddim', 'vp', 1),
        ('heun', 'vp', 2),
    ],
)
def test_order_of_convergence(name, path, order):
    with jax.enable_x64(True):
        coarse, fine = flow_error(name, 64, path), flow_error(name, 128, path)
    assert fine < coarse < 0.1
    close(np.log2(coarse / fine), order, atol=0.15)


@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_dpm_solver_without_memory_is_first_order(eta):
    """The multistep term is what makes it second order: its first step alone is DDIM's."""
    schedule, x = schedules.vp(), jnp.asarray([[0.3, -1.2]])
    t, s = jnp.float32(0.6), jnp.float32(0.5)
    arguments = (
        diffusion.gaussian_denoiser(0.4, 0.7),
        samplers.sample_keys(jax.random.key(0), 1),
        x,
    )
    step = samplers.dpm_solver_pp_2m(schedule, eta=eta)
    first, memory = step(*arguments, (), t, s)
    close(first, samplers.ddim(schedule, eta=eta)(*arguments, (), t, s)[0])
    close(first, step(*arguments, jax.tree.map(jnp.zeros_like, memory), t, s)[0])


@pytest.mark.parametrize('path', schedules.PATHS)
def test_ddim_with_eta_one_is_ancestral(path):
    schedule, x = schedules.PATHS[path].schedule(), jax.random.normal(jax.random.key(1), (5, 3))
    arguments = (lambda x, sigma: jnp.tanh(x), samplers.sample_keys(jax.random.key(2), 5))
    t, s = jnp.float32(0.6), jnp.float32(0.4)
    expected, _ = samplers.ancestral(schedule)(*arguments, x, (), t, s)
    close(samplers.ddim(schedule, eta=1.0)(*arguments, x, (), t, s)[0], expected)
    assert jnp.abs(samplers.ddim(schedule)(*arguments, x, (), t, s)[0] - expected).max() > 0.01


@pytest.mark.parametrize('path', schedules.PATHS)
def test_ddim_with_eta_zero_is_the_euler_step_of_the_flow(path):
    schedule, x = schedules.PATHS[path].schedule(), jax.random.normal(jax.random.key(1), (5, 3))
    t, s = jnp.float32(0.6), jnp.float32(0.4)
    r_t, r_s = (schedule.sigma(time) / schedule.alpha(time) for time in (t, s))
    u = x / schedule.alpha(t)
    euler = u + (r_s - r_t) * (u - jnp.tanh(u)) / r_t
    x_s, _ = samplers.ddim(schedule)(
        lambda u, r: jnp.tanh(u), samplers.sample_keys(jax.random.key(2), 5), x, (), t, s
    )
    close(x_s / schedule.alpha(s), euler)


def test_forward_variance_is_beta():
    """`x_s` has the noise of the published sampler, `beta = 1 - alpha_t^2 / alpha_s^2`, and the
    mean of ours.
    """
    schedule, t, s = schedules.vp(), jnp.float32(0.6), jnp.float32(0.5)
    keys, x = samplers.sample_keys(jax.random.key(0), 50_000), jnp.ones((50_000, 1))
    ours, published = (
        samplers.ancestral(schedule, variance=variance)(
            lambda x, sigma: 0.3 * x, keys, x, (), t, s
        )[0]
        for variance in ('posterior', 'forward')
    )
    close(published.var(), 1 - schedule.alpha(t) ** 2 / schedule.alpha(s) ** 2, rtol=0.03)
    assert ours.var() < published.var()
    close(published.mean(), ours.mean(), atol=0.01)


@pytest.mark.parametrize(('name', 'steps'), [('ancestral', 5), ('ddim', 8)])
def test_noise_left_in_is_that_of_the_last_time(name, steps):
    """For data that are one point, every marginal of the ancestral steps and DDIM is exact, however
    few they are.
    """
    sampler = samplers.make_sampler(
        name, steps=steps, path='vp', mean=2.0, std=0.7, denoise_last=False
    )
    point = diffusion.gaussian_denoiser(2.0, 0.0)
    left = 0.7 * schedules.vp().sigma(jnp.float32(1e-3))
    noisy = draw(sampler, point, 10_000, (1,))
    close(noisy.std(), left, rtol=0.04)
    close(draw(sampler._replace(denoise_last=True), point, 4, (1,)), 2)


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_calls_are_those_that_are_made(name):
    made = []

    def denoiser(x, sigma):
        jax.debug.callback(lambda: made.append(1))
        return x / 2

    for denoise_last in (True, False):
        made.clear()
        sampler = samplers.make_sampler(name, steps=5, denoise_last=denoise_last)
        draw(sampler, denoiser, 2, (1,)).block_until_ready()
        jax.effects_barrier()
        assert len(made) == sampler.calls
    assert samplers.make_sampler('heun', steps=18).calls == 35  # as published for EDM


@pytest.mark.parametrize('name', ['euler_maruyama', 'heun', 'dpm_solver_pp_2m'])
def test_a_sample_depends_on_its_key_alone_and_scales_with_the_data(name):
    """Data `m + c x` give samples `m + c x`, to rounding, also when drawn in another batch."""
    sampler = samplers.make_sampler(name, steps=6)
    whole = draw(sampler, diffusion.gaussian_denoiser(0.0, 0.5), 4)
    assert jnp.abs(whole[2] - whole[3]).max() > 1e-3
    keys, scaled = (
        samplers.sample_keys(jax.random.key(0), 2, start=2),
        sampler._replace(mean=jnp.asarray([4.0]), std=10.0),
    )
    part = jax.jit(lambda keys: scaled(keys, diffusion.gaussian_denoiser(4.0, 5.0), (3,)))(keys)
    close(part, 4 + 10 * whole[2:], atol=1e-4)


def test_a_sample_is_the_same_to_the_bit_in_any_batch():
    sampler, denoiser = (
        samplers.make_sampler('ancestral', steps=6),
        diffusion.gaussian_denoiser(0.0, 0.5),
    )
    keys = samplers.sample_keys(jax.random.key(0), 4)
    run = jax.jit(lambda keys: sampler(keys, denoiser, (3,)))
    assert jnp.array_equal(run(keys)[2:], run(keys[2:]))


def test_one_grid_point_is_one_denoising_of_noise():
    sampler = samplers.make_sampler('heun', steps=1)
    assert sampler.calls == 1
    close(draw(sampler, diffusion.gaussian_denoiser(1.0, 0.0), 2), 1)


@pytest.mark.parametrize('name', ['ancestral', 'heun', 'dpm_solver_pp_2m'])
def test_a_trajectory_ends_at_the_sample_to_the_bit(name):
    """For `N(1, 0.5^2)`, whose exact estimate at a state u is the mean of x_0 given u."""
    sampler, denoiser = (
        samplers.make_sampler(name, steps=6, mean=1.0, std=0.5),
        diffusion.gaussian_denoiser(1.0, 0.5),
    )
    # The XLA of earlier versions rounds the two programs differently.
    same = jnp.array_equal if jax.__version_info__ >= (0, 10) else jnp.allclose
    keys = samplers.sample_keys(jax.random.key(0), 3)
    states, estimates = jax.jit(lambda keys: sampler.trajectory(keys, denoiser, (2,)))(keys)
    assert states.shape == estimates.shape == (6, 3, 2)
    assert same(estimates[-1], draw(sampler, denoiser, 3, (2,)))
    assert same(states[-1], draw(sampler._replace(denoise_last=False), denoiser, 3, (2,)))
    alpha, sigma = (part(sampler.grid)[:, None, None] for part in sampler.schedule)
    u = (states - 1) / 0.5  # of variance alpha^2 + sigma^2, data and noise
    close(estimates, 1 + 0.5 * alpha * u / (alpha**2 + sigma**2), atol=1e-4)
    close(sampler.levels(), 0.5 * (sigma / alpha)[:, 0, 0])


def test_a_step_of_ones_own_is_a_function_of_a_schedule():
    """One that goes the part `share` of the way to the estimate, and remembers how often."""

    def towards(schedule, *, share):
        def step(denoiser, keys, x, memory, t, s):
            (count,) = memory or (jnp.zeros(()),)
            return x + share * (schedules.estimate(schedule, denoiser, x, t) - x), (count + 1,)

        return step

    scheme, ones = samplers.Scheme(towards, grid='log'), lambda x, sigma: jnp.ones_like(x)
    options = {'share': 0.5, 'denoise_last': False}
    sampler = samplers.make_sampler(scheme, steps=4, **options)
    assert sampler.calls == 3
    start = draw(samplers.make_sampler(scheme, steps=1, **options), ones, 2)
    close(draw(sampler, ones, 2), 1 + (start - 1) / 8)
    with pytest.raises(ValueError, match='eta: got 2'):
        samplers.make_sampler(samplers.Scheme(samplers.ddim), steps=4, eta=2.0)


@pytest.mark.parametrize('name', samplers.GRIDS)
def test_grids_fall_from_one_end_to_the_other(name):
    grid = samplers.GRIDS[name](9, 80.0, 0.002)
    assert grid.shape == (9,) and jnp.all(jnp.diff(grid) < 0)
    close(grid[jnp.asarray([0, -1])], [80, 0.002], rtol=1e-4, atol=0)


def test_grids_meet_in_their_limits():
    close(samplers.edm_grid(7, 9.0, 0.1, rho=1.0), samplers.uniform_grid(7, 9.0, 0.1))
    with jax.enable_x64(True):
        close(samplers.edm_grid(7, 9.0, 0.1, rho=1e6), samplers.log_grid(7, 9.0, 0.1), rtol=1e-4)


@pytest.mark.parametrize('path', schedules.PATHS)
def test_levels_are_those_asked_for(path):
    sampler = samplers.make_sampler('ddim', steps=4, path=path, sigma_min=0.05, sigma_max=30.0)
    t = sampler.grid[jnp.asarray([0, -1])]
    close(sampler.schedule.sigma(t) / sampler.schedule.alpha(t), [30, 0.05], rtol=1e-3)


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (lambda: samplers.make_sampler('huen', steps=4), "'huen'.*dpm_solver_pp_2m.*mean heun"),
        (lambda: samplers.make_sampler('ddim', steps=4, grid='unifrom'), 'mean uniform'),
        (lambda: samplers.make_sampler('ddim', steps=4, path='ve'), 'expected one of edm, vp'),
        (lambda: samplers.make_sampler('ancestral', steps=4, variance='fwd'), 'mean forward'),
        (lambda: samplers.make_sampler('ddim', steps=4, eta=2.0), 'eta: got 2.0'),
        (lambda: samplers.make_sampler('heun', steps=0), 'steps: got 0'),
        (lambda: samplers.make_sampler('heun', steps=4, std=0.0), 'std: got 0.0'),
        (
            lambda: samplers.make_sampler('heun', steps=4, sigma_min=2.0, sigma_max=1.0),
            'sigma_min: got 2',
        ),
        (lambda: samplers.edm_grid(4, 1.0, 0.1, rho=0.5), 'rho: got 0.5'),
        (
            lambda: samplers.make_sampler('heun', steps=4)(
                jax.random.key(0), diffusion.gaussian_denoiser(0.0, 1.0), (1,)
            ),
            'keys: got .*one typed key a sample',
        ),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
