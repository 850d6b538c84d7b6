"""Arrays and a rule of one's own as a problem: what is measured of them, and what is refused."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.problems.own_arrays import Arrays, problem

# Two channels of other offsets and scales; each row of a channel has the mean 0, or 5.
NORMAL = np.random.default_rng(0).normal(size=(100, 4, 6, 2))
X = ((NORMAL - NORMAL.mean(2, keepdims=True)) * [1, 8] + [0, 5]).astype(np.float32)
GOALS = np.float32([0, 5])


def gap(x):
    return x.mean(2) - GOALS


def distance(x):
    return jnp.mean(jnp.abs(gap(x)), (1, 2))


def scaled(function, factor):
    return lambda x: factor * function(x / factor)


def test_mean_and_scale_are_those_of_each_channel():
    own = problem(X, distance=distance, periodic=(True, False))
    assert own.shape == (4, 6, 2) and own.periodic == (True, False)
    np.testing.assert_allclose(own.mean, [0, 5], atol=1e-6)
    np.testing.assert_allclose(own.scale, X.std((0, 1, 2), dtype=np.float64), rtol=1e-12)
    assert all(type(value) is float for value in (*own.mean, *own.scale, own.unit))
    assert hash(own) == hash(dataclasses.replace(own))
    np.testing.assert_allclose(own.distance(jnp.asarray(X)), 0, atol=1e-5)


def test_mean_and_scale_beside_an_offset_of_many_scales():
    x = X[..., :1] + np.float32(300)
    own = problem(x, distance=lambda x: jnp.mean(jnp.abs(x.mean(2) - 300), (1, 2)))
    np.testing.assert_allclose(own.mean, [300], rtol=1e-6)
    np.testing.assert_allclose(own.scale, [X[..., 0].std()], rtol=1e-4)


def test_a_constant_channel_has_scale_one():
    x = X.copy()
    x[..., 1] = 5.1
    own = problem(x, distance=lambda x: jnp.mean(jnp.abs(x.mean(2) - jnp.array([0, 5.1])), (1, 2)))
    assert own.scale[1] == 1 and own.mean[1] == pytest.approx(5.1)


def test_the_unit_is_what_noise_of_one_scale_makes_of_the_distance():
    # The mean over 6 pixels of noise of standard deviation s has the mean size s sqrt(2 / (6 pi)).
    own = problem(X, distance=distance)
    expected = np.mean(own.scale) * np.sqrt(2 / (6 * np.pi))
    assert own.unit == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize('factor', [2.0**20, 2.0**-20])
def test_unit_mean_and_scale_of_a_homogeneous_rule_scale_with_it(factor):
    one = problem(X, distance=distance)
    other = problem(X * np.float32(factor), distance=scaled(distance, factor))
    for name in ('unit', 'mean', 'scale'):
        expected = np.multiply(getattr(one, name), factor)
        np.testing.assert_allclose(getattr(other, name), expected, rtol=1e-6)


def test_an_inequality_with_room_has_the_unit_of_larger_noise():
    within = lambda x: jnp.mean(jax.nn.relu(jnp.abs(x[..., 0]) - 6), (1, 2))
    own = problem(X, distance=within)
    noise = own.scale[0] * np.random.default_rng(1).normal(size=X[..., 0].shape)
    near = np.maximum(np.abs(X[..., 0] + 10 * noise) - 6, 0).mean() / 10
    assert own.unit == pytest.approx(near, rel=0.1)


def test_the_mean_size_of_a_residual_is_its_distance():
    by_distance, by_residual = problem(X, distance=distance), problem(X, residual=gap)
    assert by_residual.unit == pytest.approx(by_distance.unit, rel=1e-6)
    y = jnp.asarray(X) + 1
    np.testing.assert_allclose(by_residual.distance(y), distance(y), rtol=1e-6)
    both = problem(X, distance=lambda x: 2 * distance(x), residual=gap)
    np.testing.assert_allclose(both.distance(y), 2 * distance(y), rtol=1e-6)
    np.testing.assert_array_equal(both.constraint().residual(y), gap(y))
    np.testing.assert_allclose(
        by_distance.constraint().residual(y), distance(y)[:, None], rtol=1e-6
    )


def test_a_rule_has_its_name_and_compiles_once():
    own = problem(X, distance=distance, name='rows')
    y = jnp.asarray(X[:2])
    assert list(own.constraint().terms(y)) == ['rows'] and own.constraint().name == 'rows'
    traces = []

    @jax.jit
    def measure(constraint, x):
        traces.append(None)
        return constraint.distance(x)

    measure(own.constraint(), y), measure(dataclasses.replace(own).constraint(), y)
    assert len(traces) == 1


@pytest.mark.parametrize('x', [X > 0, (8 * X).astype(np.int8), jnp.asarray(X), X.astype(float)])
def test_values_of_any_real_type(x):
    own = problem(x, distance=lambda x: jnp.mean(jnp.abs(x), (1, 2, 3)))
    assert own.scale == pytest.approx(tuple(np.asarray(x, float).std((0, 1, 2))), rel=1e-5)


BAD = X.copy()
BAD[3, 0, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ('x', 'message'),
    [
        (X[0], r'x: got shape \(4, 6, 2\), expected \(n, h, w, c\)'),
        (X[:1], r'x: got shape \(1, 4, 6, 2\), expected .* two samples or more'),
        (X[:, :0], r'x: got shape \(100, 0, 6, 2\)'),
        (BAD, 'x: got 2 of 4800 values NaN or infinite'),
        (X.astype(float) * 1e300, 'x: got .* of 4800 values NaN or infinite in float32'),
        (np.full_like(X, 0.1), 'x: got 0.1 in every pixel, expected data that vary'),
        (X.astype(complex), 'x: got values of type complex128, expected real numbers'),
        (np.full(X.shape, 'a'), 'x: got values of type <U1, expected real numbers'),
    ],
)
def test_data_that_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        problem(x, distance=distance)


@pytest.mark.parametrize(
    ('functions', 'message'),
    [
        ({}, "the rule 'own': got no function .* expected distance= or residual="),
        ({'distance': gap}, r"the distance 'own': got shape \(64, 4, 2\)"),
        ({'residual': distance}, r"the residual 'own': got shape \(64,\)"),
        ({'distance': distance, 'residual': distance}, "the residual 'own': got shape"),
        ({'distance': lambda x: gap(x).mean((1, 2))}, "the distance 'own': got -"),
        ({'distance': lambda x: 0 * distance(x)}, "the distance 'own': got 0 for the data"),
    ],
)
def test_rules_that_are_refused(functions, message):
    with pytest.raises(ValueError, match=message):
        problem(X, **functions)


def test_both_spatial_axes_wrap_or_not():
    with pytest.raises(ValueError, match=r'periodic: got \(True, False, True\), expected two'):
        inspect.unwrap(problem)(X, distance=distance, periodic=(True, False, True))


def test_fields_of_another_shape_are_refused():
    own = problem(X, distance=lambda x: jnp.mean(jnp.abs(x), (1, 2, 3)))
    with pytest.raises(ValueError, match=r'got x of shape \(2, 6, 6, 2\), expected \(b, 4, 6, 2\)'):
        own.distance(jnp.zeros((2, 6, 6, 2)))


def test_arrays_of_no_size_take_any_fields():
    own = Arrays(distance_function=lambda x: jnp.mean(jnp.abs(x), (1, 2, 3)))
    assert (own.mean, own.scale, own.unit) == (0, 1, 1)
    assert own.distance(jnp.ones((2, 3, 4, 5))).tolist() == [1, 1]


def test_arrays_refuse():
    with pytest.raises(ValueError, match='not generated; take the arrays themselves'):
        Arrays().sample(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r'Got mean = \(0.0,\), expected 2, one a channel'):
        Arrays(4, 6, 2, mean=(0.0,))
    with pytest.raises(ValueError, match=r'scale: got \(1.0, 0.0\), expected more than 0'):
        Arrays(4, 6, 2, scale=(1.0, 0.0))
