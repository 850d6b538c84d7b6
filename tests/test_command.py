"""Bad input to the commands: exit status 2, one message that helps, no traceback, and no stage
begun.
"""

import configparser
import functools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from namm_jax import __main__ as program
from namm_jax.experiment import cli, command
from namm_jax.experiment.schema import fields
from namm_jax.experiment.stages import STAGES

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
            ["mirror.lambda_const'", 'did you mean --config.mirror.lambda_constr,'],
        ),
        (
            [TINY, '--config.optimizer.learning_rate=1'],
            ['did you mean', 'mirror.optimizer.learning_rate'],
        ),
        (
            [TINY, '--config.mirror.optimizer.lr=1'],
            ['mirror.optimizer.learning_rate'],
        ),
        ([TINY, '--config.mirror.steps=ten'], ['--config.mirror.steps', "'ten'", 'an integer']),
        ([TINY, '--config.mirror.steps'], ['--config.mirror.steps', 'an integer']),
        ([TINY, '--config.mirror.channels=a'], ['--config.mirror.channels', 'such as 8,16']),
        ([TINY, '--config.mirror.attention=on'], ['--config.mirror.attention', 'true or false']),
        (['--config=configs/burgers.py:tyny'], ["preset: got 'tyny'", 'did you mean tiny']),
        (
            ['--config=configs/burger.py'],
            ["got 'configs/burger.py'", 'did you mean configs/burgers.py'],
        ),
        ([TINY, '--stages=data,miror'], ["--stages: got 'miror'", 'did you mean mirror']),
        ([TINY, '--redo=sampel'], ["--redo: got 'sampel'", 'did you mean sample']),
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
        ([TINY, '--seeds=0,one'], ['--seeds: got 0,one', 'expected integers >= 0']),
        ([TINY, '--seeds=0,1,0'], ['--seeds: got 0,1,0, expected each seed once']),
        ([TINY, '--workdr=x'], ['--workdr', 'did you mean --workdir']),
        ([TINY, 'extra'], ["'extra']", 'expected one experiment']),
        ([], ['got no experiment', '--config=FILE.py']),
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
        ('mirror.map=simplex', 'got simplex for burgers, whose fields have no total'),
        ('data.dt=0', 'data.dt: got 0.0'),
    ],
)
def test_bad_value_fails_before_the_first_stage(refused, override, parts):
    assert parts in refused(TINY, f'--config.{override}')


@pytest.mark.slow
def test_a_box_that_the_data_leave_is_refused_before_they_are_on_record(refused):
    message = refused(TINY, '--config.mirror.map=box', '--stages=data')
    assert re.search(
        r'got box for data from 0\.\d+ to 1\.\d+, expected numbers from 0 to 1', message
    )


def test_the_counters_optimizer_is_checked_before_the_first_stage(refused):
    message = refused('--config=configs/count.py:tiny', '--config.counter.optimizer.name=moun')
    assert "got 'moun'" in message and 'did you mean muon' in message


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('most=1', 'counter.most: got 1, expected at least 2, the sources of the data'),
        ('most=40', 'counter.most: Got up to 40 sources'),
        ('samples=4', 'counter.samples: got 4, expected at least 8, a batch'),
        ('second_channels=(4,4,4,4,4,4)', 'multiples of 64'),
    ],
)
def test_the_counters_are_checked_before_the_first_stage(refused, override, message):
    assert message in refused('--config=configs/count.py:tiny', f'--config.counter.{override}')


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
        ['(2, 8, 8, 1)', '(n, 16, 16, 1)'],
    ),
    'empty': (lambda path: save(path, np.zeros((0, 16, 16, 1))), ['(0, 16, 16, 1)', 'n >= 1']),
    'nan': (
        lambda path: save(path, np.full((1, 16, 16, 1), np.nan)),
        ['256 of 256 values NaN or infinite'],
    ),
    'text': (
        lambda path: save(path, np.full((1, 16, 16, 1), 'a')),
        ['dtype <U1 ', 'expected real numbers'],
    ),
    'objects': (
        lambda path: np.save(path, np.full((1, 16, 16, 1), None), allow_pickle=True),
        ['whole numeric array'],
    ),
    'pickle': (
        lambda path: path.write_bytes(pickle.dumps([1.0])),
        ['a pickle, which is never opened'],
    ),
    'other': (lambda path: path.write_text('1, 2, 3'), ['expected a whole numeric array']),
    'missing': (lambda path: None, ['no such file']),
}


def evaluate(*arguments):
    return cli.main(['launch/evaluate.py', *map(str, arguments)], 'evaluate')


@pytest.mark.parametrize('fault', SPOILT)
def test_spoilt_samples(refused, tmp_path, fault):
    spoil, parts = SPOILT[fault]
    path = tmp_path / f'{fault}.npy'
    spoil(path)
    message = refused(TINY, f'--samples={path}', run=evaluate)
    assert all(part in message for part in (str(path), *parts)), message


def test_samples_are_asked_for(refused):
    assert 'required: --samples' in refused(TINY, run=evaluate)


def test_an_interrupt_before_the_first_stage_has_its_status(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, 'execute', interrupted)
    assert (
        cli.main(['launch/main.py']) == 130 and capsys.readouterr().err == 'stopped by signal 2\n'
    )


def test_signals_are_given_back(tmp_path):
    """A notebook interrupts its cells by SIGINT."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert cli.main(['launch/main.py', TINY, f'--workdir={tmp_path}', '--stages=mirror']) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def python(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    )


@pytest.mark.parametrize('script', ['main.py', 'evaluate.py', 'solve.py'])
def test_help(tmp_path, script):
    """From another directory."""
    done = python(ROOT / 'launch' / script, '--help', cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ''
    assert f'python launch/{script} --config=configs/burgers.py' in done.stdout
    assert 'burgers (quick, desk, gpu, paper, published, tiny)' in done.stdout
    assert '--config.' in done.stdout and '--workdir' in done.stdout
    assert ('tune' in done.stdout) == (script == 'main.py') and 'flagfile' not in done.stdout


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


def closed_pipe():
    end, ours = os.pipe()
    os.close(end)
    return os.fdopen(ours, 'w')


@pytest.mark.parametrize('log', [closed_pipe, lambda: open('/dev/full', 'w')])
def test_a_log_that_cannot_be_written_is_no_fault_of_the_run(log):
    command = [sys.executable, str(ROOT / 'launch/main.py'), '--config=none']
    with log() as file:
        assert subprocess.run(command, stderr=file).returncode == 2


def test_a_closed_standard_error_is_no_file_of_the_run(tmp_path):
    code = (
        'import os, sys; os.close(2); sys.stderr = None\n'
        'from namm_jax.experiment.progress import complain, lossy\n'
        'with lossy(): complain("lost"); sys.exit(open(sys.argv[1], "w").fileno() == 2)'
    )
    done = python('-c', code, tmp_path / 'file', cwd=tmp_path)
    assert (done.returncode, done.stdout, (tmp_path / 'file').read_text()) == (0, '', '')


def test_a_terminal_that_is_closed_asks_to_stop_and_nohup_does_not():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with command._listening() as number:
            for _ in range(2):  # by the shell, and by the kernel
                signal.raise_signal(signal.SIGHUP)
            assert number() == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with command._listening() as number:
            signal.raise_signal(signal.SIGHUP)
            assert number() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_a_line_is_written_is_kept(monkeypatch):
    def reentrant(text):
        raise RuntimeError('reentrant call inside BufferedWriter')

    monkeypatch.setattr(command, 'say', reentrant)
    with command._listening() as number:
        signal.raise_signal(signal.SIGTERM)
        assert number() == signal.SIGTERM


def test_stages_are_those_that_run():
    assert list(STAGES) == cli.STAGES


@pytest.mark.parametrize(
    ('text', 'default', 'value'),
    [
        ('12', 0, 12),
        ('1e-3', 1.0, 1e-3),
        ('True', False, True),
        ('0', True, False),
        ('1e3', 'a', '1e3'),
        ('(8, 16)', (1,), (8, 16)),
        ('8,16', (1,), (8, 16)),
        ('[8, 16]', (1,), (8, 16)),
        ('8', (1, 2), (8,)),
        ('()', (1,), ()),
        ("'dm', 'mdm'", (), ('dm', 'mdm')),
    ],
)
def test_values_have_the_type_of_the_default(text, default, value):
    got = cli._value('--config.a', text, default)
    assert got == value and type(got) is type(value)


def test_an_override_may_be_written_in_four_ways():
    words = ['--config', 'burgers:tiny', '--config.mirror.attention', '--stages=data']
    words += ['--config.mirror.steps', '3', '-config.seed=4', '--config.data.dt', '1e-3']
    given = cli.parse('run', words)
    assert given.overrides == {
        'mirror.attention': True,
        'mirror.steps': 3,
        'seed': 4,
        'data.dt': 1e-3,
    }
    assert given.name == 'burgers:tiny' and given.config.seed == 4 and given.preset.seed == 0
    assert given.stages == ['data']


@pytest.mark.parametrize(
    ('text', 'part'),
    [
        ('1 / 0', 'line 1: got ZeroDivisionError'),
        ('def get_config(', 'SyntaxError'),
        ('a = 1', 'get_config'),
        ('def get_config():\n    return {}', 'expected get_config to return experiment('),
        ('def get_config():\n    return 1 / 0', 'ZeroDivisionError'),
    ],
)
def test_a_config_file_that_fails(refused, tmp_path, text, part):
    (tmp_path / 'mine.py').write_text(text)
    message = refused(f'--config={tmp_path}/mine.py')
    assert part in message and 'mine.py' in message


@pytest.mark.parametrize('more', [[], ['--seeds=0,1']])
def test_a_workdir_that_is_a_file(launch, capsys, tmp_path, more):
    (tmp_path / 'file').write_text('')
    assert launch(TINY, f'--workdir={tmp_path}/file', *more) in (1, 2)
    errors = capsys.readouterr().err.splitlines()
    assert f'{tmp_path}/file' in errors[-1] and errors[-1].startswith('error: ')


def test_seeds_in_the_folder_of_a_run(refused, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/config.json').touch()
    told = refused(TINY, '--seeds=0,1')
    assert f'{tmp_path}/run is a run' in told and 'another --workdir' in told


@pytest.mark.slow
def test_an_environment_that_a_run_cannot_have(tmp_path):
    gone = ('HOME', 'JAX_COMPILATION_CACHE_DIR')
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    wrong = {'JAX_ENABLE_X64': '1', 'XDG_CACHE_HOME': '/dev/null', 'PYTHONPATH': str(ROOT)}
    arguments = ['burgers:tiny', '--stages=data', '--workdir=run']
    done = subprocess.run(
        [sys.executable, '-m', 'namm_jax', 'run', *arguments],
        cwd=tmp_path,
        env=kept | wrong,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and 'Traceback' not in done.stderr
    assert done.stderr.count('computes in float32') == 1
    assert done.stderr.count('no compilation cache') == 1
    assert (tmp_path / 'run' / 'figures' / 'data.png').exists()


def test_the_program_lists_its_experiments(tmp_path):
    done = python('-X', 'importtime', '-m', 'namm_jax', 'list', cwd=tmp_path)
    names = [line.split()[0] for line in done.stdout.splitlines() if line[0] != ' ']
    assert names == sorted(path.stem for path in (ROOT / 'configs').glob('[!_]*.py'))
    assert "Burgers' equation" in done.stdout and 'jaxlib' not in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_program_shows_its_commands(capsys):
    assert program.main([]) == 0 and program.main(['--help']) == 0
    told = capsys.readouterr().out
    assert all(f'namm_jax {command} ' in told for command in cli.COMMANDS)
    assert program.main(['runn']) == 2
    assert "got 'runn'; did you mean run" in capsys.readouterr().err


def test_the_program_shows_fields(capsys):
    assert program.main(['fields', 'burgers:tiny']) == 0
    told = capsys.readouterr().out
    assert re.search(r'^mirror\.strong_convexity +0\.9 +\(0, 1\]', told, re.MULTILINE)
    assert re.search(r'^mirror\.steps +12 +>= 1', told, re.MULTILINE)
    assert {line.split()[0] for line in told.splitlines()[1:] if line[0] != ' '} == set(
        fields('burgers')
    )
    assert max(map(len, told.splitlines())) <= 80


def test_the_program_runs_and_refuses_as_launch_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert program.main(['run', 'burgers:tiny', '--stages=mirror']) == 2
    assert "builds on ['data']" in capsys.readouterr().err
    assert program.main(['evaluate', 'burgers:tiny', '--samples=x.npy']) == 2
    assert 'x.npy' in capsys.readouterr().err
    assert program.main(['report', 'missing']) == 2
    assert 'no such folder' in capsys.readouterr().err


def test_every_package_is_in_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    folders = [path.parent for path in (ROOT / 'namm_jax').rglob('__init__.py')]
    packages = {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setup['options']['packages'].split()) == packages | {'namm_jax.configs'}


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(tmp_path):
    pip = ('-m', 'pip', 'install', '--no-deps', '--quiet')
    source = tmp_path / 'source'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns('.git', 'build', '*.egg-info'))
    done = python(*pip, '--target', tmp_path / 'site', source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    (tmp_path / 'empty').mkdir()
    run = functools.partial(
        python, '-m', 'namm_jax', cwd=tmp_path / 'empty', PYTHONPATH=str(tmp_path / 'site')
    )
    assert run('list').stdout == python('-m', 'namm_jax', 'list', cwd=tmp_path).stdout
    assert 'mirror.strong_convexity' in run('fields', 'burgers').stdout
    done = run('run', 'burgers:tiny', '--stages=data')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'empty' / 'runs' / 'burgers-tiny' / 'figures' / 'data.png').exists()
    assert (tmp_path / 'site' / 'bin' / 'namm_jax').exists()
