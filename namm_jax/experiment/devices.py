"""Devices as data: a one-dimensional mesh, what lies where on it, and arrays put there. `jax.jit`
does the rest.

The batch is split over the mesh's only axis, `data`. Parameters, their averages and the optimizer's
state are whole on each device, or split as well (fully sharded data parallelism, FSDP), as a table
of rules says.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from namm_jax._checks import choose

SMALL = (
    2**14
)  # values: what is smaller stays whole, as gathering it would take longer than its bytes are worth


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh `('data',)` over the devices (default: all devices of all processes).

    Args:
        devices: devices, those of a process next to each other.
    """
    devices = jax.devices() if devices is None else devices
    if not len(devices):
        raise ValueError('got no devices, expected at least one; leave `devices` out to use all')
    # Auto: with Explicit axes, which jax.make_mesh defaults to, Flax's convolutions ask for output
    # shardings.
    return Mesh(np.asarray(devices), ('data',), axis_types=(AxisType.Auto,))


def first_devices(each: int) -> list[jax.Device]:
    """Returns the first so many devices of each process, those of a process next to each other; 0
    for all.

    Raises:
        ValueError: if a process has not so many, or they have not all the same number.
    """
    by_process = [jax.local_devices(process) for process in range(jax.process_count())]
    numbers = [len(devices) for devices in by_process]
    if not 0 <= each <= min(numbers) or (not each and len(set(numbers)) > 1):
        raise ValueError(
            f'train.devices: got {each} with {", ".join(map(str, numbers))} devices, process by '
            'process, expected 1 to '
            f'{min(numbers)}' + (', or 0 for all' if len(set(numbers)) == 1 else '')
        )
    return [device for devices in by_process for device in devices[: each or None]]


def local_mesh(mesh: Mesh) -> Mesh:
    """Returns the mesh over this process's devices in `mesh`: for work in which no sample needs
    another's process.
    """
    return make_mesh(
        [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, stacked: bool = False) -> NamedSharding:
    """Returns the sharding that splits the first axis evenly over the devices; the second one of
    stacked batches.
    """
    return NamedSharding(mesh, PartitionSpec(None, 'data') if stacked else PartitionSpec('data'))


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raises unless the global batch splits evenly over the mesh.

    Raises:
        ValueError: naming the nearest sizes that do, if `batch_size` is not a positive multiple of
            the devices' number.
    """
    if batch_size < 1 or batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        nearest = ' or '.join(str(size) for size in (below, below + mesh.size) if size > 0)
        raise ValueError(
            f'got batch size {batch_size} for {mesh.size} devices, expected a positive multiple of '
            f'{mesh.size}; the nearest are {nearest}; change the batch size, or use fewer devices'
        )


def put_batch(
    mesh: Mesh, array: Shaped[np.ndarray, '...'], *, stacked: bool = False
) -> Shaped[Array, '...']:
    """Returns the global batch, split over the mesh, of which `array` is this process's slice.

    Args:
        mesh: the mesh of `make_mesh`.
        array: `(b / processes, ...)`, this process's slice, as `dataset.batches` yields it.
        stacked: whether it is several of them, along a first axis.

    Raises:
        ValueError: if the global batch does not split evenly over the devices.
    """
    processes = len({device.process_index for device in mesh.devices.flat})
    check_batch_size(mesh, array.shape[stacked] * processes)
    return jax.make_array_from_process_local_data(batch_sharding(mesh, stacked=stacked), array)


def put(tree: PyTree, sharding: NamedSharding | PyTree) -> PyTree:
    """Returns a tree of arrays that every process holds whole, put where the sharding, or the tree
    of them, says.
    """

    def put_one(array: Any, sharding: NamedSharding) -> Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda array: put_one(array, sharding), tree)
    return jax.tree.map(put_one, tree, sharding)


def whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the arrays of a tree, which may be split over processes, whole on each of this
    process's devices.
    """
    gather, here = jax.jit(_same, out_shardings=replicated(mesh)), replicated(local_mesh(mesh))

    def whole_one(array: Array) -> Array:
        array = array if array.is_fully_replicated else gather(array)
        return jax.device_put(array.addressable_data(0), here)

    return jax.tree.map(whole_one, tree)


def _same(array: Array) -> Array:
    """Returns its argument; one function, so that what is compiled of it is found again."""
    return array


# What a rule says of an array: `whole`; `largest`, the largest axis that the devices divide, or
# else whole; or a name for each axis, `data` for the one that is split and `-` for the others, such
# as `-,-,-,data`. First match wins; patterns are searched for in paths such as
# params/inverse/Conv_0/kernel.
PARAMETERS: dict[str, tuple[str, ...]] = {'replicated': ('.*=whole',), 'fsdp': ('.*=largest',)}


def rules_of(parameters: str, rules: Sequence[str]) -> tuple[str, ...]:
    """Returns the rules of a config, `PATTERN=AXES` each: its own, then those of `parameters`.

    Raises:
        ValueError: if one is malformed, or `parameters` is unknown.
    """
    table = (*rules, *choose('sharding.parameters', parameters, PARAMETERS))
    for rule in table:
        pattern, _, axes = rule.rpartition('=')
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f'sharding.rules: got {rule!r}, no regular expression: {error}'
            ) from error
        names = axes.split(',')
        named = names.count('data') == 1 and {*names} <= {'data', '-'}
        if not pattern or not (axes in ('whole', 'largest') or named):
            raise ValueError(
                f'sharding.rules: got {rule!r}, expected PATTERN=AXES, where AXES is whole, '
                'largest, or a name for each axis, `data` for one and `-` for the others, such as '
                '.*Dense.*/kernel=-,data'
            )
    return table


def spec_of(path: str, shape: tuple[int, ...], rules: Sequence[str], devices: int) -> PartitionSpec:
    """Returns how the array at a path is split, by the first rule whose pattern is found in its
    path.

    Args:
        path: of the array in its tree, `ema/inverse/Conv_0/kernel`.
        shape: of the array.
        rules: as of `rules_of`.
        devices: their number.

    Raises:
        ValueError: if the rule names other axes than the array has, or one that the devices do not
            divide.
    """
    rule = next((rule for rule in rules if re.search(rule.rpartition('=')[0], path)), '=whole')
    axes = rule.rpartition('=')[2]
    if axes == 'whole':
        return PartitionSpec()
    if axes == 'largest':
        divisible = [size for size in shape if size % devices == 0]
        if math.prod(shape) < SMALL or not divisible:
            return PartitionSpec()
        return PartitionSpec(
            *['data' if i == shape.index(max(divisible)) else None for i in range(len(shape))]
        )
    names = axes.split(',')
    if len(names) != len(shape) or shape[names.index('data')] % devices:
        raise ValueError(
            f'sharding.rules: got {rule!r} for {path} of shape {shape} on {devices} devices, '
            'expected a name for each axis, and data for one that the number of devices divides'
        )
    return PartitionSpec(*[None if name == '-' else name for name in names])


def shardings_of(tree: PyTree, mesh: Mesh, rules: Sequence[str]) -> PyTree:
    """Returns the sharding of each array of a tree, by the rules.

    Args:
        tree: of arrays or their shapes: a training state.
        mesh: the devices.
        rules: as of `rules_of`.
    """
    named = lambda path, leaf: NamedSharding(
        mesh,
        spec_of(
            jax.tree_util.keystr(path, simple=True, separator='/'), leaf.shape, rules, mesh.size
        ),
    )
    return jax.tree_util.tree_map_with_path(named, tree)


def describe(tree: PyTree, shardings: PyTree) -> str:
    """Returns a line: how many bytes of a tree each device holds, how many arrays are split, of how
    many in all.
    """
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(shardings)
    bytes_of = lambda leaf, shape: math.prod(shape) * leaf.dtype.itemsize
    total = sum(bytes_of(leaf, leaf.shape) for leaf in leaves)
    local = sum(
        bytes_of(leaf, place.shard_shape(leaf.shape))
        for leaf, place in zip(leaves, places, strict=True)
    )
    split = sum(not place.is_fully_replicated for place in places)
    return (
        f'{local / 1e6:.3g} of {total / 1e6:.3g} MB of the state on each of {places[0].mesh.size} '
        f'devices, {split} of its {len(leaves)} arrays split'
    )
