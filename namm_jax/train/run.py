"""The run folder: who owns it, what it was asked for, what has been done, and what came out.

    config.json         the experiment's name and its resolved config, the base of every later command
    provenance.json     one entry an opening: versions, host, git revision, seed, command line
    stages/<name>.json  a stage's record: finished or not, the config sections it and its ancestors read, facts
    <name>/             a stage's own files
    metrics.jsonl       one line a record of training; metrics.json: the results
    lock                held with flock while a process owns the folder; names that process

Nothing but the provenance holds an absolute path, so a folder may be moved.
"""

import datetime
import fcntl
import io
import json
import math
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from namm_jax.train.files import UserError, finite, read_json, write_bytes, write_json
from namm_jax.train.provenance import provenance

FREE_SECTIONS = ('sample', 'assimilate', 'report')  # cheap: a change discards the stage's result, and is not refused
WRITERS = {'rows': 'evaluate', 'robustness': 'evaluate', 'assimilation': 'assimilate', 'tune': 'tune'}  # key -> stage


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns a nested dict as one dict with dotted names."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f'{prefix}{name}.') if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def override(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of `config` with the fields named by dotted names replaced.

    Raises:
        UserError: if a name is not a field of `config`.
    """
    config = json.loads(json.dumps(config))  # a deep copy in JSON's own types, so that tuples compare equal to lists
    fields = flatten(config)
    for name, value in overrides.items():
        if name not in fields:
            raise UserError(
                f'got an override of {name}, which is no field of the config; expected one of {list(fields)}'
            )
        *parents, last = name.split('.')
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = json.loads(json.dumps(value))
    return config


def refuse_changes(config: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises if `config` differs from what a stage on record has read, save for `FREE_SECTIONS`.

    Args:
        config: the resolved config.
        records: stage -> record, in the order of the stages; a record's `sections` maps name -> what was read.

    Raises:
        UserError: naming the first such field, the old and the new value, the stage, and `--redo`.
    """
    fields = flatten(config)
    for stage, record in records.items():
        for name, old in flatten(record['sections']).items():
            if name.split('.')[0] not in FREE_SECTIONS and name in fields and fields[name] != old:
                state = 'has finished' if record['finished'] else 'has begun'
                raise UserError(
                    f'got {name} = {fields[name]!r}, but stage {stage} {state} with {name} = {old!r}; '
                    f'leave the override out, choose another --workdir, or discard that stage and what was built on it '
                    f'with --redo={stage}'
                )


def _lock(path: Path) -> io.TextIOWrapper:
    """Returns the open lock file; the kernel frees the lock when the file is closed, however the process ends."""
    file = open(path, 'a+')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or 'unknown'
        file.close()
        raise UserError(
            f'{path.parent} is in use by another process ({owner}), expected a folder that no process owns; '
            'wait until it has ended, or choose another --workdir'
        ) from None
    file.truncate(0)
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    file.write(f'host {socket.gethostname()}, process {os.getpid()}, start {start}\n')
    file.flush()
    return file


class Run:
    """A run folder, owned by this process until `close`.

    A new folder takes `config`; in an existing one the saved config is the base, to which only `overrides` are
    applied. `Run(...).config` is the result. Everything is checked before anything is changed.

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
        depends: Mapping[str, tuple[str, ...]],
        overrides: Mapping[str, Any] | None = None,
        redo: Iterable[str] = (),
    ) -> None:
        """Opens the folder, creating it if needed.

        Args:
            directory: the folder.
            config: the config, overrides included; `config.to_dict()`.
            experiment: config file and preset, `burgers:quick`; an existing folder must hold the same.
            depends: every stage -> the stages it builds on directly, in the order in which they run.
            overrides: dotted field -> value: what the command line changes.
            redo: stages to discard, with all that was built on them.

        Raises:
            UserError: if another process owns the folder, it holds another experiment or is no run folder, or an
                override changes what a stage has read.
        """
        self.directory, self._depends = Path(directory), dict(depends)
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f'{self.directory} is a file, expected a folder; choose another --workdir')
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.directory / 'lock')
        try:
            self._open(config, experiment, overrides or {}, redo)
        except BaseException:
            self.close()
            raise

    def _open(
        self, config: Mapping[str, Any], experiment: str, overrides: Mapping[str, Any], redo: Iterable[str]
    ) -> None:
        discarded = self.built_on(redo)
        path = self.directory / 'config.json'
        if path.exists():
            saved = read_json(path)
            if saved['experiment'] != experiment:
                raise UserError(
                    f'got the experiment {experiment}, but {self.directory} holds {saved["experiment"]}; '
                    'choose another --workdir, or the config file and preset of this folder'
                )
            self.config = override(saved['config'], overrides)
            old, new = flatten(saved['config']), flatten(self.config)
            changed = {name.split('.')[0] for name in new if new[name] != old[name]}
            discarded |= self.built_on(stage for stage in FREE_SECTIONS if stage in changed & self._depends.keys())
            records = {stage: self.record(stage) for stage in self._depends if stage not in discarded}
            refuse_changes(self.config, {stage: record for stage, record in records.items() if record})
        else:
            foreign = [stage for stage in (*self._depends, 'stages') if (self.directory / stage).exists()]
            if foreign:
                raise UserError(f'{self.directory} holds {foreign} but no config.json; choose another --workdir')
            self.config = override(config, {})
        self.discarded = self._discard(discarded)
        write_json(path, {'experiment': experiment, 'config': self.config})
        self._mend_log()
        path = self.directory / 'provenance.json'
        openings = read_json(path) if path.exists() else []
        write_json(path, [*openings, provenance(self.config.get('seed'))])

    def close(self) -> None:
        """Gives the folder up. The lock file stays: deleting it would race with the next owner."""
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
            raise UserError(f'got the stages {sorted(unknown)}, expected some of {list(self._depends)}')
        while grown := {name for name, needs in self._depends.items() if found & set(needs)} - found:
            found |= grown
        return found

    def redo(self, *stages: str) -> list[str]:
        """Discards the stages and all that was built on them: files, records, metrics; returns their names."""
        return self._discard(self.built_on(stages))

    def _discard(self, stages: set[str]) -> list[str]:
        """Discards stages, the last first; a record outlives its files, so that a kill leaves none half trusted."""
        discarded = [stage for stage in self._depends if stage in stages and self.record(stage)]
        for stage in reversed(discarded):
            self.drop_records(stage)
            path = self.directory / 'metrics.json'
            if path.exists() and stage in WRITERS.values():
                write_json(path, {name: value for name, value in read_json(path).items() if WRITERS[name] != stage})
            if (self.directory / stage).exists():
                shutil.rmtree(self.directory / stage)
            (self.directory / 'stages' / f'{stage}.json').unlink()
        return discarded

    def record(self, stage: str) -> dict[str, Any] | None:
        """Returns the stage's record, None if it has not begun."""
        path = self.directory / 'stages' / f'{stage}.json'
        return read_json(path) if path.exists() else None

    def finished(self, stage: str) -> bool:
        """Returns whether the stage has finished."""
        return bool((self.record(stage) or {}).get('finished'))

    def begin(self, stage: str, sections: Iterable[str]) -> Path:
        """Puts on record what the stage reads, and returns its folder: empty, or as a stopped run left it.

        Args:
            stage: the stage.
            sections: the config's sections (or top-level fields) that it reads; those of its ancestors are added.

        Raises:
            UserError: if a stage that it builds on has not finished.
        """
        missing = [need for need in self._depends[stage] if not self.finished(need)]
        if missing:
            raise UserError(
                f'stage {stage} builds on {missing}, not finished; name them too: --stages={missing[0]},...'
            )
        folder = self.directory / stage
        if self.record(stage) is None:
            shutil.rmtree(folder, ignore_errors=True)  # without a record nothing says which config its files are of
            read = {name: self.config[name] for name in sections}
            for need in self._depends[stage]:
                read |= self.record(need)['sections']
            (self.directory / 'stages').mkdir(exist_ok=True)
            write_json(self.directory / 'stages' / f'{stage}.json', {'finished': False, 'sections': read})
        folder.mkdir(exist_ok=True)
        return folder

    def finish(self, stage: str, **facts: Any) -> None:
        """Puts on record that a begun stage has finished, with facts such as `training_seconds`."""
        record = {**self.record(stage), **finite(facts), 'finished': True}
        write_json(self.directory / 'stages' / f'{stage}.json', record)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends `{'stage', 'step', 'seconds', <terms>}` to metrics.jsonl; a non-finite number becomes null."""
        with open(self.directory / 'metrics.jsonl', 'a') as file:
            file.write(json.dumps(finite(record)) + '\n')

    def records(self) -> list[dict[str, Any]]:
        """Returns the records of metrics.jsonl."""
        path = self.directory / 'metrics.jsonl'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def drop_records(self, stage: str, after_step: int = -1) -> None:
        """Drops the stage's records of later steps from metrics.jsonl: a resumed stage writes them again."""
        path = self.directory / 'metrics.jsonl'
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            records = [json.loads(line) for line in lines]
            later = [record.get('stage') == stage and record.get('step', 0) > after_step for record in records]
            if any(later):
                write_bytes(path, b''.join(line for line, drop in zip(lines, later, strict=True) if not drop))

    def _mend_log(self) -> None:
        """Cuts a last line that a kill left half written."""
        path = self.directory / 'metrics.jsonl'
        if path.exists() and not (data := path.read_bytes()).endswith(b'\n'):
            write_bytes(path, data[: data.rfind(b'\n') + 1])

    def merge_metrics(self, values: Mapping[str, Any]) -> None:
        """Sets entries of metrics.json: `{'rows': ...}`, or by dotted name `{'assimilation.sum.dps': ...}`.

        Raises:
            ValueError: if a key has no writer in `WRITERS`.
        """
        path = self.directory / 'metrics.json'
        metrics = read_json(path) if path.exists() else {}
        for name, value in values.items():
            *parents, last = name.split('.')
            if name.split('.')[0] not in WRITERS:
                raise ValueError(
                    f'got the key {name!r} for {path}, expected one that begins with one of {list(WRITERS)}'
                )
            entry = metrics
            for parent in parents:
                entry = entry.setdefault(parent, {})
            entry[last] = finite(value)
        write_json(path, metrics)


def aggregate(values: list[Any]) -> Any:
    """Returns trees of one shape as one tree, `{'mean', 'std', 'n'}` in the place of each number; None is left out."""
    if isinstance(values[0], Mapping):
        return {name: aggregate([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], list):
        return [aggregate(list(column)) for column in zip(*values, strict=True)]
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / max(1, len(numbers) - 1)
    return {'mean': mean, 'std': math.sqrt(variance), 'n': len(numbers)}
