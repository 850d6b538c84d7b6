"""Data of a user's own: arrays in the formats of the field, or images, as fields `(n, h, w, c)`.

A place is `FILE.npy`, `FILE.npz:NAME`, `FILE.h5:DATASET`, `FILE.nc:VARIABLE`, or a folder of files
of one kind, `FOLDER` or `FOLDER:NAME`. Nothing in a file is executed: pickles are refused.
"""

import contextlib
import functools
import importlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from namm_jax._checks import choose, nearest
from namm_jax.experiment.dataset import IN_MEMORY, Stored, as_fields, map_array
from namm_jax.experiment.files import UserError
from namm_jax.experiment.progress import say
from namm_jax.problems.own_arrays import moments

IMAGES = ('.png', '.jpg', '.jpeg')
OTHERS = ('.tif', '.tiff', '.bmp', '.gif', '.webp', '.pgm', '.mat', '.zarr')  # data, but not read
LARGEST = 2**24  # pixels of an image
LEVELS = {'L': 255, 'RGB': 255, 'I;16': 65535, 'I': 65535}  # image mode -> the value of white
EXTRAS = {'h5py': 'hdf5', 'xarray': 'netcdf'}
# The names of axes, and which axis of fields each becomes; those of c are merged.
AXES = {
    'n': ('n',),
    'h': ('h', 'y', 'lat', 'latitude', 'height', 'row'),
    'w': ('w', 'x', 'lon', 'longitude', 'width', 'column', 'length'),
    'c': ('c', 'channel', 'time', 't', 'level', 'depth', 'z'),
}
ROLES = {name: role for role, names in AXES.items() for name in names}
USUAL = {2: 'h,w', 3: 'h,w,c', 4: 'n,h,w,c'}  # of files in a folder


def place_of(given: str | os.PathLike[str]) -> tuple[Path, str]:
    """Returns the file or folder that is meant, and the name of the array in it, or ''."""
    text = os.path.expanduser(os.fspath(given))
    path, _, name = text.rpartition(':')
    return (Path(path), name) if path and not os.path.exists(text) else (Path(text), '')


def files_of(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the arrays, and the images, that a path names, in the order of their names."""
    if not os.path.isdir(path):  # of pathlib, a name too long raises
        return [path], []
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] != '.')
    of = lambda suffixes: [file for file in files if file.suffix.lower() in suffixes]
    return of(READERS), of(IMAGES)


# An array as it lies in its file, of NumPy, h5py or xarray: `shape`, `dtype`, slices and indices of
# one axis; and the names of its axes there, if it has any.
_Array = tuple[Any, tuple[str, ...]]


def _one_of(path: Path, name: str, names: Sequence[str]) -> str:
    if name not in names and (name or len(names) != 1):
        fault = nearest(name, names) if names else f'got {name!r}, but it holds no arrays'
        raise UserError(f'{path}: {fault}; name it after a colon, {path.name}:NAME')
    return name or names[0]


@contextlib.contextmanager
def _npy(path: Path, name: str) -> Iterator[_Array]:
    if name:
        raise UserError(f'{path}: got the name {name!r}, but a .npy file has one array; leave it')
    yield map_array(path), ()


@contextlib.contextmanager
def _npz(path: Path, name: str) -> Iterator[_Array]:
    with np.load(path, allow_pickle=False) as archive:
        if not hasattr(archive, 'files'):
            raise ValueError('no archive of arrays')
        yield archive[_one_of(path, name, archive.files)], ()


@contextlib.contextmanager
def _hdf5(path: Path, name: str) -> Iterator[_Array]:
    h5py, names = _package('h5py', path), []

    def visit(place: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(place)

    with h5py.File(path, 'r') as file:
        file.visititems(visit)
        yield file[_one_of(path, name.strip('/'), names)], ()


@contextlib.contextmanager
def _netcdf(path: Path, name: str) -> Iterator[_Array]:
    xarray = _package('xarray', path)
    # Packed and missing values are decoded; the units of a time axis may be anything.
    with xarray.open_dataset(path, decode_times=False, cache=False) as file:
        values = file[_one_of(path, name, [str(name) for name in file.data_vars])]
        for axis, numbers in values.coords.items():
            if axis in values.dims and numbers.dtype.kind in 'OSU':
                raise UserError(
                    f'{path}: got text on the axis {axis!r} of {values.name}, such as '
                    f'{str(numbers.values.flat[0])!r}, expected numbers; write it again with them'
                )
        yield values, tuple(map(str, values.dims))


READERS = {'.npy': _npy, '.npz': _npz, '.h5': _hdf5, '.hdf5': _hdf5, '.nc': _netcdf}


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = f"pip install 'namm_jax[{EXTRAS[name]}]'"
        raise UserError(f'{path}: got no package {name}, which reads it; {extra}') from error


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[_Array]:
    reader = READERS.get(path.suffix.lower(), _npy)
    if not path.is_file():
        raise UserError(f'{path}: got no such file, expected one; check the path')
    try:
        with reader(path, name) as array:
            yield array
    except UserError:
        raise
    except Exception as error:  # each library has errors of its own for damage
        got = str(error)[:300] or repr(error)
        expected = 'a whole file of numeric arrays'
        if path.suffix.lower() not in ('.npy', *READERS):
            expected = f'.npy or one of {", ".join(READERS)}; convert it'
        raise UserError(f'{path}: got {got}, expected {expected}') from error


def read_values(given: str | os.PathLike[str]) -> np.ndarray:
    """Returns the array of any shape in a user's file; a UserError names one that has none."""
    with _opened(*place_of(given)) as (values, _):
        return np.array(values)


class _Part(NamedTuple):
    """The samples of one file, `(n, h, w, c)`: how it is opened, and the order of its axes."""

    path: Path
    open: Callable[[], contextlib.AbstractContextManager[_Array]]
    shape: tuple[int, ...]
    order: Sequence[int] = (0, 1, 2, 3)
    single: bool = False  # whether the array is one sample

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows of it, of the type in the file."""
        axis = self.order[0]
        with self.open() as (values, _):
            if self.single:
                x = np.asarray(values)[None]
            elif isinstance(values, np.ndarray):
                x = values.take(rows, axis)
            else:  # HDF5 takes them in increasing order
                x = np.asarray(values[(slice(None),) * axis + (np.sort(rows),)])
                x = x.take(np.argsort(np.argsort(rows)), axis)
        return x.transpose(self.order).reshape(len(rows), *self.shape[1:])


def _part(path: Path, name: str, axes: str, folder: bool) -> _Part:
    held = lambda x: functools.partial(contextlib.nullcontext, (x, ()))
    if folder and path.suffix.lower() in IMAGES:
        x = _read_image(path)
        return _Part(path, held(x), x.shape)
    with _opened(path, name) as (values, dims):
        names = _axes_of(path, values.shape, dims, axes, folder)
        single = len(names) > len(values.shape)
        lengths = (1, *values.shape) if single else values.shape
        groups = [[i for i, n in enumerate(names) if n in AXES[role]] for role in AXES]
        shape = tuple(math.prod(lengths[i] for i in group) for group in groups)
        if not all(shape):
            as_fields(path, np.empty(shape, values.dtype))  # raises
        mapped = not isinstance(values, np.ndarray) or isinstance(values, np.memmap)
        again = functools.partial(_opened, path, name) if mapped else held(values)
        return _Part(path, again, shape, sum(groups, []), single)


def _axes_of(
    path: Path, shape: tuple[int, ...], dims: tuple[str, ...], axes: str, folder: bool
) -> list[str]:
    """Returns the names of an array's axes, of one sample with an `n` in front."""
    names = (axes or USUAL.get(len(shape) if folder else 4, '')).split(',')
    for name in filter(None, names):
        choose('axes', name, ROLES, UserError)
    if any(sum(name in AXES[role] for name in names) > 1 for role in 'nhw'):
        raise UserError(f'axes: got {axes}, expected one of n, one of h, one of w at most')
    if folder and names[0] and 'n' not in names:
        names = ['n', *names]
    single = folder and names[0] == 'n' and len(names) == len(shape) + 1
    own = names[1:] if single else names
    moved = any(name in dims and name != at for name, at in zip(own, dims, strict=False))
    if len(own) != len(shape) or moved or 'n' not in names:
        usual = '(h, w), (h, w, c) or (n, h, w, c)' if folder else '(n, h, w, c)'
        got = f'shape {tuple(shape)}' + (f' with the axes {",".join(dims)}' if dims else '')
        raise UserError(
            f'{path}: got {got}, expected {f"axes {axes}" if axes else usual}; say what they are, '
            'n for samples, as --config.data.axes=n,h,w or n,time,lat,lon, or axes= of nj.read'
        )
    return names


def _rows(parts: Sequence[_Part], mask: np.ndarray | None = None, fill: Any = 0.0) -> Stored:
    """Returns the samples of all files, one after another, `fill` where a mask `(h, w, 1)` is 0."""
    starts = np.cumsum([0, *(part.shape[0] for part in parts)])

    def read(rows: np.ndarray) -> np.ndarray:
        x = np.empty((len(rows), *parts[0].shape[1:]), np.float32)
        files = np.searchsorted(starts, rows, 'right') - 1
        for k in np.unique(files):
            part = parts[k].read(rows[files == k] - starts[k])
            if mask is not None and part.dtype.kind in 'fiu':
                part = np.where(mask, part, fill)
            x[files == k] = as_fields(parts[k].path, part)
        return x

    return Stored(read, (int(starts[-1]), *parts[0].shape[1:]))


def _mask(place: str, shape: Sequence[int]) -> np.ndarray:
    mask = np.nan_to_num(read_values(place)) != 0
    if np.squeeze(mask).shape != np.squeeze(np.empty(shape[:2])).shape or not mask.any():
        raise UserError(
            f'{place}: got a mask of shape {mask.shape}, {mask.sum()} pixels not 0, expected '
            f'(h, w) = {tuple(shape[:2])}, not 0 where there are data'
        )
    return mask.reshape(*shape[:2], 1)


def read_user_data(
    given: str | os.PathLike[str], axes: str = '', mask: str = ''
) -> Float[np.ndarray, 'n h w c'] | Stored:
    """Returns the samples at a place, float32; those of more than `IN_MEMORY` bytes as `Stored`.

    Args:
        given: `FILE.npy`, `FILE.npz:NAME`, `FILE.h5:DATASET`, `FILE.nc:VARIABLE`, a folder of
            those, `FOLDER` or `FOLDER:NAME`, in the order of their names; or a folder of PNG or
            JPEG images, grey or RGB, turned as their EXIF data say and scaled to [0, 1]: black is
            0, white 1.
        axes: names of the arrays' axes, of `AXES`; n,h,w,c unless given, and in a folder h,w,c and
            h,w, too. Axes of channels are merged; h or w that is not there has one pixel.
        mask: the place of an array `(h, w)`, 0 at pixels without data, such as land. These hold
            the mean of their channel, and a rule should leave them out.

    Raises:
        UserError: naming the file that is missing, unreadable, pickled, not numeric, not finite,
            transparent, of another shape than those before it, or of another kind; or the variable
            that is not there.
    """
    text = os.fspath(given)
    path, name = place_of(given)
    if not text or not os.path.exists(path):
        raise UserError(
            f'data: got {text!r}, no such file or folder, expected FILE.npy, FILE.npz:NAME, '
            'FILE.h5:DATASET, FILE.nc:VARIABLE, or a folder of such files or of images (in a run '
            f'by --config.data.path); a relative path starts from {Path.cwd()}'
        )
    arrays, images = files_of(path)
    folder = path.is_dir()
    if folder:
        _check_folder(path, arrays, images)
    parts = [_part(file, name, axes, folder) for file in arrays or images]
    for part in parts:
        if part.shape[1:] != parts[0].shape[1:]:
            raise UserError(
                f'{part.path}: got samples of shape {part.shape[1:]}, expected '
                f'{parts[0].shape[1:]}, (height, width, channels) as in {parts[0].path.name}; crop '
                'or resize them'
            )
    x = _rows(parts)
    if mask:
        where = _mask(mask, x.shape[1:])
        sums = [x.sum((0, 1, 2), np.float64) for x in _rows(parts, where).blocks()]
        x = _rows(parts, where, sum(sums) / (where.sum() * len(x)))
    x = x[:] if 4 * math.prod(x.shape) <= IN_MEMORY else x
    *_, low, high = moments([x] if isinstance(x, np.ndarray) else x.blocks(), None)
    unit = 'white is 1' if images else 'in their own unit'
    say(f'{text}: {x.shape[0]} samples {x.shape[1:]}, {low:.4g} to {high:.4g}, {unit}')
    return x


def read(given: str | os.PathLike[str], axes: str = '', mask: str = '') -> np.ndarray:
    """Returns the samples in a user's file or folder, float32 `(n, h, w, c)`.

    Args:
        given, axes, mask: as of `read_user_data`.

    Raises:
        ValueError: as `read_user_data` does.
    """
    return read_user_data(given, axes, mask)[:]


def _check_folder(path: Path, arrays: Sequence[Path], images: Sequence[Path]) -> None:
    others = [file.name for file in path.iterdir() if file not in {*arrays, *images}]
    lost = sorted(name for name in others if name.lower().endswith(OTHERS))
    if bool(arrays) == bool(images) or lost:
        raise UserError(
            f'{path}: got {len(arrays)} files of arrays ({", ".join(READERS)}) and {len(images)} '
            f'images ({", ".join(IMAGES)}), {len(lost)} of other kinds {lost[:3]}, expected the '
            'one or the other; convert or move the rest'
        )
    if others:
        say(f'{path}: passed over {len(others)} others, such as {min(others)}')


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
