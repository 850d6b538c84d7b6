"""Sets given by inequalities: zero inside, known distances outside, and nearest points that no
feasible point beats.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import Constraint
from namm_jax.constraints.sets import ball, box, half_spaces, mass_below, simplex

SHAPE = (4, 2, 2)
GENERATOR = np.random.default_rng(0)
OUTSIDE = jnp.asarray(2 * GENERATOR.normal(size=(6, *SHAPE)) + 0.5, jnp.float32)
NORMALS = jnp.asarray(GENERATOR.normal(size=(3, *SHAPE)), jnp.float32)
SETS = {
    'box': box(-0.5, 0.75),
    'ball': ball(2, center=0.25),
    'simplex': simplex(6),
    'mass_below': mass_below(3),
    'half_spaces': half_spaces(NORMALS, jnp.array([1.0, 2.0, 3.0])),
}
NEAREST = [name for name in SETS if name != 'half_spaces']


def feasible(name, n):
    """Points `(n, 16)` of the set, made without it."""
    generator = np.random.default_rng(1)
    normal, uniform = generator.normal(size=(n, 16)), generator.uniform(size=(n, 16))
    direction = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    weights = -(np.log(uniform) ** 3)  # from an exponential law: cubed, a few pixels hold most
    return {
        'box': 1.25 * uniform - 0.5,
        'ball': 0.25 + 2 * uniform[:, :1] ** 0.25 * direction,
        'simplex': 6 * weights / weights.sum(1, keepdims=True),
        'mass_below': normal + (3 * uniform[:, :1] - normal.sum(1, keepdims=True)) / 16,
        'half_spaces': -np.abs(uniform[:, :1]) * np.asarray(NORMALS).reshape(3, 16).sum(0) * 0.01,
    }[name]


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


@pytest.mark.parametrize('name', SETS)
def test_zero_and_flat_inside_and_positive_outside(name):
    constraint, x = SETS[name], jnp.asarray(feasible(name, 6).reshape(6, *SHAPE), jnp.float32)
    assert isinstance(constraint, Constraint)
    # The equality of the simplex is the one that round-off breaks.
    np.testing.assert_allclose(constraint.distance(x), 0, atol=3e-6 if name == 'simplex' else 0)
    if name != 'simplex':
        np.testing.assert_array_equal(jax.grad(lambda x: constraint.distance(x).sum())(x), 0)
    total = sum(constraint.terms(OUTSIDE).values())
    np.testing.assert_array_equal(constraint.distance(OUTSIDE), total)
    assert bool((total >= 0).all()) and float(total.max()) > 0.01
    assert bool(jnp.isfinite(jax.grad(lambda x: constraint.distance(x).sum())(OUTSIDE)).all())


@pytest.mark.parametrize('name', SETS)
def test_a_field_that_is_not_finite_is_no_member(name):
    x = jnp.asarray(feasible(name, 2).reshape(2, *SHAPE), jnp.float32).at[1, 0, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(jnp.isnan(SETS[name].distance(x)), [False, True])


@pytest.mark.parametrize('name', NEAREST)
def test_restore_is_the_nearest_point_and_keeps_the_inside(name):
    constraint, others = SETS[name], feasible(name, 2000)
    inside = jnp.asarray(others[:6].reshape(6, *SHAPE), jnp.float32)
    np.testing.assert_allclose(
        constraint.restore(inside)[0], inside, atol=2e-6 if name == 'simplex' else 0
    )

    restored, info = constraint.restores['nearest'](OUTSIDE)
    assert info == {}
    np.testing.assert_allclose(constraint.distance(restored), 0, atol=1e-5)
    # Seen from the nearest point of a convex set, no other point of it lies on the side of y.
    for y, x in zip(flat(OUTSIDE), flat(restored), strict=True):
        assert ((y - x) @ (others - x).T).max() < 1e-4


def test_distances_worked_out_by_hand():
    x = jnp.zeros((1, *SHAPE)).at[0, 0, 0, 0].set(3).at[0, 1, 0, 1].set(-4)
    assert float(box(-1, 1).distance(x)[0]) == pytest.approx((2 + 3) / 16)
    assert float(ball(2).distance(x)[0]) == pytest.approx(3)  # |x| = 5
    assert float(mass_below(-3).distance(x)[0]) == pytest.approx(2)  # the sum is -1
    terms = simplex(6).terms(x)
    assert (float(terms['total'][0]), float(terms['negative'][0])) == pytest.approx((7, 4))
    normals = jnp.stack([x[0], -x[0]])  # of norm 5: <x, n> / 5 is 5 and -5
    spaces = half_spaces(normals, jnp.array([10.0, 0.0]))
    np.testing.assert_allclose(spaces.residual(x), [[3, 0]], atol=1e-6)
    assert float(spaces.distance(x)[0]) == pytest.approx(1.5)


def test_distance_and_nearest_point_agree():
    moved = flat(SETS['ball'].restore(OUTSIDE)[0]) - flat(OUTSIDE)
    np.testing.assert_allclose(
        np.linalg.norm(moved, axis=1), SETS['ball'].distance(OUTSIDE), rtol=1e-5
    )
    moved = flat(SETS['box'].restore(OUTSIDE)[0]) - flat(OUTSIDE)
    np.testing.assert_allclose(np.abs(moved).mean(1), SETS['box'].distance(OUTSIDE), rtol=1e-5)


@pytest.mark.slow
def test_ball_has_derivatives_at_its_centre_and_points_inwards_outside():
    centre = jnp.full((1, *SHAPE), 0.25)
    for order in (jax.jacrev, jax.jacfwd):
        np.testing.assert_array_equal(order(SETS['ball'].distance)(centre), 0)
    slope = jax.grad(lambda x: SETS['ball'].distance(x).sum())(OUTSIDE)
    np.testing.assert_allclose(np.linalg.norm(flat(slope), axis=1), 1, rtol=1e-5)


def test_ball_from_far_away():
    far, _ = ball(2).restore(1e6 * OUTSIDE)
    np.testing.assert_allclose(np.linalg.norm(flat(far), axis=1), 2, rtol=1e-6)


def test_half_spaces_do_not_depend_on_the_length_of_normals():
    longer = half_spaces(7 * NORMALS, jnp.array([7.0, 14.0, 21.0]))
    np.testing.assert_allclose(
        longer.residual(OUTSIDE), SETS['half_spaces'].residual(OUTSIDE), atol=1e-5
    )
    assert len(jax.tree.leaves(longer)) == 2


def test_precision_is_kept_or_raised():
    half = OUTSIDE.astype(jnp.bfloat16)
    assert all(constraint.distance(half).dtype == jnp.float32 for constraint in SETS.values())
    with jax.enable_x64(True):
        double = jnp.asarray(np.asarray(OUTSIDE), jnp.float64)
        assert all(constraint.distance(double).dtype == jnp.float64 for constraint in SETS.values())


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: box(1, 1), 'Got low = 1, high = 1'),
        (lambda: ball(0), 'Got radius = 0'),
        (lambda: ball(1, center=float('inf')), 'Got center = inf'),
        (lambda: simplex(-1.0), 'Got total = -1.0'),
        (lambda: mass_below(float('nan')), 'Got limit = nan'),
        (
            lambda: half_spaces(NORMALS, jnp.zeros(2)),
            r'normals of shape \(3, 4, 2, 2\) and offsets of shape \(2,\)',
        ),
        (lambda: half_spaces(0 * NORMALS, jnp.zeros(3)), 'norms > 0'),
        (lambda: SETS['half_spaces'].distance(jnp.zeros((1, 2, 2, 2))), r'expected \(b, 4, 2, 2\)'),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
