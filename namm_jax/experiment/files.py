"""Files that are whole or absent, and checked when read: atomic writes, checksums, JSON."""

import contextlib
import functools
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKSUMS = 'crc32.json'  # in each folder: file name -> the checksums that `read_checked` accepts
REMEDY = "restore it from a copy; where it is a stage's own, delete it, then --redo=STAGE"


class UserError(ValueError):
    """A user's mistake: shown as one message, without a traceback, with exit status 2."""


def local(path: str | os.PathLike[str]) -> Path:
    """Returns a path of this machine, of any kind; a UserError refuses an address: `gs://...`."""
    if '://' in (text := os.fspath(path)):
        raise UserError(f'got the folder {text}, expected one of this machine; mount the bucket')
    return Path(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes an OSError name `path`: that of a full disk, from `write` or `close`, names nothing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f'{error.strerror}, while writing', str(path)) from error


Block = Any  # bytes, or an array that has them


def write_bytes(path: Path, data: Block) -> None:
    """Writes a file such that any reader, at any time, finds the old content or the new."""
    _write(path, [data])


def _write(path: Path, blocks: Iterable[Block]) -> None:
    temporary = path.with_name(path.name + '.tmp')
    with naming(path):
        try:
            temporary.unlink(missing_ok=True)  # what a kill left, or a link to somebody's file
            with open(temporary, 'xb') as file:
                for block in blocks:
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # a read-only disk refuses this, too
                temporary.unlink()
            raise


def write_checked(path: Path, data: Block) -> None:
    """Writes a file as `write_bytes` does, and its checksum where `read_checked` looks for it."""
    write_blocks(path, lambda: [data])


def write_blocks(path: Path, blocks: Callable[[], Iterable[Block]]) -> None:
    """Writes a file as `write_checked` does, of blocks that are made twice, one at a time."""
    # Before the file, beside that of the old content: a kill leaves nothing that looks damaged.
    old = [checksum(path)] if path.exists() else []
    crcs = [functools.reduce(lambda crc, block: zlib.crc32(block, crc), blocks(), 0), *old]
    write_checksums(path.parent, checksums(path.parent) | {path.name: crcs})
    _write(path, blocks())


def checksum(path: Path, crc: int = 0) -> int:
    """Returns the CRC-32 of a file, which goes on from that of others."""
    with open(path, 'rb') as file:
        while block := file.read(2**24):
            crc = zlib.crc32(block, crc)
    return crc


def check(path: Path, crc: int | None = None) -> None:
    """Raises a UserError that names a file whose checksum is not that on record."""
    expected = checksums(path.parent).get(path.name, [])
    got = checksum(path) if expected and crc is None else crc
    if expected and got not in expected:
        got = f'the checksum {got} over {path.stat().st_size} bytes'
        raise damage(path, got, f'{expected[0]} of {CHECKSUMS} beside it')


def read_checked(path: Path) -> bytes:
    """Returns a file's bytes, after `check`."""
    data = path.read_bytes()
    check(path, zlib.crc32(data))
    return data


def checksums(folder: Path) -> dict[str, Any]:
    """Returns file name -> checksums, and `origin` -> what a stage's arrays are a function of."""
    path = folder / CHECKSUMS  # without it nothing is checked
    value = _parse(path, path.read_bytes(), dict) if path.exists() else {}
    for name, one in value.items():
        if not isinstance(one, dict if name == 'origin' else list):
            raise damage(path, repr(value), 'an origin, and file names with lists of checksums')
    return value


def write_checksums(folder: Path, value: Mapping[str, Any]) -> None:
    """Writes what `checksums` returns."""
    write_bytes(folder / CHECKSUMS, (json.dumps(value, indent=2) + '\n').encode())


def array_checksums(folder: Path) -> dict[str, int]:
    """Returns file name -> checksum of a folder's arrays; what is JSON may tell the time."""
    found = checksums(folder).items()
    arrays = {name: crcs for name, crcs in found if name.endswith(('.npy', '.npz'))}
    return {name: crcs[0] for name, crcs in arrays.items() if crcs}


def sync(root: Path) -> None:
    """Puts a file, or a folder and all in it, on the disk, so that a power loss leaves it whole."""
    for path in sorted([root, *root.rglob('*')], key=Path.is_dir):
        with naming(path):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def damage(path: Path, got: str, expected: str) -> UserError:
    """Returns the error of a file that does not hold what it should."""
    return UserError(f'{path} is damaged: got {got:.300}, expected {expected}; {REMEDY}')


def _parse(path: Path, data: bytes, kind: type) -> Any:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damage(path, str(error), 'JSON') from error
    if not isinstance(value, kind):
        raise damage(path, f'{value!r:.80}', f'a {kind.__name__}')
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with its checksum; a number that is not `finite` is a ValueError."""
    write_checked(path, (json.dumps(value, indent=2, allow_nan=False) + '\n').encode())


def read_json(path: Path, kind: type = object) -> Any:
    """Returns the value, of this kind, in a JSON file; a UserError names a damaged one, or none."""
    try:
        return _parse(path, read_checked(path), kind)
    except FileNotFoundError:
        raise UserError(f'{path} is missing; is this a run folder?') from None


def finite(value: Any) -> Any:
    """Returns `value` as plain JSON types: array scalars as numbers, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, 'tolist'):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
