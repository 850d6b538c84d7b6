"""A process that dies, at any moment, and the same command after it: the result is that of a run
never interrupted.

The processes are real, `launch/main.py` in an interpreter whose audit hook sends the signal: as a
file of a given name is opened or renamed for the given time, which no clock could hit.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.burgers import get_config
from namm_jax.experiment.files import read_json, write_json
from namm_jax.experiment.stages import stages_of

STAGES = [name for name, stage in stages_of(get_config('tiny')).items() if not stage.on_request]
ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import fnmatch, os, runpy, sys
pattern, left, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def hook(event, arguments):
    global left
    changes = event in ('open', 'os.rename', 'os.remove', 'os.mkdir')
    if changes and fnmatch.fnmatch(str(arguments[0]), pattern):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

sys.argv = sys.argv[4:]
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def start(folder, *arguments, at='', time=1, number=signal.SIGKILL):
    """Runs the preset `tiny` in a folder; returns exit status and standard error.

    Args:
        folder: the run folder.
        arguments: more arguments.
        at: a pattern of paths below the folder; '' for no signal.
        time: the signal is sent when a file of that name is used for this time, from 1.
        number: the signal.
    """
    program = [sys.executable, '-c', PROGRAM, f'{folder}/{at}', str(time), str(int(number))]
    command = [
        str(ROOT / 'launch/main.py'),
        '--config=configs/burgers.py:tiny',
        f'--workdir={folder}',
        *arguments,
    ]
    done = subprocess.run(program + command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def records(folder, stage):
    """Returns the stage's records without what is measured in seconds."""
    found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [timeless(record) for record in found if record['stage'] == stage]


def timeless(tree):
    """Returns a nested dict without the entries that are measured in seconds."""
    if not isinstance(tree, dict):
        return tree
    return {name: timeless(value) for name, value in tree.items() if 'seconds' not in name}


def saved(folder, stage):
    """Returns, for each checkpoint of a stage, name -> shape, dtype and checksum of every leaf."""
    paths = (folder / stage).glob('checkpoints/*.json')
    return {path.stem: json.loads(path.read_text())['body']['leaves'] for path in paths}


def outcome(folder, stage):
    """Returns all that a stage leaves behind, but for what is measured in seconds or drawn."""
    arrays = {path.name: path.read_bytes() for path in sorted((folder / stage).glob('*.npy'))}
    metrics = read_json(folder / 'metrics.json') if stage in ('evaluate', 'report') else {}
    files = {
        str(path.relative_to(folder / stage))
        for path in (folder / stage).rglob('*')
        if 'checkpoints' not in path.parts
    }
    facts = timeless(read_json(folder / 'stages' / f'{stage}.json'))
    return arrays, saved(folder, stage), records(folder, stage), timeless(metrics), files, facts


def begun(tiny_run, folder, *stages):
    """Returns a run folder in which only these stages have been done."""
    (folder / 'stages').mkdir(parents=True)
    names = ['config.json', *(f'stages/{stage}.json' for stage in stages)]
    for name in names + ['metrics.json'] * ('evaluate' in stages):
        write_json(folder / name, read_json(tiny_run / name))
    for stage in stages:
        shutil.copytree(tiny_run / stage, folder / stage)
    lines = (tiny_run / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (folder / 'metrics.jsonl').write_text(
        ''.join(line for line in lines if json.loads(line)['stage'] in stages)
    )
    return folder


@pytest.mark.slow
def test_killed_training_in_a_folder_then_moved_ends_as_if_nothing_had_been(tiny_run, tmp_path):
    folder = begun(tiny_run, tmp_path / 'run', 'data')
    status, told = start(
        folder, '--stages=mirror', at='mirror/checkpoints/8.orbax*'
    )  # half a checkpoint
    assert status == -signal.SIGKILL and 'mirror: starting' in told
    assert set(saved(folder, 'mirror')) == {'4'} and records(folder, 'mirror')[-1]['step'] >= 8
    folder = shutil.move(folder, tmp_path / 'moved')
    status, told = start(folder, '--stages=mirror')
    assert status == 0 and 'mirror: going on' in told
    assert outcome(folder, 'mirror') == outcome(tiny_run, 'mirror')


MOMENTS = {  # a file that is opened in the middle of a stage
    'data': 'data/validation-00000.npz.tmp',
    'mirror': 'mirror/checkpoints/8.orbax*',
    'mdm': 'mdm/checkpoints/8.orbax*',
    'finetune': 'finetune/mirror_samples.npy.tmp',
    'dm': 'dm/checkpoints/12.orbax*',
    'sample': 'sample/mdm.npy.tmp',
    'evaluate': 'metrics.json.tmp',
    'report': 'report.html.tmp',
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('stage', STAGES)
def test_every_stage_killed_twice(tiny_run, tmp_path, stage):
    """In its middle, and when all is done but put on record."""
    earlier = list(STAGES)[: list(STAGES).index(stage)]
    folder = begun(tiny_run, tmp_path / 'run', *earlier)
    for at in (MOMENTS[stage], f'stages/{stage}.json.tmp'):
        assert start(folder, f'--stages={stage}', at=at)[0] == -signal.SIGKILL
        assert not read_json(folder / 'stages' / f'{stage}.json')['finished']
    assert start(folder, f'--stages={stage}')[0] == 0
    assert outcome(folder, stage) == outcome(tiny_run, stage)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment(tiny_run, tmp_path):
    """At the first, second, third, fifth, ... time that a file of the run folder is touched, one
    after the other.
    """
    folder, moments = begun(tiny_run, tmp_path / 'run', 'data'), [1, 2]
    while start(folder, '--stages=mirror', at='*', time=moments[-1])[0] == -signal.SIGKILL:
        moments.append(moments[-1] + moments[-2])
        assert len(moments) < 20
    assert len(moments) > 8
    assert outcome(folder, 'mirror') == outcome(tiny_run, 'mirror')


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_first(tiny_run, tmp_path, number):
    folder = begun(tiny_run, tmp_path / 'run', 'data')
    status, told = start(folder, '--stages=mirror', at='metrics.jsonl', number=number)
    assert status == 128 + number and 'Traceback' not in told
    assert (
        f'signal {number}: saving, then stopping' in told
        and 'the same command goes on from here' in told
    )
    assert (
        max(map(int, saved(folder, 'mirror'))) < 12
        and not read_json(folder / 'stages/mirror.json')['finished']
    )
    assert start(folder, '--stages=mirror')[0] == 0
    assert outcome(folder, 'mirror') == outcome(tiny_run, 'mirror')


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_where_the_reader_of_the_log_has_gone(tiny_run, tmp_path, number):
    folder = begun(tiny_run, tmp_path / 'run', 'data')
    # Under nohup the signal would be ignored.
    text = f'import signal; signal.signal({number:d}, signal.SIG_DFL)\n{PROGRAM}'
    program = [sys.executable, '-c', text, f'{folder}/metrics.jsonl', '1', str(int(number))]
    command = [str(ROOT / 'launch/main.py'), '--config=configs/burgers.py:tiny', '--stages=mirror']
    reader, ours = os.pipe()
    process = subprocess.Popen([*program, *command, f'--workdir={folder}'], stderr=ours)
    os.close(ours)
    os.read(reader, 1)
    os.close(reader)
    assert process.wait(timeout=300) == 128 + number
    assert max(map(int, saved(folder, 'mirror'))) < 12
    assert start(folder, '--stages=mirror')[0] == 0
    assert outcome(folder, 'mirror') == outcome(tiny_run, 'mirror')


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ('stage', 'at'),
    [
        ('data', 'data/train-00000.npz.tmp'),
        ('sample', 'sample/dm.npy.tmp'),
        ('evaluate', 'sample/mdm.npy'),
    ],
)
def test_signal_stops_the_other_stages_between_their_parts(tiny_run, tmp_path, stage, at):
    folder = begun(tiny_run, tmp_path / 'run', *STAGES[: STAGES.index(stage)])
    status, told = start(folder, f'--stages={stage}', at=at, number=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM and 'the same command goes on from here' in told
    assert not read_json(folder / 'stages' / f'{stage}.json')['finished']
    assert start(folder, f'--stages={stage}')[0] == 0
    assert outcome(folder, stage) == outcome(tiny_run, stage)
