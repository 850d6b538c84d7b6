"""Optimizers: one a network, going on from another's moments, and the directions that they take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.burgers import get_config
from namm_jax.experiment.build import optimizer_of as make_optimizer
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.networks.icnn import nonnegative_mask
from namm_jax.training.optimizers import MUON_RMS, continued, moments_of, muon, per_network


def test_each_network_has_its_own_optimizer():
    """Clipping by norm would couple them, were the networks one."""
    optimizers = {
        'forward': optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
        'inverse': optax.sgd(0.2),
    }
    params = {'forward': {'a': jnp.ones(3)}, 'inverse': {'b': jnp.ones(2), 'c': jnp.ones(())}}
    gradient = jax.tree.map(lambda leaf: 100 * leaf, params)
    together = per_network(optimizers)
    state, apart = (
        together.init(params),
        {name: optimizers[name].init(params[name]) for name in params},
    )
    for _ in range(3):
        updates, state = together.update(gradient, state, params)
        for name in params:
            expected, apart[name] = optimizers[name].update(
                gradient[name], apart[name], params[name]
            )
            assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), updates[name], expected))


def test_continued_optimizer_keeps_the_moments_and_starts_its_schedule_anew():
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = lambda: optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(schedule))
    params, gradient = {'w': jnp.ones(3)}, {'w': jnp.array([1.0, -2.0, 3.0])}
    state = optimizer().init(params)
    for _ in range(5):
        _, state = optimizer().update(gradient, state, params)
    moments = moments_of(state)
    assert len(moments) == 1 and int(moments[0].count) == 5
    further = continued(optimizer(), moments)
    start = further.init(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), moments_of(start), moments))
    update, _ = further.update({'w': jnp.zeros(3)}, start, params)
    stale, _ = optimizer().update({'w': jnp.zeros(3)}, state, params)
    np.testing.assert_allclose(
        update['w'], stale['w'] * 0.1 / 0.05, rtol=1e-5
    )  # the same direction; rates 0 and 5
    assert len(moments) == 1  # not used up


def test_nonnegative_weights_stay_so():
    params = {'nonnegative_0': jnp.full(3, 1e-4), 'input': jnp.full(3, 1e-4)}
    optimizer = make_optimizer(get_config('tiny').mirror.optimizer, 10, nonnegative_mask)
    state = optimizer.init(params)
    for _ in range(5):  # the gradient pushes all of them down
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        assert (params['nonnegative_0'] >= 0).all()
    assert (params['nonnegative_0'] == 0).all() and (params['input'] < 0).all()


def muon_of(gradient, steps=1):
    """Returns Muon's direction after so many steps with one gradient, negated gradients for what is
    no matrix.
    """
    direction = muon(optax.scale(-1.0))
    state = direction.init(gradient)
    for _ in range(steps):
        update, state = direction.update(gradient, state, gradient)
    return update


def test_muon_keeps_the_singular_vectors_and_makes_the_values_alike():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 8)))[0] for n in (40, 8))
    values = np.geomspace(1, 0.05, 8)
    update = muon_of({'w': jnp.asarray(u * values @ v.T, jnp.float32)})['w']
    rotated = u.T @ np.asarray(update, np.float64) @ v / (MUON_RMS * np.sqrt(40))
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-3)
    assert (0.6 < np.diag(rotated)).all() and (np.diag(rotated) < 1.3).all()


def test_muon_turns_with_the_gradient_and_does_not_see_its_scale():
    rng = np.random.default_rng(1)
    g, q = rng.normal(size=(6, 20)), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    update = muon_of({'w': jnp.asarray(g, jnp.float32)})['w']
    turned = muon_of({'w': jnp.asarray(100 * q @ g, jnp.float32)})['w']
    np.testing.assert_allclose(turned, q @ np.asarray(update), atol=2e-3)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(update))), MUON_RMS, rtol=0.2)


def test_muon_takes_a_convolution_for_a_matrix_and_leaves_the_rest_to_another():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    rest = {
        'bias': jnp.ones(5),
        'scale': jnp.ones(()),
        'row': jnp.ones((1, 5)),
        'column': jnp.ones((3, 3, 4, 1)),
    }
    update = muon_of({'kernel': kernel} | rest, steps=3)
    np.testing.assert_allclose(
        update['kernel'].reshape(36, 5),
        muon_of({'w': kernel.reshape(36, 5)}, steps=3)['w'],
        atol=1e-6,
    )
    for name, gradient in rest.items():
        np.testing.assert_array_equal(update[name], -gradient)


@pytest.mark.slow
def test_muon_goes_on_from_its_moments():
    """What continues from moments takes the step of what never stopped, once the schedule is
    constant.
    """
    section = get_config('tiny').mirror.optimizer
    section.update(name='muon', decay='constant', warmup=0.0)
    params = {'w': jax.random.normal(jax.random.key(0), (6, 4)), 'b': jnp.ones(4)}
    gradient = lambda k: jax.tree.map(lambda a: jnp.cos(k + a), params)
    first = make_optimizer(section, 10)
    state = first.init(params)
    for k in range(3):
        _, state = first.update(gradient(k), state, params)
    further = continued(make_optimizer(section, 10), moments_of(state))
    start = further.init(params)
    assert jax.tree.structure(start) == jax.tree.structure(state)
    never_stopped, _ = first.update(gradient(3), state, params)
    gone_on, _ = further.update(gradient(3), start, params)
    for a, b in zip(jax.tree.leaves(never_stopped), jax.tree.leaves(gone_on), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_moments_of_another_kind_are_refused():
    section, params = get_config('tiny').mirror.optimizer, {'w': jnp.ones((3, 3))}
    adam = moments_of(make_optimizer(section, 10).init(params))
    section.name = 'muon'
    with pytest.raises(ValueError, match='ScaleByAdamState.*MuonState'):
        continued(make_optimizer(section, 10), adam).init(params)
    section.name = 'moun'
    with pytest.raises(ValueError, match="optimizer.name.*'moun'.*muon"):
        make_optimizer(section, 10)


def test_muons_state_comes_back_from_disk_to_the_bit(tmp_path):
    section = get_config('tiny').mirror.optimizer
    section.name = 'muon'
    params = {'w': jax.random.normal(jax.random.key(0), (6, 4)), 'b': jnp.ones(4)}
    optimizer = make_optimizer(section, 10)
    _, state = optimizer.update(params, optimizer.init(params), params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored = checkpoints.restore(jax.eval_shape(lambda: state)).state
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
