"""Weighted sums of constraints, and distances to a reference: what is kept, named, weighed and
passed on.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import Constraint
from namm_jax.constraints.base import function_rule, reference, weighted_sum
from namm_jax.constraints.projection import gauss_newton_projection

TOTAL = function_rule(
    lambda x: jnp.abs(x.sum((1, 2, 3)) - 6), lambda x: (x.sum((1, 2, 3)) - 6)[:, None], name='total'
)
FLAT = function_rule(
    lambda x: jnp.abs(x[:, 1:] - x[:, :-1]).mean((1, 2, 3)),
    lambda x: x[:, 1:] - x[:, :-1],
    name='flat',
)
BOTH = weighted_sum({'sum': TOTAL, 'columns': FLAT}, {'columns': 2, 'sum': 0.5})
# Rows 0, 1, 3: a total of 8, and steps of 1 and 2. Ones: a total of 6, flat.
X = jnp.stack(
    [jnp.broadcast_to(jnp.asarray([0.0, 1.0, 3.0])[:, None, None], (3, 2, 1)), jnp.ones((3, 2, 1))]
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Level:
    """Images of one mean, which is a leaf."""

    level: jax.Array

    def given(self, x_ref):
        return Level(x_ref.mean())

    def residual(self, x):
        return x.mean((1, 2, 3))[:, None] - self.level

    def distance(self, x):
        return jnp.abs(self.residual(x))[:, 0]

    def terms(self, x):
        return {'level': self.distance(x)}


LEVELS = weighted_sum(
    {'low': Level(jnp.float32(1)), 'high': Level(jnp.float32(3))}, {'low': 2, 'high': 5}
)


def test_distance_is_weighed_and_terms_are_not():
    assert isinstance(BOTH, Constraint)
    np.testing.assert_allclose(BOTH.distance(X), [0.5 * 2 + 2 * 1.5, 0], atol=1e-6)
    chex.assert_trees_all_close(
        BOTH.terms(X), {'total': jnp.asarray([2.0, 0]), 'flat': jnp.asarray([1.5, 0])}
    )


def test_mean_residual_is_the_distance_whatever_the_number_of_entries():
    residual = BOTH.residual(X)
    chex.assert_shape(residual, (2, 1 + 4))
    np.testing.assert_allclose(jnp.abs(residual).mean(1), BOTH.distance(X), atol=1e-6)
    assert (residual[1] == 0).all()


def test_projection_lands_on_both_sets_at_the_nearest_point():
    x = jax.random.normal(jax.random.key(0), (3, 3, 2, 1))
    columns = x.mean(1, keepdims=True)  # the nearest flat image, which a shift keeps flat
    nearest = jnp.broadcast_to(
        columns + (6 - 3 * columns.sum((1, 2, 3), keepdims=True)) / 6, x.shape
    )
    uneven = weighted_sum({'sum': TOTAL, 'columns': FLAT}, {'sum': 1, 'columns': 10})
    projected, info = gauss_newton_projection(uneven.residual, x, tolerance=1e-5)
    np.testing.assert_allclose(projected, nearest, atol=1e-4)
    assert float(info['residual'].max()) <= 1e-5


def test_a_part_of_weight_zero_is_only_shown():
    shown = weighted_sum({'sum': TOTAL, 'columns': FLAT}, {'sum': 0, 'columns': 2})
    np.testing.assert_allclose(shown.distance(X), 2 * FLAT.distance(X), atol=1e-6)
    np.testing.assert_allclose(jnp.abs(shown.residual(X)).mean(1), shown.distance(X), atol=1e-6)
    assert shown.terms(X)['total'][0] == 2
    never = function_rule(lambda x: jnp.log(-x).sum((1, 2, 3)))  # NaN, and so its gradient
    beside = weighted_sum({'columns': FLAT, 'never': never}, {'columns': 2, 'never': 0})
    total = lambda rule: jax.value_and_grad(lambda x: rule.distance(x).sum())(X)
    alone = weighted_sum({'columns': FLAT}, {'columns': 2})
    jax.tree.map(np.testing.assert_array_equal, total(beside), total(alone))


def test_names_that_clash_take_that_of_their_part():
    x = jnp.full((1, 2, 2, 1), 2.0)
    assert {name: float(term[0]) for name, term in LEVELS.terms(x).items()} == {
        'low/level': 1,
        'high/level': 1,
    }
    assert set(weighted_sum({'one': LEVELS, 'two': TOTAL}, {'one': 1, 'two': 1}).terms(x)) == {
        'low/level',
        'high/level',
        'total',
    }
    level = Level(jnp.float32(1))
    twice = weighted_sum(
        {'low': level, 'again': level, 'both': LEVELS}, {'low': 1, 'again': 1, 'both': 1}
    )
    with pytest.raises(ValueError, match="two terms called 'low/level'.*rename a part"):
        twice.terms(x)


def test_parts_are_leaves_in_their_order_and_weights_are_not():
    assert [float(leaf) for leaf in jax.tree.leaves(LEVELS)] == [1, 3]
    assert jax.tree.map(lambda leaf: leaf, LEVELS).names == ('low', 'high')
    x = jnp.full((1, 2, 2, 1), 2.0)
    distance, gradient = jax.jit(
        jax.value_and_grad(lambda constraint, x: constraint.distance(x).sum())
    )(LEVELS, x)
    assert float(distance) == 2 * 1 + 5 * 1
    assert [float(leaf) for leaf in jax.tree.leaves(gradient)] == [-2, 5]


def test_reference_is_passed_to_the_parts_that_take_one():
    mixed = weighted_sum({'sum': TOTAL, 'level': Level(jnp.float32(0))}, {'sum': 1, 'level': 1})
    given = mixed.given(jnp.full((5, 2, 2, 1), 4.0))
    assert given.parts[0] is TOTAL and given.parts[1].level == 4
    assert mixed.parts[1].level == 0


@pytest.mark.parametrize(
    ('parts', 'weights', 'message'),
    [
        ({'sum': TOTAL}, {'total': 1}, r"weights of \['total'\] for \['sum'\].*same names"),
        ({}, {}, 'one part or more'),
        ({'sum': TOTAL}, {'sum': -1}, 'finite numbers >= 0'),
        ({'sum': TOTAL}, {'sum': float('nan')}, 'finite numbers >= 0'),
        ({'sum': TOTAL, 'columns': FLAT}, {'sum': 0, 'columns': 0}, 'not all 0'),
        (
            {'sum': jnp.sum},
            {'sum': 1},
            'sum: got .*expected a constraint; make one of a function by function_rule',
        ),
    ],
)
def test_sums_that_are_refused(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_sum(parts, weights)


def test_reference_distance_needs_its_batch():
    near = reference(lambda x, x_ref: jnp.abs(x - x_ref).mean((1, 2, 3)), 'near')
    assert isinstance(near, Constraint)
    for use in (near.distance, near.residual, near.terms):
        with pytest.raises(
            ValueError, match=r"'near': got no reference batch.*call given\(x_ref\)"
        ):
            use(X)
    given = near.given(X + jnp.asarray([1.0, 2.0])[:, None, None, None])
    np.testing.assert_allclose(given.distance(X), [1, 2], atol=1e-6)
    np.testing.assert_allclose(given.residual(X), [[1], [2]], atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(lambda constraint, x: constraint.terms(x)['near'])(given, X), [1, 2], atol=1e-6
    )
    assert near.x_ref is None and len(jax.tree.leaves(given)) == 1


def test_reference_distance_is_one_number_a_sample():
    with pytest.raises(ValueError, match=r"'whole': got shape \(\), expected .*\(2,\)"):
        reference(lambda x, x_ref: jnp.abs(x - x_ref).mean(), 'whole').given(X).distance(X)
