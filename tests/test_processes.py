"""Several processes: they find each other or say who is missing, and do what one process does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from worker import RULES, STOP, draw, train, write_data

from namm_jax.experiment import dataset, processes

ROOT = Path(__file__).resolve().parent.parent


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start_all(program, count, *, devices=2):
    """Starts the processes of a run; `program` takes coordinator, count and index."""
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(devices),
    }
    place = f'127.0.0.1:{free_port()}'
    return [
        subprocess.Popen(
            [sys.executable, *program(place, count, index)],
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]


def end_all(started, seconds=240):
    """Returns the exit statuses and what was said."""
    said = [process.communicate(timeout=seconds)[1] for process in started]
    return [process.returncode for process in started], said


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """Returns the folder in which two processes of two devices each have worked, and what they
    found.
    """
    folder = tmp_path_factory.mktemp('two')
    program = lambda place, count, index: map(
        str, (ROOT / 'tests/worker.py', folder, place, count, index)
    )
    status, said = end_all(start_all(program, 2))
    assert status == [0, 0], said
    return folder, json.loads((folder / 'facts.json').read_text())


def test_they_agree(two):
    _, facts = two
    assert facts['devices'] == 4 and facts['indices'] == [0, 1]
    first, second = facts['refused']
    assert first == second and 'got 1 differences between the configs of the 2 processes' in first
    assert 'seed: [0, 1]' in first and 'steps' not in first
    assert facts['failed'] == ['no room', 'process 0: no room']


def test_their_batches_make_up_the_global_one(two):
    halves = zip(*two[1]['batches'], strict=True)
    for step, (first, second) in enumerate(halves):
        assert first + second == dataset.batch_indices(0, step, n=32, batch_size=8).tolist()


def test_their_samples_are_those_of_one_process(two):
    assert np.array_equal(np.float32(two[1]['draw']), draw())


def test_their_data_set_is_that_of_one_process(two, tmp_path):
    write_data(tmp_path)
    files = lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    ours, theirs = files(tmp_path), files(two[0] / 'data')
    assert ours.keys() == theirs.keys() and len(ours) == 3 + 2
    for name in ours:
        assert name == 'crc32.json' or ours[name] == theirs[name], (
            name
        )  # it also holds checksums of before


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('name', RULES)
def test_one_process_goes_on_as_if_it_had_been_alone(two, tmp_path, name, devices):
    folder, facts = two
    assert facts[f'stopped/{name}'] == [15, 15]
    theirs = tmp_path / 'theirs'
    subprocess.run(['cp', '-r', folder / name, theirs], check=True)
    assert [int(path.stem) for path in theirs.glob('*.json')] == [STOP]
    state, records = train(theirs, rules=RULES[name], devices=devices)
    alone, expected = train(tmp_path / 'alone', rules=RULES['replicated'], devices=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), state, alone)
    assert len(records) == len(expected) - 1  # the one of step 3 was theirs
    for record, other in zip(records, expected[1:], strict=True):
        assert record.keys() == other.keys()
        timeless = [name for name in record if name not in ('stage', 'seconds')]
        np.testing.assert_allclose(
            [record[n] for n in timeless], [other[n] for n in timeless], rtol=1e-4
        )


JOIN = """
import sys
from namm_jax.experiment import processes

coordinator, count, index, seconds = sys.argv[1], *map(int, sys.argv[2:])
processes.start(processes.Place(coordinator, count, index), seconds=seconds)
if index == 0:
    print('met', file=sys.stderr)
processes.from_first(lambda: {}['nothing'])
"""


def join(*places, seconds):
    """Starts processes that meet, and fail on process 0, at (coordinator, count, index) each."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    command = lambda place: [sys.executable, '-c', JOIN, *map(str, place), str(seconds)]
    options = dict(env=environment, text=True, stderr=subprocess.PIPE)
    return [subprocess.Popen(command(place), **options) for place in places]


@pytest.mark.slow
def test_those_that_wait_in_vain_say_so():
    at, other, held = (f'127.0.0.1:{free_port()}' for _ in range(3))
    port = int(held.rpartition(':')[2])
    with socket.create_server(('', port)):
        places = (at, 3, 0), (at, 3, 1), (other, 2, 1), (held, 2, 0)
        status, said = end_all(join(*places, seconds=10))
    assert status == [2, 2, 2, 1], said  # the last one by the traceback of its UserError
    for (address, count, index), text in zip(places, said, strict=True):
        assert f"Place(coordinator='{address}', count={count}, index={index})" in text
        assert 'not all processes met within 10 s' in text or 'Address already in use' in text
        assert '--num_processes' in text and 'Check failure' not in text


def test_different_numbers_are_refused_and_any_error_ends_all():
    at, other = (f'127.0.0.1:{free_port()}' for _ in range(2))
    begun = time.monotonic()
    started = join((at, 2, 0), (at, 3, 1), (other, 2, 0), (other, 2, 1), seconds=60)
    status, said = end_all(started)
    assert status == [1] * 4 and time.monotonic() < begun + processes.HEARTBEAT, said
    assert all('--num_processes: [2, 3]' in text and 'met' not in text for text in said[:2])
    assert 'KeyError' in said[2] and "RuntimeError: process 0: 'nothing'" in said[3]
    assert not any('Check failure' in text for text in said)


@pytest.mark.parametrize(
    'place', [('nowhere', 2, 0), (':80', 2, 0), ('a:b', 2, 0), ('a:80', 2, 2), ('a:80', 2, -1)]
)
def test_bad_places_are_refused(place):
    with pytest.raises(ValueError, match='expected --coordinator=HOST:PORT'):
        processes.Place(*place)


def test_one_process_is_the_identity():
    array = np.arange(3)
    assert processes.gather({'a': 1}) == [{'a': 1}] and processes.gather_rows(array) is array
    assert processes.from_first(lambda: 'x') == 'x' and processes.agreed(lambda: 9)() == 9
    processes.check_same('configs', {'seed': 1})
    with pytest.raises(OSError, match='disk'):
        processes.from_first(lambda: (_ for _ in ()).throw(OSError('disk')))


TINY = '--config=configs/burgers.py:tiny', '--stages=data,mirror,mdm', '--config.train.log_every=2'


def pipeline(folder, count, extra=lambda index: ()):
    """Starts so many processes, of one device each, on a run folder; returns them."""
    program = lambda place, count, index: (
        'launch/main.py',
        *TINY,
        f'--workdir={folder}',
        f'--coordinator={place}',
        f'--num_processes={count}',
        f'--process_index={index}',
        *extra(index),
    )
    return start_all(program, count, devices=1)


def wait_for(path, started):
    """Waits until a file is there; raises if a process ends before."""
    begun = time.monotonic()
    while not path.exists():
        assert all(process.poll() is None for process in started) and time.monotonic() < begun + 120
        time.sleep(0.05)


def losses(folder):
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {
        (r['stage'], r['step'], name): r[name]
        for r in records
        for name in r
        if name.endswith('loss')
    }


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_pipeline_outlives_a_process_and_goes_on_with_another_number(tmp_path, number):
    ours, alone = tmp_path / 'ours', tmp_path / 'alone'
    started = pipeline(ours, 2)
    wait_for(ours / 'mirror/checkpoints/4.json', started)
    started[1].send_signal(number)
    begun = time.monotonic()
    status, said = end_all(started)
    assert time.monotonic() < begun + processes.HEARTBEAT + 30
    if number == signal.SIGTERM:
        assert status == [143, 143], said
    else:
        assert status[0] in (1, -signal.SIGABRT) and 'another process has gone' in said[0] + said[1]
    for folder, count in ((ours, 4), (alone, 1)):
        status, said = end_all(pipeline(folder, count))
        assert status == [0] * count, said
    theirs, expected = losses(ours), losses(alone)
    assert theirs.keys() == expected.keys()
    np.testing.assert_allclose(list(theirs.values()), list(expected.values()), rtol=1e-3)


@pytest.mark.slow
def test_processes_asked_for_different_things_are_refused(tmp_path):
    started = pipeline(tmp_path / 'run', 2, lambda index: [f'--config.seed={index}'])
    status, said = end_all(started)
    assert status == [2, 2] and all('seed: [0, 1]' in one for one in said)
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('content', ['{"config": ', '[]', '{"a": 1}'])
def test_a_damaged_config_is_one_message_of_each_process(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    begun = time.monotonic()
    status, said = end_all(pipeline(tmp_path, 2))
    assert status == [2, 2] and time.monotonic() < begun + processes.HEARTBEAT, said
    for text in said:
        assert text.count('error: ') == 1 and 'config.json is damaged' in text
        assert 'Traceback' not in text and 'Check failure' not in text
