"""Periodic textures and their constraint: the stated covariance, exact repetition, known distances,
nearest points.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import Constraint
from namm_jax.problems.periodic_textures import Textures

PROBLEM = Textures(points=32)
EIGHT = Textures(points=8).constraint()
NINE = Textures(points=9, tiles=3).constraint()
SAMPLE = jax.jit(PROBLEM.fields)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def tiled(tile, tiles):
    return jnp.tile(tile, (1, tiles, tiles, 1))


def constant_quadrants(*values):
    return jnp.kron(jnp.array(values, jnp.float32).reshape(2, 2), jnp.ones((4, 4)))[
        None, :, :, None
    ]


@pytest.fixture(scope='module')
def tiles():
    keys = jax.random.split(jax.random.key(0), 1000)
    return np.asarray(jax.jit(PROBLEM.gaussian_tiles)(keys))


# exp(-2 (sin^2(pi r / 15) + sin^2(pi c / 15)) / 0.49), by hand
@pytest.mark.parametrize(
    ('rows', 'columns', 'correlation'),
    [
        (0, 0, 1),
        (2, 0, 0.509),
        (0, 2, 0.509),
        (2, 2, 0.259),
        (13, 0, 0.509),
        (5, 0, 0.047),
        (7, 7, 0),
    ],
)
def test_tiles_have_the_stated_covariance(tiles, rows, columns, correlation):
    centred = tiles[:, :15, :15] - 0.5
    covariance = np.mean(centred * np.roll(centred, (rows, columns), (1, 2)))
    assert covariance / 0.49**2 == pytest.approx(correlation, abs=0.04)


def test_tiles_have_mean_one_half_and_repeat_their_first_row_and_column(tiles):
    assert tiles.shape == (1000, 16, 16)
    assert tiles.mean() == pytest.approx(0.5, abs=0.025)
    np.testing.assert_array_equal(tiles[:, -1], tiles[:, 0])
    np.testing.assert_array_equal(tiles[:, :, -1], tiles[:, :, 0])


def test_textures_are_binary_and_repeat():
    x = np.asarray(SAMPLE(jax.random.split(jax.random.key(1), 32)))
    assert x.shape == (32, 32, 32, 1) and x.dtype == np.float32
    assert set(np.unique(x)) == {0, 1}
    assert x.mean() == pytest.approx(0.5, abs=0.15)
    for axis in (1, 2):
        np.testing.assert_array_equal(np.roll(x, 16, axis), x)
        np.testing.assert_array_equal(x.take(15, axis), x.take(16, axis))
    assert float(PROBLEM.distance(jnp.asarray(x)).max()) == 0


def test_the_standard_deviation_does_not_matter_after_the_threshold():
    keys = jax.random.split(jax.random.key(2), 8)
    other = Textures(points=32, std=0.1).fields(keys)
    assert float((other != PROBLEM.fields(keys)).mean()) < 1e-3


def test_texture_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(3), 32)
    together = SAMPLE(keys)
    others = SAMPLE(jax.random.split(jax.random.key(4), 32).at[2].set(keys[2]))
    chex.assert_trees_all_equal(others[2], together[2])
    chex.assert_trees_all_equal(SAMPLE(keys[::-1]), together[::-1])
    assert (others[3] != together[3]).any() and (together[0] != together[1]).any()


def test_textures_need_a_vector_of_typed_keys():
    for keys in (jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match='expected one typed key a sample'):
            PROBLEM.fields(keys)


def test_tile_sizes():
    assert Textures().cell == (32, 32)
    assert PROBLEM.cell == Textures(points=48, tiles=3).cell == (16, 16)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ({'points': 9, 'tiles': 2}, 'points = 9 and tiles = 2'),
        ({'points': 33}, 'points = 33 and tiles = 2, expected a multiple of 2'),
        ({'points': 4}, 'at least 6'),
        ({'tiles': 1}, 'tiles: got 1, expected at least 2'),
        ({'correlation': 0.0}, 'correlation: got 0.0'),
        ({'std': -1.0}, 'std: got -1.0'),
    ],
)
def test_texture_problem_errors(setting, message):
    with pytest.raises(ValueError, match=message):
        Textures(**setting)


def test_periodic_is_a_constraint_without_leaves():
    assert isinstance(EIGHT, Constraint)
    assert jax.tree.leaves(EIGHT) == []
    x = normal(0, 3, 8, 8, 1)
    chex.assert_shape(EIGHT.residual(x), (3, 8, 8, 1))
    chex.assert_trees_all_equal(EIGHT.terms(x), {'periodic': EIGHT.distance(x)})


@pytest.mark.parametrize(
    ('values', 'distance'),
    [
        ((0, 0, 0, 1), 1.5),
        ((0, 1, 0, 0), 1.5),
        ((0, 0, 1, 1), 2),
        ((0, 1, 1, 0), 2),
        ((3, 3, 3, 3), 0),
    ],
)
def test_distances_of_constant_quadrants(values, distance):
    assert EIGHT.distance(constant_quadrants(*values)).tolist() == [distance]


def test_distance_with_one_of_nine_tiles_different():
    # 8 of the pairs differ by 1, and the distance is 2/9 of the sum over pairs.
    x = jnp.zeros((1, 9, 9, 1)).at[:, 3:6, 6:9].set(1)
    np.testing.assert_allclose(NINE.distance(x), [16 / 9], rtol=1e-6)


def test_distance_is_the_sum_over_tiles_of_the_mean_difference_from_the_repeated_tile():
    x = normal(1, 2, 9, 9, 1)
    corners = [(i, j) for i in (0, 3, 6) for j in (0, 3, 6)]
    means = [jnp.abs(x - tiled(x[:, i : i + 3, j : j + 3], 3)).mean((1, 2, 3)) for i, j in corners]
    np.testing.assert_allclose(NINE.distance(x), sum(means), rtol=1e-5)


def test_residual_and_restores_are_exact_on_the_set():
    # A third has no exact binary form: a plain mean of nine equal numbers need not be that number.
    x = tiled(normal(2, 20, 3, 3, 1) / 3, 3)
    assert float(NINE.distance(x).max()) == 0
    assert float(jnp.abs(NINE.residual(x)).max()) == 0
    for restore in NINE.restores.values():
        restored, info = restore(x)
        chex.assert_trees_all_equal(restored, x)
        assert info == {}


@pytest.mark.parametrize('name', ['mean', 'median', 'copy'])
def test_restored_fields_are_periodic(name):
    restored, _ = EIGHT.restores[name](normal(3, 4, 8, 8, 1))
    assert float(EIGHT.distance(restored).max()) == 0
    assert float(restored.std()) > 0.1


def test_the_default_restore_is_the_nearest_point():
    x = normal(4, 4, 8, 8, 1)
    assert list(EIGHT.restores) == ['mean', 'median', 'copy']
    restored, _ = EIGHT.restore(x)
    chex.assert_trees_all_equal(restored, EIGHT.restores['mean'](x)[0])
    through = jax.jit(lambda constraint, x: constraint.restore(x)[0])(EIGHT, x)
    np.testing.assert_allclose(through, restored, atol=1e-6)
    # The set is a linear space: nearest is what leaves a rest orthogonal to it, of sum 0 over the
    # tiles.
    rest = (x - restored).reshape(4, 2, 4, 2, 4)
    np.testing.assert_allclose(rest.sum((1, 3)), 0, atol=1e-6)


def test_median_is_nearest_in_l1_and_undoes_a_change_of_one_tile():
    x = normal(5, 4, 8, 8, 1)
    restored, _ = EIGHT.restores['median'](x)
    cost = lambda tile: jnp.abs(x - tiled(tile, 2)).reshape(4, 2, 4, 2, 4).sum((1, 3))
    # The least sum of distances to four numbers is attained at one of them.
    least = jnp.min(
        jnp.stack([cost(x[:, i : i + 4, j : j + 4]) for i in (0, 4) for j in (0, 4)]), 0
    )
    np.testing.assert_allclose(cost(restored[:, :4, :4]), least, atol=1e-6)
    binary = tiled((normal(6, 4, 4, 4, 1) > 0).astype(jnp.float32), 2)
    changed = binary.at[:, 4:, :4].set(1 - binary[:, 4:, :4])
    chex.assert_trees_all_equal(EIGHT.restores['median'](changed)[0], binary)


def test_copy_keeps_the_first_tile():
    x = normal(7, 4, 8, 8, 1)
    chex.assert_trees_all_equal(EIGHT.restores['copy'](x)[0], tiled(x[:, :4, :4], 2))


def test_periodic_keeps_double_and_raises_half_precision():
    x = normal(8, 1, 8, 8, 1)
    assert EIGHT.distance(x.astype(jnp.bfloat16)).dtype == jnp.float32
    assert EIGHT.residual(x.astype(jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        double = jnp.asarray(np.asarray(x), jnp.float64)
        assert EIGHT.distance(double).dtype == EIGHT.residual(double).dtype == jnp.float64


def test_periodic_errors():
    with pytest.raises(ValueError, match=r'Got x of shape \(2, 8, 6, 1\), expected \(b, 8, 8, 1\)'):
        jax.eval_shape(EIGHT.distance, jnp.zeros((2, 8, 6, 1)))
    with pytest.raises(ValueError, match=r'Got x of shape \(2, 8, 8, 2\)'):
        jax.eval_shape(EIGHT.residual, jnp.zeros((2, 8, 8, 2)))


def test_equal_problems_compile_once():
    traces = []

    @jax.jit
    def distance(constraint, x):
        traces.append(None)
        return constraint.distance(x)

    x = normal(9, 2, 8, 8, 1)
    distance(EIGHT, x)
    distance(Textures(points=8).constraint(), x)
    distance(Textures(points=8, std=1.0).constraint(), x)
    assert len(traces) == 2, 'one for each of two problems'
