"""Random bad input to all that reads a user's arguments and files, for as long as one likes.

    python tests/fuzz.py --cases=100000 [--seed=0] [--only=overrides] [--seconds=240]

A fuzzer makes a case from random numbers (`fuzz_cases`) and checks what becomes of it:
`check_<fuzzer>(case)` raises an AssertionError unless the case is taken with the right result, or
refused by a ValueError, which the commands show as one message with exit status 2. Whatever
happens, no text or pickle of the case is executed, no file is written, and no memory is taken that
the case merely promises to fill. Case i of a seed is always the same. Exit status: 0, or 1 after
failures, of which the first of each kind is shown.

    overrides    the command line of launch/main.py, up to what would be trained
    npy          .npy files of samples
    data_set     folders of a data set: its record, its files and their checksums
    measurement  .npy files and options of launch/solve.py, up to where it loads models
    folder       JSON of a run folder, opened for reading and for a run
    image        images of one's own
    checkpoint   descriptions of checkpoints
    lock         what is in the lock file of a folder in use
"""

import argparse
import contextlib
import fcntl
import functools
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
from fuzz_cases import (
    CHECKPOINT,
    ORIGIN,
    SHAPE,
    fields_of,
    good_files,
    make_checkpoint,
    make_data_set,
    make_folder,
    make_image,
    make_lock,
    make_measurement,
    make_npy,
    make_overrides,
    saved_config,
    write,
)
from ml_collections import ConfigDict

from namm_jax.experiment import build, cli, command, dataset, solve
from namm_jax.experiment import folder as run_folder
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.config import flatten, override, steps_of
from namm_jax.experiment.devices import rules_of
from namm_jax.experiment.folder import Folder, Run
from namm_jax.experiment.formats import read_user_data
from namm_jax.experiment.problem import check_files, make_problem, with_own_data
from namm_jax.experiment.schema import check_ranges
from namm_jax.experiment.stages import check_stages

MEMORY = 2**26  # bytes: far more than any case holds


class Fuzzer(NamedTuple):
    """How a case is made, and what must hold of it."""

    make: Callable[[Random], Any]
    check: Callable[[Any], None]


def outcome(call: Callable[[], Any], name: str = '') -> Any:
    """Returns what a call returns, or the ValueError by which it refuses, whose message must hold
    `name`.
    """
    try:
        return call()
    except ValueError as error:
        told = str(error)
        assert told and 'Traceback' not in told, f'got the message {told!r}'
        assert name in told, f'got {error!r}, which does not name {name}'
        return error
    except (Exception, SystemExit) as error:
        raise AssertionError(f'got {type(error).__name__}: {str(error)[:300]}') from error


_opened: list[str] | None = None


@functools.cache
def _watch_files() -> None:
    sys.addaudithook(
        lambda event, facts: (
            event == 'open' and _opened is not None and _opened.append(str(facts[0]))
        )
    )


@contextlib.contextmanager
def sandbox(
    files: Mapping[str, bytes], outside: bytes = b'', traced: bool = True
) -> Iterator[Path]:
    """Yields a folder of these files; nothing may be written beside it, read outside of it, or
    promised to be large.

    Args:
        files: name -> content.
        outside: of the file `../outside.npy`.
        traced: whether memory is watched, which takes time.
    """
    global _opened
    _watch_files()
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix='fuzz_') as root:
        current, folder = Path(root) / 'current', Path(root) / 'files'
        for path in (current, folder):
            path.mkdir()
        for name, data in {**files, '../outside.npy': outside}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        os.chdir(current)
        _opened = []
        if traced:
            tracemalloc.start()
        try:
            yield folder
            opened, peak = _opened, tracemalloc.get_traced_memory()[1]
        finally:
            _opened = None
            tracemalloc.stop()
            os.chdir(before)
        assert peak < MEMORY, f'took {peak} bytes'
        assert not [path for path in opened if path.endswith(('outside.npy', 'passwd'))], (
            f'opened {opened}'
        )
        written = [
            path.relative_to(root)
            for path in Path(root).rglob('*')
            if folder not in (path, *path.parents)
        ]
        assert sorted(written) == [Path('current'), Path('outside.npy')], f'wrote {written}'


def check_overrides(arguments: list[str]) -> None:
    """Runs launch/main.py up to what would make a run folder or wait for other processes."""
    with (
        sandbox({}, traced=False),
        mock.patch.object(command, '_run', _up_to_training),
        mock.patch.object(command, '_join', lambda given, place: None),
        mock.patch.object(command, '_aggregate', lambda workdir, seeds: None),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        outcome(lambda: cli.execute('run', arguments, ''))


def _up_to_training(workdir: Path, given: argparse.Namespace) -> None:
    """Checks what opening a run folder checks, and all of `experiment.check` but the networks,
    which take seconds.
    """
    resolved = override(with_own_data(given.config).to_dict(), {})
    override(resolved, given.overrides)  # what the folder's next command does
    assert flatten(resolved).keys() == flatten(given.preset.to_dict()).keys()
    for stages in (given.redo, given.stages):
        check_stages(stages, command._needs(resolved))
    config = ConfigDict(resolved)
    check_ranges(config)
    make_problem(config)
    rules_of(config.sharding.parameters, config.sharding.rules)
    for stage, section in {
        'mirror': 'mirror',
        'finetune': 'finetune',
        'mdm': 'score',
        'dm': 'score',
    }.items():
        build.optimizer_of(config[section].optimizer, steps_of(config, stage))


def check_npy(data: bytes) -> None:
    """Reads a file, by itself and as the only one of a folder."""
    with sandbox({'x.npy': data}) as folder:
        path = folder / 'x.npy'
        array = outcome(lambda: dataset.read_array(path), str(path))
        for shape in (None, SHAPE):
            fields = outcome(lambda shape=shape: dataset.read_fields(path, shape), str(path))
            if not isinstance(fields, ValueError):
                assert (
                    fields.dtype == np.float32
                    and np.isfinite(fields).all()
                    and fields.size
                    and fields.ndim == 4
                )
                assert shape in (None, fields.shape[1:]) and np.array_equal(
                    fields, np.load(path).astype(np.float32)
                )
                assert np.array_equal(fields, array.astype(np.float32))
        fields = outcome(lambda: read_user_data(folder), str(folder))
        assert isinstance(fields, ValueError) or (
            fields.dtype == np.float32 and np.isfinite(fields).all()
        )


def check_data_set(files: Mapping[str, bytes]) -> None:
    """Loads the data set, goes on writing it, and loads it again."""
    with sandbox(files, outside=good_files()['test.npy']) as folder:
        _check_splits(folder)
        if not isinstance(outcome(lambda: write(folder), str(folder)), ValueError):
            _check_splits(folder)


def _check_splits(folder: Path) -> None:
    for split, (start, stop) in {'train': (0, 7), 'validation': (7, 10), 'test': (10, 12)}.items():
        fields = outcome(lambda split=split: dataset.load_split(folder, split), str(folder))
        if not isinstance(fields, ValueError):
            assert fields.dtype == np.float32 and fields.ndim == 4
            data, checksums = (folder / f'{split}.npy').read_bytes(), folder / 'crc32.json'
            if data == good_files()[f'{split}.npy']:
                assert np.array_equal(fields, fields_of(np.arange(start, stop)))
            elif checksums.exists():  # without one, nothing tells other numbers from good ones
                found = json.loads(checksums.read_bytes()).get(f'{split}.npy')
                assert not isinstance(found, list) or not found or zlib.crc32(data) in found


def check_measurement(case: tuple[bytes, list[str]]) -> None:
    """Reads and checks measurements as launch/solve.py does before it loads models."""
    data, arguments = case
    run = saved_config(re.search(r'(\w+)\.py', arguments[0])[1])
    with sandbox({'y.npy': data}) as folder, contextlib.redirect_stderr(io.StringIO()):
        path = folder / 'y.npy'
        config = outcome(lambda: _config_of(run, arguments))
        y = outcome(lambda: dataset.read_array(path), str(path))
        if isinstance(config, ValueError) or isinstance(y, ValueError):
            return
        shape = make_problem(ConfigDict(run)).shape
        x = np.random.default_rng(0).normal(size=(3, *shape))
        taken = outcome(lambda: solve.operator_of(config, y, x))
        if not isinstance(taken, ValueError):
            operator, y = taken
            assert y.dtype == np.float32 and np.isfinite(y).all() and len(y)
            assert (
                y.shape
                == jax.eval_shape(operator, jax.ShapeDtypeStruct((len(y), *shape), 'f4')).shape
            )
            assert 0 < config.assimilate.noise_std < np.inf and config.assimilate.samples >= 2


def _config_of(run: Mapping[str, Any], arguments: list[str]) -> ConfigDict:
    paths = ['--workdir=run', '--measurement=y.npy', '--out=x.npy']
    return solve.config_of(run, cli.parse('solve', [*arguments, *paths]))


def check_folder(files: Mapping[str, bytes]) -> None:
    """Reads a run folder, then opens it for a run and closes it, twice."""
    checked = lambda config, records: (
        check_ranges(ConfigDict(config)),
        check_files(records.get, goes_on=True),
    )
    with (
        sandbox(files, traced=False) as folder,
        mock.patch.object(run_folder, 'provenance', lambda seed: {}),
        mock.patch.object(subprocess, 'Popen', None),
    ):
        config = saved_config('burgers')
        options = dict(experiment='burgers:tiny', depends=command._needs, check=checked)
        outcome(lambda: [Folder(folder).record(stage) for stage in ('data', 'mirror')])
        opened = outcome(lambda: Run(folder, config, **options).close())
        if not isinstance(opened, ValueError):
            again = outcome(lambda: Run(folder, config, **options).close())
            assert not isinstance(again, ValueError), f'opened once, and then {again}'
            with Run(folder, config, **options) as run:
                outcome(lambda: run.begin('mirror', ['mirror']))


def check_image(data: bytes) -> None:
    """Reads a folder of one image; no program is run for it."""
    with sandbox({'a.png': data}) as folder, mock.patch.object(subprocess, 'Popen', None):
        fields = outcome(lambda: read_user_data(folder), str(folder))
        if not isinstance(fields, ValueError):
            assert fields.dtype == np.float32 and 0 <= fields.min() <= fields.max() <= 1


def check_checkpoint(files: Mapping[str, bytes]) -> None:
    """Restores a checkpoint: the state that was saved, or none."""
    with (
        sandbox(files, traced=False) as folder,
        warnings.catch_warnings(action='ignore'),
        Checkpoints(folder, origin=ORIGIN) as checkpoints,
    ):
        restored = outcome(lambda: checkpoints.restore(CHECKPOINT), str(folder))
        assert isinstance(restored, ValueError) or (
            restored.step == 3 and np.array_equal(restored.state['a'], CHECKPOINT['a'])
        )


def check_lock(data: bytes) -> None:
    """Opens a folder that another process owns."""
    with sandbox({'lock': data}, traced=False) as folder, open(folder / 'lock', 'a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        options = dict(experiment='burgers:tiny', depends=command._needs)
        told = outcome(lambda: Run(folder, saved_config('burgers'), **options), str(folder))
        assert isinstance(told, ValueError) and 'in use' in str(told) and len(str(told)) < 600
        assert (folder / 'lock').read_bytes() == data


FUZZERS = {
    'overrides': Fuzzer(make_overrides, check_overrides),
    'npy': Fuzzer(make_npy, check_npy),
    'data_set': Fuzzer(make_data_set, check_data_set),
    'measurement': Fuzzer(make_measurement, check_measurement),
    'folder': Fuzzer(make_folder, check_folder),
    'image': Fuzzer(make_image, check_image),
    'checkpoint': Fuzzer(make_checkpoint, check_checkpoint),
    'lock': Fuzzer(make_lock, check_lock),
}


def run(name: str, seed: int, index: int) -> None:
    """Makes a case and checks it."""
    make, check = FUZZERS[name]
    case = make(Random(f'{seed} {index}'))
    try:
        check(case)
    except AssertionError as error:
        error.add_note(f'{name}, seed {seed}, case {index}: {case!r:.2000}')
        raise


def _place(error: BaseException) -> str:
    """Returns where an error came from, so that failures of one kind are shown once."""
    origin = error.__cause__ or error
    frame = traceback.extract_tb(origin.__traceback__)[-1]
    return f'{type(origin).__name__} at {frame.filename}:{frame.lineno}'


def main(arguments: list[str] | None = None) -> int:
    """Runs the fuzzers; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cases', type=int, default=100_000, help='of each fuzzer')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', choices=FUZZERS)
    parser.add_argument(
        '--seconds', type=float, default=float('inf'), help='after which each fuzzer stops, at most'
    )
    asked, failed = parser.parse_args(arguments), False
    for name in [asked.only] if asked.only else FUZZERS:
        begun, kinds, done = time.monotonic(), {}, 0
        while done < asked.cases and time.monotonic() - begun < asked.seconds:
            try:
                run(name, asked.seed, done)
            except AssertionError as error:
                if not kinds.setdefault(_place(error), 0):
                    traceback.print_exception(error)
                kinds[_place(error)] += 1
            done += 1
        seconds = time.monotonic() - begun
        print(
            f'{name}: {done} cases, {done / seconds:.0f} a second, failed: {kinds or "none"}',
            flush=True,
        )
        failed |= bool(kinds)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
