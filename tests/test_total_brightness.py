"""The total brightness: its nearest points against brute force, and the limits of each way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import Constraint
from namm_jax.problems.black_hole_images import BlackHoles

CONSTRAINT = BlackHoles(points=8, total=6.0).constraint()
PLANE = jax.random.normal(jax.random.key(0), (5, 8, 8, 1)) + 0.3


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


def feasible(seed, n):
    """Random images with no negative pixel and the sum 6, from spread out to a single bright
    pixel.
    """
    generator = np.random.default_rng(seed)
    sharpness = 10 ** generator.uniform(-1.5, 1.5, (n, 1))
    weights = generator.gamma(np.broadcast_to(sharpness, (n, 64))) + 1e-30
    return 6 * weights / weights.sum(1, keepdims=True)


def test_the_residual_is_what_is_missing():
    assert isinstance(CONSTRAINT, Constraint) and jax.tree.leaves(CONSTRAINT) == []
    x = jnp.stack([jnp.full((8, 8, 1), 0.0625), jnp.full((8, 8, 1), 0.125)])  # sums 4 and 8
    np.testing.assert_allclose(CONSTRAINT.residual(x), [[-2], [2]], rtol=1e-6)
    np.testing.assert_allclose(CONSTRAINT.distance(x), 2, rtol=1e-6)
    np.testing.assert_array_equal(CONSTRAINT.terms(x)['total_brightness'], CONSTRAINT.distance(x))


@pytest.mark.parametrize('name', CONSTRAINT.restores)
def test_every_way_back_reaches_the_total_and_keeps_images_that_have_it(name):
    restored, _ = CONSTRAINT.restores[name](PLANE)
    assert bool((CONSTRAINT.distance(restored) <= 1e-6 * jnp.abs(restored).sum((1, 2, 3))).all())
    x = jnp.asarray(feasible(0, 5).reshape(5, 8, 8, 1), jnp.float32)
    np.testing.assert_allclose(CONSTRAINT.restores[name](x)[0], x, atol=2e-6)


def test_the_default_is_the_simplex():
    assert next(iter(CONSTRAINT.restores)) == 'simplex'
    simplex, _ = CONSTRAINT.restores['simplex'](PLANE)
    np.testing.assert_array_equal(CONSTRAINT.restore(PLANE)[0], simplex)
    through = jax.jit(lambda constraint, x: constraint.restore(x)[0])(CONSTRAINT, PLANE)
    np.testing.assert_allclose(through, simplex, atol=1e-6)


def test_simplex_of_a_point_worked_out_by_hand():
    # Of the pixels 5, 3 and 62 times -1 the largest two stay: tau = (5 + 3 - 6) / 2 = 1.
    x = jnp.full(64, -1.0).at[3].set(5).at[10].set(3).reshape(1, 8, 8, 1)
    expected = jnp.zeros(64).at[3].set(4).at[10].set(2).reshape(1, 8, 8, 1)
    np.testing.assert_allclose(CONSTRAINT.restore(x)[0], expected, atol=1e-6)


@pytest.mark.parametrize('scale', [0.1, 1.0, 100.0])
def test_simplex_satisfies_the_conditions_of_the_nearest_point(scale):
    y = scale * PLANE
    x = flat(CONSTRAINT.restore(y)[0])
    assert x.min() >= 0
    np.testing.assert_allclose(x.sum(1), 6, rtol=1e-6)
    moved = flat(y) - x  # equal to one multiplier where x > 0, at most that where x = 0
    for row, on in zip(moved, x > 0, strict=True):
        np.testing.assert_allclose(row[on], row[on].mean(), atol=1e-5 * max(scale, 1))
        assert row[~on].max(initial=-np.inf) <= row[on].mean() + 1e-5 * max(scale, 1)


def test_simplex_is_nearest_among_random_feasible_points():
    nearest, others = flat(CONSTRAINT.restore(PLANE)[0]), feasible(1, 3000)
    for y, x in zip(flat(PLANE), nearest, strict=True):
        # The angle at the projection is obtuse for every other point of the convex set; hence it is
        # nearest.
        assert ((y - x) @ (others - x).T).max() < 1e-4
        assert np.linalg.norm(others - y, axis=1).min() > np.linalg.norm(x - y)


def test_simplex_is_exact_in_float32_at_full_size():
    x, _ = BlackHoles().constraint().restore(jax.random.normal(jax.random.key(1), (2, 64, 64, 1)))
    assert float(x.min()) == 0
    np.testing.assert_allclose(flat(x).sum(1), 120, rtol=1e-6)


def test_shift_moves_every_pixel_alike():
    moved = flat(CONSTRAINT.restores['shift'](PLANE)[0]) - flat(PLANE)
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1], moved.shape), atol=1e-6)


def test_rescale_keeps_ratios_and_leaves_a_sum_of_nothing_alone():
    x = jnp.stack([jnp.full((8, 8, 1), 0.125), jnp.full((8, 8, 1), -0.125), jnp.zeros((8, 8, 1))])
    restored, info = CONSTRAINT.restores['rescale'](x)
    np.testing.assert_allclose(
        restored[:2], 6 / 64, rtol=1e-6
    )  # a negative sum turns the image into its negative
    np.testing.assert_array_equal(restored[2], 0)
    np.testing.assert_array_equal(info['restored'], [True, True, False])
    gradient = jax.grad(lambda x: CONSTRAINT.restores['rescale'](x)[0].sum())(x)
    assert bool(jnp.isfinite(gradient).all())


def test_errors():
    with pytest.raises(ValueError, match=r'Got x of shape \(2, 8, 9, 1\), expected \(b, 8, 8, 1\)'):
        CONSTRAINT.distance(jnp.zeros((2, 8, 9, 1)))
