"""Rules on linear functions and on order: their projections, against other ways there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import namm_jax as nj
from namm_jax import __main__ as program
from namm_jax.experiment.own import load_function

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 4, 5, 2)), jnp.float32)
A = RNG.normal(size=(6, 4, 5, 2))
B = RNG.normal(size=6)


def nearest(rule, x=X):
    """Returns the nearest points, after checking that they obey, and that they are left as is."""
    back, _ = jax.jit(rule.restores['nearest'])(x)
    assert float(rule.distance(back).max()) < 1e-5
    np.testing.assert_allclose(rule.restores['nearest'](back)[0], back, atol=1e-6)
    return np.asarray(back)


@pytest.mark.parametrize('copies', [1, 2])  # twice the same equations: a matrix without full rank
def test_equations_are_met_at_the_nearest_point(copies):
    rule = nj.rules.equal(np.concatenate(copies * [A]), np.tile(B, copies))
    gap = np.einsum('bhwc,mhwc->bm', X, A) - B
    np.testing.assert_allclose(rule.distance(X), np.abs(gap).mean(1), rtol=1e-5)
    flat = A.reshape(6, -1)
    moves = np.linalg.lstsq(flat, gap.T, rcond=None)[0].T  # of least norm
    np.testing.assert_allclose(nearest(rule), X - moves.reshape(X.shape), atol=1e-5)


def test_the_projection_is_that_of_gauss_newton():
    rule = nj.rules.equal(A, B)
    near, _ = nj.project_onto(rule, X, tolerance=1e-6, cg_tolerance=1e-3)
    np.testing.assert_allclose(nearest(rule), near, atol=1e-4)


@pytest.mark.slow
def test_inequalities_at_right_angles_have_a_nearest_point():
    normals = np.zeros((2, 4, 5, 2))
    normals[0, 0, 0], normals[1, 1, 1] = [3, 4], [0, 2]
    rule = nj.rules.at_most(normals, np.array([-10.0, 1.0]))
    x = X.at[0, 0, 0].set([1, 2]).at[0, 1, 1].set([7, 3])
    back = nearest(rule, x)
    # (1, 2) lies (3 + 8 + 10) / 5 beyond the line 3 a + 4 b = -10, of unit normal (0.6, 0.8).
    np.testing.assert_allclose(back[0, 0, 0], [1 - 4.2 * 0.6, 2 - 4.2 * 0.8], atol=1e-5)
    np.testing.assert_allclose(back[0, 1, 1], [7, 0.5], atol=1e-6)
    assert (back[0, 2:] == x[0, 2:]).all()
    assert not nj.rules.at_most(A, B).restores, 'there is no formula for those'


@pytest.mark.parametrize(('axis', 'count'), [((1, 2, 3), 40), (2, 5), ((1, 2), 20)])
def test_sums_are_met_by_the_same_to_each(axis, count):
    back = nearest(nj.rules.sum_to(3.0, axis))
    np.testing.assert_allclose(back.sum(axis), 3, rtol=1e-5)
    move = back - X
    np.testing.assert_allclose(
        move, np.broadcast_to(move.mean(axis, keepdims=True), X.shape), atol=1e-6
    )
    assert nj.rules.sum_to(3.0, axis).residual(X)[0].size == 40 // count


def pooled(line):
    """Returns the isotonic regression of a line, by pooling neighbours that fall."""
    blocks = []
    for value in line:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])


@pytest.mark.parametrize('increasing', [True, False])
@pytest.mark.parametrize('axis', [1, 2])
def test_monotone_lines_are_those_of_pooling(axis, increasing):
    x = X + np.float32(100)
    sign = 1 if increasing else -1
    expected = sign * np.apply_along_axis(pooled, axis, sign * np.asarray(x, np.float64))
    np.testing.assert_allclose(
        nearest(nj.rules.monotone(axis, increasing=increasing), x), expected, rtol=1e-6
    )


def test_a_rule_of_one_sample_is_one_of_a_batch():
    one = lambda x: jnp.abs(x.sum() - 3)
    np.testing.assert_allclose(nj.rules.each(one)(X), [one(x) for x in X], rtol=1e-6)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (
            lambda: nj.rules.equal(A[0], 1.0),
            r'Got A of shape \(4, 5, 2\) .* expected .*\(m, h, w, c\)',
        ),
        (lambda: nj.rules.equal(A, B[:2]), r'b of shape \(2,\)'),
        (lambda: nj.rules.equal(np.stack([A[0], A[0]]), np.arange(2.0)), 'contradict each other'),
        (lambda: nj.rules.at_most(A, np.nan), 'expected finite ones'),
        (lambda: nj.rules.sum_to(1.0, 0), 'sum_to: got axis 0'),
        (lambda: nj.rules.monotone(-1), 'monotone: got axis -1'),
    ],
)
def test_rules_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


FILE = """
import namm_jax as nj
import numpy as np

def in_numpy(x):
    x = np.asarray(x)
    return np.abs(np.sqrt((x**2).sum((1, 2, 3))) - 1)

ROWS = nj.rules.sum_to(0.0, axis=2)
BOTH = nj.weighted_sum({'rows': ROWS, 'rise': nj.rules.monotone(1)}, {'rows': 1.0, 'rise': 0.5})
"""


def test_a_file_may_hold_a_rule_with_its_way_back(tmp_path):
    (tmp_path / 'file.py').write_text(FILE)
    x = RNG.normal(size=(64, 4, 6, 1)).astype(np.float32)
    x = jnp.asarray(x - x.mean(2, keepdims=True))
    own = nj.problem(x, distance=load_function(f'{tmp_path}/file.py:ROWS'))
    np.testing.assert_allclose(own.constraint().restore(x + 1)[0], x, atol=1e-6)
    both = load_function(f'{tmp_path}/file.py:BOTH')
    found = nj.problem(x, distance=both).distance(x)
    np.testing.assert_allclose(
        found, 0.5 * np.maximum(-np.diff(x, axis=1), 0).mean((1, 2, 3)), rtol=1e-4
    )


def test_a_rule_in_numpy_is_measured_and_not_trained(tmp_path, capsys):
    (tmp_path / 'file.py').write_text(FILE)
    np.save(tmp_path / 'x.npy', np.asarray(X))
    rule = f'--config.constraint.distance={tmp_path}/file.py:in_numpy'
    assert program.main(['evaluate', 'own:tiny', f'--samples={tmp_path}/x.npy', rule]) == 0
    told = capsys.readouterr()
    assert 'the rule is in NumPy' in told.err
    expected = np.abs(np.linalg.norm(X.reshape(3, -1), axis=1) - 1)
    np.testing.assert_allclose(eval(told.out)['per_sample'], expected, rtol=1e-5)
    with pytest.raises(ValueError, match='no NumPy or SciPy: take jax.numpy'):
        nj.problem(X, distance=load_function(f'{tmp_path}/file.py:in_numpy'))


EVERY = {
    'equal': nj.rules.equal(A, B),
    'at_most': nj.rules.at_most(A, B),
    'sum_to': nj.rules.sum_to(1.0, axis=2),
    'sum_to_all': nj.rules.sum_to(3.0),
    'monotone': nj.rules.monotone(1),
    'box': nj.rules.box(0.0, 1.0),
    'ball': nj.rules.ball(2.0),
    'simplex': nj.rules.simplex(3.0),
    'mass_below': nj.rules.mass_below(0.1),
}
EVERY['sum'] = nj.weighted_sum({'a': EVERY['sum_to'], 'b': EVERY['box']}, {'a': 1.0, 'b': 2.0})


@pytest.mark.parametrize('name', EVERY)
def test_a_rule_is_an_argument_of_a_compiled_function(name):
    rule, x = EVERY[name], jnp.asarray(RNG.normal(size=(3, *A.shape[1:])), jnp.float32)
    assert float(rule.distance(x).max()) > 0
    ways = {'distance': lambda rule, x: rule.distance(x)}
    ways['residual'] = lambda rule, x: rule.residual(x)
    if getattr(rule, 'restores', {}):
        ways['restore'] = lambda rule, x: rule.restore(x)[0]
    for way in ways.values():
        np.testing.assert_allclose(jax.jit(way)(rule, x), way(rule, x), rtol=1e-5, atol=1e-6)


def test_a_sum_of_rules_is_measured(tmp_path, capsys):
    (tmp_path / 'file.py').write_text(FILE)
    np.save(tmp_path / 'x.npy', np.asarray(X))
    rule = f'--config.constraint.distance={tmp_path}/file.py:BOTH'
    assert program.main(['evaluate', 'own:tiny', f'--samples={tmp_path}/x.npy', rule]) == 0
    expected = nj.rules.sum_to(0.0, axis=2).distance(X) + 0.5 * nj.rules.monotone(1).distance(X)
    told = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(told['per_sample'], expected, rtol=1e-5)
