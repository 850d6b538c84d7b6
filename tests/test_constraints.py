"""Projection onto constraints: nearest points that are known, identities and limits; and rules of
Burgers' equation.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import Constraint
from namm_jax.constraints.projection import REACH, gauss_newton_projection, land
from namm_jax.problems.burgers_equation import Burgers

# The explicit stepper compiles faster, and what is tested here holds for any.
PROBLEM = Burgers(points=32, states=8, inner_steps=2, stepper='forward_euler')


@pytest.fixture(scope='module')
def constraint():
    return PROBLEM.constraint()


@pytest.fixture(scope='module')
def fields():
    return PROBLEM.fields(jax.random.split(jax.random.key(0), 6))


def test_burgers_is_a_constraint_and_a_pytree(constraint):
    assert isinstance(constraint, Constraint)
    assert jax.tree.leaves(constraint) == []
    assert jax.tree.structure(constraint) == jax.tree.structure(PROBLEM.constraint())


def test_burgers_terms_and_residual_shapes(constraint, fields):
    chex.assert_shape(constraint.residual(fields), (6, 7, 32))
    chex.assert_trees_all_equal(constraint.terms(fields), {'burgers': constraint.distance(fields)})


def test_burgers_residual_points_at_the_broken_step(constraint, fields):
    # Moving the last state breaks the last step alone, by as much as it was moved.
    residual = constraint.residual(fields.at[:, :, -1].add(0.01))
    np.testing.assert_allclose(residual[:, -1], 0.01, atol=1e-6)
    np.testing.assert_allclose(residual[:, :-1], 0, atol=1e-6)


def test_burgers_is_invariant_to_rolling_space_and_not_to_reversing_it(constraint, fields):
    assert float(constraint.distance(jnp.roll(fields, 5, 1)).max()) < 1e-6
    assert float(constraint.distance(fields[:, ::-1]).min()) > 1e-3


def test_burgers_keeps_double_and_raises_half_precision(constraint, fields):
    assert constraint.distance(fields.astype(jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert (
            constraint.distance(jnp.asarray(np.asarray(fields), jnp.float64)).dtype == jnp.float64
        )


def test_burgers_wrong_shape(constraint):
    with pytest.raises(
        ValueError, match=r'Got x of shape \(2, 8, 32, 1\), expected \(b, 32, 8, 1\)'
    ):
        jax.eval_shape(constraint.distance, jnp.zeros((2, 8, 32, 1)))


def test_unknown_constraint_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"constraint: got 'burger', expected one of .*did you mean burgers"
    ):
        PROBLEM.constraint('burger')


def test_projection_onto_a_plane_is_the_shift():
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    projected, info = gauss_newton_projection(lambda x: x.sum((1, 2, 3)) - 10, x, tolerance=1e-5)
    shift = (10 - x.sum((1, 2, 3))) / 32
    np.testing.assert_allclose(projected, x + shift[:, None, None, None], atol=1e-6)
    chex.assert_trees_all_equal(info['iterations'], jnp.ones(3, jnp.int32))
    assert float(info['residual'].max()) <= 1e-5


def test_projection_with_a_redundant_residual():
    # Both halves equal, said twice: J J^T is singular, and the nearest point is their average.
    x = jax.random.normal(jax.random.key(2), (3, 4, 4, 1))

    def residual(x):
        gap = x[:, :2] - x[:, 2:]
        return jnp.stack([gap, -2 * gap], 1)

    projected, info = gauss_newton_projection(residual, x, tolerance=1e-6)
    mean = (x[:, :2] + x[:, 2:]) / 2
    np.testing.assert_allclose(projected, jnp.concatenate([mean, mean], 1), atol=2e-6)
    assert float(info['residual'].max()) <= 1e-6


def test_projection_gives_a_residual_without_gradient_up_at_once():
    """The second sample's residual is 1 whatever x: a billion conjugate-gradient steps are allowed,
    none is of use.
    """
    shape = jnp.array([[1.0], [0.0]])
    residual = lambda x: shape * x.sum((1, 2, 3))[:, None] - 1
    x = jnp.zeros((2, 2, 2, 1))
    projected, info = gauss_newton_projection(residual, x, max_iterations=3, cg_iterations=10**9)
    np.testing.assert_allclose(projected[0], 0.25, rtol=1e-6)
    assert (projected[1] == 0).all() and info['residual'].tolist() == [0.0, 1.0]


def test_projection_never_leaves_where_the_residual_is_finite():
    residual = lambda x: jnp.log(x.sum((1, 2, 3)))[:, None] + 2  # the first step goes below 0
    x = jnp.full((2, 1, 1, 1), 1.0).at[1].set(0.2)
    projected, info = gauss_newton_projection(residual, x, max_iterations=8)
    assert projected[0] == 1 and info['residual'][0] == 2
    np.testing.assert_allclose(projected[1], math.exp(-2), rtol=1e-5)


def test_projection_onto_a_sphere_is_radial():
    x = jnp.array([1.0, 2.0, 0.5])[:, None, None, None] * jax.random.normal(
        jax.random.key(3), (3, 2, 2, 1)
    )
    norm = jnp.sqrt((x**2).sum((1, 2, 3), keepdims=True))
    project = jax.jit(lambda x: gauss_newton_projection(lambda x: (x**2).sum((1, 2, 3)) - 1, x))
    projected, info = project(x)
    np.testing.assert_allclose(projected, x / norm, atol=2e-6)
    assert float(info['residual'].max()) <= 1e-6
    # A point on the sphere stops at once while its neighbours go on.
    mixed = x.at[1].set(projected[1])
    again, info = project(mixed)
    chex.assert_trees_all_equal(again[1], projected[1])
    assert info['iterations'][1] == 0 and info['iterations'][0] > 0


def test_projection_by_one_row_is_that_by_a_matrix():
    # The same residual said twice has two rows, whose products are never formed.
    x = jax.random.normal(jax.random.key(4), (3, 2, 2, 1))
    once = lambda x: (
        (jnp.array([1.0, 1.1, 1.2, 1.3]).reshape(2, 2, 1) * x**2).sum((1, 2, 3))[:, None] - 1
    )
    twice = lambda x: jnp.concatenate([once(x), once(x)], 1)
    x = x / jnp.sqrt((x**2).sum((1, 2, 3), keepdims=True))
    ours, theirs = (
        gauss_newton_projection(residual, x, cg_tolerance=1e-4)[0] for residual in (once, twice)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert float(jnp.abs(once(ours)).max()) < 1e-6


def test_projection_onto_an_ellipse_is_the_nearest_point():
    axes = jnp.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    angle = jnp.linspace(0, 2 * jnp.pi, 200_000)
    curve = jnp.stack([jnp.cos(angle), 2 * jnp.sin(angle)], 1)
    x = jnp.array([[0.9, 0.8], [0.3, 2.1], [1.05, -0.5]]).reshape(3, 2, 1, 1)
    projected, _ = gauss_newton_projection(lambda x: ((x / axes) ** 2).sum((1, 2, 3)) - 1, x)
    distances = jnp.linalg.norm(x.reshape(3, 1, 2) - curve, axis=-1)
    found = jnp.linalg.norm((x - projected).reshape(3, 2), axis=-1)
    np.testing.assert_allclose(found, distances.min(1), atol=1e-5)


@pytest.mark.slow
def test_projection_of_burgers_data_and_of_noisy_data():
    problem = dataclasses.replace(PROBLEM, stepper='crank_nicolson')
    constraint = problem.constraint()
    fields = problem.fields(jax.random.split(jax.random.key(0), 6))
    # Samples: 0 untouched, 1 to 3 with the noise of an unfinished sampler, 4 and 5 very rough.
    scale = jnp.array([0, 0.0074, 0.0074, 0.0074, 0.05, 0.05])[:, None, None, None]
    noisy = fields + scale * jax.random.normal(jax.random.key(4), fields.shape)
    projected, info = jax.jit(lambda x: gauss_newton_projection(constraint.residual, x))(noisy)
    chex.assert_shape((info['iterations'], info['residual']), (6,))
    chex.assert_trees_all_equal(projected[0], fields[0])
    assert info['iterations'][0] == 0
    assert 1 <= info['iterations'][1:].min() and info['iterations'].max() <= 8
    assert float(info['residual'].max()) <= 1e-6
    # The set has 1/8 of the dimensions: about that share of the noise's energy lies along it and
    # must stay.
    share = ((projected - fields)[1:] ** 2).sum((1, 2, 3)) / ((noisy - fields)[1:] ** 2).sum(
        (1, 2, 3)
    )
    assert float(share.mean()) == pytest.approx(1 / 8, rel=0.3)


def test_projection_without_steps_is_the_identity_and_reports_the_residual(constraint, fields):
    x = fields.at[:, :, 0].add(0.1)
    projected, info = gauss_newton_projection(constraint.residual, x, max_iterations=0)
    chex.assert_trees_all_equal(projected, x)
    np.testing.assert_allclose(info['residual'], constraint.distance(x), rtol=1e-5)


@pytest.mark.parametrize(
    'setting', [{'tolerance': 0.0}, {'cg_tolerance': 1.0}, {'max_iterations': -1}]
)
def test_projection_errors(setting):
    with pytest.raises(ValueError, match=f'{next(iter(setting))} = '):
        gauss_newton_projection(lambda x: x, jnp.zeros((1, 2, 2, 1)), **setting)


def test_landing_on_a_plane_is_the_shift_of_a_residual_or_a_distance():
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    shift = x - (x.sum((1, 2, 3), keepdims=True) - 1) / 64
    residual = lambda x: x.sum((1, 2, 3)) - 1
    for rule in (residual, lambda x: jnp.abs(residual(x))):
        np.testing.assert_allclose(land(rule, x), shift, atol=1e-6)
    assert land(residual, x, steps=0) is x


def test_landing_leaves_what_obeys_and_what_it_would_make_worse():
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    np.testing.assert_array_equal(land(lambda x: 1e-8 * x.sum((1, 2, 3)), x), x)
    # one step of arctan from beyond 1.39 overshoots to where it is larger; from 1 it is smaller
    x = jnp.full((2, 1, 1, 1), 1.0).at[1].set(2.0)
    far = land(lambda x: jnp.arctan(100 * x)[:, 0, 0], x / 100)
    np.testing.assert_allclose(100 * far[:, 0, 0, 0], [1 - 2 * np.arctan(1), 2.0], rtol=1e-5)
    saturated = land(lambda x: 1 + 1e-30 * x.sum((1, 2, 3)), x)
    assert bool(jnp.isfinite(saturated).all())
    assert float(jnp.sqrt(jnp.mean((saturated - x) ** 2))) <= REACH + 1e-6


def test_landing_is_differentiated_along_the_rule():
    """Along the plane the derivative is the identity, as finite differences in float64 have it."""
    with jax.enable_x64(True):
        x, v, w = jax.random.normal(jax.random.key(1), (3, 2, 4, 4, 1), jnp.float64)
        along = v - v.mean((1, 2, 3), keepdims=True)
        onto = lambda x: land(lambda x: x.sum((1, 2, 3)) - 3, x)
        slope = (onto(x + 1e-3 * along) - onto(x - 1e-3 * along)) / 2e-3
        np.testing.assert_allclose(jax.jvp(onto, (x,), (along,))[1], slope, atol=1e-9)
        np.testing.assert_allclose(jax.vjp(onto, x)[1](w)[0], w)


def test_problem_is_static_under_jit(constraint):
    traced = []

    @jax.jit
    def distance(constraint, x):
        traced.append(None)
        return constraint.distance(x)

    x = jnp.zeros((1, 32, 8, 1))
    distance(constraint, x)
    distance(dataclasses.replace(PROBLEM).constraint(), x)
    assert len(traced) == 1


def test_projection_by_a_distance_alone_passes_its_kinks():
    distance = lambda x: jnp.mean(jnp.abs(x.sum(2) - 1), (1, 2))  # of rows: a kink at each
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    back, information = gauss_newton_projection(lambda x: distance(x)[:, None], x)
    assert float(jnp.max(distance(back) / distance(x))) < 0.05
    np.testing.assert_allclose(information['residual'], distance(back), rtol=1e-5)
    nearest = x + (1 - x.sum(2, keepdims=True)) / 8
    far = lambda y: np.linalg.norm(np.asarray(y - x).reshape(4, -1), axis=1)
    assert (far(back) < 1.1 * far(nearest)).all()
