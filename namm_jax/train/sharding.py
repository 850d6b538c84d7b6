"""Devices as data: a one-dimensional mesh, the two shardings that training uses, and batches on devices.

The batch is split over the mesh's only axis, `data`; parameters are replicated. `jax.jit` does the rest.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh `('data',)` over the devices (default: all devices of all processes).

    Args:
        devices: devices, those of a process next to each other.
    """
    devices = jax.devices() if devices is None else devices
    if not len(devices):
        raise ValueError('got no devices, expected at least one; leave `devices` out to use all')
    # Auto: with Explicit axes, which jax.make_mesh defaults to, Flax's convolutions ask for output shardings.
    return Mesh(np.asarray(devices), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a whole copy on each device: parameters, optimizer state, frozen arrays."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis evenly over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raises unless the global batch splits evenly over the mesh.

    Raises:
        ValueError: if `batch_size` is not a positive multiple of the number of devices.
    """
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f'got batch size {batch_size} for {mesh.size} devices, expected a positive multiple of {mesh.size}; '
            'change the batch size, or use fewer devices'
        )


def put_batch(mesh: Mesh, array: Shaped[np.ndarray, 'local ...']) -> Shaped[Array, 'b ...']:
    """Returns the global batch, split over the mesh, of which `array` is this process's slice.

    Args:
        mesh: the mesh of `make_mesh`.
        array: `(b / processes, ...)`, this process's slice, as `dataset.batches` yields it.

    Raises:
        ValueError: if the global batch does not split evenly over the devices.
    """
    processes = len({device.process_index for device in mesh.devices.flat})
    check_batch_size(mesh, array.shape[0] * processes)
    return jax.make_array_from_process_local_data(batch_sharding(mesh), array)
