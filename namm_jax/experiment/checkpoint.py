"""Checkpoints that are checked: one NumPy archive each, written whole or not at all.

`<step>.npz` holds the leaves of the state, `state/<path>`, and `meta`, a JSON text: the step, the
shape, dtype and CRC-32 of each leaf, and the caller's dict. Of this text, too, the archive has a
CRC-32.
"""

import io
import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jaxtyping import PyTree

from namm_jax.experiment.devices import whole
from namm_jax.experiment.files import write_bytes
from namm_jax.experiment.processes import from_first, gather


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns: the state, the dict saved with it, and its step."""

    state: PyTree
    meta: dict[str, Any]
    step: int


def _by_path(tree: PyTree) -> dict[str, Any]:
    # Simple names, `ema/w`, so that a dict can stand for a part of a dataclass.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _on_host(leaf: Any) -> np.ndarray:
    """Returns an array that may be split over the processes; each of them calls it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = whole(leaf, leaf.sharding.mesh)
    return np.asarray(leaf)


def _put(array: np.ndarray, target: Any) -> jax.Array:
    if getattr(target, 'sharding', None) is None:
        return jax.numpy.asarray(array)
    return jax.make_array_from_callback(array.shape, target.sharding, lambda index: array[index])


def _form(leaf: Any) -> str:
    return f'{np.dtype(leaf.dtype)} {list(leaf.shape)}'


def _entry(array: np.ndarray) -> dict[str, Any]:
    crc32 = zlib.crc32(np.ascontiguousarray(array).view(np.uint8))
    return {'form': _form(array), 'crc32': crc32}


def _check_fit(path: Path, leaves: Mapping[str, Any], saved: Mapping[str, Any], part: bool) -> None:
    """Raises a ValueError unless the leaves are (part of) the saved ones."""
    expected = {name: _form(leaf) for name, leaf in leaves.items()}
    got = {name: saved[name]['form'] for name in saved if name in leaves or not part}
    for name in sorted(expected | got):
        if got.get(name) != expected.get(name):
            raise ValueError(
                f'{path}: got for {name} {got.get(name, "no such leaf")}, expected '
                f'{expected.get(name, "no such leaf")}; restore with the config that it was saved '
                'with, or discard the stage with --redo'
            )


class Checkpoints:
    """The checkpoints of one folder, `directory`, which the first one makes."""

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Opens a folder, in which the newest `keep` checkpoints stay, at least 1."""
        self.directory = Path(os.path.abspath(directory))
        self._keep = keep
        self._damaged: set[int] = set()

    def _path(self, step: int) -> Path:
        return self.directory / f'{step}.npz'

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, damaged or not, in ascending order."""
        names = (path.stem for path in self.directory.glob('*.npz'))
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Saves a pytree of arrays and a dict of JSON types; a step saved before stays as it is.

        Checkpoints that `restore` found damaged go: this run has gone on from an older one.

        Raises:
            ValueError: if an intact later checkpoint exists.
            OSError: naming the file, if the disk is full or read-only; those before it stay.
        """
        arrays = {path: _on_host(leaf) for path, leaf in _by_path(state).items()}
        from_first(lambda: self._write(step, arrays, meta))
        self._damaged.clear()

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        of_a_kill = self.directory.glob('*.tmp')
        for path in (*of_a_kill, *map(self._path, self._damaged)):
            path.unlink(missing_ok=True)
        steps = self.steps()
        if step in steps:
            return
        if steps and step < steps[-1]:
            raise ValueError(
                f'got step {step} to save in {self.directory}, which holds step {steps[-1]}; '
                'restore before training, or discard the stage with --redo'
            )
        leaves = {name: _entry(array) for name, array in arrays.items()}
        text = json.dumps({'step': step, 'leaves': leaves, 'meta': meta}).encode()
        state = {f'state/{name}': array for name, array in arrays.items()}
        file = io.BytesIO()
        np.savez(file, meta=np.frombuffer(text, np.uint8), **state)
        write_bytes(self._path(step), file.getbuffer())
        for old in self.steps()[: -self._keep]:
            self._path(old).unlink()

    def restore(self, target: PyTree, *, part: bool = False) -> Restored | None:
        """Returns the newest intact checkpoint, None if there is none; warns of damaged ones.

        Args:
            target: a pytree like the saved state, of arrays or ShapeDtypeStructs; their shardings
                say where leaves go.
            part: whether the target may be a part of the state, such as `{'ema': ...}`.

        Raises:
            ValueError: if the target does not fit the saved leaves, or no checkpoint is intact.
        """
        steps, leaves = from_first(self.steps), _by_path(target)
        for step in reversed(steps):
            text, arrays, fault = self._read(step, leaves)
            fault = max(gather(fault))  # that of any process
            if not fault:
                _check_fit(self._path(step), leaves, text['leaves'], part)
                state = [_put(arrays[name], leaf) for name, leaf in leaves.items()]
                state = jax.tree.unflatten(jax.tree.structure(target), state)
                return Restored(state, text['meta'], step)
            self._damaged.add(step)
            message = f'checkpoint {self._path(step)} is damaged, trying the one before it: {fault}'
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        if steps:
            raise ValueError(
                f'{self.directory}: got the damaged checkpoints {steps}, expected at least one '
                'intact; restore the folder from a copy, or discard the stage with --redo'
            )
        return None

    def _read(self, step: int, leaves: Mapping[str, Any]) -> tuple[dict, dict, str]:
        """Returns the text of a checkpoint, its arrays by these names, and what is damaged."""
        arrays = {}
        try:
            with np.load(self._path(step), allow_pickle=False) as archive:
                text = json.loads(archive['meta'].tobytes())
                if text['step'] != step:
                    raise ValueError(f'it is that of step {text["step"]}')
                for name in leaves.keys() & text['leaves'].keys():
                    expected = text['leaves'][name]
                    arrays[name] = archive[f'state/{name}'].view(expected['form'].split()[0])
                    if (got := _entry(arrays[name])) != expected:
                        raise ValueError(f'got {got} for {name}, expected {expected}')
        except Exception as error:  # damage comes as BadZipFile, KeyError, RuntimeError and more
            return {}, {}, f'{type(error).__name__}: {error}'[:300]
        return text, arrays, ''

    def wait(self, *exception: object) -> None:
        """Returns at once: every save has reached the disk, and nothing is left to close."""

    close = __exit__ = wait

    def __enter__(self) -> Self:
        return self
