"""Batches on devices; more than one device needs a process of its own, since JAX counts its devices
once.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from namm_jax.experiment.devices import (
    batch_sharding,
    check_batch_size,
    describe,
    first_devices,
    make_mesh,
    put,
    put_batch,
    replicated,
    rules_of,
    shardings_of,
    spec_of,
    whole,
)

FOUR_DEVICES = """
import jax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 4)
import flax.linen as nn, numpy as np
from namm_jax.experiment.devices import check_batch_size, make_mesh, put_batch, replicated

mesh = make_mesh()
batch = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype('float32')
put = put_batch(mesh, batch)
assert mesh.size == 4
assert [shard.data.shape for shard in put.addressable_shards] == [(2, 4, 4, 1)] * 4
assert (np.asarray(put) == batch).all()
net = nn.Conv(2, (3, 3))
params = jax.device_put(net.init(jax.random.key(0), batch), replicated(mesh))
out = jax.jit(net.apply)(params, put)  # an Explicit mesh would refuse the convolution
assert len(out.addressable_shards) == 4 and out.addressable_shards[0].data.shape == (2, 4, 4, 2)
np.testing.assert_allclose(out, net.apply(jax.device_get(params), batch), atol=1e-6)
for size in (6, 0):
    try:
        check_batch_size(mesh, size)
    except ValueError as error:
        assert f'got batch size {size} for 4 devices' in str(error)
    else:
        raise AssertionError('accepted')
"""


def test_four_devices():
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(
        [sys.executable, '-c', FOUR_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_one_device():
    mesh = make_mesh(jax.devices()[:1])
    assert mesh.axis_names == ('data',) and set(mesh.axis_types) == {AxisType.Auto}
    batch = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    put = put_batch(mesh, batch)
    assert (np.asarray(put) == batch).all() and put.sharding == batch_sharding(mesh)
    assert jax.device_put(batch, replicated(mesh)).is_fully_replicated


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match='got no devices'):
        make_mesh([])
    with pytest.raises(ValueError, match='got batch size 0 for 1 devices'):
        check_batch_size(make_mesh(jax.devices()[:1]), 0)


@pytest.mark.parametrize(
    ('shape', 'rules', 'expected'),
    [
        ((8, 6), ('.*=whole',), ()),
        ((3, 256, 128), ('.*=largest',), (None, 'data', None)),
        ((3, 129, 512), ('.*=largest',), (None, None, 'data')),
        ((127, 129), ('.*=largest',), ()),  # nothing that 4 divides
        ((4, 8), ('.*=largest',), ()),  # small
        (
            (4, 6),
            ('other=data,-', 'kernel$=data,-', '.*=whole'),
            ('data', None),
        ),  # the first that is found
        ((4, 6), ('^ema/=-,data', '.*=whole'), ()),
        ((4, 6), (), ()),
    ],
)
def test_rules_say_what_is_split(shape, rules, expected):
    assert tuple(spec_of('params/Conv_0/kernel', shape, rules, 4)) == expected


@pytest.mark.parametrize('rule', ['kernel=data', 'kernel=-,data'])
def test_rule_that_does_not_fit_is_refused(rule):
    with pytest.raises(ValueError, match=r'for params/kernel of shape \(4, 6\) on 4 devices'):
        spec_of('params/kernel', (4, 6), (rule,), 4)


@pytest.mark.parametrize(
    'rule', ['kernel', '=whole', 'kernel=model', 'kernel=data,data', 'kernel=-,-', '(=whole']
)
def test_malformed_rules_are_refused(rule):
    with pytest.raises(ValueError, match='sharding.rules'):
        rules_of('fsdp', (rule,))


def test_rules_of_a_config():
    assert rules_of('fsdp', ('a=whole',)) == ('a=whole', '.*=largest')
    with pytest.raises(ValueError, match='replicated'):
        rules_of('zero', ())


def test_description_counts_bytes():
    mesh = make_mesh(jax.devices()[:4])
    tree = {'a': np.zeros((8, 250), np.float32), 'b': np.zeros(500, np.float32)}
    line = describe(put(tree, shardings_of(tree, mesh, ('a=data,-', '.*=whole'))))
    assert line == '0.004 of 0.01 MB of the state on each of 4 devices, 1 of its 2 arrays split'


def test_split_arrays_come_back_whole():
    mesh = make_mesh(jax.devices()[:4])
    tree = {'a': np.arange(24, dtype=np.float32).reshape(8, 3), 'b': np.float32(2)}
    places = shardings_of(tree, mesh, ('a=data,-', '.*=whole'))
    there = put(tree, places)
    assert [shard.data.shape for shard in there['a'].addressable_shards] == [(2, 3)] * 4
    back = whole(there, mesh)
    assert all((np.asarray(back[name]) == tree[name]).all() for name in tree)
    assert back['a'].is_fully_replicated


def test_devices_of_each_process():
    assert first_devices(0) == jax.devices() and first_devices(3) == jax.devices()[:3]
    for each in (-1, 9):
        with pytest.raises(
            ValueError,
            match=f'got {each} where the processes have .8. devices, expected 1 to 8, or 0',
        ):
            first_devices(each)


def test_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(
        ValueError, match='got batch size 6 for 4 devices.* the nearest are 4 or 8;'
    ):
        check_batch_size(make_mesh(jax.devices()[:4]), 6)
