"""The run folder: who owns it, what it was asked for, what has been done, and what came out.

    config.json the experiment's name and its resolved config, the base of every later command
    provenance.json one entry an opening: versions, host, git revision, seed, command line
    stages/<name>.json a stage's record: finished or not, the config sections it and its ancestors
    read, facts <name>/ a stage's own files metrics.jsonl one line a record of training;
    metrics.json: the results tensorboard/ the records again, where tensorboardX is installed lock
    held with flock while a process owns the folder; names that process crc32.json in each folder:
    checksums of the files there that a later stage reads

Nothing but the provenance holds an absolute path, so a folder may be moved.
"""

import datetime
import fcntl
import io
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from namm_jax.experiment.config import FREE_SECTIONS, SELECTING, flatten, override, refuse_changes
from namm_jax.experiment.files import UserError, finite, local, naming, read_json, write_json
from namm_jax.experiment.provenance import provenance
from namm_jax.experiment.records import Records

WRITERS = {
    'rows': 'evaluate',
    'robustness': 'evaluate',
    'assimilation': 'assimilate',
    'tune': 'tune',
}  # key -> stage


def _lock(path: Path) -> io.TextIOWrapper:
    """Returns the open lock file; the kernel frees the lock when the file is closed, however the
    process ends.
    """
    file = open(path, 'a+')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or 'unknown'
        file.close()
        raise UserError(
            f'{path.parent} is in use by another process ({owner}), expected a folder that no '
            'process owns; wait until it has ended, or choose another --workdir'
        ) from None
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    with naming(path):
        file.truncate(0)
        file.write(f'host {socket.gethostname()}, process {os.getpid()}, start {start}\n')
        file.flush()
    return file


class Run:
    """A run folder, owned by this process until `close`.

    A new folder takes `config`; in an existing one the saved config is the base, to which only
    `overrides` are applied. `Run(...).config` is the result. Everything is checked before anything
    is changed.

    Attributes:
        directory: the folder.
        config: the resolved config, a nested dict of JSON types.
        discarded: the stages whose results this opening discarded.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        experiment: str,
        depends: Callable[[Mapping[str, Any]], Mapping[str, tuple[str, ...]]],
        overrides: Mapping[str, Any] | None = None,
        redo: Iterable[str] = (),
        check: Callable[[Mapping[str, Any]], None] = lambda config: None,
    ) -> None:
        """Opens the folder, creating it if needed.

        Args:
            directory: the folder.
            config: the config, overrides included; `config.to_dict()`.
            experiment: config file and preset, `burgers:quick`; an existing folder must hold the
                same.
            depends: resolved config -> every stage it has -> the stages it builds on directly, in
                the order in which they run.
            overrides: dotted field -> value: what the command line changes.
            redo: stages to discard, with all that was built on them.
            check: raises unless the resolved config is a good one; called before anything is
                changed.

        Raises:
            UserError: if another process owns the folder, it holds another experiment or is no run
                folder, or an override changes what a stage has read.
        """
        self.directory = local(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(
                f'{self.directory} is a file, expected a folder; choose another --workdir'
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock, self._records = _lock(self.directory / 'lock'), Records(self.directory)
        try:
            self._open(config, experiment, overrides or {}, depends, redo, check)
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        config: Mapping[str, Any],
        experiment: str,
        overrides: Mapping[str, Any],
        depends: Callable[[Mapping[str, Any]], Mapping[str, tuple[str, ...]]],
        redo: Iterable[str],
        check: Callable[[Mapping[str, Any]], None],
    ) -> None:
        path, origins = self.directory / 'config.json', self.directory / 'provenance.json'
        openings = read_json(origins) if origins.exists() else []
        self._depends = dict(depends(config))
        saved = self._saved(path, config, experiment)
        self.config = override(saved, overrides) if saved else override(config, {})
        self._depends = dict(depends(self.config))
        discarded = self.built_on(redo)
        old, new = flatten(saved or self.config), flatten(self.config)
        changed = {name for name in new if new[name] != old[name]}
        selected = {name.split('.')[0] for name in changed & SELECTING}
        changed = {name.split('.')[0] for name in changed - SELECTING}
        records = {stage: self.record(stage) for stage in self._depends if stage not in discarded}
        cut_short = {
            stage for stage, record in records.items() if record and record.get('discarded')
        }
        free = {stage for stage in FREE_SECTIONS if stage in changed & self._depends.keys()}
        discarded = discarded | self.built_on(cut_short | free)
        kept = {
            stage: record for stage, record in records.items() if record and stage not in discarded
        }
        refuse_changes(self.config, saved or self.config, kept)
        check(self.config)
        self._records.mend()
        self.discarded = self._discard(discarded)
        for stage in selected & records.keys() - discarded:
            if record := self.record(stage):
                write_json(self._record_of(stage), record | {'finished': False})
        write_json(path, {'experiment': experiment, 'config': self.config})
        write_json(origins, [*openings, provenance(self.config.get('seed'))])

    def _saved(
        self, path: Path, config: Mapping[str, Any], experiment: str
    ) -> dict[str, Any] | None:
        """Returns the config that the folder holds, None for a new folder; raises if it is not a
        run of this kind.
        """
        if not path.exists():
            foreign = [
                stage for stage in (*self._depends, 'stages') if (self.directory / stage).exists()
            ]
            if foreign:
                raise UserError(
                    f'{self.directory} holds {foreign} but no config.json; choose another --workdir'
                )
            return None
        saved = read_json(path)
        if saved['experiment'] != experiment:
            raise UserError(
                f'got the experiment {experiment}, but {self.directory} holds '
                f'{saved["experiment"]}; choose another --workdir, or the config file and preset '
                'of this folder'
            )
        fields, known = flatten(saved['config']), flatten(config)
        if gone := fields.keys() - known.keys():
            raise UserError(
                f'{path} is of another version of this program: got {sorted(gone)}, which this one '
                'does not know; go on with the version in provenance.json, or choose another '
                '--workdir'
            )
        # Fields that are newer than the folder take the value of its preset; what has finished did
        # not read them.
        return override(config, fields)

    def close(self) -> None:
        """Gives the folder up. The lock file stays: deleting it would race with the next owner."""
        self._records.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def built_on(self, stages: Iterable[str]) -> set[str]:
        """Returns these stages and every stage built on them, directly or not.

        Raises:
            UserError: if a stage is unknown.
        """
        found = set(stages)
        unknown = found - self._depends.keys()
        if unknown:
            raise UserError(
                f'got the stages {sorted(unknown)}, expected some of {list(self._depends)}'
            )
        while (
            grown := {name for name, needs in self._depends.items() if found & set(needs)} - found
        ):
            found |= grown
        return found

    def redo(self, *stages: str) -> list[str]:
        """Discards the stages and all that was built on them: files, records, metrics; returns
        their names.
        """
        return self._discard(self.built_on(stages))

    def _discard(self, stages: set[str]) -> list[str]:
        """Discards stages, the last first; one that a kill cuts short is completed by the next
        opening.
        """
        discarded = [stage for stage in self._depends if stage in stages and self._begun(stage)]
        for stage in reversed(discarded):
            write_json(
                self._record_of(stage), {'finished': False, 'discarded': True, 'sections': {}}
            )
            self._records.discard(stage)
            path = self.directory / 'metrics.json'
            if path.exists() and stage in WRITERS.values():
                write_json(
                    path,
                    {
                        name: value
                        for name, value in read_json(path).items()
                        if WRITERS[name] != stage
                    },
                )
            if (self.directory / stage).exists():
                shutil.rmtree(self.directory / stage)
            (self.directory / f'{stage}.html').unlink(
                missing_ok=True
            )  # the report's page, which would be an old one
            self._record_of(stage).unlink()
        return discarded

    def _record_of(self, stage: str) -> Path:
        (self.directory / 'stages').mkdir(exist_ok=True)
        return self.directory / 'stages' / f'{stage}.json'

    def _begun(self, stage: str) -> bool:
        return (self.directory / 'stages' / f'{stage}.json').exists() or (
            self.directory / stage
        ).exists()

    def record(self, stage: str) -> dict[str, Any] | None:
        """Returns the stage's record, None if it has not begun."""
        path = self.directory / 'stages' / f'{stage}.json'
        return read_json(path) if path.exists() else None

    def finished(self, stage: str) -> bool:
        """Returns whether the stage has finished."""
        return bool((self.record(stage) or {}).get('finished'))

    def begin(self, stage: str, sections: Iterable[str]) -> Path:
        """Puts on record what the stage reads, and returns its folder: empty, or as a stopped run
        left it.

        Args:
            stage: the stage.
            sections: the config's sections (or top-level fields) that it reads; those of its
                ancestors are added.

        Raises:
            UserError: if a stage that it builds on has not finished, or there are files of the
                stage but no record.
        """
        missing = [need for need in self._depends[stage] if not self.finished(need)]
        if missing:
            raise UserError(
                f'stage {stage} builds on {missing}, not finished; name them too: '
                f'--stages={missing[0]},...'
            )
        folder = self.directory / stage
        if self.record(stage) is None:
            if (
                folder.exists()
            ):  # a kill leaves no such thing: the record comes first, and goes last
                raise UserError(
                    f'{folder} holds the files of stage {stage}, but {self._record_of(stage)}, '
                    'which says what they were made of, is missing; restore it from a copy, or '
                    f'discard the stage with --redo={stage}'
                )
            read = {name: self.config[name] for name in sections}
            for need in self._depends[stage]:
                read |= self.record(need)['sections']
            write_json(self._record_of(stage), {'finished': False, 'sections': read})
        folder.mkdir(exist_ok=True)
        return folder

    def finish(self, stage: str, **facts: Any) -> None:
        """Puts on record that a begun stage has finished, with facts such as `training_seconds`."""
        record = {**self.record(stage), **finite(facts), 'finished': True}
        write_json(self._record_of(stage), record)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends `{'stage', 'step', 'seconds', <terms>}` to metrics.jsonl; a non-finite number
        becomes null.
        """
        self._records.append(record)

    def records(self) -> list[dict[str, Any]]:
        """Returns the records of metrics.jsonl."""
        return self._records.read()

    def drop_records(self, stage: str, after_step: int) -> None:
        """Drops the stage's records of later steps from metrics.jsonl: a resumed stage writes them
        again.
        """
        self._records.drop(stage, after_step)

    def merge_metrics(self, values: Mapping[str, Any]) -> None:
        """Sets entries of metrics.json: `{'rows': ...}`, or by dotted name
        `{'assimilation.sum.dps': ...}`.

        Raises:
            ValueError: if a key has no writer in `WRITERS`.
        """
        path = self.directory / 'metrics.json'
        metrics = read_json(path) if path.exists() else {}
        for name, value in values.items():
            *parents, last = name.split('.')
            if name.split('.')[0] not in WRITERS:
                raise ValueError(
                    f'got the key {name!r} for {path}, expected one that begins with one of '
                    f'{list(WRITERS)}'
                )
            entry = metrics
            for parent in parents:
                entry = entry.setdefault(parent, {})
            entry[last] = finite(value)
        write_json(path, metrics)


def aggregate(values: list[Any]) -> Any:
    """Returns trees as one, `{'mean', 'std', 'n'}` over those that have it in the place of each
    number, None aside.
    """
    if any(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {
            name: aggregate([value[name] for value in values if name in value]) for name in names
        }
    if isinstance(values[0], list):
        return [aggregate(list(column)) for column in zip(*values, strict=True)]
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / max(1, len(numbers) - 1)
    return {'mean': mean, 'std': math.sqrt(variance), 'n': len(numbers)}
