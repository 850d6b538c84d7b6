"""What a user brings: a function, named by a string that a config can keep, and data, as arrays or
images.
"""

import functools
import importlib
import importlib.util
import io
import os
import sys
import traceback
import types
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from namm_jax._checks import nearest
from namm_jax.experiment.dataset import as_fields, read_array, read_fields
from namm_jax.experiment.files import UserError
from namm_jax.experiment.progress import say

FORMS = 'package.module:function or path/to/file.py:function'
IMAGES = ('.png', '.jpg', '.jpeg')
OTHERS = ('.tif', '.tiff', '.bmp', '.gif', '.webp', '.pgm', '.npz')  # data, but not read
LARGEST = 2**24  # pixels of an image
LEVELS = {'L': 255, 'RGB': 255, 'I;16': 65535, 'I': 65535}  # image mode -> the value of white


def load_function(spec: str, *, quiet: bool = False) -> Callable[..., Any]:
    """Returns the function that a string names; says what it executes for it.

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
    if not callable(function):
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
    """Returns the CRC-32 of what a field of a config names: a user's data, by `data.path`, or the
    source of a function or class, which is imported if it is in a module.
    """
    place = value.rpartition(':')[0]
    if field == 'data.path':
        paths = sum(_data_files(Path(os.path.expanduser(value))), [])
    else:
        paths = [_file(place) or Path(getattr(_module_of_name(place), '__file__', None) or '')]
    crc = 0
    for path in filter(os.path.isfile, paths):  # of pathlib, a name too long raises
        crc = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), crc))
    return crc


def _data_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the arrays, and the images, that a path names, in the order of their names."""
    if not os.path.isdir(path):
        return [path], []
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] != '.')
    of = lambda suffixes: [file for file in files if file.suffix.lower() in suffixes]
    return of(['.npy']), of(IMAGES)


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


def read_user_data(path: str | os.PathLike[str]) -> Float[np.ndarray, 'n h w c']:
    """Returns the samples in a `.npy` file, a folder of `.npy` files, or a folder of images, as
    float32.

    Args:
        path: a file `(n, h, w, c)`; a folder of arrays `(n, h, w, c)`, `(h, w, c)` or `(h, w)`, in
            the order of their names; or a folder of PNG or JPEG images, grey or RGB, turned as
            their EXIF data say and scaled to [0, 1]: black is 0, white 1.

    Raises:
        UserError: naming the file that is missing, unreadable, pickled, not numeric, not finite,
            transparent, of another shape than those before it, or of another kind.
    """
    given = os.fspath(path)
    path = Path(os.path.expanduser(path))
    if not given or not os.path.exists(path):
        raise UserError(
            f'data: got {given!r}, no such file or folder, expected a .npy file, or a folder of '
            f'.npy files or images; a relative path starts from {Path.cwd()}'
        )
    if not path.is_dir():
        return _told(given, read_fields(path), 'as they are')
    arrays, images = _data_files(path)
    others = [file.name for file in path.iterdir() if file not in {*arrays, *images}]
    lost = sorted(name for name in others if name.lower().endswith(OTHERS))
    if bool(arrays) == bool(images) or lost:
        raise UserError(
            f'{path}: got {len(arrays)} .npy files and {len(images)} images ({", ".join(IMAGES)}), '
            f'{len(lost)} of other kinds {lost[:3]}, expected the one or the other; convert or '
            'move the rest'
        )
    if others:
        say(f'{path}: passed over {len(others)} others, such as {min(others)}')
    parts = []
    for file in arrays or images:
        part = _read_array(file) if arrays else _read_image(file)
        if parts and part.shape[1:] != parts[0].shape[1:]:
            raise UserError(
                f'{file}: got samples of shape {part.shape[1:]}, expected {parts[0].shape[1:]}, '
                f'(height, width, channels) as in {(arrays or images)[0].name}; crop or resize them'
            )
        parts.append(part)
    return _told(given, np.concatenate(parts), 'as they are' if arrays else 'white is 1')


def _told(given: str, x: np.ndarray, unit: str) -> np.ndarray:
    """Returns fields, after a line about them."""
    say(f'{given}: {x.shape[0]} samples {x.shape[1:]}, {x.min():.4g} to {x.max():.4g}, {unit}')
    return x


def _read_array(path: Path) -> Float[np.ndarray, 'n h w c']:
    array = read_array(path)
    if array.ndim not in (2, 3, 4):
        raise UserError(
            f'{path}: got shape {array.shape}, expected (h, w), (h, w, c) or (n, h, w, c)'
        )
    array = array[..., None] if array.ndim == 2 else array
    return as_fields(path, array if array.ndim == 4 else array[None])


def _read_image(path: Path) -> Float[np.ndarray, 'n h w c']:
    from PIL import Image, ImageOps  # matplotlib brings it; needed here alone

    try:
        # A decoder of every format would run Ghostscript for what is not what it is called.
        quiet = warnings.catch_warnings(action='ignore', category=Image.DecompressionBombWarning)
        # Of memory: a file gives room for what a part promises, not for what it has.
        data = io.BytesIO(path.read_bytes())
        with quiet, Image.open(data, formats=('PNG', 'JPEG')) as file:
            if file.width * file.height > LARGEST:
                raise ValueError(f'{file.width}x{file.height} pixels, expected at most {LARGEST}')
            image = _opaque(ImageOps.exif_transpose(file))
            pixels = np.asarray(image).astype(np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'{path}: got {error}, expected a whole PNG or JPEG image') from error
    if image.mode not in LEVELS:
        raise UserError(
            f'{path}: got an image of mode {image.mode}, expected an opaque one, grey or RGB'
        )
    pixels = pixels / LEVELS[image.mode]
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
