"""Data sets on disk, and the order in which training sees them.

A data set is a folder of float32 `.npy` shards and a `manifest.json`, written last, which says what
each shard must hold. Samples are numbered through train, validation, test, so that sample i depends
on (data.seed, i) alone. The batches of step k depend on (seed, k) alone: a resumed run needs the
step and nothing else.
"""

import io
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Num

from namm_jax.experiment.files import UserError, read_checked, write_bytes, write_json
from namm_jax.experiment.manifest import PARTIAL, REMEDY, SPLITS, plan_of, read_manifest, shards_of
from namm_jax.experiment.processes import from_first, gather


def write_dataset(
    directory: str | os.PathLike[str],
    fields_of: Callable[[Int[np.ndarray, ' n']], Num[np.ndarray | jax.Array, 'n h w c']],
    *,
    sizes: Mapping[str, int],
    shard_size: int,
    provenance: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Generates a data set shard by shard; after a stop, the same call goes on after the last
    finished shard.

    Args:
        directory: the folder.
        fields_of: global sample indices `(n,)` -> fields `(n, h, w, c)`, field i a function of
            index i alone.
        sizes: number of samples of each of `SPLITS`.
        shard_size: samples a shard; the last one of a split may be smaller.
        provenance: what the fields are a function of, seed and config, as JSON types; kept in the
            manifest.
        progress: called with (samples done, total) after each shard.

    Raises:
        ValueError: if the folder holds (part of) another data set, a finished shard is damaged, or
            `fields_of` returns wrong shapes or non-finite numbers.
    """
    directory = Path(directory)
    plan = plan_of(sizes, shard_size, provenance)
    manifest, done = from_first(lambda: _begun(directory, plan)), 0
    if manifest is None:
        return
    shards, processes = list(shards_of(plan)), jax.process_count()
    for first in range(0, len(shards), processes):  # one shard for each process
        together = shards[first : first + processes]
        mine = together[jax.process_index()] if jax.process_index() < len(together) else None
        for (name, split, _), entry in zip(
            together, gather(_shard(directory, manifest, fields_of, mine)), strict=False
        ):
            manifest['shape'] = entry.pop('shape')
            manifest['shards'][split][name] = entry
        from_first(lambda: write_json(directory / PARTIAL, manifest))
        done += sum(len(indices) for _, _, indices in together)
        progress(done, sum(plan['sizes'].values()))

    def finish() -> None:
        write_json(directory / 'manifest.json', manifest)
        (directory / PARTIAL).unlink()

    from_first(finish)


def _shard(
    directory: Path,
    manifest: Mapping[str, Any],
    fields_of: Callable[..., Any],
    shard: tuple[str, str, range] | None,
) -> dict[str, Any]:
    """Returns the manifest's entry of a shard, and the shape of a field: of one that is there, or
    is written now.
    """
    if shard is None:
        return {}
    name, split, indices = shard
    path, kept, shape = directory / name, manifest['shards'][split].get(name), manifest['shape']
    if kept:
        _check_length(path, kept, shape)
        _read_shard(path, kept, shape)
        return {**kept, 'shape': shape}
    indices = np.asarray(indices)
    data, shape = _encode(fields_of(indices), indices, shape)
    write_bytes(path, data)
    return {'n': len(indices), 'crc32': zlib.crc32(data), 'shape': shape}


def _begun(directory: Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest to go on from, None if the data set is complete."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ('manifest.json', PARTIAL):
        if (directory / name).exists():
            manifest = read_manifest(directory / name)
            changed = [field for field in plan if plan[field] != manifest.get(field)]
            if changed:
                raise ValueError(
                    f'{directory / name} describes another data set: got '
                    f'{[manifest.get(field) for field in changed]} for {changed}, expected '
                    f'{[plan[field] for field in changed]}; choose another folder, or generate the '
                    'data again with --redo=data'
                )
            return None if name == 'manifest.json' else manifest
    return {**plan, 'dtype': 'float32', 'shape': None, 'shards': {split: {} for split in SPLITS}}


def _encode(fields: Any, indices: np.ndarray, shape: list[int] | None) -> tuple[bytes, list[int]]:
    """Returns the shard's `.npy` file as bytes, and the shape of a field."""
    fields = np.asarray(fields, np.float32)
    expected = f'({len(indices)}, {", ".join(map(str, shape or "hwc"))})'
    if (
        fields.ndim != 4
        or len(fields) != len(indices)
        or shape not in (None, list(fields.shape[1:]))
    ):
        raise ValueError(
            f'fields_of returned the shape {fields.shape}, expected {expected}; mend the data '
            'family'
        )
    bad = ~np.isfinite(fields).all((1, 2, 3))
    if bad.any():
        raise ValueError(
            f'got NaN or infinity in {bad.sum()} generated samples, the first of index '
            f'{indices[bad][0]}, expected finite numbers; the data parameters make the solver '
            'unstable: change them, or shorten its time step'
        )
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(fields), allow_pickle=False)
    return file.getvalue(), list(fields.shape[1:])


def _check_length(path: Path, entry: Mapping[str, Any], shape: list[int]) -> None:
    """Raises a ValueError if a shard is missing, or too short for its samples: asked before room is
    made for them.
    """
    if not path.is_file():
        raise ValueError(f'{path}: got no file, expected a shard of {entry["n"]} samples; {REMEDY}')
    held, needed = path.stat().st_size, 4 * math.prod(shape) * entry['n']
    if held < needed:
        raise ValueError(
            f'{path} is damaged: got {held} bytes, expected at least {needed}; {REMEDY}'
        )


def _read_shard(
    path: Path, entry: Mapping[str, Any], shape: list[int]
) -> Float[np.ndarray, 'n h w c']:
    """Returns a shard; raises a ValueError if it is not the one that the manifest describes."""
    data = path.read_bytes()
    if zlib.crc32(data) != entry['crc32']:
        fault = (
            f'got the checksum {zlib.crc32(data)} over {len(data)} bytes, expected {entry["crc32"]}'
        )
        raise ValueError(f'{path} is damaged: {fault}; {REMEDY}')
    fields = _parsed(path, data, REMEDY)
    expected = (entry['n'], *shape)
    if fields.dtype != np.float32 or fields.shape != expected:
        fault = f'got {fields.dtype} of shape {fields.shape}, expected float32 of shape {expected}'
        raise ValueError(f'{path}: {fault}; {REMEDY}')
    return fields


def load_split(directory: str | os.PathLike[str], split: str) -> Float[np.ndarray, 'n h w c']:
    """Returns one split of a data set of `write_dataset`, every shard checked.

    Args:
        directory: the folder.
        split: one of `SPLITS`.

    Raises:
        ValueError: naming the file that is missing, damaged, or of wrong dtype or shape.
    """
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f'got the split {split!r}, expected one of {SPLITS}')
    if not (directory / 'manifest.json').exists():
        raise ValueError(
            f'{directory / "manifest.json"}: got no file, expected that of a complete data set; '
            f'{REMEDY}'
        )
    manifest = read_manifest(directory / 'manifest.json')
    size, shape, shards = manifest['sizes'][split], manifest['shape'], manifest['shards'][split]
    for name, entry in shards.items():
        _check_length(directory / name, entry, shape)
    fields, start = np.empty((size, *shape), np.float32), 0
    for name, entry in shards.items():
        fields[start : start + entry['n']] = _read_shard(directory / name, entry, shape)
        start += entry['n']
    return fields


def read_fields(
    path: str | os.PathLike[str], shape: tuple[int, int, int] | None = None
) -> Float[np.ndarray, 'n h w c']:
    """Returns the samples in a user's `.npy` file, as float32.

    Args:
        path: a file with a numeric array `(n, h, w, c)`.
        shape: the `(h, w, c)` to insist on.

    Raises:
        UserError: naming the file, if it is missing, no `.npy` file, pickled, not numeric,
            misshapen or not finite.
    """
    return as_fields(path, read_array(Path(path)), shape)


def as_fields(
    path: str | os.PathLike[str],
    fields: np.ndarray,
    shape: tuple[int, int, int] | None = None,
) -> Float[np.ndarray, 'n h w c']:
    """Returns the array in a user's file as float32, after the checks of `read_fields`."""
    if fields.dtype.kind not in 'fiu':
        raise UserError(
            f'{path}: got dtype {fields.dtype}, expected real numbers; save it as float32'
        )
    if fields.ndim != 4 or not fields.size or shape not in (None, fields.shape[1:]):
        expected = '(n, h, w, c)' if shape is None else f'(n, {", ".join(map(str, shape))})'
        raise UserError(
            f'{path}: got shape {fields.shape}, expected {expected} with n >= 1; reshape it before '
            'saving'
        )
    with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold is counted below
        fields = fields.astype(np.float32)
    bad = fields.size - int(np.isfinite(fields).sum())
    if bad:
        raise UserError(
            f'{path}: got {bad} of {fields.size} values NaN or infinite in float32, expected none; '
            'drop those samples'
        )
    return fields


def read_array(path: Path) -> np.ndarray:
    """Returns the array in a `.npy` file; raises a UserError naming it if it is missing, pickled or
    cut short.
    """
    if not path.is_file():
        raise UserError(f'{path}: got no such file, expected a .npy file; check the path')
    data = read_checked(path)
    if data[:6] != b'\x93NUMPY':
        kind = (
            'a pickle, which is never opened'
            if data[:1] == b'\x80'
            else f'a file that begins with {data[:6]!r}'
        )
        raise UserError(f'{path}: got {kind}, expected a .npy file; write it with numpy.save')
    return _parsed(path, data, 'write it with numpy.save')


def _parsed(path: Path, data: bytes, remedy: str) -> np.ndarray:
    """Returns the array in the bytes of a `.npy` file; raises a UserError naming it if they are no
    whole one.
    """
    file = io.BytesIO(data)
    try:
        major, _ = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if major == 1
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
        size, left = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
        if size > left and not dtype.hasobject:  # asked before NumPy makes room for it
            raise ValueError(f'{left} bytes for {dtype} of shape {shape}, which takes {size}')
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except (
        Exception
    ) as error:  # NumPy parses a damaged header to SyntaxError, TokenError, MemoryError and more
        got = str(error)[:300] or repr(error)
        raise UserError(f'{path}: got {got}, expected a whole numeric array; {remedy}') from error


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, ' n']:
    """Returns the order of an epoch; the raw Philox stream is the same in every version of
    NumPy.
    """
    order = np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(n), kind='stable')
    order.flags.writeable = False  # it is cached
    return order


def batch_indices(
    seed: int, step: int, *, n: int, batch_size: int
) -> Int[np.ndarray, ' batch_size']:
    """Returns the samples of a step's global batch: shuffled epochs, each without its remainder.

    Args:
        seed: non-negative; another seed gives another order.
        step: the step, from 0.
        n: number of samples.
        batch_size: size of the global batch, at most `n`.

    Raises:
        ValueError: if a value is out of range.
    """
    if not 1 <= batch_size <= n:
        raise ValueError(
            f'got batch_size {batch_size} for {n} samples, expected 1 to {n}; use a smaller batch '
            'or more data'
        )
    if seed < 0 or step < 0:
        raise ValueError(f'got seed {seed} and step {step}, expected non-negative numbers')
    epoch, position = divmod(step, n // batch_size)
    return _permutation(seed, epoch, n)[position * batch_size : (position + 1) * batch_size]


def local_rows(batch_size: int, *, process_index: int, process_count: int) -> slice:
    """Returns which rows of a global batch are a process's; those of the processes, in order, make
    up the batch.

    Raises:
        ValueError: if the batch does not split evenly over the processes.
    """
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f'got batch_size {batch_size} for process {process_index} of {process_count}, expected '
            'a multiple of the number of processes and an index below it; change the batch size'
        )
    return slice(
        process_index * batch_size // process_count,
        (process_index + 1) * batch_size // process_count,
    )


def batches(
    data: Num[np.ndarray, 'n ...'],
    *,
    seed: int,
    batch_size: int,
    start: int,
    steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Num[np.ndarray, 'local ...']]:
    """Returns an iterator over this process's slices of the global batches of steps `start`, ...,
    `steps - 1`.

    The slices of the processes, in order, make up the global batch.

    Args:
        data: all samples, along the first axis.
        seed: see `batch_indices`.
        batch_size: size of the global batch, a multiple of `process_count`.
        start: the first step: 0, or where a resumed run goes on.
        steps: the total number of steps.
        process_index: this process, from 0.
        process_count: number of processes.

    Raises:
        ValueError: if the batch is larger than the data or does not split evenly over the
            processes.
    """
    local = local_rows(batch_size, process_index=process_index, process_count=process_count)
    batch_indices(
        seed, start, n=len(data), batch_size=batch_size
    )  # raise now, not at the first batch
    return (
        data[batch_indices(seed, step, n=len(data), batch_size=batch_size)[local]]
        for step in range(start, steps)
    )
