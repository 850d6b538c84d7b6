"""Files that are whole or absent: atomic writes, and JSON that a damaged disk cannot turn into a traceback."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """A user's mistake: shown as one message, without a traceback, with exit status 2."""


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file such that any reader, at any time, finds the old content or the new.

    Raises:
        OSError: naming `path`, if the disk is full or read-only; the old content stays.
    """
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f'{error.strerror}, while writing', str(path)) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as JSON, atomically; a non-finite number is a ValueError (see `finite`)."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + '\n').encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value in a JSON file.

    Raises:
        UserError: naming the file, if it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f'{path} is missing; expected a JSON file: is this a run folder?') from None
    except ValueError as error:
        raise UserError(f'{path} is damaged: got {error}, expected JSON; restore the file from a copy') from error


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
