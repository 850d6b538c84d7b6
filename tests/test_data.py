"""The data sets: what lies on its constraint, what its scales are, and what each field depends
on.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.constraints import make_constraint
from namm_jax.problems import layout
from namm_jax.problems.burgers_equation import sample_burgers, sample_starts
from namm_jax.problems.steppers import BurgersProblem

PROBLEM = BurgersProblem()
SMALL = BurgersProblem(points=16, states=4, inner_steps=2, stepper='forward_euler')
DISTANCE = jax.jit(lambda constraint, x: constraint.distance(x))
SAMPLE_SMALL = jax.jit(functools.partial(sample_burgers, problem=SMALL))
EULER = dataclasses.replace(PROBLEM, stepper='forward_euler')


@pytest.fixture(scope='module')
def fields():
    keys = jax.random.split(jax.random.key(0), 32)
    return jax.jit(functools.partial(sample_burgers, problem=PROBLEM))(keys)


def _distance(problem, x):
    return float(DISTANCE(make_constraint('burgers', problem=problem), x).mean())


def test_layout_round_trip_and_orientation():
    states = jnp.arange(24.0).reshape(2, 4, 3)
    x = layout.states_to_image(states)
    chex.assert_shape(x, (2, 3, 4, 1))
    chex.assert_trees_all_equal(layout.image_to_states(x), states)
    assert x[0, 0, 1, 0] == states[0, 1, -1], (
        'the first row is the last point in space, columns are time'
    )


def test_layout_errors():
    with pytest.raises(ValueError, match=r'Got x of shape \(2, 4, 3, 2\), expected \(b, h, w, 1\)'):
        layout.image_to_states(jnp.zeros((2, 4, 3, 2)))
    with pytest.raises(ValueError, match=r'expected \(b, t, n\)'):
        layout.states_to_image(jnp.zeros((4, 3)))


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
    x = jax.jit(functools.partial(sample_burgers, problem=EULER))(
        jax.random.split(jax.random.key(1), 32)
    )
    assert _distance(EULER, x) < 1e-6
    assert _distance(PROBLEM, x) == pytest.approx(1.6e-4, rel=0.25)


def test_burgers_fields_conserve_the_mean_of_their_start(fields):
    starts = sample_starts(jax.random.split(jax.random.key(0), 32), problem=PROBLEM)
    np.testing.assert_allclose(
        fields.mean((1, 3)), np.broadcast_to(starts.mean(1)[:, None], (32, 64)), atol=1e-5
    )


def test_burgers_first_state_is_one_interval_after_the_start():
    keys = jax.random.split(jax.random.key(2), 6)
    states = layout.image_to_states(SAMPLE_SMALL(keys))
    chex.assert_trees_all_close(
        states[:, 0], SMALL.interval()(sample_starts(keys, problem=SMALL)), atol=1e-6
    )


def test_starts_span_zero_to_one_and_are_correlated_as_stated():
    u = sample_starts(jax.random.split(jax.random.key(3), 400), problem=PROBLEM)
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
        with pytest.raises(ValueError, match='expected a vector of typed keys'):
            sample_burgers(keys, problem=SMALL)
