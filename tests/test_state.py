"""The training step: averages, optimizers, and the same numbers on one device as on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.burgers import get_config
from namm_jax._arrays import Task
from namm_jax.experiment import build, devices
from namm_jax.experiment.build import optimizer_of as make_optimizer
from namm_jax.experiment.config import override
from namm_jax.experiment.devices import make_mesh, put_batch, replicated, shardings_of
from namm_jax.experiment.loop import make_train_step, make_validation
from namm_jax.networks.resnet import ResNet
from namm_jax.networks.unet import UNet
from namm_jax.training.optimizers import moments_of
from namm_jax.training.step import ema_decay, gradient_in_parts, init_state

STREAM = jax.random.key(7)


def tiny(**changes):
    """Returns a config smaller than `tiny`: 8x8 fields, a stepper that compiles fast."""
    small = {
        'data.points': 8,
        'data.states': 8,
        'data.stepper': 'forward_euler',
        'mirror.filters': 2,
    }
    with (config := get_config('tiny')).unlocked():
        return override(config, small | changes)


def noisy(params, frozen, key, batch, *, train):
    """The loss of a mean, with noise that depends on the step."""
    return jnp.mean((params['w'] - batch['x'] - jax.random.normal(key, batch['x'].shape)) ** 2), {}


def square(target=0.0):
    def loss(params, frozen, key, batch, *, train):
        value = jnp.mean((params['w'] - batch['x']) ** 2)
        return value, {'square': value}

    return loss


def test_ema_decay_warms_up():
    decay = functools.partial(ema_decay, decay=0.99)
    np.testing.assert_allclose(
        [decay(step=jnp.array(s)) for s in (0, 8, 10**6)], [0.1, 0.5, 0.99], rtol=1e-6
    )
    assert ema_decay(jnp.array(5), 0.0) == 0  # no average: the last weights themselves


@pytest.mark.parametrize('learning_rate', [0.0, 0.5])
def test_average_of_the_weights(learning_rate):
    task = Task(lambda key: {'w': jnp.full(3, 3.0)}, square(), optax.sgd(learning_rate))
    mesh = make_mesh()
    step = make_train_step(task, ema=0.999, mesh=mesh)
    state, batch = (
        jax.device_put(init_state(task, STREAM), replicated(mesh)),
        {'x': jnp.ones((8, 3))},
    )
    average = np.full(3, 3.0)
    for k in range(4):
        decay = min(0.999, (1 + k) / (10 + k))
        state, terms = step(state, (), STREAM, put_batch_tree(mesh, batch))
        average = decay * average + (1 - decay) * np.asarray(state.params['w'])
        np.testing.assert_allclose(state.ema['w'], average, rtol=1e-6)
    assert int(state.step) == 4 and set(terms) == {'square', 'loss', 'gradient_norm'}
    if not learning_rate:
        np.testing.assert_allclose(state.ema['w'], 3.0, rtol=1e-6)
        np.testing.assert_allclose(
            [terms['loss'], terms['gradient_norm']], [4.0, 4 / 3**0.5], rtol=1e-6
        )


def put_batch_tree(mesh, batch):
    return jax.tree.map(lambda array: put_batch(mesh, np.asarray(array)), batch)


@functools.cache
def batch_of(shape):
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    return {'x': x, 'z': 0.9 * x + 0.05}


def make_tasks():
    config = tiny()
    constraint = build.make_constraint(config)
    mirror = build.mirror_task(config, 4, constraint)
    params = mirror.init(jax.random.key(1))
    moments = moments_of(mirror.optimizer.init(params)['inverse'])
    return {
        'mirror': mirror,
        'finetune': build.finetune_task(config, 4, constraint, 1.0, params, moments),
        'denoising': build.denoising_task(config, 4, 0.1, 1.1),
    }


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mirror', 'denoising'])
def test_eight_devices_take_the_steps_of_one(name, monkeypatch):
    monkeypatch.setattr(devices, 'SMALL', 0)
    assert len(jax.devices()) == 8
    # Gradient descent: Adam would make whole steps out of the rounding of gradients that are 0.
    task = make_tasks()[name]._replace(optimizer=optax.sgd(0.1))
    batch, results = batch_of((8, 8, 1)), []
    for mesh in (make_mesh(jax.devices()[:1]), make_mesh()):
        shardings = shardings_of(init_state(task, jax.random.key(0)), mesh, ('kernel$=largest',))
        split = [place for place in jax.tree.leaves(shardings) if not place.is_fully_replicated]
        assert len(split) >= (2 if mesh.size > 1 else 0)  # of parameters and their average
        step = make_train_step(task, ema=0.9, mesh=mesh, shardings=shardings)
        state = jax.device_put(init_state(task, jax.random.key(0)), shardings)
        frozen = jax.device_put(task.frozen, replicated(mesh))
        history = []
        for _ in range(2):
            state, terms = step(state, frozen, STREAM, put_batch_tree(mesh, batch))
            history.append(terms)
        results.append(jax.device_get((state, history)))
    one, eight = map(jax.tree.leaves, results)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_steps_follow_the_stream():
    """The same state, batch and stream give the same step to the bit; another step number, another
    noise.
    """

    def loss(params, frozen, key, batch, *, train):
        return params['w'] * jax.random.normal(key), {}

    task, mesh, losses = (
        Task(lambda key: {'w': jnp.ones(())}, loss, optax.sgd(0.0)),
        make_mesh(),
        [],
    )
    step = make_train_step(task, ema=0.9, mesh=mesh)
    for k in (0, 0, 1):
        start = init_state(task, STREAM)
        state = jax.device_put(start._replace(step=jnp.array(k, jnp.int32)), replicated(mesh))
        losses.append(
            float(step(state, (), STREAM, put_batch_tree(mesh, {'x': np.ones((8, 1))}))[1]['loss'])
        )
    keys = [jax.random.fold_in(jax.random.fold_in(STREAM, k), 0) for k in (0, 0, 1)]
    assert losses == [float(jax.random.normal(key)) for key in keys]


@pytest.mark.parametrize('devices', [1, 4])
def test_parts_of_a_batch_take_its_step(devices):
    task = Task(lambda key: {'w': jnp.zeros(3)}, square(), optax.sgd(0.5))
    mesh, batch = (
        make_mesh(jax.devices()[:devices]),
        {'x': np.random.default_rng(0).normal(size=(8, 3))},
    )
    results = []
    for parts in (1, 2):
        step = make_train_step(task, ema=0.9, mesh=mesh, parts=parts)
        state = jax.device_put(init_state(task, STREAM), replicated(mesh))
        results.append(jax.device_get(step(state, (), STREAM, put_batch_tree(mesh, batch))))
    for whole, split in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(whole, split, rtol=1e-6)


def test_parts_have_noise_of_their_own():
    gradient = gradient_in_parts(
        lambda params, frozen, key, batch, *, train: (jax.random.normal(key), {}), 4
    )
    (mean, _), _ = gradient({'w': jnp.zeros(())}, (), STREAM, {'x': jnp.zeros((8, 1))})
    draws = [jax.random.normal(jax.random.fold_in(STREAM, i)) for i in range(4)]
    np.testing.assert_allclose(mean, np.mean(draws), rtol=1e-6)
    assert len(set(map(float, draws))) == 4


def test_finetuning_leaves_the_forward_map_out():
    task = make_tasks()['finetune']
    shapes = jax.eval_shape(task.init, STREAM)
    assert set(shapes) == {'inverse'} and set(task.frozen['params']) == {'forward'}


def test_half_precision_keeps_the_state_in_single():
    changes = {'train.compute_dtype': 'bfloat16'}
    mesh, config = make_mesh(jax.devices()[:1]), tiny(**changes)
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), {'x': batch_of((8, 8, 1))['x']}
    )
    mirror = build.mirror_task(config, 4, build.make_constraint(config))
    for task in (mirror, build.denoising_task(config, 4, 0.0, 1.0)):
        state = jax.eval_shape(lambda task=task: init_state(task, jax.random.key(0)))
        after, terms = jax.eval_shape(
            make_train_step(task, ema=0.9, mesh=mesh), state, task.frozen, STREAM, batch
        )
        floats = jax.tree.leaves((after.params, after.ema, moments_of(after.opt_state), terms))
        assert {leaf.dtype for leaf in floats} <= {jnp.dtype('float32'), jnp.dtype('int32')}


def test_validation_is_the_loss_without_dropout():
    def loss(params, frozen, key, batch, *, train):
        value = jnp.mean(params['w'] * batch['x']) + frozen['shift'] + (jnp.inf if train else 0.0)
        return value, {'term': 2 * value}

    task = Task(lambda key: {'w': jnp.ones(())}, loss, optax.sgd(0.1), {'shift': jnp.array(0.5)})
    mesh = make_mesh()
    terms = make_validation(task, mesh=mesh)(
        task.init(STREAM), task.frozen, STREAM, put_batch_tree(mesh, {'x': jnp.ones((8, 2))})
    )
    assert {name: float(value) for name, value in terms.items()} == {'loss': 1.5, 'term': 3.0}


@pytest.mark.slow
@pytest.mark.parametrize('network', ['unet', 'resnet'])
def test_remat_changes_no_value_and_no_name(network):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    build = {
        'unet': functools.partial(UNet, channels=(8,), norm='none'),
        'resnet': functools.partial(ResNet, (4,), 1),
    }
    found = []
    for remat in (False, True):
        net = build[network](remat=remat)
        params = jax.jit(net.init)(jax.random.key(1), x)
        params = jax.tree.map(
            lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
        )
        loss = lambda params, net=net: jnp.mean(
            (net.apply(params, x, train=True, rngs={'dropout': STREAM}) - 1) ** 2
        )
        found.append(jax.jit(jax.value_and_grad(loss))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_accumulated_batches_are_one_large_batch():
    """Twice the batches of 4 with their gradients averaged, and half as many batches of 8: the same
    parameters.
    """
    data = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32)
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        config = tiny(**{'score.optimizer.accumulate': accumulate}).score.optimizer
        batches = data.reshape(-1, size, 3)
        optimizer = make_optimizer(config, len(batches))
        loss = lambda params, frozen, key, batch, *, train: (
            jnp.mean((params['w'] - batch['x']) ** 2),
            {},
        )
        task = Task(lambda key: {'w': jnp.zeros(3)}, loss, optimizer)
        state, mesh = init_state(task, jax.random.key(0)), make_mesh(jax.devices()[:1])
        step = make_train_step(task, ema=0.5 ** (1 / accumulate), mesh=mesh)
        for batch in batches:
            state, _ = step(state, (), jax.random.key(1), {'x': batch})
        found.append(state.params['w'])
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert float(jnp.abs(found[0]).max()) > 1e-4


def test_steps_in_one_call_are_those_of_many_calls():
    task = Task(lambda key: {'w': jax.random.normal(key, (3,))}, noisy, optax.adam(0.1))
    mesh, data, results = (
        make_mesh(),
        np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32),
        [],
    )
    for steps in (1, 3):
        step, history = make_train_step(task, ema=0.9, mesh=mesh, steps=steps), []
        state = jax.device_put(init_state(task, jax.random.key(0)), replicated(mesh))
        for batches in data.reshape(-1, steps, 8, 3):
            batch = put_batch(mesh, batches if steps > 1 else batches[0], stacked=steps > 1)
            state, terms = step(state, (), STREAM, {'x': batch})
            history += np.atleast_1d(terms['loss']).tolist()
        results.append((jax.device_get(state), history))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)
