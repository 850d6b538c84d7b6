"""Devices as data: a one-dimensional mesh, what lies where on it, and arrays put there.

The batch is split over the mesh's only axis, `data`. Parameters, their averages and the optimizer's
state are whole on each device, or split as well (fully sharded data parallelism, FSDP), by rules.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from namm_jax._checks import choose

SMALL = 2**14  # values: to gather what is smaller takes longer than its bytes are worth

# What a rule `PATTERN=AXES` says of the arrays in whose path, such as params/inverse/Conv_0/kernel,
# its pattern is found: `whole`; `largest`, split along the largest axis that the devices divide; or
# a name for each axis, such as `-,-,-,data`. The first rule that is found holds.
PARAMETERS: dict[str, tuple[str, ...]] = {'replicated': ('.*=whole',), 'fsdp': ('.*=largest',)}
AXES = 'whole|largest|(-,)*data(,-)*'


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh `('data',)` over the devices, by default all of all processes."""
    devices = jax.devices() if devices is None else devices
    if not len(devices):
        raise ValueError('got no devices, expected at least one; leave `devices` out to use all')
    # With Explicit axes, jax.make_mesh's default, Flax's convolutions ask for output shardings.
    return Mesh(np.asarray(devices), ('data',), axis_types=(AxisType.Auto,))


def first_devices(each: int) -> list[jax.Device]:
    """Returns the first so many devices of each process, process by process; 0 for all."""
    by_process = [jax.local_devices(process) for process in range(jax.process_count())]
    numbers = [len(devices) for devices in by_process]
    if not 0 <= each <= min(numbers) or (not each and len(set(numbers)) > 1):
        raise ValueError(
            f'train.devices: got {each} where the processes have {numbers} devices, expected 1 to '
            f'{min(numbers)}, or 0 for all if all have as many'
        )
    return [device for devices in by_process for device in devices[: each or None]]


def local_mesh(mesh: Mesh) -> Mesh:
    """Returns the mesh over this process's devices in `mesh`."""
    return make_mesh([one for one in mesh.devices.flat if one.process_index == jax.process_index()])


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, stacked: bool = False) -> NamedSharding:
    """Returns the sharding that splits the first axis evenly, of stacked batches the second."""
    return NamedSharding(mesh, PartitionSpec(None, 'data') if stacked else PartitionSpec('data'))


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raises a ValueError unless the global batch splits evenly over the mesh."""
    if batch_size < 1 or batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        nearest = ' or '.join(str(size) for size in (below, below + mesh.size) if size > 0)
        raise ValueError(
            f'got batch size {batch_size} for {mesh.size} devices, expected a positive multiple; '
            f'the nearest are {nearest}; change it, or use fewer devices'
        )


def put_batch(mesh: Mesh, array: np.ndarray, *, stacked: bool = False) -> Array:
    """Returns the global batch, split over the mesh, of this process's slice of it, or several."""
    processes = len({device.process_index for device in mesh.devices.flat})
    check_batch_size(mesh, array.shape[stacked] * processes)
    return jax.make_array_from_process_local_data(batch_sharding(mesh, stacked=stacked), array)


def put(tree: PyTree, sharding: PyTree) -> PyTree:
    """Returns a tree that every process holds whole, put where a sharding, or a tree, says."""

    def put_branch(sharding: NamedSharding, branch: PyTree) -> PyTree:
        make = lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])
        return jax.tree.map(make, jax.tree.map(np.asarray, branch))

    return jax.tree.map(put_branch, sharding, tree)


def whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns a tree, which may be split over processes, whole on each of this one's devices."""
    copies = jax.device_put(tree, replicated(mesh))
    here = replicated(local_mesh(mesh))
    return jax.tree.map(lambda array: jax.device_put(array.addressable_data(0), here), copies)


def rules_of(parameters: str, rules: Sequence[str]) -> tuple[str, ...]:
    """Returns the rules of a config: its own, if well formed, then those of `parameters`."""
    table = (*rules, *choose('sharding.parameters', parameters, PARAMETERS))
    for rule in table:
        pattern, _, axes = rule.rpartition('=')
        try:
            sound = pattern and re.compile(pattern) and re.fullmatch(AXES, axes)
        except re.error:
            sound = False
        if not sound:
            raise ValueError(
                f'sharding.rules: got {rule!r}, expected PATTERN=AXES: a regular expression; whole,'
                ' largest, or a name for each axis, one `data`, the others `-`: .*/kernel=-,data'
            )
    return table


def spec_of(path: str, shape: tuple[int, ...], rules: Sequence[str], devices: int) -> PartitionSpec:
    """Returns how the array at a path is split over so many devices, by the first rule found."""
    rule = next((rule for rule in rules if re.search(rule.rpartition('=')[0], path)), '=whole')
    axes = rule.rpartition('=')[2]
    divisible = [size for size in shape if size % devices == 0]
    if axes == 'whole' or (axes == 'largest' and (math.prod(shape) < SMALL or not divisible)):
        return PartitionSpec()
    names = axes.split(',')
    split = shape.index(max(divisible)) if axes == 'largest' else names.index('data')
    if axes != 'largest' and (len(names) != len(shape) or shape[split] % devices):
        raise ValueError(
            f'sharding.rules: got {rule!r} for {path} of shape {shape} on {devices} devices, '
            'expected a name for each axis, and `data` for one that they divide'
        )
    return PartitionSpec(*['data' if i == split else None for i in range(len(shape))])


def shardings_of(tree: PyTree, mesh: Mesh, rules: Sequence[str]) -> PyTree:
    """Returns the sharding of each array, or shape, of a tree, by the rules."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return NamedSharding(mesh, spec_of(name, leaf.shape, rules, mesh.size))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def describe(tree: PyTree) -> str:
    """Returns a line: how many bytes of a tree of arrays each device holds, how many are split."""
    arrays = jax.tree.leaves(tree)
    total = sum(array.nbytes for array in arrays) / 1e6
    local = sum(array.addressable_shards[0].data.nbytes for array in arrays) / 1e6
    split = sum(not array.is_fully_replicated for array in arrays)
    return (
        f'{local:.3g} of {total:.3g} MB of the state on each of {arrays[0].sharding.num_devices} '
        f'devices, {split} of its {len(arrays)} arrays split'
    )
