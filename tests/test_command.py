"""Bad input to the two commands: exit status 2, one message that helps, no traceback, and no stage
begun.
"""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from namm_jax.experiment import command, evaluate_file

ROOT = Path(__file__).resolve().parent.parent
TINY = '--config=configs/burgers.py:tiny'


@pytest.fixture
def refused(launch, capsys, tmp_path):
    """Returns a function that checks that a command is refused, and returns its message."""

    def check(*arguments, run=launch):
        folder = tmp_path / 'run'
        assert run(*arguments, *([f'--workdir={folder}'] if run is launch else [])) == 2
        told = capsys.readouterr()
        errors = [line for line in told.err.splitlines() if line.startswith('error: ')]
        assert len(errors) == 1 and 'Traceback' not in told.err and told.out == ''
        assert not (folder / 'stages').exists()
        return errors[0]

    return check


@pytest.mark.parametrize(
    ('arguments', 'parts'),
    [
        (
            [TINY, '--config.mirror.lambda_const=1'],
            ["'mirror.lambda_const'", 'did you mean', 'mirror.lambda_constr'],
        ),
        ([TINY, '--config.mirror.optimizer.lr=1'], ["'mirror.optimizer.lr'", '.learning_rate']),
        ([TINY, '--config.mirror.steps=ten'], ['mirror.steps', 'ten']),
        (['--config=configs/burgers.py:tyny'], ["preset: got 'tyny'", 'did you mean tiny']),
        (
            ['--config=configs/burger.py'],
            ["got 'configs/burger.py'", 'did you mean configs/burgers.py'],
        ),
        ([TINY, '--stages=data,miror'], ["stage: got 'miror'", 'did you mean mirror']),
        ([TINY, '--redo=sampel'], ["stage: got 'sampel'", 'did you mean sample']),
        ([TINY, '--config.sample.sampler=hein'], ["got 'hein'", 'did you mean heun']),
        (
            [TINY, '--config.constraint.name=burger'],
            ["constraint: got 'burger'", 'did you mean burgers'],
        ),
        (
            [TINY, '--config.mirror.inverse=resnt'],
            ["mirror.inverse: got 'resnt'", 'did you mean resnet'],
        ),
        ([TINY, '--config.score.parameterisation=edn'], ["got 'edn'", 'did you mean edm']),
        ([TINY, '--seeds=0,one'], ['--seeds: got 0,one', 'expected non-negative integers']),
        ([TINY, '--workdr=x'], ['workdr']),
        ([TINY, 'extra'], ["got the arguments ['extra']", 'expected flags only']),
        ([], ['--config is missing']),
    ],
)
def test_misspelling(refused, arguments, parts):
    message = refused(*arguments)
    assert all(part.lower() in message.lower() for part in parts), message


@pytest.mark.parametrize(
    ('override', 'parts'),
    [
        ('train.budget=0', 'train.budget: got 0.0, expected more than 0'),
        ('finetune.optimizer.learning_rate=-1', 'learning_rate: got -1.0, expected more than 0'),
        ('finetune.optimizer.name=muon', "finetune.optimizer.name: got 'muon', expected 'adam'"),
        ('mirror.strong_convexity=0', 'strong_convexity: got 0.0, expected more than 0'),
        ('sample.steps=0', 'sample.steps: got 0, expected at least 1'),
        ('train.devices=3', 'got batch size 8 for 3 devices'),
        ('mirror.batch_size=256', 'data.train: got 128, expected at least 256, the largest batch'),
        ('score.reduction=meen', 'did you mean mean'),
        ('mirror.fold=3', 'got fields of 16x16 pixels, expected multiples of 3'),
        ('data.dt=0', 'data.dt: got 0.0'),
    ],
)
def test_bad_value_fails_before_the_first_stage(refused, override, parts):
    assert parts in refused(TINY, f'--config.{override}')


def test_the_counters_optimizer_is_checked_before_the_first_stage(refused):
    message = refused('--config=configs/count.py:tiny', '--config.counter.optimizer.name=moun')
    assert "got 'moun'" in message and 'did you mean muon' in message


def test_config_after_a_space_is_found_from_any_directory(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "builds on ['data']" in refused('--config', 'configs/burgers.py:tiny', '--stages=mirror')
    assert 'did you mean configs/burgers.py' in refused('--config', 'configs/burger.py:tiny')


def test_missing_earlier_stage_is_named_with_the_command(refused):
    message = refused(TINY, '--stages=mirror')
    assert (
        "stage mirror builds on ['data'], not finished" in message
        and '--stages=data,...' in message
    )


def save(path, array):
    np.save(path, array)


SPOILT = {
    'shape': (
        lambda path: save(path, np.zeros((2, 8, 8, 1))),
        ['(2, 8, 8, 1)', 'expected (n, 16, 16, 1)'],
    ),
    'empty': (lambda path: save(path, np.zeros((0, 16, 16, 1))), ['(0, 16, 16, 1)', 'n >= 1']),
    'nan': (
        lambda path: save(path, np.full((1, 16, 16, 1), np.nan)),
        ['256 of 256 values NaN or infinite'],
    ),
    'text': (
        lambda path: save(path, np.full((1, 16, 16, 1), 'a')),
        ['dtype <U1, expected real numbers'],
    ),
    'objects': (
        lambda path: np.save(path, np.full((1, 16, 16, 1), None), allow_pickle=True),
        ['whole numeric array'],
    ),
    'pickle': (
        lambda path: path.write_bytes(pickle.dumps([1.0])),
        ['a pickle, which is never opened'],
    ),
    'other': (lambda path: path.write_text('1, 2, 3'), ['expected a .npy file']),
    'missing': (lambda path: None, ['no such file']),
}


def evaluate(*arguments):
    return evaluate_file.evaluate(['launch/evaluate.py', *map(str, arguments)])


@pytest.mark.parametrize('fault', SPOILT)
def test_spoilt_samples(refused, tmp_path, fault):
    spoil, parts = SPOILT[fault]
    path = tmp_path / f'{fault}.npy'
    spoil(path)
    message = refused(TINY, f'--samples={path}', run=evaluate)
    assert all(part in message for part in (str(path), *parts)), message


def test_samples_are_asked_for(refused):
    assert '--samples is missing' in refused(TINY, run=evaluate)


def test_an_interrupt_before_the_first_stage_has_its_status(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, '_main', interrupted)
    assert (
        command.main(['launch/main.py']) == 130
        and capsys.readouterr().err == 'stopped by signal 2\n'
    )


def test_signals_are_given_back(tmp_path):
    """A notebook interrupts its cells by SIGINT."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert command.main(['launch/main.py', TINY, f'--workdir={tmp_path}', '--stages=mirror']) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize('script', ['main.py', 'evaluate.py'])
def test_help(tmp_path, script):
    """From another directory, without starting JAX."""
    arguments = [sys.executable, str(ROOT / 'launch' / script), '--help']
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ''
    assert (
        f'python launch/{script} --config=configs/burgers.py' in done.stdout
        and '--config.' in done.stdout
    )


def test_help_to_a_reader_that_has_gone():
    """As in `--help | head -1`."""
    end, ours = os.pipe()
    os.close(end)
    done = subprocess.run(
        [sys.executable, str(ROOT / 'launch/main.py'), '--help'],
        stdout=ours,
        stderr=subprocess.PIPE,
    )
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, b'')
