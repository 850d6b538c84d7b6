"""Checkpoints that are checked: orbax below, and a checksum for every leaf on top. The only
importer of orbax.

A checkpoint is a pytree of arrays, the state, and a JSON dict, `meta`. Orbax makes a save atomic;
it notices a truncated file but not a flipped bit, and casts a wrong dtype silently. So the leaves'
CRC-32, shapes and dtypes travel in the JSON item, and `restore` returns the newest checkpoint for
which all of them agree.
"""

import contextlib
import gc
import json
import logging
import os
import re
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from namm_jax.experiment.devices import whole

# Orbax tells its inner life through absl's one logger, which is also the program's: drop orbax's
# records only. Its errors are there with their tracebacks, and raised as well.
logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
# Of the writes of a save that failed, one raises; on a busy machine asyncio tells of the others at
# any later time.
_NEVER_RETRIEVED = re.compile('exception was never retrieved.*orbax', re.DOTALL)
logging.getLogger('asyncio').addFilter(
    lambda record: not _NEVER_RETRIEVED.search(record.getMessage())
)


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns: the state, the dict saved with it, and its step."""

    state: PyTree
    meta: dict[str, Any]
    step: int


class _Damaged(Exception):
    """A checkpoint whose bytes are not those that were saved."""


def _path_leaves(tree: PyTree) -> dict[str, Any]:
    # Simple names, `ema/w`, so that a dict can stand for a part of a dataclass.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _crc(leaf: Any) -> int:
    """Returns the CRC-32 of an array's bytes, those of all processes: each calls it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = whole(leaf, leaf.sharding.mesh)
    return zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8))


def _describe(leaf: Any) -> dict[str, Any]:
    return {'shape': list(np.shape(leaf)), 'dtype': str(np.dtype(leaf.dtype))}


def _seal(body: Any) -> dict[str, Any]:
    """Returns the JSON item: `body` and the checksum of its canonical form."""
    return {'body': body, 'crc32': zlib.crc32(json.dumps(body, sort_keys=True).encode())}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the leaf's shape, dtype and sharding; without a sharding, the first local device."""
    sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_target(target: PyTree, saved: Mapping[str, Any], where: str, *, part: bool) -> None:
    """Raises a ValueError unless names, shapes and dtypes of the target's leaves are (part of) the
    saved ones.
    """
    wanted = {path: _describe(leaf) for path, leaf in _path_leaves(target).items()}
    found = {path: {'shape': leaf['shape'], 'dtype': leaf['dtype']} for path, leaf in saved.items()}
    for path in sorted(wanted.keys() if part else wanted.keys() | found.keys()):
        got, expected = found.get(path, 'no such leaf'), wanted.get(path, 'no such leaf')
        if got != expected:
            raise ValueError(
                f'{where}: got for {path} {got}, expected {expected}; restore with the config that '
                'it was saved with, or discard the stage with --redo'
            )


def _cause(error: BaseException) -> str:
    """Returns the first line of the error at the root, which names the reason."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return f'{type(error).__name__}: {error}'.splitlines()[0][:600]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps standard error clean of the reads and writes that a failed one leaves pending.

    Their futures find orbax's event loop closed, and say so through every channel that Python has
    for that.
    """
    hooks, logger = (sys.unraisablehook, sys.excepthook), logging.getLogger('asyncio')
    disabled, logger.disabled = logger.disabled, True
    sys.unraisablehook, sys.excepthook = lambda _: None, lambda *_: None
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = hooks
        logger.disabled = disabled


def _ignore_closed_loops() -> None:
    """Makes Python silent, for as long as it runs, about writes left pending in a background save
    that failed.

    On a busy machine they end at any later time, so there is no moment to take this back; all else
    is told as before.
    """
    told = sys.unraisablehook
    if getattr(told, 'ignores_closed_loops', False):
        return

    def hook(raised: Any) -> None:
        if str(raised.exc_value) != 'Event loop is closed':
            told(raised)

    hook.ignores_closed_loops = True
    sys.unraisablehook = hook


def _settle() -> None:
    """Waits for what a failure left pending to end, and frees it here rather than at any later
    time.
    """
    time.sleep(0.1)
    gc.collect()


class Checkpoints:
    """The checkpoints of one folder, saved in the background.

    Attributes:
        directory: the folder; made by the first save.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Opens a folder, which need not exist.

        Args:
            directory: the folder.
            keep: how many of the newest checkpoints to keep, at least 1; 2 or more leave one to
                fall back to.
        """
        if keep < 1:
            raise ValueError(f'got keep = {keep}, expected at least 1; 2 leave one to fall back to')
        self.directory = os.path.abspath(directory)
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        self._damaged: set[int] = set()
        _ignore_closed_loops()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
                cleanup_tmp_directories=True,  # what a kill left behind
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, damaged or not, in ascending order."""
        return sorted(self._open().all_steps()) if os.path.isdir(self.directory) else []

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Saves in the background; the state may be donated at once. A step already saved is left
        as it is.

        Checkpoints that `restore` found damaged are deleted first: this run has gone on from an
        older one.

        Args:
            step: the number of the step, larger than that of every intact checkpoint.
            state: a pytree of arrays.
            meta: a dict of JSON types.

        Raises:
            ValueError: if an intact later checkpoint exists.
            OSError: naming the folder, if this save or the one before it could not be written.
        """
        with self._writing():
            manager = self._open()
            for damaged in self._damaged & set(manager.all_steps()):
                manager.delete(damaged)
        self._damaged.clear()
        steps = manager.all_steps()
        if step in steps:
            return
        if steps and step < max(steps):
            raise ValueError(
                f'got step {step} to save in {self.directory}, which holds step {max(steps)}; '
                'expected a later one: restore before training, or discard the stage with --redo'
            )
        leaves = {
            path: _describe(leaf) | {'crc32': _crc(leaf)}
            for path, leaf in _path_leaves(state).items()
        }
        body = json.loads(json.dumps({'leaves': leaves, 'meta': meta}))
        items = {'state': ocp.args.PyTreeSave(state), 'meta': ocp.args.JsonSave(_seal(body))}
        with self._writing():
            manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, target: PyTree, *, part: bool = False) -> Restored | None:
        """Returns the newest intact checkpoint, None if there is none at all; warns of each damaged
        one.

        Args:
            target: a pytree like the saved state, of arrays or ShapeDtypeStructs; their shardings
                say where leaves go.
            part: whether the target may leave out some of the saved leaves: `{'ema': ...}` of a
                whole training state.

        Raises:
            ValueError: if the target does not fit the saved leaves, or no checkpoint is intact.
        """
        self.wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                body = self._read_meta(step)
                _check_target(target, body['leaves'], f'{self.directory}/{step}', part=part)
                return Restored(self._read_state(step, target, body['leaves']), body['meta'], step)
            except _Damaged as damage:
                self._damaged.add(step)
                message = (
                    f'checkpoint {self.directory}/{step} is damaged, trying the one before it: '
                    f'{damage}'
                )
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        if steps:
            raise ValueError(
                f'{self.directory}: got the damaged checkpoints {steps}, expected at least one '
                'intact; restore the folder from a copy, or discard the stage with --redo'
            )
        return None

    def _read(self, step: int, item: str, args: ocp.args.CheckpointArgs) -> Any:
        """Returns an item of a checkpoint as orbax reads it."""
        with _quiet():
            try:
                return self._open().restore(step, args=ocp.args.Composite(**{item: args}))[item]
            # orbax raises bare Exception, KeyError, JSONDecodeError and more for damage
            except Exception as error:
                cause = _cause(error)
            _settle()
        raise _Damaged(cause)

    def _read_meta(self, step: int) -> dict[str, Any]:
        """Returns the leaves' descriptions and the user's dict."""
        item = self._read(step, 'meta', ocp.args.JsonRestore())
        if not isinstance(item, dict) or item != _seal(item.get('body')):
            raise _Damaged('the checksum of its description differs')
        return item['body']

    def _read_state(self, step: int, target: PyTree, saved: Mapping[str, Any]) -> PyTree:
        """Returns the state, every leaf checked against its checksum."""
        target = jax.tree.map(_abstract, target)
        shardings = ocp.checkpoint_utils.construct_restore_args(target)
        state = self._read(
            step, 'state', ocp.args.PyTreeRestore(target, shardings, partial_restore=True)
        )
        for path, leaf in _path_leaves(state).items():
            if (crc := _crc(leaf)) != (expected := saved[path]['crc32']):
                raise _Damaged(f'the checksum of {path} is {crc}, expected {expected}')
        return state

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises as OSError what orbax raises when it writes: a full disk comes as a ValueError,
        from a thread.
        """
        with _quiet():
            try:
                yield
                return
            except Exception as error:
                cause = _cause(error)
            _settle()
        raise OSError(
            f'{self.directory}: got a checkpoint that could not be written, expected room and '
            f'leave to write; those before it stay, and the same command goes on from them: {cause}'
        )

    def wait(self) -> None:
        """Returns once every save has reached the disk.

        Raises:
            OSError: naming the folder, if one could not be written.
        """
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then frees the threads."""
        if self._manager is not None:
            with self._writing():
                self._manager.close()
            self._manager = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
