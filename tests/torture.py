#!/usr/bin/env python
"""Breaks a run over and over, at random, and checks that it ends as if nothing had been, or says
why it cannot.

    python tests/torture.py --cycles=200 [--seed=0] [--kinds=kill,full,hung] [--log=torture.jsonl]
                            [--problems=burgers,count,own,total_brightness] [--stages=assimilate]
                            [--references=FOLDER] [--summary=torture.json]

Each cycle takes a copy of a finished run of the preset `tiny` of one of the problems, with stages
that run on request, discards a random stage with all that was built on it, and while it is done
again, does one of these:

    kill, term, interrupt, hangup  SIGKILL, SIGTERM, SIGINT or SIGHUP at a random moment
    reader                         the reader of the log goes, and then such a signal comes, or none
    override                       as kill, and the redo has an override of the stage
    flip, truncate                 as kill; then a bit of a random file is flipped, or its end cut
    swap, stranger                 as kill; then two checkpoints of a stage change places, or a
                                   folder of another seed's run takes the place of this run's
    link                           as kill; then a link to somebody's file takes a file's place
    full a disk with less room than the results need, full at a random moment (root, for a tmpfs)
    peer, hung two processes; one of them is killed, or stopped by SIGSTOP, at a random moment

Then the same command is given again. It must end with status 0 and the results of the run never
broken, bit for bit (of two processes, to rounding: `test_processes.py`), or with one message that
names the file; put back from a copy, it must then end so. What is left of two processes must end by
itself within 100 seconds. Anything else is a defect, which is printed at once; the exit status is
their number, at most 1.
"""

import argparse
import collections
import functools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_kill import ROOT, outcome
from test_processes import free_port

from namm_jax.experiment import cli
from namm_jax.experiment.files import read_json
from namm_jax.experiment.provenance import provenance

SIGNALS = {'kill': signal.SIGKILL, 'term': signal.SIGTERM, 'interrupt': signal.SIGINT}
SIGNALS |= {'hangup': signal.SIGHUP}
NEVER_READ = (
    'figures',
    'tensorboard',
    '.html',
    'lock',
    'provenance.json',
    'metrics.jsonl',
    '.tmp',
    'preset.json',
)
FIELDS = {  # stage -> an integer that it reads
    'data': 'data.seed',
    'sample': 'sample.steps',
    'assimilate': 'assimilate.samples',
    'evaluate': 'evaluate.resamples',
    'report': 'report.dpi',
}

# Less of what takes long and is of one kind.
FEW = ["--config.sample.rows=('dm','mdm_finetuned')", '--config.report.dpi=30']
FEW += ['--config.assimilate.sampler=mirror_few_steps']
PATIENCE = 1200  # seconds, of a machine that others use, too


class Defect(Exception):
    """What was done to a run made it do what it must not."""


class Reference(NamedTuple):
    """A finished run: its folder, its command, its stages, that of another seed, and how long it
    takes.
    """

    folder: Path
    arguments: list[str]
    stages: list[str]
    other: Path
    seconds: float

    def command(self, folder: Path, *more: str) -> list[str]:
        """Returns the command of this run in a folder."""
        stages = [] if any(word.startswith('--stages') for word in more) else self.stages
        more = (*more, f'--stages={",".join(stages)}') if stages else more
        place = [str(ROOT / 'launch/main.py'), f'--workdir={folder}']
        return [sys.executable, *place, *self.arguments, *more]


class Case(NamedTuple):
    """A copy of a run, to be broken: how, at which stage, within how many seconds."""

    run: Reference
    folder: Path
    rng: random.Random
    kind: str
    stage: str
    seconds: float

    @property
    def redo(self) -> str:
        """The flag that discards the stage."""
        return f'--redo={self.stage}'

    def start(self, *more: str, folder: Path | None = None) -> subprocess.Popen:
        """Starts the run."""
        command = self.run.command(folder or self.folder, *more)
        options = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, **options)

    def end(self, *more: str, folder: Path | None = None) -> tuple[int, str]:
        """Runs it; returns its exit status and what it said."""
        return ending(self.start(*more, folder=folder))

    def broken_off(self, number: int, *more: str) -> tuple[int, str]:
        """Starts the run and sends it a signal at a random moment."""
        process = self.start(*more)
        try:
            said = process.communicate(timeout=self.rng.uniform(0.5, self.seconds))[1]
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            return ending(process)
        return process.returncode, said


def ending(process: subprocess.Popen) -> tuple[int, str]:
    """Waits for a process that has to end; returns its exit status and what it said."""
    try:
        said = process.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Defect(f'still there after {PATIENCE} s: {process.args}') from None
    return process.returncode, said or ''


class Seen(NamedTuple):
    """What a fault did, and the file that was damaged, if one was."""

    what: str
    file: str = ''


def signalled(case: Case) -> Seen:
    """Breaks a run off by a signal."""
    number = SIGNALS[case.kind]
    return _stopped(*case.broken_off(number, case.redo), number)


def _stopped(status: int, said: str, number: int) -> Seen:
    # 128 + number once all was saved; -number where the signal came before its handler was there,
    # or has none.
    if status not in (0, -number, 128 + number):
        raise Defect(f'status {status} after signal {number}: {said[-500:]}')
    return Seen('ended before' if status == 0 else f'status {status}')


def unread(case: Case) -> Seen:
    """Closes the end of a run's log at a random moment, then sends it a signal, or none."""
    number = case.rng.choice([0, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    process = case.start(case.redo)
    os.read(process.stderr.fileno(), 1)  # it has begun to say something
    process.stderr.close()
    process.stderr = None
    if number:
        try:
            process.wait(timeout=case.rng.uniform(0.5, case.seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    return _stopped(*ending(process), number)


def overridden(case: Case) -> Seen:
    """Kills a redo with an override; the next command completes it, or nothing had begun."""
    field = FIELDS.get(case.stage, f'{case.stage}.steps')
    section, name = field.split('.')
    value = lambda: read_json(case.folder / 'config.json')['config'][section][name]
    old = value()
    case.broken_off(signal.SIGKILL, case.redo, f'--config.{field}={old + 1}')
    status, said = case.end()
    record = read_json(case.folder / 'stages' / f'{case.stage}.json')
    if status or record['sections'][section][name] != value():
        raise Defect(f'status {status}, {field} = {value()} and in {record}: {said[-500:]}')
    if value() == old:
        return Seen('not begun')
    status, said = case.end(case.redo, f'--config.{field}={old}')
    if status:
        raise Defect(f'status {status} after the redo with {field} = {old}: {said[-500:]}')
    return Seen('completed')


def _files(folder: Path) -> list[Path]:
    """Returns the files that a later stage may read."""
    files = [path for path in sorted(folder.rglob('*')) if path.is_file() and path.stat().st_size]
    read = lambda path: not any(part in str(path.relative_to(folder)) for part in NEVER_READ)
    return [path for path in files if read(path)]


def bit_or_end(case: Case) -> Path | None:
    """Flips a bit of a random file, or cuts its end off."""
    if not (files := _files(case.folder)):
        return None
    path = case.rng.choice(files)
    data = path.read_bytes()
    where = case.rng.randrange(len(data))
    flipped = data[:where] + bytes([data[where] ^ 1 << case.rng.randrange(8)]) + data[where + 1 :]
    path.write_bytes(flipped if case.kind == 'flip' else data[:where])
    return path


def swapped(case: Case) -> Path | None:
    """Has two checkpoints of a stage change places."""
    folders = [
        path for path in case.folder.glob('*/checkpoints') if len([*path.glob('*.json')]) > 1
    ]
    if not folders:
        return None
    folder = case.rng.choice(sorted(folders))
    one, two = case.rng.sample(sorted(path.stem for path in folder.glob('*.json')), 2)
    for old, new in ((one, 'aside'), (two, one), ('aside', two)):
        for suffix in ('', '.json'):
            (folder / f'{old}{suffix}').rename(folder / f'{new}{suffix}')
    return folder


def estranged(case: Case) -> Path | None:
    """Puts checkpoints, or the arrays of a folder, of another seed's run in the place of its."""
    other = case.run.other
    found = [*other.glob('*/checkpoints/*.json'), *other.rglob('*.np[yz]')]
    parts = {path.parent.relative_to(other) for path in found}
    if not (parts := [part for part in parts if (case.folder / part).exists()]):
        return None
    part = case.rng.choice(sorted(parts))
    if part.name == 'checkpoints':
        shutil.rmtree(case.folder / part)
        shutil.copytree(other / part, case.folder / part)
    for path in (other / part).glob('*.np[yz]'):
        shutil.copy(path, case.folder / part)
        shutil.copy(path.with_name('crc32.json'), case.folder / part)
    return case.folder / part


def _content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else path.rglob('*')
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def linked(case: Case) -> Path:
    """Puts a link to somebody's file in the place of one of the run's, or of one to come."""
    names = (
        'lock',
        'report.html',
        'report.html.tmp',
        'config.json.tmp',
        'metrics.jsonl',
        case.stage,
    )
    path = case.folder / case.rng.choice(names)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    (case.folder.parent / 'theirs').write_text('theirs')
    path.symlink_to(case.folder.parent / 'theirs')
    return path


HITS: dict[str, Callable[[Case], Path | None]] = {
    'flip': bit_or_end,
    'truncate': bit_or_end,
    'swap': swapped,
    'stranger': estranged,
    'link': linked,
}


def damaged(case: Case) -> Seen:
    """Kills a run, damages files, and gives the command again; an honest refusal ends with the
    folder put back.
    """
    case.broken_off(signal.SIGKILL, case.redo)
    copy = Path(shutil.copytree(case.folder, case.folder.parent / 'copy'))
    if not (path := HITS[case.kind](case)):
        return Seen('no file')
    where, after = path.relative_to(case.folder), _content(path)
    status, said = case.end()
    if case.kind == 'link' and (case.folder.parent / 'theirs').read_text() != 'theirs':
        raise Defect(f'status {status}, and written through the link {where}')
    if status == 0:
        if _content(path) != after:
            return Seen(f'made again: {where.parts[0]}', str(where))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        put = shutil.copytree if (copy / where).is_dir() else shutil.copy
        put(copy / where, path)
        return Seen(f'not read again: {where.parts[0]}', str(where))
    # The checkpoint is named, not its file; of arrays, their folder.
    named = (path.name.split('.')[0], 'checkpoints', 'damaged', 'has other arrays')
    if status != 2 or 'Traceback' in said or not any(name in said for name in named):
        raise Defect(f'status {status} after {case.kind} of {where}: {said[-500:]}')
    shutil.rmtree(case.folder)
    copy.rename(case.folder)
    return Seen(f'refused: {where.parts[0]}', str(where))


def kilobytes(folder: Path) -> int:
    """Returns the room that a folder takes on a tmpfs, whose pages have 4 KiB."""
    return sum(
        4 * math.ceil(path.stat().st_size / 4096) if path.is_file() else 4
        for path in folder.rglob('*')
    )


def filled(case: Case) -> Seen:
    """Runs on a disk with less room than the discarded stages took, until it is full; then there is
    room again.
    """
    disk, before = Path(tempfile.mkdtemp()), kilobytes(case.folder)
    mount = ['mount', '-t', 'tmpfs', 'tmpfs', disk, '-o']
    if subprocess.run([*mount, f'size={before + 1024}k'], capture_output=True).returncode:
        return Seen('skipped: no leave to mount a tmpfs')
    try:
        copy = shutil.copytree(case.folder, disk / 'run')
        first = f'--stages={case.run.stages[0]}'
        case.end(case.redo, first, folder=copy)  # discards, and is done
        left = kilobytes(copy)
        size = left + case.rng.randrange(8, max(16, before - left))
        subprocess.run([*mount, f'remount,size={size}k'], check=True)
        status, said = case.end(folder=copy)
        if status and (status != 1 or 'Traceback' in said or 'space' not in said):
            raise Defect(f'status {status} on a full disk: {said[-500:]}')
        shutil.rmtree(case.folder)
        shutil.copytree(copy, case.folder)
        return Seen('stopped: full' if status else 'room enough')
    finally:
        subprocess.run(['umount', disk], check=False)
        disk.rmdir()


def left_alone(case: Case) -> Seen:
    """Runs two processes and kills or stops one of them; the other must end by itself."""
    place = [f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2']
    pair = [case.start(case.redo, *place, f'--process_index={index}') for index in range(2)]
    time.sleep(case.rng.uniform(0.5, 2 * case.seconds))
    victim, other = case.rng.sample(pair, 2)
    victim.send_signal(signal.SIGSTOP if case.kind == 'hung' else signal.SIGKILL)
    begun = time.monotonic()
    try:
        said = other.communicate(timeout=200)[1]
    finally:
        victim.kill()
        victim.communicate()
    status, seconds = other.returncode, time.monotonic() - begun
    if status not in (0, 1, 2, -signal.SIGABRT) or seconds > 100:
        raise Defect(f'status {status} {seconds:.0f} s after {case.kind}: {said[-500:]}')
    within = 10 * math.ceil(seconds / 10)
    return Seen(f'status {status} within {within} s' if status else 'ended before')


FAULTS = dict.fromkeys(SIGNALS, signalled) | {'reader': unread, 'override': overridden}
FAULTS |= dict.fromkeys(HITS, damaged)
FAULTS |= {'full': filled, 'peer': left_alone, 'hung': left_alone}


def cycle(run: Reference, rng: random.Random, kind: str) -> dict[str, str]:
    """Breaks a copy of the reference, has it mended, and compares; returns a record of the log."""
    stage = rng.choice(run.stages)
    seconds = run.seconds * (1 - run.stages.index(stage) / len(run.stages))
    record = {'problem': run.folder.name, 'kind': kind, 'stage': stage, 'seen': '', 'file': ''}
    record['defect'] = ''
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(run.folder, Path(parent) / 'run'))
        case = Case(run, folder, rng, kind, stage, seconds)
        try:
            record['seen'], record['file'] = FAULTS[kind](case)
            status, said = case.end()
            if status:
                raise Defect(f'status {status} in the end: {said[-500:]}')
            differ = [s for s in run.stages if outcome(folder, s) != outcome(run.folder, s)]
            if differ and FAULTS[kind] is not left_alone:
                raise Defect(f'other results of {differ}: {differences(folder, run.folder)}')
        except Defect as defect:
            record['defect'] = str(defect)
    return record


def differences(folder: Path, reference: Path) -> dict[str, float]:
    """Returns the largest difference in each file of samples that is not the reference's: rounding,
    or more.
    """
    arrays = {
        path.name: (np.load(path), np.load(reference / 'sample' / path.name))
        for path in (folder / 'sample').glob('*.npy')
    }
    return {
        name: float(np.abs(a - b).max())
        for name, (a, b) in arrays.items()
        if not np.array_equal(a, b)
    }


def make_reference(parent: Path, problem: str, requested: list[str]) -> Reference:
    """Runs a problem, and once more with other seeds, unless they are there."""
    run = Reference(parent / problem, [], [], parent / f'{problem}-other', 0.0)
    if (path := parent / f'{problem}.json').exists():
        return run._replace(**json.loads(path.read_text()))
    arguments = [f'--config=configs/{problem}.py:tiny']
    if problem == 'own':
        rows = np.random.default_rng(0).integers(16, size=(192, 16))
        np.save(parent / 'x.npy', np.eye(16, dtype=np.float32)[rows][..., None])
        arguments += [f'--config.data.path={parent}/x.npy']
        rule = f'{ROOT}/docs/own_rule.py:rows_sum_to_one'
        arguments += [f'--config.constraint.distance={rule}']
    run = run._replace(arguments=arguments)
    do = lambda *words: subprocess.run(run.command(*words), check=True, capture_output=True)
    do(run.folder, *FEW)
    begun = time.monotonic()  # the second finds its programs compiled
    do(run.other, *FEW, '--config.seed=1', '--config.data.seed=1')
    seconds = time.monotonic() - begun
    for stage in requested:
        do(run.folder, f'--stages={stage}')
        do(run.other, f'--stages={stage}')
    stages = [name for name in cli.STAGES if (run.folder / 'stages' / f'{name}.json').exists()]
    path.write_text(json.dumps(dict(arguments=arguments, stages=stages, seconds=seconds)))
    return make_reference(parent, problem, requested)


def main() -> int:
    """Runs the cycles; returns 1 if there was a defect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cycles', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--kinds', default=','.join(FAULTS), help='of faults, in turn, separated by commas'
    )
    parser.add_argument('--problems', default='burgers', help='in turn, separated by commas')
    parser.add_argument('--stages', default='', help='that run on request, in each problem')
    parser.add_argument(
        '--log', type=Path, help='a JSON object a cycle is appended to it; those there are done'
    )
    parser.add_argument('--summary', type=Path, help='JSON file of how often what was seen')
    parser.add_argument(
        '--references', type=Path, help='folder that keeps the runs that are never broken'
    )
    given = parser.parse_args()
    kinds, problems = given.kinds.split(','), given.problems.split(',')
    records, revision = read(given.log), provenance()['git']
    # Every program is kept: a cycle is mostly starts.
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    with tempfile.TemporaryDirectory() as parent:
        place = given.references or Path(parent)
        requested = list(filter(None, given.stages.split(',')))
        run = functools.cache(lambda problem: make_reference(place, problem, requested))
        for number in range(len(records), given.cycles):
            if provenance()['git'] != revision:
                sys.exit(
                    'the code has changed, and its results may have: begin again, from a clone '
                    'that stays as it is'
                )
            rng = random.Random(f'{given.seed}-{number}')
            turn, kind = divmod(number, len(kinds))
            record = cycle(run(problems[turn % len(problems)]), rng, kinds[kind])
            records.append({'cycle': number, 'revision': revision} | record)
            if given.log:
                with open(given.log, 'a') as file:
                    file.write(json.dumps(records[-1]) + '\n')
            print(f'{number + 1}/{given.cycles}', record, flush=True)
    print(f'\n{summary(records)}')
    if given.summary:
        given.summary.write_text(json.dumps(counts(records), indent=2) + '\n')
    return int(any(record['defect'] for record in records))


def read(log: Path | None) -> list[dict[str, str]]:
    """Returns the records of a log, none where there is none."""
    return (
        [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    )


def counts(records: list[dict[str, str]]) -> dict[str, dict[str, int]]:
    """Returns how many cycles there were of each problem, fault and what it led to, and of each
    revision of the code.
    """
    number = lambda name_of: dict(sorted(collections.Counter(map(name_of, records)).items()))
    return {
        'problems': number(lambda record: record['problem']),
        'seen': number(lambda record: f'{record["kind"]}: {record["seen"]}'),
        'defects': number(lambda record: record['defect'] or 'none'),
        'revisions': number(lambda record: record['revision'][:7]),
    }


def summary(records: list[dict[str, str]]) -> str:
    """Returns a table of what was done and what was seen."""
    counts = collections.Counter(
        (each['kind'], 'DEFECT' if each['defect'] else each['seen']) for each in records
    )
    rows = [f'| {kind} | {seen} | {n} |' for (kind, seen), n in sorted(counts.items())]
    defects = sum(bool(each['defect']) for each in records)
    head = ['| what was done | what was seen | cycles |', '|---|---|---|']
    return '\n'.join([*head, *rows, '', f'{len(records)} cycles, {defects} defects'])


if __name__ == '__main__':
    sys.exit(main())
