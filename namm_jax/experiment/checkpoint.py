"""Checkpoints that are checked: orbax below, and a checksum of every file on top. The only importer
of orbax.

`<step>/` is orbax's. `<step>.json`, written once that is on the disk, says what is in it: the step
and the origin, what the state is a function of; shape, dtype and CRC-32 of each leaf; the CRC-32 of
each file; the caller's dict. It has a CRC-32 itself. Orbax notices neither a flipped bit nor a
wrong dtype: it reads only what has been checked.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from namm_jax.experiment.config import flatten, refuse_stranger
from namm_jax.experiment.devices import whole
from namm_jax.experiment.files import naming, sync, write_bytes
from namm_jax.experiment.processes import from_first, tells_of_a_loss

# Orbax tells its inner life through absl's one logger. Its errors are raised as well.
logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
ROOM = 2**16  # bytes that a checkpoint takes besides its arrays


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns: the state, the dict saved with it, and its step."""

    state: PyTree
    meta: dict[str, Any]
    step: int


def _by_path(tree: PyTree) -> dict[str, Any]:
    # Simple names, `ema/w`, so that a dict can stand for a part of a dataclass.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _form(leaf: Any) -> str:
    return f'{np.dtype(leaf.dtype)} {list(leaf.shape)}'


def _crc(leaf: Any) -> int:
    """Returns the CRC-32 of an array's bytes, those of all processes: each calls it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = whole(leaf, leaf.sharding.mesh)
    return zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8))


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    """Returns where a restored leaf goes: to NumPy unless it says devices."""
    sharding = getattr(leaf, 'sharding', None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(dtype=leaf.dtype, sharding=sharding, global_shape=leaf.shape)


def _sealed(body: Any) -> dict[str, Any]:
    return {'body': body, 'crc32': zlib.crc32(json.dumps(body, sort_keys=True).encode())}


def _checksums(folder: Path) -> dict[str, int]:
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in paths}


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one folder, `directory`, which the first save makes."""

    def __init__(self, directory: str | Path, *, keep: int = 2, origin: Any = ()) -> None:
        """Opens a folder of states of this origin, JSON types; the newest `keep`, >= 1, stay."""
        if keep < 1:
            raise ValueError(f'got keep = {keep}, expected at least 1; 2 leave one to fall back to')
        self.directory = Path(os.path.abspath(directory))
        self._keep, self._origin = keep, dict(origin)
        self._damaged: set[int] = set()
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

    def _text(self, step: int) -> Path:
        return self.directory / f'{step}.json'

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, damaged or not, in ascending order."""
        names = (path.stem for path in self.directory.glob('*.json'))
        return sorted(int(name) for name in names if name.isdecimal())

    def _delete(self, step: int) -> None:
        self._text(step).unlink(missing_ok=True)  # first: without it there is no checkpoint
        shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def _begin(self, step: int, size: int) -> bool:
        """Removes what is damaged, or a kill has left; returns whether the step is to be saved; an
        OSError says that there is no room for it.
        """
        for damaged in self._damaged:
            self._delete(damaged)
        steps = self.steps()
        if steps and step < steps[-1]:
            raise ValueError(
                f'got step {step} to save in {self.directory}, which holds step {steps[-1]}; '
                'restore before training, or discard the stage with --redo'
            )
        for path in self.directory.glob('*'):
            if path.is_dir() and path.name not in map(str, steps):
                shutil.rmtree(path)
        if step in steps:
            return False
        # A save that fails half way is told of by orbax's threads at any later time.
        self.directory.mkdir(parents=True, exist_ok=True)
        with naming(self.directory), tempfile.TemporaryFile(dir=self.directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return True

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Saves a pytree of arrays and a dict of JSON types; a step saved before stays as it is,
        checkpoints that `restore` found damaged go. A ValueError if an intact later one exists; an
        OSError names the folder if the disk is full or read-only: those before it stay.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + ROOM
        needed = from_first(lambda: self._begin(step, size))
        self._damaged.clear()
        if not needed:
            return
        folder = self.directory / str(step)
        try:
            self._orbax.save(folder, args=ocp.args.PyTreeSave(state))
        except Exception as error:  # a full disk comes as a ValueError, from tensorstore
            if tells_of_a_loss(error):
                raise
            # Without the folder, which is named already: long paths would hide the reason.
            told = f'{type(error).__name__}: {error}'.replace(f'{self.directory}{os.sep}', '')
            cause = told.splitlines()[0][:300]
            raise OSError(
                f'{folder}: got a checkpoint that could not be written, expected room, leave to '
                'write, and a disk that renames folders (a bucket may not: choose a --workdir on a '
                f'local disk, and copy it afterwards); those before it stay: {cause}'
            ) from error
        leaves = {path: [_form(leaf), _crc(leaf)] for path, leaf in _by_path(state).items()}
        body = {'step': step, 'origin': self._origin, 'leaves': leaves, 'meta': meta}
        from_first(lambda: self._finish(step, body))

    def _finish(self, step: int, body: dict[str, Any]) -> None:
        sync(self.directory / str(step))
        body |= {'files': _checksums(self.directory / str(step))}
        write_bytes(self._text(step), json.dumps(_sealed(body)).encode())
        for old in self.steps()[: -self._keep]:
            self._delete(old)

    def restore(self, target: PyTree, *, part: bool = False) -> Restored | None:
        """Returns the newest intact checkpoint, None if there is none; warns of damaged ones.

        Args:
            target: a pytree like the saved state, of arrays or ShapeDtypeStructs; their shardings
                say where leaves go, none for NumPy's arrays.
            part: whether the target may be a part of the state, such as `{'ema': ...}`.

        Raises:
            ValueError: if the target does not fit the saved leaves, no checkpoint is intact, or one
                is of another step or origin.
        """
        steps = from_first(self.steps)
        for step in reversed(steps):
            folder = self.directory / str(step)
            body, fault = from_first(lambda step=step: self._read(step))
            if not fault:
                _check_fit(folder, _by_path(target), body['leaves'], part)
                places = jax.tree.map(_restore_args, target)
                args = ocp.args.PyTreeRestore(target, places, partial_restore=True)
                return Restored(self._orbax.restore(folder, args=args), body['meta'], step)
            self._damaged.add(step)
            message = f'checkpoint {folder} is damaged, trying the one before it: {fault}'
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        if steps:
            raise ValueError(
                f'{self.directory}: got the damaged checkpoints {steps}, expected at least one '
                'intact; restore the folder from a copy, or discard the stage with --redo'
            )
        return None

    def _read(self, step: int) -> tuple[dict[str, Any], str]:
        """Returns what the text of a checkpoint says, and what is damaged."""
        try:
            text = json.loads(self._text(step).read_bytes())
            body = text['body']
            if text != _sealed(body):
                return {}, 'the checksum of its description differs'
            saved = flatten({'step': body['step'], **body.get('origin', self._origin)})
            got = _checksums(self.directory / str(step))
            changes = sorted(name for name, _ in got.items() ^ body['files'].items())
            body['leaves'] = {name: [form] for name, (form, _) in body['leaves'].items()}
            body['meta'] = dict(body['meta'])
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
            return {}, repr(error)[:300]
        refuse_stranger(self._text(step), 'a checkpoint', saved, {'step': step, **self._origin})
        return body, f'got other bytes than were saved in {changes[:3]}' if changes else ''

    def close(self, *exception: object) -> None:
        """Frees what reads and writes."""
        self._orbax.close()

    __exit__ = close


def _check_fit(
    where: Path, leaves: Mapping[str, Any], saved: Mapping[str, Any], part: bool
) -> None:
    """Raises a ValueError unless the leaves are (part of) the saved ones."""
    expected = {name: _form(leaf) for name, leaf in leaves.items()}
    got = {name: saved[name][0] for name in saved if name in leaves or not part}
    for name in sorted(expected | got):
        if got.get(name) != expected.get(name):
            raise ValueError(
                f'{where}: got for {name} {got.get(name, "no such leaf")}, expected '
                f'{expected.get(name, "no such leaf")}; restore with the config that it was saved '
                'with, or discard the stage with --redo'
            )
