"""Batches on devices; more than one device needs a process of its own, since JAX counts its devices once."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from namm_jax.train.sharding import batch_sharding, check_batch_size, make_mesh, put_batch, replicated

FOUR_DEVICES = """
import jax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 4)
import flax.linen as nn, numpy as np
from namm_jax.train.sharding import check_batch_size, make_mesh, put_batch, replicated

mesh = make_mesh()
batch = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype('float32')
put = put_batch(mesh, batch)
assert mesh.size == 4 and [shard.data.shape for shard in put.addressable_shards] == [(2, 4, 4, 1)] * 4
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
    done = subprocess.run([sys.executable, '-c', FOUR_DEVICES], env=environment, capture_output=True, text=True)
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
