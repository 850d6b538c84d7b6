#!/usr/bin/env python
"""Breaks a run over and over, at random, and checks that it ends as if nothing had been, or says why it cannot.

    python tests/torture.py --cycles=200 [--seed=0] [--log=torture.jsonl]

Each cycle takes a copy of a finished run of the preset `tiny`, discards a random stage with all that was built on it,
and while it is done again, does one of these:

    kill, term, interrupt   SIGKILL, SIGTERM or SIGINT at a random moment
    flip, truncate          as kill; then a bit of a random file is flipped, or its end cut off
    full                    a disk with a little room left, that fills at a random moment (needs root, for a tmpfs)
    peer                    two processes; one of them is killed at a random moment

Then the same command is given again. It must end with status 0 and the results of the run never broken, bit for bit (of
two processes, to rounding: `test_processes.py`), or with one message that names the damaged file; put back from a copy,
it must then end so. Anything else is a defect, which is printed at once; the exit status is their number, at most 1.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_kill import ROOT, STAGES, outcome
from test_processes import free_port

SIGNALS = {'kill': signal.SIGKILL, 'term': signal.SIGTERM, 'interrupt': signal.SIGINT}
NEVER_READ = ('figures', 'tensorboard', '.html', 'lock', 'provenance.json', 'metrics.jsonl', '.tmp', 'preset.json')


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
    return subprocess.Popen(command(folder, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def broken_off(folder: Path, rng: random.Random, number: int, longest: float, *more: str) -> tuple[int, str]:
    """Starts a run and sends it a signal at a random moment; returns its exit status and what it said."""
    process = start(folder, *more)
    try:
        said = process.communicate(timeout=rng.uniform(0.5, longest))[1]
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
    return process.returncode, said


def damage(folder: Path, rng: random.Random, kind: str) -> tuple[Path, bytes] | None:
    """Damages a random file that a later stage may read; returns it and what it held."""
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.stat().st_size]
    files = [p for p in files if not any(part in str(p.relative_to(folder)) for part in NEVER_READ)]
    if not files:
        return None
    path = rng.choice(files)
    data = path.read_bytes()
    where = rng.randrange(len(data))
    flipped = data[:where] + bytes([data[where] ^ 1 << rng.randrange(8)]) + data[where + 1 :]
    path.write_bytes(flipped if kind == 'flip' else data[:where])
    return path, data


def signalled(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> str:
    """Breaks a run off by a signal; returns what is wrong, '' where nothing is."""
    number = SIGNALS[kind]
    status, said = broken_off(folder, rng, number, longest, redo)
    # 128 + number once all was saved; -number where the signal came before its handler was there, or has none.
    return '' if status in (0, -number, 128 + number) else f'status {status} after {kind}: {said[-500:]}'


def damaged(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> str:
    """Kills a run, damages a file, and gives the command again; an honest refusal ends with the file put back."""
    broken_off(folder, rng, signal.SIGKILL, longest, redo)
    hit = damage(folder, rng, kind)
    if hit is None:
        return ''
    path, before = hit
    process = start(folder)
    said = process.communicate(timeout=300)[1]
    named = path.name.split('.')[0], 'checkpoints', 'damaged'  # orbax names the checkpoint, not its file
    if process.returncode == 2 and 'Traceback' not in said and any(name in said for name in named):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(before)
        return ''
    if process.returncode == 0:
        if path.exists() and path.read_bytes() != before and len(path.read_bytes()) <= len(before):
            path.write_bytes(before)  # it was not read again
        return ''
    return f'status {process.returncode} after {kind} of {path.relative_to(folder)}: {said[-500:]}'


def filled(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> str:
    """Runs on a disk with little room left, until it is full; then there is room again."""
    disk = Path(tempfile.mkdtemp())
    used = sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())
    size = used // 1024 + rng.randrange(64, 2048)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs', disk], capture_output=True).returncode:
        return 'skipped: no leave to mount a tmpfs'
    try:
        try:
            copy = shutil.copytree(folder, disk / 'run')
        except shutil.Error:
            return ''  # block sizes: full before the run began
        process = start(copy, redo)
        said = process.communicate(timeout=300)[1]
        wrong = process.returncode not in (0, 1) or 'Traceback' in said
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        return f'status {process.returncode} on a full disk: {said[-500:]}' if wrong else ''
    finally:
        subprocess.run(['umount', disk], check=False)
        disk.rmdir()


def left_alone(folder: Path, rng: random.Random, kind: str, longest: float, redo: str) -> str:
    """Runs two processes and kills one of them; the other must end by itself."""
    place = [f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2']
    pair = [start(folder, redo, *place, f'--process_index={index}') for index in range(2)]
    time.sleep(rng.uniform(0.5, 2 * longest))
    victim = rng.randrange(2)
    pair[victim].kill()
    pair[victim].communicate()
    begun = time.monotonic()
    said = pair[1 - victim].communicate(timeout=200)[1]
    status, seconds = pair[1 - victim].returncode, time.monotonic() - begun
    if status in (0, 1, 2, -signal.SIGABRT) and seconds < 100:
        return ''
    return f'status {status} {seconds:.0f} s after its peer was killed: {said[-500:]}'


FAULTS = dict.fromkeys(SIGNALS, signalled) | {'flip': damaged, 'truncate': damaged, 'full': filled, 'peer': left_alone}


def cycle(reference: Path, rng: random.Random, kind: str, longest: float) -> dict[str, object]:
    """Breaks a copy of the reference, has it mended, and compares; returns a record of the log."""
    stage = rng.choice(STAGES)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(reference, Path(parent) / 'run'))
        wrong = FAULTS[kind](folder, rng, kind, longest, f'--redo={stage}')
        if not wrong:
            # What was broken off before it discarded anything is asked for once more.
            process = start(folder)
            said = process.communicate(timeout=300)[1]
            if process.returncode:
                wrong = f'status {process.returncode} in the end: {said[-500:]}'
        if not wrong and kind != 'peer':
            differ = [name for name in STAGES if outcome(folder, name) != outcome(reference, name)]
            wrong = f'other results of {differ}' if differ else ''
    return {'kind': kind, 'stage': stage, 'wrong': wrong}


def main() -> int:
    """Runs the cycles; returns 1 if there was a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cycles', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--kinds', default=','.join(FAULTS), help='of faults, separated by commas')
    parser.add_argument('--log', type=Path, help='a JSON object a cycle is appended to it')
    given = parser.parse_args()
    kinds, counts, defects = given.kinds.split(','), collections.Counter(), 0
    os.environ |= {'JAX_PLATFORMS': 'cpu'}
    with tempfile.TemporaryDirectory() as parent:
        reference = Path(parent) / 'reference'
        subprocess.run(command(reference), check=True, capture_output=True)
        begun = time.monotonic()
        again = Path(shutil.copytree(reference, Path(parent) / 'again'))
        subprocess.run(command(again, f'--redo={STAGES[0]}'), check=True, capture_output=True)
        longest = time.monotonic() - begun  # of a whole run, its programs compiled before
        for number in range(given.cycles):
            rng = random.Random(f'{given.seed}-{number}')
            record = {'cycle': number} | cycle(reference, rng, kinds[number % len(kinds)], longest)
            skipped = str(record['wrong']).startswith('skipped')
            counts[f'{record["kind"]}{", skipped" if skipped else ""}'] += 1
            defects += bool(record['wrong']) and not skipped
            if given.log:
                with open(given.log, 'a') as file:
                    file.write(json.dumps(record) + '\n')
            print(f'{number + 1}/{given.cycles}', record, flush=True)
    print(f'{given.cycles} cycles, {defects} defects; ' + ', '.join(f'{n} {kind}' for kind, n in counts.items()))
    return int(defects > 0)


if __name__ == '__main__':
    sys.exit(main())
