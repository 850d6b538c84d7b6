"""Data sets on disk, and the order in which training sees them.

A data set is a folder of one float32 `.npy` file a split and `data.json`, which says what they are
a function of. Samples are numbered through train, validation, test, so that sample i depends on
(data.seed, i) alone. The batches of step k depend on (seed, k) alone: a resumed run needs the step
and nothing else.
"""

import dataclasses
import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Num

from namm_jax.experiment import files
from namm_jax.experiment.files import UserError
from namm_jax.experiment.processes import from_first, gather
from namm_jax.problems.own_arrays import moments

SPLITS = ('train', 'validation', 'test')
REMEDY = 'restore it from a copy, or generate the data again with --redo=data'
IN_MEMORY = 2**28  # bytes of a user's own data, at most, that are read at once
BLOCK = 2**24  # bytes of more than that, about, which are read together


@dataclasses.dataclass(frozen=True)
class Stored:
    """Samples `(n, h, w, c)`, float32, that stay in their files until rows of them are read."""

    read: Callable[[Int[np.ndarray, ' m']], Float[np.ndarray, 'm h w c']]
    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Float[np.ndarray, 'm h w c']:
        return self.read(np.arange(len(self))[rows])

    def blocks(self, rows: Any = slice(None)) -> Iterator[Float[np.ndarray, 'm h w c']]:
        """Returns an iterator over these rows, in the order of the files, block by block."""
        rows = np.sort(np.arange(len(self))[rows])
        size = max(1, BLOCK // (4 * int(np.prod(self.shape[1:]))))
        return (self.read(rows[start : start + size]) for start in range(0, len(rows), size))

    def map(self, function: Callable[[Any], Any], size: int) -> 'Stored':
        """Returns the rows of a function of at most `size` of them at once, which keeps their
        shape.
        """

        def read(rows: Int[np.ndarray, ' m']) -> Float[np.ndarray, 'm h w c']:
            parts = (rows[start : start + size] for start in range(0, len(rows), size))
            return np.concatenate([np.asarray(function(self.read(part))) for part in parts])

        return Stored(read, self.shape)

    def mean(self) -> float:
        """Returns the mean over all values."""
        return self._moments[0]

    def std(self) -> float:
        """Returns their standard deviation."""
        return self._moments[1]

    @functools.cached_property
    def _moments(self) -> tuple[Any, Any, Any, Any]:
        return moments(self.blocks(), None)


def write_dataset(
    directory: str | os.PathLike[str],
    fields_of: Callable[[Int[np.ndarray, ' n']], Num[np.ndarray | jax.Array, 'n h w c']],
    *,
    sizes: Mapping[str, int],
    shard_size: int,
    provenance: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Generates a data set part by part; after a stop, the same call goes on after the last part.

    Args:
        fields_of: global sample indices -> fields, field i a function of index i alone.
        sizes: number of samples of each of `SPLITS`, at least 1.
        shard_size: samples a part, at least 1.
        provenance: what the fields are a function of, as JSON types.
        progress: called with (samples done, total) after each part.

    Raises:
        ValueError: if the folder holds (part of) another data set, a part is damaged, or
            `fields_of` returns wrong shapes or non-finite numbers.
    """
    directory, count, start = Path(directory), jax.process_count(), 0
    plan = {'sizes': dict(sizes), 'shard_size': shard_size, 'provenance': provenance}
    plan = json.loads(json.dumps(plan))
    if from_first(lambda: _complete(directory, plan)):
        return
    for split in SPLITS:
        path, stop = directory / f'{split}.npy', start + sizes[split]
        parts = {
            directory / f'{split}-{k:05d}.npz': np.arange(first, min(first + shard_size, stop))
            for k, first in enumerate(range(start, stop, shard_size))
        }
        names = {part: json.dumps([int(indices[0]), plan]) for part, indices in parts.items()}
        for first in range(0, len(parts), count):
            together = list(parts.items())[first : first + count]
            for part, indices in together[jax.process_index() :][:1]:
                if not (path.exists() or part.exists()):
                    _write_part(part, fields_of(indices), indices, names[part])
            gather(None)  # all of them are there
            progress(int(together[-1][1][-1]) + 1, sum(sizes.values()))
        from_first(functools.partial(_join, path, names, sizes[split]))
        start = stop
    from_first(lambda: files.write_json(directory / 'data.json', {**plan, 'complete': True}))


def _complete(directory: Path, plan: Mapping[str, Any]) -> bool:
    """Returns whether the data set is complete; puts on record what it is to be."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'data.json'
    if not path.exists():
        if strangers := sorted(file.name for file in directory.glob('*.np[yz]')):
            raise ValueError(f'{path} is missing, expected it beside {strangers[0]}; {REMEDY}')
        files.write_json(path, {**plan, 'complete': False})
    found = files.read_json(path)
    if not isinstance(found, dict) or any(found.get(name) != plan[name] for name in plan):
        raise ValueError(
            f'{path} describes another data set: got {found}, expected {plan}; choose another '
            'folder, or generate the data again with --redo=data'
        )
    return found.get('complete') is True


def _write_part(path: Path, fields: Any, indices: Int[np.ndarray, ' n'], name: str) -> None:
    """Writes an archive, for the checksum in it, and a name that says what the part is."""
    fields = np.asarray(fields, np.float32)
    if fields.ndim != 4 or len(fields) != len(indices):
        expected = f'({len(indices)}, h, w, c); mend the data family'
        raise ValueError(f'fields_of returned the shape {fields.shape}, expected {expected}')
    bad = ~np.isfinite(fields).all((1, 2, 3))
    if bad.any():
        raise ValueError(
            f'got NaN or infinity in {bad.sum()} generated samples, the first of index '
            f'{indices[bad][0]}, expected finite numbers; the data parameters make the solver '
            'unstable: change them, or shorten its time step'
        )
    file = io.BytesIO()
    np.savez(file, fields=fields, name=name)
    files.write_bytes(path, file.getbuffer())


def _join(path: Path, parts: Mapping[Path, str], n: int) -> None:
    """Makes one file of a split, of n samples, and deletes its parts."""
    if not path.exists():
        shape, header = _read_part(*next(iter(parts.items()))).shape[1:], io.BytesIO()
        like = {'descr': '<f4', 'fortran_order': False, 'shape': (n, *shape)}
        np.lib.format.write_array_header_1_0(header, like)
        arrays = lambda: (_read_part(*part, shape) for part in parts.items())
        files.write_blocks(path, lambda: itertools.chain([header.getvalue()], arrays()))
    for part in parts:
        part.unlink(missing_ok=True)


def _read_part(part: Path, name: str, shape: tuple[int, ...] = ()) -> Float[np.ndarray, 'n h w c']:
    try:
        with np.load(part, allow_pickle=False) as archive:
            fields = np.ascontiguousarray(archive['fields'], np.float32)
            if str(archive['name']) != name or (shape and fields.shape[1:] != shape):
                raise ValueError('a part of another place, or of other data')
            return fields
    except Exception as error:  # damage comes as BadZipFile, KeyError, RuntimeError and more
        raise ValueError(f'{part} is damaged: got {error!r:.300}; {REMEDY}') from error


def load_split(
    directory: str | os.PathLike[str], split: str, *, limit: float | int = np.inf
) -> Float[np.ndarray, 'n h w c'] | Stored:
    """Returns one split of a data set of `write_dataset`, of more bytes than a limit as `Stored`; a
    ValueError names the file that is missing, damaged, or of another shape.
    """
    record, path = Path(directory, 'data.json'), Path(directory, f'{split}.npy')
    match files.read_json(record):
        case {'complete': True, 'sizes': {**sizes}}:
            large = path.exists() and path.stat().st_size > limit
            # Mapped anew each time: what has been read of a mapped file stays in memory.
            rows = lambda rows: as_fields(path, np.load(path, mmap_mode='r')[rows])
            fields = Stored(rows, map_array(path).shape) if large else read_fields(path)
        case _:
            raise ValueError(f'{record}: got no complete data set, expected one; {REMEDY}')
    if len(fields) != sizes.get(split):
        raise ValueError(f'{path}: got {len(fields)} samples, not as in {record.name}; {REMEDY}')
    return fields


def read_fields(
    path: str | os.PathLike[str], shape: tuple[int, int, int] | None = None
) -> Float[np.ndarray, 'n h w c']:
    """Returns the samples in a user's `.npy` file, as float32; of the given shape `(h, w, c)`. A
    UserError names one that is missing, no array of numbers, misshapen or not finite.
    """
    return as_fields(path, read_array(Path(path)), shape)


def as_fields(
    path: str | os.PathLike[str], fields: np.ndarray, shape: tuple[int, int, int] | None = None
) -> Float[np.ndarray, 'n h w c']:
    """Returns the array in a user's file as float32, after the checks of `read_fields`."""
    fit = fields.ndim == 4 and fields.size and shape in (None, fields.shape[1:])
    if not fit or fields.dtype.kind not in 'fiu':
        raise UserError(
            f'{path}: got dtype {fields.dtype} and shape {fields.shape}, expected real numbers, '
            f'({", ".join(map(str, ("n", *(shape or "hwc"))))}) with n >= 1; convert it'
        )
    with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold is counted below
        fields = fields.astype(np.float32, copy=False)
    if bad := fields.size - int(np.isfinite(fields).sum()):
        raise UserError(
            f'{path}: got {bad} of {fields.size} values NaN or infinite in float32, expected none; '
            'drop those samples, or where they are the same pixels in each, give a mask'
        )
    return fields


def read_array(path: Path) -> np.ndarray:
    """Returns the array in a `.npy` file; raises a UserError naming it if there is none."""
    return np.array(map_array(path))


def map_array(path: Path) -> np.ndarray:
    """Returns the array in a `.npy` file, mapped; raises a UserError naming it if there is none."""
    if not path.is_file():
        raise UserError(f'{path}: got no such file, expected a .npy file; check the path')
    files.check(path)
    with open(path, 'rb') as file:
        start = file.read(12)
    if start[:1] == b'\x80':
        raise UserError(f'{path}: got a pickle, which is never opened; write it with numpy.save')
    try:
        # mapped, so that no room is made for what a header promises and the file does not hold
        if start[6:7] > b'\1' and int.from_bytes(start[8:], 'little') > path.stat().st_size:
            raise ValueError('a header that is cut short')
        return np.lib.format.open_memmap(path, mode='r')
    except Exception as error:  # a damaged header comes as SyntaxError, TokenError and more
        got = str(error)[:300] or repr(error)
        message = f'{path}: got {got}, expected a whole numeric array; write it with numpy.save'
        raise UserError(message) from error


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, ' n']:
    """Returns the order of an epoch; the raw Philox stream is that of every version of NumPy."""
    order = np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(n), kind='stable')
    order.flags.writeable = False  # it is cached
    return order


def batch_indices(
    seed: int, step: int, *, n: int, batch_size: int
) -> Int[np.ndarray, ' batch_size']:
    """Returns the samples of a step's global batch: shuffled epochs, each without its remainder; a
    ValueError if there are fewer than `batch_size`.
    """
    if not 1 <= batch_size <= n:
        expected = f'1 to {n}; use a smaller batch or more data'
        raise ValueError(f'got batch_size {batch_size} for {n} samples, expected {expected}')
    epoch, position = divmod(step, n // batch_size)
    return _permutation(seed, epoch, n)[position * batch_size : (position + 1) * batch_size]


def local_rows(batch_size: int, *, process_index: int, process_count: int) -> slice:
    """Returns which rows of a global batch are a process's; a ValueError if it splits unevenly."""
    rows, rest = divmod(batch_size, process_count)
    if rest:
        raise ValueError(f'got batch_size {batch_size}, expected a multiple of {process_count}')
    return slice(process_index * rows, (process_index + 1) * rows)


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
    """Returns an iterator over this process's rows of the batches of steps `start` to `steps - 1`;
    raises at once what `batch_indices` and `local_rows` do.
    """
    local = local_rows(batch_size, process_index=process_index, process_count=process_count)
    indices = lambda step: batch_indices(seed, step, n=len(data), batch_size=batch_size)[local]
    indices(start)
    return (data[indices(step)] for step in range(start, steps))
