"""Exact cases, limits and optima of the diffusion model, on normal data whose denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.denoising import denoisers as diffusion
from namm_jax.denoising import schedules

MEAN, STD = 3.0, 0.4
SHAPE = (6, 2, 3, 1)


@pytest.fixture
def x():
    return MEAN + STD * jax.random.normal(jax.random.key(0), SHAPE)


@pytest.fixture
def sigma():
    return jnp.asarray([0.01, 0.05, 0.2, 0.7, 3.0, 20.0])


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_vp_preserves_variance_and_ends_in_noise():
    schedule, t = schedules.vp(), jnp.linspace(0, 1, 11)
    close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1)
    assert schedule.alpha(t[0]) == 1 and schedule.sigma(t[0]) == 0
    assert schedule.alpha(t[-1]) < 0.01


def test_vp_keeps_digits_at_small_times():
    exact = np.sqrt(-np.expm1(-(0.1 * 1e-5 + 19.9 * 1e-10 / 2)))
    close(schedules.vp().sigma(jnp.float32(1e-5)), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    'betas', [(0.1, 20.0), (1.0, 1.0)]
)  # equal ones make the quadratic equation linear
def test_vp_time_inverts_the_schedule(betas):
    schedule, t = schedules.vp(*betas), jnp.asarray([1e-5, 1e-3, 0.1, 0.5, 1.0])
    close(schedules.vp_time(schedule.sigma(t) / schedule.alpha(t), *betas), t, rtol=2e-4, atol=0)


def test_noise_of_the_vp_equation_is_that_of_its_marginals():
    """`d sigma^2/dt = 2 f sigma^2 + beta`, `f = -beta/2`: the marginals solve the equation that
    names the schedule.
    """
    schedule, t = schedules.vp(), jnp.float32(0.3)
    beta = 0.1 + 19.9 * t
    close(
        jax.grad(lambda t: schedule.sigma(t) ** 2)(t),
        beta * (1 - schedule.sigma(t) ** 2),
        rtol=1e-4,
    )
    close(jax.grad(lambda t: jnp.log(schedule.alpha(t)))(t), -beta / 2, rtol=1e-4)


@pytest.mark.parametrize('name', schedules.PATHS)
def test_score_is_the_gradient_of_the_log_density(name, x):
    schedule, t = schedules.PATHS[name].schedule(), jnp.float32(0.4)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_0 = diffusion.gaussian_denoiser(MEAN, STD)(x / alpha, sigma / alpha)

    def log_density(x):
        return jnp.sum(
            jax.scipy.stats.norm.logpdf(x, alpha * MEAN, jnp.sqrt((alpha * STD) ** 2 + sigma**2))
        )

    close(
        schedules.denoiser_to_score(schedule, x_0, x, t),
        jax.grad(log_density)(x),
        rtol=1e-4,
        atol=1e-3,
    )


def test_exact_denoiser_is_the_posterior_mean():
    """Against a numerical integral over x_0 of one pixel."""
    x_0 = np.linspace(MEAN - 10 * STD, MEAN + 10 * STD, 20_001)
    density = np.exp(-((x_0 - MEAN) ** 2) / (2 * STD**2) - (2.5 - x_0) ** 2 / (2 * 0.3**2))
    expected = np.sum(x_0 * density) / np.sum(density)
    close(diffusion.gaussian_denoiser(MEAN, STD)(jnp.full((1, 1), 2.5), jnp.float32(0.3)), expected)


def test_exact_denoiser_limits(x):
    denoiser = diffusion.gaussian_denoiser(MEAN, STD)
    close(denoiser(x, jnp.float32(1e-6)), x)
    close(denoiser(x, jnp.float32(1e6)), MEAN)
    close(diffusion.gaussian_denoiser(MEAN, 0.0)(x, jnp.float32(0.1)), MEAN)


def test_rescaled_is_the_denoiser_of_rescaled_data(x, sigma):
    mean = jnp.asarray([MEAN])
    rescaled = diffusion.rescaled(diffusion.gaussian_denoiser(0.0, 1.0), mean=mean, std=STD)
    close(rescaled(x, sigma), diffusion.gaussian_denoiser(MEAN, STD)(x, sigma))


def test_edm_with_a_zero_network_is_exact_for_normal_data(x, sigma):
    """Fixes c_skip, c_out's irrelevance here, and the units of x and sigma."""
    denoiser = diffusion.edm(mean=MEAN, std=STD).denoiser(lambda x, label: jnp.zeros_like(x))
    close(denoiser(x, sigma), diffusion.gaussian_denoiser(MEAN, STD)(x, sigma))
    close(denoiser(x, sigma[0]), denoiser(x, jnp.full(len(x), sigma[0])))


def test_vp_with_the_exact_noise_is_exact_for_normal_data(x, sigma):
    """For standard normal data `E[noise given x_t] = sigma_t x_t`: fixes the label, alpha and the
    units.
    """
    sigma_t = schedules.vp().sigma
    denoiser = diffusion.vp(mean=MEAN, std=STD).denoiser(
        lambda x, t: sigma_t(t / 999)[:, None, None, None] * x
    )
    close(
        denoiser(x, sigma), diffusion.gaussian_denoiser(MEAN, STD)(x, sigma), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize('name', diffusion.PARAMETERISATIONS)
def test_denoiser_returns_its_input_where_there_is_no_noise(name, x):
    denoiser = diffusion.make_parameterisation(name, mean=MEAN, std=STD).denoiser(
        lambda x, label: jnp.sin(x)
    )
    close(denoiser(x, jnp.float32(1e-5)), x, atol=1e-4)


def test_edm_network_input_and_target_have_unit_variance(sigma):
    n, seen = 20_000, {}

    def network(x, label):
        seen.update(input=x, label=label)
        return jnp.zeros_like(x)

    parameterisation = diffusion.edm(mean=MEAN, std=STD)
    keys = jax.random.split(jax.random.key(2))
    x_0 = MEAN + STD * jax.random.normal(keys[0], (len(sigma), n))
    x = x_0 + sigma[:, None] * jax.random.normal(keys[1], x_0.shape)
    skip = parameterisation.denoiser(network)(x, sigma)
    target = (x_0 - skip) * jnp.sqrt(parameterisation.weight(sigma))[
        :, None
    ]  # of the network, if weight = 1 / c_out^2
    for values in (seen['input'], target):
        close(values.mean(1), 0, atol=5 / np.sqrt(n))
        close(values.std(1), 1, atol=5 / np.sqrt(2 * n))
    close(seen['label'], jnp.log(sigma / STD) / 4)


def test_edm_levels_are_log_normal_and_bounded():
    levels = diffusion.edm(mean=MEAN, std=STD).levels(jax.random.key(3), 20_000)
    close(jnp.log(levels / STD).mean(), -1.2, atol=0.05)
    close(jnp.log(levels / STD).std(), 1.2, atol=0.05)
    narrow = diffusion.edm(mean=MEAN, std=STD, sigma_min=0.1, sigma_max=1.0).levels(
        jax.random.key(3), 2_000
    )
    assert narrow.min() >= 0.1 * STD * 0.999 and narrow.max() <= 1.0 * STD * 1.001


def test_vp_levels_are_uniform_in_time():
    levels = diffusion.vp(mean=MEAN, std=STD, t_min=0.2).levels(jax.random.key(3), 20_000)
    t = schedules.vp_time(levels / STD)
    close(jnp.quantile(t, jnp.asarray([0.25, 0.5, 0.75])), [0.4, 0.6, 0.8], rtol=0.05)
    assert t.min() > 0.199 and t.max() < 1.001


@pytest.mark.parametrize('name', diffusion.PARAMETERISATIONS)
def test_exact_denoiser_is_the_optimum_of_the_loss(name):
    """At D + a (1, x - mean): the loss is a parabola in each a, with its vertex at 0 within the
    sampling error.
    """
    parameterisation = diffusion.make_parameterisation(name, mean=MEAN, std=STD)
    exact = diffusion.gaussian_denoiser(MEAN, STD)
    x_0 = MEAN + STD * jax.random.normal(jax.random.key(4), (200_000, 1))

    @jax.jit
    def loss(a):
        def denoiser(x, sigma):
            scale = sigma[:, None] / (
                1 + sigma[:, None] ** 2
            )  # keeps the weighted error bounded at every level
            return exact(x, sigma) + scale * (a[0] + a[1] * (x - MEAN))

        return diffusion.denoising_loss(denoiser, parameterisation, jax.random.key(5), x_0)[0]

    least = loss(jnp.zeros(2))
    for a in 0.2 * jnp.eye(2):
        after, before = loss(a), loss(-a)
        assert min(after, before) > least
        close(
            (before - after) / (after + before - 2 * least) / 2, 0, atol=0.15
        )  # the vertex, in units of a


def test_edm_loss_of_the_exact_denoiser_is_one_at_every_level():
    exact, x_0 = (
        diffusion.gaussian_denoiser(MEAN, STD),
        MEAN + STD * jax.random.normal(jax.random.key(6), (20_000, 4)),
    )
    for level_mean in (-4.0, 0.0, 2.0):
        parameterisation = diffusion.edm(mean=MEAN, std=STD, level_mean=level_mean, level_std=0.1)
        loss, terms = diffusion.denoising_loss(exact, parameterisation, jax.random.key(7), x_0)
        close(loss, 1, rtol=0.03)
        assert terms == {'denoising': loss}


def test_vp_loss_without_a_prediction_is_half_the_number_of_values():
    """A network that returns 0 leaves all of the noise, whose squares sum to the number of
    values.
    """
    x_0 = MEAN + STD * jax.random.normal(jax.random.key(8), (4_000, 2, 3, 1))
    parameterisation = diffusion.vp(mean=MEAN, std=STD)
    denoiser = parameterisation.denoiser(lambda x, label: jnp.zeros_like(x))
    half_sum, _ = diffusion.denoising_loss(
        denoiser, parameterisation, jax.random.key(9), x_0, reduction='half_sum'
    )
    mean, _ = diffusion.denoising_loss(denoiser, parameterisation, jax.random.key(9), x_0)
    close(half_sum, 3, rtol=0.05)
    close(half_sum, 3 * mean)


def test_mean_and_std_may_be_traced():
    loss = jax.jit(
        lambda mean, std: diffusion.denoising_loss(
            diffusion.gaussian_denoiser(mean, std),
            diffusion.edm(mean=mean, std=std),
            jax.random.key(0),
            jnp.ones((2, 3)),
        )[0]
    )
    assert jnp.isfinite(loss(MEAN, STD))


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (
            lambda: diffusion.make_parameterisation('edn', mean=0.0, std=1.0),
            "'edn'.*edm, vp.*mean edm",
        ),
        (lambda: diffusion.edm(mean=0.0, std=0.0), 'std: got 0.0.*one finite number > 0'),
        (lambda: diffusion.vp(mean=0.0, std=jnp.ones(2)), r'shape \(2,\).*root mean square'),
        (
            lambda: diffusion.edm(mean=0.0, std=1.0, sigma_min=2.0, sigma_max=1.0),
            'sigma_max: got 1.0',
        ),
        (lambda: diffusion.vp(mean=0.0, std=1.0, t_min=0.0), 't_min: got 0.0'),
        (lambda: schedules.vp(2.0, 1.0), 'beta_max: got 1.0'),
        (
            lambda: diffusion.denoising_loss(
                diffusion.gaussian_denoiser(0.0, 1.0),
                diffusion.edm(mean=0.0, std=1.0),
                jax.random.key(0),
                jnp.ones((1, 1)),
                reduction='sum',
            ),
            "'sum'.*half_sum",
        ),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
