"""The mirror map's loss on maps that are known in closed form, and the law of its noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import MirrorMap
from namm_jax.mirror import (
    OUTPUTS,
    add_noise,
    identity_map,
    namm_loss,
    neural_mirror_map,
    robustness,
    standardised,
)
from namm_jax.networks.icnn import ICNN
from namm_jax.networks.unet import UNet

KEY = jax.random.key(0)
TERMS = {'cycle_data', 'cycle_mirror', 'constraint', 'regularisation'}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ZeroSum:
    """Fields whose sum is 0; with a second term, whose first pixel is 0, too."""

    weight: float = 0.0

    def terms(self, x):
        terms = {'sum': jnp.abs(x.sum((1, 2, 3)))}
        return terms | ({'first': jnp.abs(x[:, 0, 0, 0])} if self.weight else {})

    def distance(self, x):
        terms = self.terms(x)
        return terms['sum'] + self.weight * terms.get('first', 0.0)

    def residual(self, x):
        return x.sum((1, 2, 3))[:, None]


def fields(seed, n=4, size=4):
    x = jax.random.normal(jax.random.key(seed), (n, size, size, 1))
    return x - x.mean((1, 2, 3), keepdims=True)


def scaling(up, down):
    """Returns g(x) = up x, f(z) = down z."""
    return MirrorMap(
        lambda key, x: {}, lambda params, x: up * x, lambda params, z, dropout_key=None: down * z
    )


@pytest.fixture(scope='module')
def neural():
    """A learned mirror map with no parameter at 0, and the parameters."""
    mirror = neural_mirror_map(ICNN(filters=4, layers=1), UNet(channels=(8,), dropout=0.5))
    params = jax.jit(mirror.init)(KEY, jnp.zeros((1, 4, 4, 1)))
    return mirror, jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.abs(jax.random.normal(KEY, leaf.shape)), params
    )


def test_identity_map_without_noise_costs_nothing_but_its_regularisation():
    x = fields(0)
    loss, terms = namm_loss(
        identity_map(), {}, KEY, x, ZeroSum(), sigma_max=0.0, strong_convexity=0.5
    )
    assert set(terms) == TERMS and terms['cycle_data'] == terms['cycle_mirror'] == 0
    assert terms['constraint'] < 1e-5  # the data are on the set
    np.testing.assert_allclose(
        terms['regularisation'], jnp.abs(x).mean(), rtol=1e-6
    )  # (x - x / 2) / (1 / 2)
    np.testing.assert_allclose(
        loss, terms['constraint'] + 1e-3 * terms['regularisation'], rtol=1e-6
    )


def test_terms_of_a_scaling():
    x, z = 1 + fields(0), fields(1) + 2
    options = dict(sigma_max=0.0, strong_convexity=0.5)
    _, terms = namm_loss(scaling(2.0, 0.25), {}, KEY, x, ZeroSum(), **options)
    np.testing.assert_allclose(terms['cycle_data'], jnp.abs(x).mean() / 2, rtol=1e-6)  # |x / 2 - x|
    np.testing.assert_allclose(
        terms['cycle_mirror'], jnp.abs(x).mean(), rtol=1e-6
    )  # |2 z / 4 - z|, z = 2 x
    np.testing.assert_allclose(
        terms['constraint'], 8, rtol=1e-5
    )  # the sum of 16 pixels of mean 1 / 2
    np.testing.assert_allclose(
        terms['regularisation'], 3 * jnp.abs(x).mean(), rtol=1e-6
    )  # |2 x - x / 2| / (1 / 2)

    _, given = namm_loss(scaling(2.0, 0.25), {}, KEY, x, ZeroSum(), z, **options)
    for name in ('cycle_data', 'regularisation'):
        assert given[name] == terms[name]  # these know nothing of z
    np.testing.assert_allclose(given['cycle_mirror'], jnp.abs(z).mean() / 2, rtol=1e-6)
    np.testing.assert_allclose(given['constraint'], 8, rtol=1e-5)


def test_weights_combine_terms_that_carry_none():
    options = dict(sigma_max=0.3, strong_convexity=0.5)
    x, mirror = 1 + fields(0), scaling(2.0, 0.25)
    _, terms = namm_loss(mirror, {}, KEY, x, ZeroSum(), **options)
    weights = dict(lambda_cycle=3.0, lambda_constr=5.0, lambda_reg=7.0)
    loss, weighted = namm_loss(mirror, {}, KEY, x, ZeroSum(), **options, **weights)
    assert all(weighted[name] == terms[name] for name in TERMS)
    cycles = terms['cycle_data'] + terms['cycle_mirror']
    np.testing.assert_allclose(
        loss, 1.5 * cycles + 5 * terms['constraint'] + 7 * terms['regularisation'], rtol=1e-6
    )


def test_constraint_of_several_terms_names_each():
    _, terms = namm_loss(identity_map(), {}, KEY, 1 + fields(0), ZeroSum(weight=2.0), sigma_max=0.0)
    assert set(terms) == TERMS | {'constraint/sum', 'constraint/first'}
    np.testing.assert_allclose(
        terms['constraint'], terms['constraint/sum'] + 2 * terms['constraint/first'], rtol=1e-6
    )


@pytest.mark.parametrize('power', [1.0, 3.0])
def test_noise_has_the_stated_law(power):
    z = jnp.zeros((20_000, 2, 2, 1)) + 5
    noisy, sigma = jax.jit(lambda key: add_noise(key, z, sigma_max=0.4, power=power))(KEY)
    assert sigma.shape == (20_000,) and 0 <= sigma.min() and sigma.max() <= 0.4
    np.testing.assert_allclose(sigma.mean(), 0.4 / (power + 1), rtol=0.02)
    np.testing.assert_allclose((sigma**2).mean(), 0.16 / (2 * power + 1), rtol=0.03)
    ratio = ((noisy - z) / sigma[:, None, None, None])[
        sigma > 1e-3
    ]  # one sigma a sample, one draw a pixel
    np.testing.assert_allclose([ratio.mean(), ratio.std()], [0, 1], atol=0.02)
    np.testing.assert_allclose((ratio[:, 0, 0] * ratio[:, 0, 1]).mean(), 0, atol=0.03)


def test_no_noise_at_sigma_0():
    z = fields(0)
    noisy, sigma = add_noise(KEY, z, sigma_max=0.0)
    assert (noisy == z).all() and (sigma == 0).all()


@pytest.mark.slow
def test_start_of_the_learned_map_undoes_its_linear_part():
    """The U-Net starts at 0; where the input-convex network is 0 too, g(x) = a x, and f inverts
    it.
    """
    mirror = neural_mirror_map(ICNN(filters=2, layers=1), UNet(channels=(8,)), strong_convexity=0.5)
    x = fields(0)
    params = jax.jit(mirror.init)(KEY, x)
    linear = params | {'forward': jax.tree.map(jnp.zeros_like, params['forward'])}
    g, f = mirror.bind(linear)
    z, x_cycled = jax.jit(lambda g, f: (g(x), f(g(x))))(g, f)  # they are pytrees
    assert (z == 0.5 * x).all() and (x_cycled == x).all()


def test_outputs():
    z, y = fields(0), fields(1)
    assert (OUTPUTS['plain'](z, y, 0.9) == y).all()
    assert (OUTPUTS['residual'](z, jnp.zeros_like(z), 1.0) == z).all()
    centred = OUTPUTS['centred'](z + 3.0, y, 0.9)  # no constant that is added to z changes it
    np.testing.assert_allclose(centred, OUTPUTS['centred'](z, y, 0.9), atol=1e-5)
    np.testing.assert_allclose(centred.mean((1, 2, 3)), y.mean((1, 2, 3)), atol=1e-5)
    deviation = lambda a: a - a.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(
        deviation(centred), deviation(OUTPUTS['residual'](z, y, 0.9)), atol=1e-5
    )
    np.testing.assert_allclose(
        jnp.exp(OUTPUTS['residual_softplus'](z, y, 0.9)), 1 + jnp.exp(z + y), rtol=1e-5
    )
    np.testing.assert_allclose(jnp.exp(OUTPUTS['softplus'](z, y, 0.9)), 1 + jnp.exp(y), rtol=1e-5)


def test_one_stacked_call_equals_two(neural):
    mirror, params = neural
    x, z = fields(0), fields(1)
    g, f = (jax.jit(part) for part in mirror.bind(params))
    _, terms = jax.jit(
        lambda: namm_loss(mirror, params, KEY, x, ZeroSum(), z, sigma_max=0.0, train=False)
    )()
    np.testing.assert_allclose(terms['cycle_data'], jnp.abs(f(g(x)) - x).mean(), rtol=1e-4)
    np.testing.assert_allclose(terms['cycle_mirror'], jnp.abs(g(f(z)) - z).mean(), rtol=1e-4)
    np.testing.assert_allclose(terms['constraint'], jnp.abs(f(z).sum((1, 2, 3))).mean(), rtol=1e-4)


@pytest.mark.slow
def test_dropout_acts_in_training_only_and_follows_the_key(neural):
    mirror, params = neural
    x = fields(0)
    loss = jax.jit(
        lambda key, train: namm_loss(mirror, params, key, x, ZeroSum(), sigma_max=0.0, train=train)[
            0
        ],
        static_argnums=1,
    )
    keys = [jax.random.key(k) for k in (0, 1)]
    assert loss(keys[0], False) == loss(
        keys[1], False
    )  # without noise and dropout, no chance is left
    assert loss(keys[0], True) == loss(keys[0], True)
    assert (
        len(
            {
                float(value)
                for value in (loss(keys[0], True), loss(keys[1], True), loss(keys[0], False))
            }
        )
        == 3
    )


@pytest.mark.slow
@pytest.mark.parametrize('given', [False, True])
def test_constraint_moves_g_only_through_its_own_mirror_points(neural, given):
    """Finetuning's z are the diffusion model's samples: its constraint term has no gradient in
    g.
    """
    mirror, params = neural
    x, z = fields(0), fields(1) if given else None
    term = lambda p: namm_loss(mirror, p, KEY, x, ZeroSum(), z, sigma_max=0.1, train=False)[1][
        'constraint'
    ]
    gradient = jax.jit(jax.grad(term))(params)
    largest = {
        name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[name]))
        for name in gradient
    }
    assert largest['inverse'] > 0 and (largest['forward'] == 0) == given


def test_robustness_of_a_scaling():
    """f(g(x) + sigma noise) = c x + sigma noise / 4: at 0 all is known, and the error grows with
    the noise alone.
    """
    x, sigma = jnp.ones((2000, 2, 2, 1)), jnp.asarray([0.0, 4.0, 8.0])
    half = robustness(scaling(2.0, 0.25), {}, KEY, x, ZeroSum(), sigma)
    np.testing.assert_allclose(
        [half['distance_mean'][0], half['distance_std'][0], half['error_mean'][0]], [2, 0, 0.5]
    )
    exact = robustness(scaling(4.0, 0.25), {}, KEY, x - 1, ZeroSum(), sigma)
    np.testing.assert_allclose(
        exact['error_mean'], np.sqrt(2 / np.pi) * sigma / 4, rtol=0.02
    )  # mean|N(0, s^2)|
    np.testing.assert_allclose(
        exact['distance_mean'], 2 * exact['error_mean'], rtol=0.05
    )  # a sum of 4 pixels
    np.testing.assert_allclose(
        exact['distance_std'], np.sqrt(4 * (1 - 2 / np.pi)) * sigma / 4, rtol=0.05
    )
    np.testing.assert_allclose(
        exact['error_mean'][2], 2 * exact['error_mean'][1], rtol=1e-6
    )  # the same noise


def test_robustness_without_noise_is_the_cycle_of_the_loss(neural):
    mirror, params = neural
    measured = jax.jit(lambda x: robustness(mirror, params, KEY, x, ZeroSum(), jnp.zeros(1)))(
        fields(0)
    )
    _, terms = jax.jit(
        lambda x: namm_loss(mirror, params, KEY, x, ZeroSum(), sigma_max=0.0, train=False)
    )(fields(0))
    np.testing.assert_allclose(measured['error_mean'][0], terms['cycle_data'], rtol=1e-4)
    np.testing.assert_allclose(measured['distance_mean'][0], terms['constraint'], rtol=1e-4)


def test_bad_settings_are_refused():
    for a in (0.0, 1.1):
        with pytest.raises(
            ValueError, match=rf'strong_convexity: got {a}, expected a number in \(0, 1\]'
        ):
            neural_mirror_map(ICNN(), UNet(), strong_convexity=a)
    with pytest.raises(
        ValueError,
        match="output: got 'sofplus', expected one of residual, centred, plain, softplus",
    ):
        neural_mirror_map(ICNN(), UNet(), output='sofplus')


def test_standardised_is_the_map_of_standardised_fields():
    inner = MirrorMap(
        lambda key, x: {}, lambda params, x: x**3, lambda params, z, dropout_key=None: jnp.cbrt(z)
    )
    mean, scale = np.array([2.0, -1.0]), np.array([4.0, 0.5])
    outer = standardised(inner, mean, scale)
    u = jax.random.normal(KEY, (3, 4, 4, 2))
    x = mean.astype(np.float32) + scale.astype(np.float32) * u
    np.testing.assert_allclose(outer.forward({}, x), u**3, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outer.inverse({}, u**3), x, rtol=1e-4, atol=1e-5)
    g, f = outer.bind(outer.init(KEY, x))
    np.testing.assert_allclose(f(g(x)), x, rtol=1e-4, atol=1e-5)


def test_standardised_by_0_and_1_is_the_map_itself_and_of_a_learned_map_keeps_the_parameters(
    neural,
):
    mirror, params = neural
    for mean, scale in ((0, 1), (0.0, 1.0), (np.zeros(1), np.ones(1))):
        assert standardised(mirror, mean, scale) is mirror
    x = fields(0)
    shifted = standardised(mirror, 0.0, 0.5)  # a power of 2: no rounding
    shapes = lambda params: jax.tree.map(jnp.shape, params)
    assert shapes(jax.eval_shape(shifted.init, KEY, x)) == shapes(params)
    np.testing.assert_allclose(
        jax.jit(shifted.forward)(params, x / 2), jax.jit(mirror.forward)(params, x), rtol=1e-6
    )
