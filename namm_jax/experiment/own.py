"""What a user brings: a function, named by a string that a config can keep, and data, as arrays or
images.
"""

import functools
import importlib
import os
import sys
import traceback
import types
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from namm_jax._checks import nearest
from namm_jax.experiment.dataset import read_array, read_fields
from namm_jax.experiment.files import UserError

FORMS = 'package.module:function or path/to/file.py:function'
IMAGES = ('.png', '.jpg', '.jpeg')
LEVELS = {'L': 255, 'RGB': 255, 'I;16': 65535, 'I': 65535}  # image mode -> the value of white


def load_function(spec: str, base: str | os.PathLike[str] | None = None) -> Callable[..., Any]:
    """Returns the function that a string names.

    A file is executed once for as long as it does not change, so that the same string gives the
    same function.

    Args:
        spec: `package.module:function`, or `path/to/file.py:function`, which is executed as a
            module of its own and may import what lies beside it.
        base: the folder from which a relative path starts; None is the current one.

    Raises:
        UserError: if the string has another form, there is no such file, module or function, the
            import fails, or what it names cannot be called.
    """
    place, _, name = spec.rpartition(':')
    if not place or not name.isidentifier():
        raise UserError(f'got {spec!r} for a function, expected {FORMS}')
    is_file = place.endswith('.py') or '/' in place or os.sep in place
    module = _module_of_file(place, base) if is_file else _module_of_name(place)
    if not hasattr(module, name):
        names = _functions(module)
        raise UserError(
            f'{place}: '
            f'{nearest(name, names) if names else f"got {name!r}, but it defines no function"}'
        )
    function = getattr(module, name)
    if not callable(function):
        raise UserError(
            f'{spec}: got a value of type {type(function).__name__}, expected a function; name '
            'another'
        )
    return function


def _functions(module: types.ModuleType) -> list[str]:
    """Returns the names of the public functions that a module defines itself, or else of all that
    it holds.
    """
    public = {
        name: value
        for name, value in vars(module).items()
        if callable(value) and not name.startswith('_')
    }
    own = [
        name
        for name, value in public.items()
        if getattr(value, '__module__', None) == module.__name__
    ]
    return own or list(public)


def _module_of_name(place: str) -> types.ModuleType:
    try:
        return importlib.import_module(place)
    except (
        Exception,
        SystemExit,
    ) as error:  # an import runs the user's code, which may raise anything
        raise UserError(
            f'{place}: got {type(error).__name__}: {error}, expected a module that can be '
            'imported; install it, put its folder on PYTHONPATH, or name its file: '
            'path/to/file.py:function'
        ) from error


def _module_of_file(place: str, base: str | os.PathLike[str] | None) -> types.ModuleType:
    path = (Path(base or '.') / os.path.expanduser(place)).resolve()
    if path.suffix != '.py' or not path.is_file():
        what, base = (
            'a file of another kind' if path.is_file() else 'no such file',
            Path(base or '.').resolve(),
        )
        raise UserError(
            f'{path}: got {what}, expected a Python file, *.py; a relative path starts from {base}'
        )
    return _executed(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _executed(path: Path, modified: int) -> types.ModuleType:
    """Returns the module that a file makes; `modified` makes a changed file another one."""
    # No module of another file may have the name, least of all one that a library imports.
    module = types.ModuleType(f'_own_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}')
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for the names in annotations
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a neighbour hides no library
    try:
        exec(compile(path.read_bytes(), str(path), 'exec'), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UserError(
            f'{path}{_line(error, path)}: got {type(error).__name__}: {error}, expected a file '
            f'that can be imported; `python {path}` shows where it fails'
        ) from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """Returns `, line n` for the last line of the file that an error passed through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f', line {lines[-1]}' if lines else ''


def read_user_data(path: str | os.PathLike[str]) -> Float[np.ndarray, 'n h w c']:
    """Returns the samples in a `.npy` file, a folder of `.npy` files, or a folder of images, as
    float32.

    In a folder the files are read in the order of their names; other kinds of files, and hidden
    ones, are passed over.

    Args:
        path: a file `(n, h, w, c)`; a folder of arrays `(n, h, w, c)`, `(h, w, c)` or `(h, w)`; or
            a folder of PNG or JPEG images, grey or RGB, which are scaled to [0, 1]. A relative path
            starts from the current folder.

    Raises:
        UserError: naming the file that is missing, unreadable, pickled, not numeric, not finite,
            transparent, or of another shape than those before it.
    """
    given, path = os.fspath(path), Path(os.path.expanduser(path))
    if not given or not os.path.exists(path):
        raise UserError(
            f'data: got {given!r}, no such file or folder, expected a .npy file, or a folder of '
            f'.npy files or images; a relative path starts from {Path.cwd()}'
        )
    if not path.is_dir():
        return read_fields(path)
    files = _data_files(path)
    read = _read_array if files[0].suffix.lower() == '.npy' else _read_image
    return _stacked(files, [read(file) for file in files])


def _data_files(folder: Path) -> list[Path]:
    """Returns the arrays or the images in a folder, by name."""
    files = sorted(
        file for file in folder.iterdir() if file.is_file() and not file.name.startswith('.')
    )
    arrays = [file for file in files if file.suffix.lower() == '.npy']
    images = [file for file in files if file.suffix.lower() in IMAGES]
    if bool(arrays) == bool(images):
        raise UserError(
            f'{folder}: got {len(arrays)} .npy files and {len(images)} images '
            f'({", ".join(IMAGES)}), expected the one or the other; put the data into a folder of '
            'their own'
        )
    return arrays or images


def _stacked(files: Sequence[Path], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the samples of all files; raises a UserError that names the first of another
    shape.
    """
    shape = parts[0].shape[1:]
    for file, part in zip(files, parts, strict=True):
        if part.shape[1:] != shape:
            raise UserError(
                f'{file}: got samples of shape {part.shape[1:]}, expected {shape}, (height, width, '
                f'channels) as in {files[0].name}; crop or resize them alike'
            )
    return np.concatenate(parts)


def _read_array(path: Path) -> Float[np.ndarray, 'n h w c']:
    array = read_array(path)
    if array.dtype.kind not in 'fiu':
        raise UserError(
            f'{path}: got dtype {array.dtype}, expected real numbers; save it as float32'
        )
    if array.ndim not in (2, 3, 4) or not array.size:
        raise UserError(
            f'{path}: got shape {array.shape}, expected (h, w), (h, w, c) or (n, h, w, c), none of '
            'them 0'
        )
    array = array[..., None] if array.ndim == 2 else array
    with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold is counted below
        array = np.asarray(array if array.ndim == 4 else array[None], np.float32)
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise UserError(
            f'{path}: got {bad} of {array.size} values NaN or infinite in float32, expected none; '
            'leave it out'
        )
    return array


def _read_image(path: Path) -> Float[np.ndarray, 'n h w c']:
    from PIL import Image  # matplotlib brings it; needed here alone

    try:
        with Image.open(path) as file:
            image = _opaque(file)
            mode, pixels = image.mode, np.asarray(image).astype(np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f'{path}: got {error}, expected a whole PNG or JPEG image; save it again'
        ) from error
    if mode not in LEVELS:
        raise UserError(
            f'{path}: got an image of mode {mode}, expected an opaque one, grey or RGB; convert it'
        )
    pixels = pixels / LEVELS[mode]
    return pixels[None] if pixels.ndim == 3 else pixels[None, :, :, None]


def _opaque(image: Any) -> Any:
    """Returns an image without its palette, and without an alpha channel that is opaque all
    over.
    """
    if image.mode == '1':
        image = image.convert('L')
    if image.mode == 'P':
        image = image.convert('RGBA' if 'transparency' in image.info else 'RGB')
    if image.mode in ('LA', 'RGBA') and image.getchannel('A').getextrema() == (255, 255):
        image = image.convert(image.mode[:-1])
    return image
