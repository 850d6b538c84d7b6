"""The run folder: who owns it, what it was asked for, what has been done, and what came out.

Nothing in it but the provenance holds an absolute path, so it may be moved. discard.json is there
while stages are being discarded, and says all that is to go.
"""

import contextlib
import fcntl
import io
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from namm_jax._checks import choose
from namm_jax.experiment import files
from namm_jax.experiment.config import (
    FREE_SECTIONS,
    SELECTING,
    flatten,
    override,
    refuse_changes,
    refuse_stranger,
)
from namm_jax.experiment.files import CHECKSUMS, UserError, damage, read_json, write_json
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.provenance import provenance
from namm_jax.experiment.records import Records
from namm_jax.experiment.schema import schema
from namm_jax.problems import PROBLEMS

Config = Mapping[str, Any]
# Key of metrics.json -> the stage that writes it.
WRITERS = dict.fromkeys(('rows', 'robustness', 'advice'), 'evaluate')
WRITERS |= dict(assimilation='assimilate', tune='tune')


class Folder:
    """A run folder, read and never written; no lock is taken.

    Attributes: directory; experiment, `burgers:quick`; config, a nested dict of JSON types.
    """

    _gone: Iterable[str] = ()  # stages whose discarding was cut short

    def __init__(self, directory: Path, base: Config | None = None, experiment: str = '') -> None:
        """Reads the config, fields that are newer than the folder from `base`, None for defaults; a
        UserError refuses another experiment or version.
        """
        self.directory, path = directory, directory / 'discard.json'
        path = path if path.exists() else directory / 'config.json'
        match {'stages': []} | read_json(path, dict):
            case {'experiment': str(name), 'config': dict(config), 'stages': [*stages]} if all(
                isinstance(stage, str) for stage in stages
            ):
                self.experiment, self._gone, fields = name, stages, flatten(config)
            case state:
                raise damage(path, repr(state), 'an experiment and its config')
        if experiment not in ('', self.experiment):
            raise UserError(
                f'got the experiment {experiment}, but {directory} holds {self.experiment}; give '
                'its config file and preset, or choose another --workdir'
            )
        if base is None:
            problem = fields.get('data.problem')
            base = schema(problem).to_dict() if problem in list(PROBLEMS) else {}
        if strange := sorted(fields.keys() - flatten(base).keys()):
            raise UserError(
                f'{directory} is of another version of this program: got {strange[:5]}, which this '
                'one does not know; go on with the version in provenance.json, or train again'
            )
        self.config, defaults = override(base, fields), flatten(override(base, {}))
        for name, value in fields.items():
            kind = type(defaults[name])
            if not isinstance(value, (int, float) if kind is float else kind):
                raise damage(path, f'{name} = {value!r:.80}', f'a value such as {defaults[name]!r}')

    def record(self, stage: str) -> dict[str, Any] | None:
        """Returns the stage's record, None if it has not begun; a UserError names its folder if the
        arrays in it are not those that the stage has made.
        """
        path = self._file(stage)
        if stage in self._gone or not path.exists():
            return None
        record = read_json(path, dict)
        facts = {'files': {}, 'arrays': {}} | record
        kinds = {'finished': bool} | dict.fromkeys(('sections', 'files', 'arrays'), dict)
        if not all(isinstance(facts.get(name), kind) for name, kind in kinds.items()):
            raise damage(path, repr(record), 'whether the stage has finished, and what it has read')
        folder = self.directory / stage
        got = files.array_checksums(folder)
        saved = record.get('arrays', got)
        if record['finished'] and saved != got:
            names = sorted(got.keys() | saved.keys())
            changes = [name for name in names if got.get(name) != saved.get(name)]
            raise UserError(
                f'{folder / CHECKSUMS} has other arrays than stage {stage} made: {changes[:3]} '
                f'differ; restore the folder from a copy, or --redo={stage}'
            )
        return record

    def finished(self, stage: str) -> bool:
        """Returns whether the stage has finished."""
        return bool((self.record(stage) or {}).get('finished'))

    def origin(self, stage: str) -> dict[str, Any]:
        """Returns what a begun stage's results are a function of, as JSON types."""
        record, data = (self.record(name) or {} for name in (stage, 'data'))
        made = None if stage == 'data' else data.get('arrays')
        return {'stage': stage, 'config': record.get('sections'), 'data': made}

    def _file(self, stage: str) -> Path:
        return self.directory / 'stages' / f'{stage}.json'

    def _read(self, name: str, default: Any) -> Any:
        path = self.directory / name
        return read_json(path, type(default)) if path.exists() else default


class Run(Folder, contextlib.AbstractContextManager):
    """A run folder, owned by this process until `close`; everything is checked before any change.

    Attributes: those of `Folder`; discarded, the stages whose results this opening discarded;
    log and drop_records, as `Records.append` and `Records.drop`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Config,
        *,
        experiment: str,
        depends: Callable[[Config], Mapping[str, tuple[str, ...]]],
        overrides: Config | None = None,
        redo: Iterable[str] = (),
        check: Callable[[Config, Mapping[str, Any]], None] = lambda config, records: None,
    ) -> None:
        """Opens the folder, creating it if needed; a UserError says why it cannot be.

        Args:
            config: overrides included; what a new folder takes.
            experiment: config file and preset; an existing folder must hold the same.
            depends: config -> every stage in its order -> the stages it builds on directly.
            overrides: dotted field -> value: what the command line changes of a saved config.
            redo: stages to discard, with all that was built on them.
            check: raises unless the resolved config is a good one, given the records of the stages
                that stay.
        """
        self.directory = files.local(directory)
        self._held, self._records = contextlib.ExitStack(), Records(self.directory)
        self.log, self.drop_records = self._records.append, self._records.drop
        lock = self.directory / 'lock'
        new = [path for path in (lock, *lock.parents) if not path.exists()]
        try:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                expected = 'expected a folder; choose another --workdir'
                raise UserError(f'{directory} is a file, or in one, {expected}') from error
            for path in (*self.directory.glob('*'), *self.directory.glob('*/*')):
                if path.is_symlink():  # what is written to it would land in somebody's file
                    raise UserError(f'{path} is a symbolic link, which no run makes; delete it')
            self._held.enter_context(_lock(lock))
            self._held.callback(self._records.close)
            names = ('config.json', 'metrics.json', 'stages', *depends(config))
            paths = [self.directory / name for name in names]
            if paths[0].exists():
                super().__init__(self.directory, config, experiment)
            elif names := [path.name for path in paths if path.exists()]:
                raise UserError(
                    f'{directory} holds {names} but no config.json; choose another folder'
                )
            else:
                self.experiment, self.config, overrides = experiment, override(config, {}), {}
            base, self.config = self.config, override(self.config, overrides or {})
            self._depends = dict(depends(self.config))
            self._open(base, redo, check)
        except BaseException:
            self.close()
            for path in new:
                with contextlib.suppress(OSError):  # those with more in them stay
                    if path != lock:
                        path.rmdir()
                    elif os.listdir(self.directory) == [lock.name]:
                        lock.unlink()
            raise

    def _open(self, base: Config, redo: Iterable[str], check: Callable[..., None]) -> None:
        """Resolves what goes and what stays, checks it, then writes: first what is to go."""
        old, new = flatten(base), flatten(self.config)
        changes = {name for name in new if new[name] != old[name]}
        sections = {name.split('.')[0] for name in changes - SELECTING}
        again = {name.split('.')[0] for name in changes & SELECTING}
        gone = {*redo, *sections.intersection(FREE_SECTIONS, self._depends), *self._gone}
        for stage in gone:
            choose('stage', stage, self._depends)
        for stage, needs in self._depends.items():
            gone |= {stage} if gone.intersection(needs) else set()
        records = {s: r for s in self._depends if s not in gone and (r := self.record(s))}
        refuse_changes(self.config, base, records)
        for stage in again & records.keys():
            records[stage] |= {'finished': False}
        check(self.config, records)
        metrics, openings = self._read('metrics.json', {}), self._read('provenance.json', [])
        begun = lambda s: self._file(s).exists() or (self.directory / s).exists()
        names = dict.fromkeys([*filter(begun, self._depends), *self._gone])
        self.discarded = [stage for stage in names if stage in gone]
        rest = {k: v for k, v in metrics.items() if WRITERS.get(k) not in self.discarded}
        state = {'experiment': self.experiment, 'config': self.config}
        if self.discarded:
            self._records.read()  # raises where it is damaged, while nothing is lost
        for stage in again & records.keys():
            write_json(self._file(stage), records[stage])
        if self.discarded:  # all is on record before any goes: the next opening completes it
            write_json(self.directory / 'discard.json', state | {'stages': self.discarded})
        for stage in reversed(self.discarded):
            self._file(stage).unlink(missing_ok=True)
            self._records.discard(stage)
            (self.directory / f'{stage}.html').unlink(missing_ok=True)  # the page would be old
            if (self.directory / stage).exists():
                shutil.rmtree(self.directory / stage)
        if rest != metrics:
            write_json(self.directory / 'metrics.json', rest)
        write_json(self.directory / 'config.json', state)
        (self.directory / 'discard.json').unlink(missing_ok=True)
        self._gone = ()
        self._records.mend()
        openings.append(provenance(self.config.get('seed')))
        write_json(self.directory / 'provenance.json', openings)

    def close(self, *exception: object) -> None:
        """Gives the folder up. The lock file stays: deleting it would race with the next owner."""
        self._held.close()

    __exit__ = close

    def begin(self, stage: str, sections: Iterable[str], **facts: Any) -> None:
        """Puts on record the sections of the config that the stage reads, its ancestors' added, and
        facts; makes its folder, as `place` does.
        """
        needs = self._depends[stage]
        check_needs([stage], self._depends, {need: self.record(need) or {} for need in needs})
        folder = self.directory / stage
        if self.record(stage) is None:
            if folder.exists():  # a kill leaves no such thing: the record comes first
                raise UserError(
                    f'{folder} holds the files of stage {stage}, but {self._file(stage)} is '
                    f'missing; restore it from a copy, or discard the stage with --redo={stage}'
                )
            read = {name: self.config[name] for name in sections}
            for need in needs:
                read |= self.record(need)['sections']
            self._file(stage).parent.mkdir(exist_ok=True)
            write_json(self._file(stage), {'finished': False, 'sections': read} | facts)
        self.place(stage)

    def place(self, stage: str, *names: str) -> None:
        """Makes a folder of a begun stage, unless a stopped run left it; its checksums hold the
        origin of its arrays. A UserError names those of another run.
        """
        folder = self.directory.joinpath(stage, *names)
        folder.mkdir(parents=True, exist_ok=True)
        origin = {'folder': '/'.join((stage, *names)), **self.origin(stage)}
        saved = files.checksums(folder)
        strange = [path for path in sorted(folder.glob('*.npy')) if path.name not in saved]
        if not saved and not strange:
            files.write_checksums(folder, {'origin': origin})
        elif 'origin' in saved:  # not of an older version
            refuse_stranger(folder / CHECKSUMS, 'arrays', saved['origin'], origin)
            if strange:
                raise UserError(
                    f'{strange[0]} is no file of this run: {CHECKSUMS} beside it does not know it; '
                    f'delete it, or discard the stage with --redo={stage}'
                )

    def finish(self, stage: str, **facts: Any) -> None:
        """Puts on record that a begun stage has finished, with facts, once its files are safe."""
        for path in (self.directory / stage, *self.directory.glob('metrics.jsonl')):
            files.sync(path)
        facts |= {'arrays': files.array_checksums(self.directory / stage)}
        write_json(self._file(stage), self.record(stage) | files.finite(facts) | {'finished': True})

    def merge_metrics(self, values: Mapping[str, Any]) -> None:
        """Sets entries of metrics.json: `rows`, or by dotted name `assimilation.sum.dps`."""
        metrics = self._read('metrics.json', {})
        for name, value in values.items():
            *parents, last = name.split('.')
            choose('key of metrics.json', name.split('.')[0], WRITERS)
            entry = metrics
            for parent in parents:
                entry = entry.setdefault(parent, {})
            entry[last] = files.finite(value)
        write_json(self.directory / 'metrics.json', metrics)


class SharedRun(contextlib.AbstractContextManager):
    """A `Run` that process 0 opens and owns, and whose methods all processes call, in one order.

    Each gets the answer of process 0, or its error. Attributes: directory, config, discarded.
    """

    def __init__(self, open_run: Callable[[], Run]) -> None:
        """Opens the folder by `open_run`, which process 0 alone calls."""
        runs = self._runs = []
        from_first(lambda: runs.append(open_run()))
        names = 'config', 'discarded'
        self.config, self.discarded = from_first(lambda: [getattr(runs[0], name) for name in names])
        self.directory = Path(from_first(lambda: str(runs[0].directory)))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = lambda *args, **kwargs: getattr(self._runs[0], name)(*args, **kwargs)
        return lambda *args, **kwargs: from_first(lambda: call(*args, **kwargs))

    def __exit__(self, *exception: object) -> None:
        for run in self._runs:
            run.close()


def check_needs(stages: list[str], depends: Config, records: Config) -> None:
    """Raises a UserError if a stage builds on one neither finished nor before it in the list."""
    for i, stage in enumerate(stages):
        others = [need for need in depends[stage] if need not in stages[:i]]
        if missing := [need for need in others if not records.get(need, {}).get('finished')]:
            raise UserError(
                f'stage {stage} builds on {missing}, not finished; name them too: '
                f'--stages={missing[0]},...'
            )


def aggregate(values: list[Any]) -> Any:
    """Returns trees as one, with the `{'mean', 'std', 'n'}` of the numbers in each place."""
    if isinstance(values[0], Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: aggregate([one[name] for one in values if name in one]) for name in names}
    if isinstance(values[0], list):
        return [aggregate(list(column)) for column in zip(*values, strict=True)]
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / max(1, len(numbers) - 1)
    return {'mean': mean, 'std': math.sqrt(variance), 'n': len(numbers)}


def _lock(path: Path) -> io.TextIOWrapper:
    """Returns the open lock file; the kernel frees the lock when it is closed, however that is."""
    no_link = lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666)
    file = open(path, 'a+', errors='replace', opener=no_link)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            raise UserError(
                f'{path.parent} is in use by another process ({file.read(200).strip()}); wait '
                'until it has ended, or choose another --workdir'
            ) from None
    except OSError as error:
        file.close()
        raise UserError(
            f'{path}: got {error.strerror}, expected a disk that locks files (flock); choose a '
            '--workdir on a local one, and copy it afterwards'
        ) from error
    start = time.strftime('%Y-%m-%dT%H:%M:%S%z')
    with files.naming(path):
        file.truncate(0)
        file.write(f'host {socket.gethostname()}, process {os.getpid()}, start {start}\n')
        file.flush()
    return file
