"""Files that are whole or absent, and checked when read: atomic writes, checksums, JSON without
tracebacks.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKSUMS = 'crc32.json'  # in each folder: file name -> the checksums that `read_checked` accepts
REMEDY = (
    "restore it from a copy; a stage's own file can be made again: delete it, then --redo=STAGE"
)


class UserError(ValueError):
    """A user's mistake: shown as one message, without a traceback, with exit status 2."""


def local(path: str | os.PathLike[str]) -> Path:
    """Returns a path of this machine's files, of `etils.epath` or any other kind.

    Raises:
        UserError: if it is an address, such as `gs://bucket/run`.
    """
    if '://' in os.fspath(path):
        raise UserError(
            f'got the folder {os.fspath(path)}, expected one of this machine; mount the bucket, '
            'for instance with gcsfuse, and give the folder where it is mounted'
        )
    return Path(path)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes an OSError name `path`: that of a full disk, from `write` or `close`, names nothing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f'{error.strerror}, while writing', str(path)) from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file such that any reader, at any time, finds the old content or the new.

    Raises:
        OSError: naming `path`, if the disk is full or read-only; the old content stays.
    """
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    with naming(path):
        try:
            with open(temporary, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # a read-only disk refuses this, too
                temporary.unlink(missing_ok=True)
            raise


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Appends a line to a file.

    Raises:
        OSError: naming `path`, if the disk is full or read-only; the end of the file may be half a
            line.
    """
    with naming(path), open(path, 'a') as file:
        file.write(line + '\n')


def write_checked(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file as `write_bytes` does, and its checksum where `read_checked` looks for it.

    The checksum comes first, beside that of the old content, so that a kill between the two leaves
    nothing that looks damaged.
    """
    path = Path(path)
    old = [zlib.crc32(path.read_bytes())] if path.exists() else []
    checksums = _checksums(path.parent) | {path.name: [zlib.crc32(data), *old]}
    write_bytes(path.with_name(CHECKSUMS), (json.dumps(checksums, indent=2) + '\n').encode())
    write_bytes(path, data)


def read_checked(path: str | os.PathLike[str]) -> bytes:
    """Returns a file's bytes; those of a file without a checksum on record as they are.

    Raises:
        UserError: naming the file, if its checksum is another one.
        FileNotFoundError: if it is missing.
    """
    path = Path(path)
    data = path.read_bytes()
    got, expected = zlib.crc32(data), _checksums(path.parent).get(path.name)
    if isinstance(expected, list) and expected and got not in expected:
        raise UserError(
            f'{path} is damaged: got the checksum {got} over {len(data)} bytes, expected '
            f'{expected[0]} of {CHECKSUMS} beside it; {REMEDY}'
        )
    return data


def _checksums(folder: Path) -> dict[str, Any]:
    path = folder / CHECKSUMS
    try:
        return dict(json.loads(path.read_bytes())) if path.exists() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path} is damaged: got {error}, expected JSON; restore it from a copy, or delete it '
            'to go on unchecked'
        ) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as JSON, atomically and with its checksum; a non-finite number is a ValueError
    (see `finite`).
    """
    write_checked(path, (json.dumps(value, indent=2, allow_nan=False) + '\n').encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value in a JSON file.

    Raises:
        UserError: naming the file, if it is missing or damaged.
    """
    try:
        data = read_checked(path)
    except FileNotFoundError:
        raise UserError(f'{path} is missing; expected a JSON file: is this a run folder?') from None
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is damaged: got {error}, expected JSON; {REMEDY}') from error


def finite(value: Any) -> Any:
    """Returns `value` as plain JSON types: array scalars as numbers, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    value = value.tolist() if hasattr(value, 'tolist') else value
    if isinstance(value, list):
        return finite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
