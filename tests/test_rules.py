"""Rules made of functions, and rules on standardised fields."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from namm_jax._arrays import Constraint
from namm_jax.constraints.base import function_rule, reference, rule, standardised, weighted_sum
from namm_jax.constraints.projection import gauss_newton_projection
from namm_jax.constraints.sets import box, simplex

# Rows of 1/2, 1/4, 1/8, 1/8, 0 and 0 in any order: they sum to 1 exactly.
ROWS = np.random.default_rng(0).permuted(
    np.tile(np.float32([1 / 2, 1 / 4, 1 / 8, 1 / 8, 0, 0]), (8, 4, 1)), axis=2
)
X = jnp.asarray(ROWS[..., None])
U = jax.random.normal(jax.random.key(0), (3, 4, 6, 2))
MEAN, SCALE = (3.0, -40.0), (0.5, 8.0)
UNITS = jnp.asarray(MEAN) + jnp.asarray(SCALE) * U


def rows(x):
    return jnp.mean(jnp.abs(x.sum(2) - 1), (1, 2))


def gaps(x):
    return x.sum(2) - 1


def test_a_function_is_a_constraint_with_its_name():
    constraint = function_rule(rows, name='rows')
    assert isinstance(constraint, Constraint) and jax.tree.leaves(constraint) == []
    x = X.at[0].add(0.5)  # six pixels a row
    np.testing.assert_allclose(constraint.distance(x), [3] + 7 * [0], atol=1e-6)
    chex.assert_trees_all_equal(constraint.terms(x), {'rows': constraint.distance(x)})
    chex.assert_trees_all_equal(constraint.residual(x), constraint.distance(x)[:, None])
    chex.assert_shape(function_rule(rows, gaps).residual(x), (8, 4, 1))


def test_of_a_residual_alone_the_distance_is_its_mean_size():
    constraint, x = function_rule(residual=gaps, name='gaps'), X.at[0].add(0.5)
    chex.assert_trees_all_equal(constraint.distance(x), rows(x))
    chex.assert_trees_all_equal(constraint.terms(x), {'gaps': rows(x)})
    chex.assert_trees_all_equal(constraint.residual(x), gaps(x))
    projected, _ = gauss_newton_projection(constraint.residual, x, tolerance=1e-6)
    np.testing.assert_allclose(projected, X, atol=1e-6)  # a plane: the shift is undone


def test_a_function_keeps_double_and_raises_half_precision():
    assert function_rule(rows).distance(X.astype(jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert function_rule(rows).distance(jnp.asarray(ROWS[..., None], jnp.float64)).dtype == (
            jnp.float64
        )


def test_one_function_is_compiled_once():
    traced = []

    @jax.jit
    def distance(constraint, x):
        traced.append(None)
        return constraint.distance(x)

    for constraint in (function_rule(rows), function_rule(rows)):
        distance(constraint, X)
    assert len(traced) == 1


def test_what_a_function_holds_of_arrays_is_a_leaf():
    constraint = function_rule(Partial(lambda total, x: jnp.abs(x.sum((1, 2, 3)) - total), 4.0))
    assert set(jax.tree.leaves(constraint)) == {4.0}
    slope = jax.grad(lambda constraint: constraint.distance(X + 1).sum())(constraint)
    assert sum(jax.tree.leaves(slope)) == -8


def test_functions_that_are_refused():
    with pytest.raises(
        ValueError, match=r"'own': got x of shape \(8, 4, 6, 1\), expected \(b, 6, 6, 1\)"
    ):
        function_rule(rows, shape=(6, 6, 1)).distance(X)
    with pytest.raises(
        ValueError, match=r"residual 'own': got shape \(8,\), expected .*\(8, ...\)"
    ):
        function_rule(rows, rows).residual(X)
    with pytest.raises(ValueError, match=r"residual 'own': got bool, expected .*no gradient"):
        function_rule(residual=lambda x: x > 0).distance(X)
    with pytest.raises(ValueError, match=r"distance 'own': got tuple, expected .*return one array"):
        function_rule(lambda x: (rows(x), x)).terms(X)
    with pytest.raises(ValueError, match=r'shape: got \(0, 6, 1\), .*each at least 1'):
        function_rule(rows, shape=(0, 6, 1))
    with pytest.raises(ValueError, match='name: got an empty one'):
        function_rule(rows, name='')
    for wrong in ((None, None), (3, None), (rows, 'gaps')):
        with pytest.raises(ValueError, match="'own': got a distance of type .*expected functions"):
            function_rule(*wrong)


def test_the_first_way_back_stays_the_first_in_a_tree():
    ways = {name: lambda x, name=name: (x, {name: jnp.int32(0)}) for name in ('second', 'first')}
    constraint = rule('r', gaps, restores=ways, terms={'z': rows, 'a': lambda x: 2 * rows(x)})
    for same in (constraint, jax.tree.map(lambda leaf: leaf, constraint)):
        assert list(same.restore(X)[1]) == ['second'] and list(same.terms(X)) == ['z', 'a']
        chex.assert_trees_all_close(same.distance(X + 1), 3 * rows(X + 1))


@pytest.mark.parametrize('constraint', [box(2.5, 3.0), function_rule(rows, gaps)])
def test_a_standardised_rule_is_the_rule_at_mean_and_scale(constraint):
    given = standardised(constraint, MEAN, np.asarray(SCALE))
    assert isinstance(given, Constraint)
    chex.assert_trees_all_equal(given.distance(U), constraint.distance(UNITS))
    chex.assert_trees_all_equal(given.terms(U), constraint.terms(UNITS))
    chex.assert_trees_all_equal(given.residual(U), constraint.residual(UNITS))
    leaf = jax.jit(lambda given, u: given.distance(u))(given, U)
    np.testing.assert_allclose(leaf, constraint.distance(UNITS), rtol=1e-5)
    one = standardised(constraint, 3.0, 2)
    chex.assert_trees_all_equal(one.distance(U), constraint.distance(3 + 2 * U))


def test_standardised_ways_back_are_exact_and_keep_what_obeys():
    constraint = standardised(box(-40.0, 3.0), MEAN, SCALE)
    back, info = constraint.restores['nearest'](U)
    assert info == {} and (back != U).any()
    np.testing.assert_array_equal(constraint.restore(U)[0], back)
    np.testing.assert_array_equal(constraint.restore(back)[0], back)
    np.testing.assert_allclose(constraint.distance(back), 0, atol=1e-6)
    inside = (UNITS >= -40) & (UNITS <= 3)
    np.testing.assert_array_equal(back[inside], U[inside])
    np.testing.assert_allclose(
        back,
        jnp.clip(U, *(((b - np.float32(MEAN)) / np.float32(SCALE)) for b in (-40, 3))),
        atol=1e-6,
    )
    total = standardised(simplex(6.0), 2.0, 0.25)
    np.testing.assert_allclose(total.distance(total.restore(1e4 * U)[0]), 0, atol=1e-4)
    assert not standardised(function_rule(rows), 2.0, 0.25).restores


def test_standardised_references_are_standardised_too():
    near = reference(lambda x, x_ref: jnp.abs(x - x_ref).mean((1, 2, 3)), 'near')
    both = weighted_sum({'near': near, 'rows': function_rule(rows)}, {'near': 1, 'rows': 0})
    for constraint in (near, both):
        given = standardised(constraint, 5.0, 2.0).given(U + 1.5)
        np.testing.assert_allclose(given.distance(U), 3.0, rtol=1e-5)
    plain = standardised(function_rule(rows), 5.0, 2.0)
    chex.assert_trees_all_equal(plain.given(U).distance(U), plain.distance(U))


def test_nothing_is_standardised_by_zero_and_one():
    constraint = function_rule(rows)
    for mean, scale in ((0.0, 1.0), (0, 1), ((0.0, 0.0), (1.0, 1.0))):
        assert standardised(constraint, mean, scale) is constraint
    for mean, scale in ((np.nan, 1.0), (0.0, 0.0), (0.0, (1.0, -2.0)), (0.0, np.inf)):
        with pytest.raises(ValueError, match=r'Got mean = .*expected finite ones, scale > 0'):
            standardised(constraint, mean, scale)
