"""What a user brings: a function, named by a string that a config can keep, and its checksum."""

import functools
import importlib
import importlib.util
import os
import sys
import traceback
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from namm_jax._arrays import Constraint
from namm_jax._checks import nearest
from namm_jax.experiment import files
from namm_jax.experiment.files import UserError
from namm_jax.experiment.formats import files_of, place_of
from namm_jax.experiment.progress import say

FORMS = 'package.module:function or path/to/file.py:function'
DATA = 'data.path', 'data.mask'  # the fields that name a user's data


def load_function(spec: str, *, quiet: bool = False) -> Callable[..., Any]:
    """Returns the function, or the rule, that a string names; says what it executes for it.

    A file is executed once for as long as it does not change, so that the same string gives the
    same function; it may import what lies beside it.

    Args:
        spec: `package.module:function` or `path/to/file.py:function`.
        quiet: whether to say nothing.

    Raises:
        UserError: if there is no such file, module or function, or its import fails.
    """
    place, _, name = spec.rpartition(':')
    if not place or not name.isidentifier():
        raise UserError(f'got {spec!r} for a function, expected {FORMS}')
    path = _file(place)
    if path and not quiet:
        _tell(path)
    module = _executed(path, path.stat().st_mtime_ns) if path else _module_of_name(place)
    if not hasattr(module, name):
        names = [name for name, value in vars(module).items() if callable(value)]
        own = [n for n in names if getattr(vars(module)[n], '__module__', '') == module.__name__]
        public = [n for n in own or names if not n.startswith('_')]
        fault = nearest(name, public) if public else f'got {name!r}, but it defines no function'
        raise UserError(f'{place}: {fault}')
    function = getattr(module, name)
    if not callable(function) and not isinstance(function, Constraint):
        raise UserError(
            f'{spec}: got a value of type {type(function).__name__}, expected a function'
        )
    return function


def _module_of_name(place: str) -> types.ModuleType:
    _tell(place)
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(
            f'{place}: got {type(error).__name__}: {error}, expected a module that can be '
            'imported; put its folder on PYTHONPATH, or name its file: path/to/file.py:function'
        ) from error


@functools.cache
def _tell(place: Path | str) -> None:
    say(f'executing {place}, which the config names')


def _file(place: str) -> Path | None:
    """Returns the file that is named, None where it is a module; a UserError if there is none."""
    if not place.endswith('.py') and os.sep not in place:
        return None
    path = Path(os.path.expanduser(place)).resolve()
    if path.suffix != '.py' or not path.is_file():
        what = 'a file of another kind' if path.is_file() else 'no such file'
        raise UserError(
            f'{path}: got {what}, expected a Python file, *.py; a relative path starts from '
            f'{Path.cwd()}'
        )
    return path


def checksum(field: str, value: str) -> int:
    """Returns the CRC-32 of what a field of a config names: a user's data, or the source of a
    function or class, which is imported if it is in a module.
    """
    place = value.rpartition(':')[0]
    if field in DATA:
        paths = sum(files_of(place_of(value)[0]), [])
    else:
        paths = [_file(place) or Path(getattr(_module_of_name(place), '__file__', None) or '')]
    crc = 0
    for path in filter(os.path.isfile, paths):  # of pathlib, a name too long raises
        crc = files.checksum(path, zlib.crc32(path.name.encode(), crc))
    return crc


@functools.lru_cache(maxsize=16)
def _executed(path: Path, modified: int) -> types.ModuleType:
    """Returns the module that a file makes; `modified` makes a changed file another one."""
    # No module of another file may have the name, least of all one that a library imports.
    name = f'_own_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in annotations
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a neighbour hides no library
    try:
        exec(compile(path.read_bytes(), str(path), 'exec'), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f', line {frame.lineno}' for frame in frames if frame.filename == str(path)]
        raise UserError(
            f'{path}{"".join(lines[-1:])}: got {type(error).__name__}: {error}, expected a file '
            f'that can be imported; `python {path}` shows where it fails'
        ) from error
    return module
