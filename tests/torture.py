#!/usr/bin/env python
"""Breaks a run over and over, at random, and checks that it ends as if nothing had been, or says
why it cannot.

    python tests/torture.py --cycles=200 [--seed=0] [--kinds=kill,full,hung] [--log=torture.jsonl]

Each cycle takes a copy of a finished run of the preset `tiny`, discards a random stage with all
that was built on it, and while it is done again, does one of these:

    kill, term, interrupt   SIGKILL, SIGTERM or SIGINT at a random moment
    flip, truncate          as kill; then a bit of a random file is flipped, or its end cut off
    full a disk with less room than the results need, full at a random moment (root, for a tmpfs)
    peer, hung two processes; one of them is killed, or stopped by SIGSTOP, at a random moment

Then the same command is given again. It must end with status 0 and the results of the run never
broken, bit for bit (of two processes, to rounding: `test_processes.py`), or with one message that
names the damaged file; put back from a copy, it must then end so. What is left of two processes
must end by itself within 100 seconds. Anything else is a defect, which is printed at once; the exit
status is their number, at most 1.
"""

import argparse
import collections
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
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_kill import ROOT, STAGES, outcome
from test_processes import free_port

from namm_jax.experiment.provenance import provenance

SIGNALS = {'kill': signal.SIGKILL, 'term': signal.SIGTERM, 'interrupt': signal.SIGINT}
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


def command(folder: Path, *more: str) -> list[str]:
    """Returns the command of a run in a folder."""
    return [
        sys.executable,
        str(ROOT / 'launch/main.py'),
        '--config=configs/burgers.py:tiny',
        f'--workdir={folder}',
        *more,
    ]


def start(folder: Path, *more: str) -> subprocess.Popen:
    """Starts a run."""
    return subprocess.Popen(
        command(folder, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


class Defect(Exception):
    """What was done to a run made it do what it must not."""


def broken_off(
    folder: Path, rng: random.Random, number: int, longest: float, *more: str
) -> tuple[int, str]:
    """Starts a run and sends it a signal at a random moment; returns its exit status and what it
    said.
    """
    process = start(folder, *more)
    try:
        said = process.communicate(timeout=rng.uniform(0.5, longest))[1]
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
    return process.returncode, said


def damage(folder: Path, rng: random.Random, kind: str) -> tuple[Path, bytes, bytes] | None:
    """Damages a random file that a later stage may read; returns it, what it held and what it
    holds.
    """
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.stat().st_size]
    files = [p for p in files if not any(part in str(p.relative_to(folder)) for part in NEVER_READ)]
    if not files:
        return None
    path = rng.choice(files)
    data = path.read_bytes()
    where = rng.randrange(len(data))
    flipped = data[:where] + bytes([data[where] ^ 1 << rng.randrange(8)]) + data[where + 1 :]
    after = flipped if kind == 'flip' else data[:where]
    path.write_bytes(after)
    return path, data, after


class Seen(NamedTuple):
    """What a fault did, and the file that was damaged, if one was."""

    what: str
    file: str = ''


def signalled(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> Seen:
    """Breaks a run off by a signal."""
    number = SIGNALS[kind]
    status, said = broken_off(folder, rng, number, longest, redo)
    # 128 + number once all was saved; -number where the signal came before its handler was there,
    # or has none.
    if status not in (0, -number, 128 + number):
        raise Defect(f'status {status} after {kind}: {said[-500:]}')
    return Seen('ended before' if status == 0 else f'status {status}')


def damaged(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> Seen:
    """Kills a run, damages a file, and gives the command again; an honest refusal ends with the
    file put back.
    """
    broken_off(folder, rng, signal.SIGKILL, longest, redo)
    hit = damage(folder, rng, kind)
    if hit is None:
        return Seen('no file')
    path, before, after = hit
    process = start(folder)
    said = process.communicate(timeout=300)[1]
    status, where = process.returncode, path.relative_to(folder)
    if status == 0:
        if path.exists() and path.read_bytes() == after:
            path.write_bytes(before)
            return Seen(f'not read again: {where.parts[0]}', str(where))
        return Seen(f'made again: {where.parts[0]}', str(where))
    named = (path.name.split('.')[0], 'checkpoints', 'damaged')  # the checkpoint, not its file
    if status != 2 or 'Traceback' in said or not any(name in said for name in named):
        raise Defect(f'status {status} after {kind} of {where}: {said[-500:]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(before)
    return Seen(f'refused: {where.parts[0]}', str(where))


def kilobytes(folder: Path) -> int:
    """Returns the room that a folder takes on a tmpfs, whose pages have 4 KiB."""
    return sum(
        4 * math.ceil(path.stat().st_size / 4096) if path.is_file() else 4
        for path in folder.rglob('*')
    )


def filled(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> Seen:
    """Runs on a disk with less room than the discarded stages took, until it is full; then there is
    room again.
    """
    disk, before = Path(tempfile.mkdtemp()), kilobytes(folder)
    mount = ['mount', '-t', 'tmpfs', 'tmpfs', disk, '-o']
    if subprocess.run([*mount, f'size={before + 1024}k'], capture_output=True).returncode:
        return Seen('skipped: no leave to mount a tmpfs')
    try:
        copy = shutil.copytree(folder, disk / 'run')
        start(copy, redo, f'--stages={STAGES[0]}').communicate(timeout=300)  # discards, and is done
        left = kilobytes(copy)
        subprocess.run(
            [*mount, f'remount,size={left + rng.randrange(8, max(16, before - left))}k'], check=True
        )
        process = start(copy)
        said = process.communicate(timeout=300)[1]
        if process.returncode and (
            process.returncode != 1 or 'Traceback' in said or 'space' not in said
        ):
            raise Defect(f'status {process.returncode} on a full disk: {said[-500:]}')
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        return Seen('stopped: full' if process.returncode else 'room enough')
    finally:
        subprocess.run(['umount', disk], check=False)
        disk.rmdir()


def left_alone(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> Seen:
    """Runs two processes and kills or stops one of them; the other must end by itself."""
    place = [f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2']
    pair = [start(folder, redo, *place, f'--process_index={index}') for index in range(2)]
    time.sleep(rng.uniform(0.5, 2 * longest))
    victim, other = rng.sample(pair, 2)
    victim.send_signal(signal.SIGSTOP if kind == 'hung' else signal.SIGKILL)
    begun = time.monotonic()
    try:
        said = other.communicate(timeout=200)[1]
    finally:
        victim.kill()
        victim.communicate()
    status, seconds = other.returncode, time.monotonic() - begun
    if status not in (0, 1, 2, -signal.SIGABRT) or seconds > 100:
        raise Defect(f'status {status} {seconds:.0f} s after {kind}: {said[-500:]}')
    return Seen(
        'ended before'
        if status == 0
        else f'status {status} within {10 * math.ceil(seconds / 10)} s'
    )


FAULTS = dict.fromkeys(SIGNALS, signalled)
FAULTS |= {
    'flip': damaged,
    'truncate': damaged,
    'full': filled,
    'peer': left_alone,
    'hung': left_alone,
}


def cycle(reference: Path, rng: random.Random, kind: str, longest: float) -> dict[str, str]:
    """Breaks a copy of the reference, has it mended, and compares; returns a record of the log."""
    stage = rng.choice(STAGES)
    longest *= 1 - STAGES.index(stage) / len(STAGES)
    record = {'kind': kind, 'stage': stage, 'seen': '', 'file': '', 'defect': ''}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(reference, Path(parent) / 'run'))
        try:
            record['seen'], record['file'] = FAULTS[kind](
                folder, rng, kind, longest, f'--redo={stage}'
            )
            process = start(folder)
            said = process.communicate(timeout=300)[1]
            if process.returncode:
                raise Defect(f'status {process.returncode} in the end: {said[-500:]}')
            differ = [name for name in STAGES if outcome(folder, name) != outcome(reference, name)]
            if differ and FAULTS[kind] is not left_alone:
                raise Defect(f'other results of {differ}: {differences(folder, reference)}')
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
    parser.add_argument(
        '--log', type=Path, help='a JSON object a cycle is appended to it; those there are done'
    )
    given = parser.parse_args()
    kinds, records, revision = given.kinds.split(','), read(given.log), provenance()['git']
    os.environ |= {'JAX_PLATFORMS': 'cpu'}
    with tempfile.TemporaryDirectory() as parent:
        reference = Path(parent) / 'reference'
        subprocess.run(command(reference), check=True, capture_output=True)
        begun = time.monotonic()
        again = Path(shutil.copytree(reference, Path(parent) / 'again'))
        subprocess.run(command(again, f'--redo={STAGES[0]}'), check=True, capture_output=True)
        longest = time.monotonic() - begun  # of a whole run, its programs compiled before
        for number in range(len(records), given.cycles):
            if provenance()['git'] != revision:
                sys.exit(
                    'the code has changed, and its results may have: begin again, from a clone '
                    'that stays as it is'
                )
            rng = random.Random(f'{given.seed}-{number}')
            record = cycle(reference, rng, kinds[number % len(kinds)], longest)
            records.append(record)
            if given.log:
                with open(given.log, 'a') as file:
                    file.write(json.dumps({'cycle': number, 'revision': revision} | record) + '\n')
            print(f'{number + 1}/{given.cycles}', record, flush=True)
    print(f'\n{summary(records)}')
    return int(any(record['defect'] for record in records))


def read(log: Path | None) -> list[dict[str, str]]:
    """Returns the records of a log, none where there is none."""
    return (
        [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    )


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
