"""Faults of files and disks, as a user meets them: one message that names the file, no traceback,
nothing redone.
"""

import contextlib
import json
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from namm_jax.experiment.files import read_json, write_json

TINY = '--config=configs/burgers.py:tiny'


@pytest.fixture
def run(tiny_run, tmp_path):
    """Returns a copy of the finished run, to be damaged."""
    return shutil.copytree(tiny_run, tmp_path / 'copy')


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b'')


def delete(path):
    path.unlink()


def unfinished(run, stage):
    """Puts on record that a stage was stopped before its end."""
    path = run / 'stages' / f'{stage}.json'
    write_json(path, read_json(path) | {'finished': False})


def leaves(run, stage, step):
    """Returns name -> shape, dtype and checksum of every leaf of a checkpoint."""
    text = (run / stage / 'checkpoints' / f'{step}.json').read_text()
    return json.loads(text)['body']['leaves']


def biggest(folder):
    files = (path for path in folder.rglob('*') if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


READ_BY = {  # file -> the stage that reads it, made unfinished; '' for every command
    'config.json': '',
    'provenance.json': '',
    'stages/mirror.json': '',
    'metrics.json': 'data',
    'data/data.json': 'dm',
    'data/train.npy': 'dm',
    'finetune/mirror_samples.npy': 'finetune',
    'finetune/mirror_samples.json': 'finetune',
    'sample/mdm.npy': 'evaluate',
    'sample/crc32.json': 'evaluate',
    'evaluate/arrays.npz': 'report',
}
ONCE = {
    'data/train.npy': flip,
    'finetune/mirror_samples.npy': flip,
    'sample/mdm.npy': truncate,
}
ONCE |= {'metrics.json': flip, 'evaluate/arrays.npz': flip}
BUT = {
    ('provenance.json', delete),
    ('sample/crc32.json', delete),
    ('finetune/mirror_samples.npy', delete),
}
FAULTS = [
    pytest.param(
        name, damage, marks=[pytest.mark.slow] * (bool(stage) and ONCE.get(name) != damage)
    )
    for name, stage in READ_BY.items()
    for damage in (flip, truncate, empty, delete)
    if (name, damage) not in BUT
]


@pytest.mark.parametrize(('name', 'damage'), FAULTS)
def test_damaged_file_is_named_and_left(run, launch, capsys, name, damage):
    damage(run / name)
    if READ_BY[name] not in ('', 'data'):
        unfinished(run, READ_BY[name])
    stages = [f'--stages={READ_BY[name]}'] if READ_BY[name] else []
    left = {
        path: path.read_bytes()
        for path in run.rglob('*')
        if path.is_file() and path.suffix in ('.npy', '.npz')
    }
    assert launch(TINY, f'--workdir={run}', *stages) == 2
    told = capsys.readouterr().err
    (error,) = [line for line in told.splitlines() if line.startswith('error: ')]
    assert Path(name).name in error and str(run) in error and 'Traceback' not in told
    assert all(path.read_bytes() == data for path, data in left.items())


def test_damaged_record_of_training_is_named_with_its_line(run, launch, capsys):
    path = run / 'metrics.jsonl'
    path.write_bytes(path.read_bytes().replace(b'{', b'[', 2).replace(b'[', b'{', 1))
    assert launch(TINY, f'--workdir={run}', '--redo=mirror', '--stages=mirror') == 2
    assert f'error: {path}, line 2 is damaged: got ' in capsys.readouterr().err
    assert (run / 'mirror/checkpoints').exists()


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_and_training_ends_as_if_it_were_whole(
    run, tiny_run, launch, capsys
):
    unfinished(run, 'mirror')
    flip(biggest(run / 'mirror/checkpoints/12'))
    with pytest.warns(
        RuntimeWarning, match='checkpoints/12 is damaged, trying the one before it: '
    ):
        assert launch(TINY, f'--workdir={run}', '--stages=mirror') == 0
    assert 'mirror: going on' in capsys.readouterr().err
    assert leaves(run, 'mirror', 12) == leaves(tiny_run, 'mirror', 12)


@pytest.mark.parametrize('missing', [False, True])
def test_the_last_state_of_a_finished_stage_is_taken_or_none(run, launch, capsys, missing):
    """The state before it is whole, but samples of it would be those of a shorter training."""
    before, last = sorted((run / 'dm/checkpoints').glob('*.json'), key=lambda path: int(path.stem))
    (delete if missing else flip)(last)
    unfinished(run, 'sample')
    for path in (run / 'sample').iterdir():
        path.unlink()
    with (
        contextlib.nullcontext()
        if missing
        else pytest.warns(RuntimeWarning, match=f'checkpoints/{last.stem} is damaged')
    ):
        assert launch(TINY, f'--workdir={run}', '--stages=sample') == 2
    expected = (
        f'dm/checkpoints: got checkpoint {before.stem}, expected an intact checkpoint {last.stem}'
    )
    assert expected in capsys.readouterr().err
    assert not (run / 'sample/dm.npy').exists()


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['mirror', pytest.param('dm', marks=pytest.mark.slow)])
def test_no_intact_checkpoint_is_no_fresh_start(run, launch, capsys, stage):
    for path in (run / stage / 'checkpoints').glob('*.json'):
        flip(path)
    for later in ('mdm', 'finetune', 'sample'):
        unfinished(run, later)
    for path in (run / 'sample').iterdir():  # what is drawn already needs no model
        path.unlink()
    arguments = (TINY, f'--workdir={run}', '--stages=mdm,finetune,sample')
    with pytest.warns(RuntimeWarning):
        assert launch(*arguments) == 2
    assert f'{run}/{stage}/checkpoints: got the damaged checkpoints [' in capsys.readouterr().err
    shutil.rmtree(run / stage / 'checkpoints')
    assert launch(*arguments) == 2
    assert f'{run}/{stage}/checkpoints: got no checkpoint' in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoint_that_cannot_be_written_ends_the_run(run, launch, capsys):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (16_000, hard)
    )  # less than the largest file of a checkpoint
    try:
        status = launch(TINY, f'--workdir={run}', '--redo=mirror', '--stages=mirror')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    told = capsys.readouterr().err
    assert status == 1 and 'Traceback' not in told and 'Exception' not in told
    assert f'{run}/mirror/checkpoints' in told and 'File too large' in told


@pytest.fixture
def disk(tmp_path):
    """Returns the folder of a disk of 16 MB, of a long name: no message may be cut by it."""
    folder = tmp_path / ('disk' + 30 * '-long')
    folder.mkdir()
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', folder], capture_output=True
    ).returncode:
        pytest.skip('no leave to mount a file system')
    yield folder
    subprocess.run(['umount', folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize('room', [0, 20_000, 200_000, 400_000, 500_000, 600_000, 700_000])
def test_full_disk(tiny_run, disk, launch, capsys, room):
    """With room for nothing, for records and no checkpoint, for one checkpoint or two."""
    run, arguments = disk / 'run', (TINY, f'--workdir={disk}/run', '--stages=mirror')
    (run / 'stages').mkdir(parents=True)
    for name in ('config.json', 'stages/data.json'):
        write_json(run / name, read_json(tiny_run / name))
    shutil.copytree(tiny_run / 'data', run / 'data')
    (disk / 'filler').write_bytes(bytes(shutil.disk_usage(disk).free - room))
    assert launch(*arguments) == 1
    told = capsys.readouterr().err
    (error,) = [line for line in told.splitlines() if line.startswith('error: ')]
    assert str(run) in error and 'No space left on device' in error
    assert 'Traceback' not in told and 'Exception' not in told
    (disk / 'filler').unlink()
    assert launch(*arguments) == 0
    assert leaves(run, 'mirror', 12) == leaves(tiny_run, 'mirror', 12)


@pytest.mark.slow
def test_read_only_disk(tiny_run, disk, launch, capsys):
    run = shutil.copytree(tiny_run, disk / 'run')
    subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
    assert launch(TINY, f'--workdir={run}', '--redo=mirror') == 1
    told = capsys.readouterr().err
    assert 'Read-only file system' in told and str(run) in told and 'Traceback' not in told
    assert leaves(run, 'mirror', 12) == leaves(tiny_run, 'mirror', 12)
