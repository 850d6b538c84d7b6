"""Burgers data: what lies on the rule, what the scales are, what each field depends on, and
trajectories from first states.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import Constraint
from namm_jax.problems.burgers_equation import Burgers

PROBLEM = Burgers()
SMALL = Burgers(points=16, states=4, inner_steps=2, stepper='forward_euler')
DISTANCE = jax.jit(lambda constraint, x: constraint.distance(x))
SAMPLE_SMALL = jax.jit(SMALL.fields)
EULER = dataclasses.replace(PROBLEM, stepper='forward_euler')


@pytest.fixture(scope='module')
def fields():
    keys = jax.random.split(jax.random.key(0), 32)
    return jax.jit(PROBLEM.fields)(keys)


def _distance(problem, x):
    return float(DISTANCE(problem.constraint(), x).mean())


def test_images_show_states_upside_down_against_time():
    problem = Burgers(points=3, states=4)
    states = jnp.arange(24.0).reshape(2, 4, 3)
    x = problem.from_states(states)
    chex.assert_shape(x, (2, *problem.shape))
    chex.assert_trees_all_equal(problem.to_states(x), states)
    assert x[0, 0, 1, 0] == states[0, 1, -1], (
        'the first row is the last point in space, columns are time'
    )


def test_errors_of_shapes():
    with pytest.raises(
        ValueError, match=r'Got x of shape \(2, 4, 16, 1\), expected \(b, 16, 4, 1\)'
    ):
        SMALL.to_states(jnp.zeros((2, 4, 16, 1)))
    with pytest.raises(ValueError, match=r'u_0: got shape \(3, 16, 1\), expected \(b, 16\)'):
        SMALL.rollout(jnp.zeros((3, 16, 1)))


def test_burgers_fields_are_bounded(fields):
    chex.assert_shape(fields, (32, 64, 64, 1))
    assert fields.dtype == jnp.float32
    assert -0.05 < float(fields.min()) and float(fields.max()) < 1.05
    assert float(fields.std()) > 0.1


def test_burgers_distances_have_the_published_scales(fields):
    assert _distance(PROBLEM, fields) < 1e-6
    assert _distance(EULER, fields) == pytest.approx(1.6e-4, rel=0.25)
    assert _distance(PROBLEM, fields[:, ::-1]) == pytest.approx(0.0194, rel=0.15), (
        'not flipped back'
    )
    persistence = jnp.abs(jnp.diff(fields, axis=2)).mean()
    assert float(persistence) == pytest.approx(0.0101, rel=0.15), 'the size of a step'


def test_burgers_euler_data_under_both_steppers():
    x = jax.jit(EULER.fields)(jax.random.split(jax.random.key(1), 32))
    assert _distance(EULER, x) < 1e-6
    assert _distance(PROBLEM, x) == pytest.approx(1.6e-4, rel=0.25)


def test_burgers_fields_conserve_the_mean_of_their_start(fields):
    starts = PROBLEM.starts(jax.random.split(jax.random.key(0), 32))
    np.testing.assert_allclose(
        fields.mean((1, 3)), np.broadcast_to(starts.mean(1)[:, None], (32, 64)), atol=1e-5
    )


def test_burgers_first_state_is_one_interval_after_the_start():
    keys = jax.random.split(jax.random.key(2), 6)
    first = SMALL.first_states(SAMPLE_SMALL(keys))
    chex.assert_trees_all_close(first, SMALL.interval()(SMALL.starts(keys)), atol=1e-6)


def test_starts_span_zero_to_one_and_are_correlated_as_stated():
    u = PROBLEM.starts(jax.random.split(jax.random.key(3), 400))
    chex.assert_trees_all_equal(u.min(1), jnp.zeros(400))
    np.testing.assert_allclose(u.max(1), 1, atol=1e-6)
    # Matern 3/2 at r = 0.2 (6.3 points): (1 + sqrt 3) exp(-sqrt 3) = 0.483. Scaling each sample by
    # its range changes the correlation of increments little: E (u_i - u_{i+k})^2 is proportional to
    # 1 - k(r).
    ratio = jnp.mean((u[:, 6:] - u[:, :-6]) ** 2) / jnp.mean((u[:, 18:] - u[:, :-18]) ** 2)
    assert float(ratio) == pytest.approx(0.49 / 0.95, rel=0.1)


def test_burgers_field_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(4), 6)
    together = SAMPLE_SMALL(keys)
    others = SAMPLE_SMALL(jax.random.split(jax.random.key(5), 6).at[2].set(keys[2]))
    chex.assert_trees_all_equal(others[2], together[2])
    chex.assert_trees_all_equal(SAMPLE_SMALL(keys[::-1]), together[::-1])
    assert float(jnp.abs(others[3] - together[3]).max()) > 0.05
    assert float(jnp.abs(together[0] - together[1]).max()) > 0.05


def test_burgers_needs_a_vector_of_typed_keys():
    for keys in (jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match='expected one typed key a sample'):
            SMALL.fields(keys)


def test_the_first_states_of_the_data_give_the_data(fields):
    rolled = jax.jit(PROBLEM.rollout)(PROBLEM.first_states(fields))
    np.testing.assert_allclose(rolled, fields, atol=1e-5)
    chex.assert_trees_all_equal(rolled[:, :, 0], fields[:, :, 0])


def test_any_first_state_gives_a_trajectory_and_resolving_keeps_it(fields):
    constraint, u_0 = PROBLEM.constraint(), jax.random.uniform(jax.random.key(6), (3, 64))
    assert isinstance(constraint, Constraint)
    assert list(constraint.restores) == ['resolve']
    assert float(DISTANCE(constraint, jax.jit(PROBLEM.rollout)(u_0)).max()) < 1e-6
    restored, info = jax.jit(constraint.restore)(fields.at[:, :, 1:].add(0.1))
    assert info == {}
    np.testing.assert_allclose(restored, fields, atol=1e-5)


def test_the_residual_map_points_at_the_broken_step():
    x = SAMPLE_SMALL(jax.random.split(jax.random.key(7), 2))
    images = SMALL.residual_map(SMALL.constraint(), x.at[:, 3, -1].add(0.01))
    chex.assert_shape(images, (2, 16, 3))
    np.testing.assert_allclose(images, jnp.zeros((2, 16, 3)).at[:, 3, -1].set(0.01), atol=1e-6)


def test_the_rules_of_equal_problems_are_compiled_once():
    traced = []

    @jax.jit
    def distance(constraint, x):
        traced.append(None)
        return constraint.distance(x)

    x = jnp.zeros((1, 16, 4, 1))
    for problem in (SMALL, dataclasses.replace(SMALL)):
        assert jax.tree.leaves(problem.constraint()) == []
        distance(problem.constraint(), x)
    distance(dataclasses.replace(SMALL, nu=0.1).constraint(), x)
    assert len(traced) == 2
