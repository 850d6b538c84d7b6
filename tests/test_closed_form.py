"""Closed-form mirror maps: exact round trips, gradients of their potentials, and samples that never
leave the set.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.mirror import ball_map, box_map, simplex_map

SHAPE = (4, 4, 2)
KEY = jax.random.key(0)
MAPS = {'box': box_map(-0.3, 1.7), 'ball': ball_map(3), 'simplex': simplex_map(5)}


def potential(name, x):
    """Sums over the batch of the textbook potentials, in their own form."""
    if name == 'ball':
        return -jnp.log(9 - (x**2).sum((1, 2, 3))).sum()
    if name == 'simplex':
        return (x * jnp.log(x)).sum()
    y = x - 0.7  # the box is |y| < 1: entropy of a coin of mean y
    return ((1 + y) / 2 * jnp.log(1 + y) + (1 - y) / 2 * jnp.log(1 - y)).sum()


def inside(name, n=64):
    """Fields strictly inside the set, from its middle to very near its border."""
    key_x, key_near = jax.random.split(KEY)
    normal = jax.random.normal(key_x, (n, *SHAPE))
    near = 10 ** jax.random.uniform(key_near, (n, 1, 1, 1), minval=-5.0, maxval=-0.1)
    if name == 'ball':
        return 3 * (1 - near) * normal / jnp.sqrt((normal**2).sum((1, 2, 3), keepdims=True))
    if name == 'simplex':
        return 5 * jax.nn.softmax(normal / near**0.2, (1, 2, 3))
    return 0.7 + (1 - near) * jnp.tanh(3 * normal)


@pytest.mark.parametrize('name', MAPS)
def test_round_trips(name):
    g, f = MAPS[name].bind(MAPS[name].init(KEY, jnp.zeros((1, *SHAPE))))
    x = inside(name)
    z = g(x)
    assert bool(jnp.isfinite(z).all())
    np.testing.assert_allclose(f(z), x, atol=3e-6, rtol=1e-5)
    z = 3 * jnp.tanh(jax.random.normal(KEY, (8, *SHAPE)))
    # Mirror points of the simplex are defined up to a constant.
    gauge = z.mean((1, 2, 3), keepdims=True) if name == 'simplex' else 0
    np.testing.assert_allclose(g(f(z)), z - gauge, atol=1e-4)


def test_simplex_round_trip_is_relative_to_each_pixel():
    x = jnp.array([1.0, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15, 1e-20, 2.0]).reshape(1, 2, 2, 2)
    x = 5 * x / x.sum()
    np.testing.assert_allclose(
        MAPS['simplex'].inverse({}, MAPS['simplex'].forward({}, x)), x, rtol=1e-5
    )


def test_nothing_leaves_its_set():
    for scale in (1e-3, 1.0, 10.0, 100.0, 1e6):
        z = scale * jax.random.normal(KEY, (64, *SHAPE))
        x = {name: np.asarray(mirror.inverse({}, z), np.float64) for name, mirror in MAPS.items()}
        assert x['box'].min() >= -0.3 - 2e-6 and x['box'].max() <= 1.7 + 2e-6
        assert np.sqrt((x['ball'] ** 2).sum((1, 2, 3))).max() <= 3 + 3e-6
        assert x['simplex'].min() >= 0
        np.testing.assert_allclose(x['simplex'].sum((1, 2, 3)), 5, rtol=1e-6)
        unit = np.asarray(box_map(0, 1).inverse({}, z))
        assert unit.min() >= 0 and unit.max() <= 1


@pytest.mark.parametrize('name', MAPS)
def test_g_is_the_gradient_of_the_potential_and_monotone(name):
    x = np.asarray(inside(name))
    with jax.enable_x64(True):
        x = jnp.asarray(x, jnp.float64)
        z, slope = MAPS[name].forward({}, x), jax.grad(lambda x: potential(name, x))(x)
        if name == 'simplex':  # along the simplex: the mean of the gradient points out of it
            slope = slope - slope.mean((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(z, slope, rtol=1e-6, atol=1e-6)
        product = ((z[:-1] - z[1:]) * (x[:-1] - x[1:])).sum((1, 2, 3))
        assert float(product.min()) > 0


@pytest.mark.parametrize('name', MAPS)
def test_inverse_is_smooth_at_zero_and_far_out(name):
    slope = jax.grad(lambda z: (MAPS[name].inverse({}, z) ** 2).sum())
    for z in (jnp.zeros((2, *SHAPE)), jnp.full((2, *SHAPE), 1e4), -jnp.ones((2, *SHAPE)) * 1e4):
        assert bool(jnp.isfinite(slope(z)).all())


def test_the_centre_is_the_origin():
    origin = jnp.zeros((1, *SHAPE))
    for name, centre in (('box', 0.7), ('ball', 0.0), ('simplex', 5 / 32)):
        np.testing.assert_allclose(MAPS[name].inverse({}, origin), centre, rtol=1e-6)


def test_floor_takes_the_border_and_its_bias_is_the_stated_one():
    # Half of each field black, the simplex; every pixel on a border, the box; of the norm R, the
    # ball.
    border = {'simplex': (5 / 16, 0.0), 'box': (-0.3, 1.7), 'ball': (3 / 4, 0.0)}
    centre = {'simplex': 5 / 32, 'box': 0.7, 'ball': 0.0}
    floored = {
        'simplex': simplex_map(5, floor=0.01),
        'box': box_map(-0.3, 1.7, floor=0.01),
        'ball': ball_map(3, floor=0.01),
    }
    for name, mirror in floored.items():
        x = jnp.where(jnp.arange(32).reshape(1, *SHAPE) % 2 == 0, *border[name])
        z = mirror.forward({}, x)
        assert bool(jnp.isfinite(z).all()), name
        expected = x + 0.01 * (centre[name] - x)
        np.testing.assert_allclose(mirror.inverse({}, z), expected, atol=2e-6, rtol=1e-5)


def test_dropout_key_is_ignored():
    z = jnp.ones((1, *SHAPE))
    for mirror in MAPS.values():
        assert mirror.init(KEY, z) == {}
        np.testing.assert_array_equal(mirror.inverse({}, z, KEY), mirror.inverse({}, z))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: box_map(1.0, 0.0), 'high - low: got -1.0'),
        (lambda: ball_map(0.0), 'radius: got 0.0'),
        (lambda: simplex_map(float('inf')), 'total: got inf'),
        (lambda: simplex_map(1.0, floor=1.0), r'floor: got 1.0, expected a number in \[0, 1\)'),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
