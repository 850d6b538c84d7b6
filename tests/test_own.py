"""A user's own function and data: what is checked, and what each mistake is answered with."""

import json
import os
import pickle
import re
import runpy
import shutil
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

import namm_jax as nj
from namm_jax import __main__ as program
from namm_jax._checks import check_rule
from namm_jax.constraints.base import function_rule
from namm_jax.experiment import cli, formats
from namm_jax.experiment.dataset import SPLITS
from namm_jax.experiment.files import UserError, read_json, write_json
from namm_jax.experiment.formats import read_user_data
from namm_jax.experiment.own import load_function
from namm_jax.experiment.problem import fields_of, make_problem, with_own_data
from namm_jax.experiment.schema import check_ranges

EXAMPLE = Path(__file__).resolve().parent.parent / 'docs' / 'own_rule.py'
# Rows of 1/2, 1/4, 1/8, 1/8, 0 and 0 in any order: they sum to 1 exactly.
ROWS = np.random.default_rng(0).permuted(
    np.tile(np.float32([1 / 2, 1 / 4, 1 / 8, 1 / 8, 0, 0]), (8, 4, 1)), axis=2
)
X = ROWS[..., None]


RULE = """
import dataclasses
from pathlib import Path
import beside_the_rule

@dataclasses.dataclass
class Settings:
    goal: 'float' = 1.0

NUMBER = 3

def rows_rule(x):
    return abs(x.sum() - Settings().goal) + beside_the_rule.ZERO
"""


@pytest.fixture
def rule(tmp_path):
    (tmp_path / 'beside_the_rule.py').write_text('ZERO = 0')
    (tmp_path / 'json.py').write_text(RULE)  # a name that the standard library uses
    return tmp_path / 'json.py'


def test_function_of_a_file_and_of_a_module(rule, monkeypatch):
    function = load_function(f'{rule}:rows_rule')
    assert function(np.ones(3)) == 2
    assert load_function(f'{rule}:rows_rule') is function, 'the same string, the same function'
    monkeypatch.chdir(rule.parent)
    assert load_function('./json.py:rows_rule') is function
    assert load_function('json:dumps')([1]) == '[1]', 'the standard library is not shadowed'


def test_a_changed_file_is_executed_again(tmp_path):
    path = tmp_path / 'a.py'
    for version in (1, 2):
        path.write_text(f'def f(): return {version}')
        os.utime(path, (version, version))
        assert load_function(f'{path}:f')() == version


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('', "got '' for a function, expected package.module:function or path/to/file.py:function"),
        ('json.py', "got 'json.py' for a function"),
        ('{folder}/json.py:', 'for a function'),
        (
            '{folder}/none.py:f',
            'none.py: got no such file, expected a Python file.*relative path starts from',
        ),
        ('{folder}/data.txt:f', 'data.txt: got a file of another kind'),
        ('{folder}/json.py:rows_rul', "got 'rows_rul', expected one of .*did you mean rows_rule"),
        ('{folder}/json.py:NUMBER', 'NUMBER: got a value of type int, expected a function'),
        ('{folder}/empty.py:f', "empty.py: got 'f', but it defines no function"),
        ('{folder}/syntax.py:f', r'syntax.py: got SyntaxError: .*line 2'),
        (
            '{folder}/missing.py:f',
            r"missing.py, line 1: got ModuleNotFoundError: No module named 'not_there'",
        ),
        ('{folder}/breaks.py:f', 'breaks.py, line 2: got ZeroDivisionError: division by zero'),
        ('{folder}/leaves.py:f', 'leaves.py, line 1: got SystemExit: 3'),
        (
            'not_there.at_all:f',
            'not_there.at_all: got ModuleNotFoundError: .*PYTHONPATH, or name its file',
        ),
        ('json:dumpz', "json: got 'dumpz', expected one of .*did you mean dump"),
    ],
)
def test_functions_that_are_refused(rule, spec, message):
    files = {
        'data.txt': '',
        'empty.py': '',
        'syntax.py': '\ndef f(:',
        'missing.py': 'import not_there',
        'breaks.py': '\n1 / 0',
        'leaves.py': 'raise SystemExit(3)',
    }
    for name, text in files.items():
        (rule.parent / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_function(spec.format(folder=rule.parent))


def test_reads_a_file_from_the_current_folder(tmp_path, monkeypatch):
    np.save(tmp_path / 'x.npy', X.astype(np.float64))
    monkeypatch.chdir(tmp_path)
    x = read_user_data('x.npy')
    assert x.dtype == np.float32 and (x == X).all()


def test_reads_a_folder_of_arrays_by_name(tmp_path):
    parts = {'b.npy': X[1, :, :, 0], 'a.npy': X[0], 'c.NPY': X[2:].astype(np.float16)}
    for name, array in parts.items():
        with open(tmp_path / name, 'wb') as file:
            np.save(file, array)
    for name in ('notes.txt', '.hidden.npy'):
        (tmp_path / name).write_text('not read')
    x = read_user_data(tmp_path)
    assert x.dtype == np.float32 and (x == X).all()


def test_reads_images_scaled_to_one(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for name, image in {
        'b.png': PIL.Image.fromarray(255 - grey),
        'a.png': PIL.Image.fromarray(grey),
        'c.png': PIL.Image.fromarray(grey).convert('LA'),
        'd.png': PIL.Image.fromarray(grey > 5),
        'e.png': PIL.Image.fromarray(257 * grey.astype(np.uint16)),
    }.items():
        image.save(tmp_path / name)
    x = read_user_data(tmp_path)
    assert x.shape == (5, 3, 4, 1) and x.dtype == np.float32
    expected = np.stack([grey / 255, 1 - grey / 255, grey / 255, grey > 5, grey / 255])
    np.testing.assert_allclose(x[..., 0], expected, atol=1e-6)


def test_an_image_is_turned_as_its_camera_says_and_its_scale_is_told(tmp_path, capsys):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = PIL.Image.fromarray(grey)
    tags = image.getexif()
    tags[0x0112] = 6  # its first row is the right side
    image.save(tmp_path / 'a.png', exif=tags)
    (tmp_path / 'notes.txt').write_text('not read')
    np.testing.assert_allclose(read_user_data(tmp_path)[0, ..., 0], np.rot90(grey, -1) / 255)
    told = capsys.readouterr().err
    assert f'{tmp_path}: passed over 1 others, such as notes.txt' in told
    assert f'{tmp_path}: 1 samples (4, 3, 1), 0 to 0.04314, white is 1' in told


def test_reads_colour_images(tmp_path):
    colours = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    PIL.Image.fromarray(colours).save(tmp_path / 'a.png')
    PIL.Image.fromarray(colours).convert('RGBA').save(tmp_path / 'b.png')
    PIL.Image.fromarray(colours).quantize(12).save(tmp_path / 'c.png')
    PIL.Image.fromarray(np.full_like(colours, 128)).save(tmp_path / 'd.JPG', format='jpeg')
    x = read_user_data(tmp_path)
    assert x.shape == (4, 3, 4, 3)
    np.testing.assert_allclose(x[:2], np.stack(2 * [colours / 255]), atol=1e-6)
    np.testing.assert_allclose(x[2], colours / 255, atol=0.03)
    np.testing.assert_allclose(x[3], 128 / 255, atol=0.01)


def _save(folder, name, value):
    path = folder / name
    if isinstance(value, np.ndarray):
        np.save(path, value)
    elif isinstance(value, bytes):
        path.write_bytes(value)
    else:
        value.save(path)


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({}, r'got 0 files of arrays .* and 0 images'),
        (
            {'a.npy': X, 'b.png': PIL.Image.new('L', (6, 4))},
            'got 1 files of arrays .* and 1 images.*the one or the other',
        ),
        (
            {'a.npy': X, 'b.npy': X[0], 'c.npy': X[:, :2]},
            r'c.npy: got samples of shape \(2, 6, 1\).*as in a.npy',
        ),
        (
            {'a.png': PIL.Image.new('L', (6, 4)), 'b.png': PIL.Image.new('RGB', (6, 4))},
            r'b.png: got samples of shape \(4, 6, 3\), expected \(4, 6, 1\)',
        ),
        ({'a.npy': pickle.dumps([1])}, 'a.npy: got .*write it with numpy.save'),
        (
            {'a.npy': np.array([{}], object)},
            "a.npy: got Array can't be memory-mapped: Python objects",
        ),
        ({'a.npy': np.zeros((2, 2), complex)}, 'a.npy: got dtype complex128'),
        ({'a.npy': np.zeros(3)}, r'a.npy: got shape \(3,\), expected \(h, w\), \(h, w, c\)'),
        ({'a.npy': np.zeros((0, 2, 2, 1))}, r'a.npy: got dtype float64 and shape \(0, 2, 2, 1\)'),
        ({'a.npy': np.array([[np.nan, 1e300]])}, 'a.npy: got 2 of 2 values NaN or infinite'),
        (
            {'a.png': PIL.Image.new('RGBA', (6, 4), (1, 2, 3, 40))},
            'a.png: got an image of mode RGBA.*opaque',
        ),
        ({'a.jpg': PIL.Image.new('CMYK', (6, 4))}, 'a.jpg: got an image of mode CMYK'),
        ({'a.png': b'no image'}, 'a.png: got cannot identify'),
        (
            {'a.png': PIL.Image.new('L', (6, 4)), 'b.tif': PIL.Image.new('L', (6, 4))},
            r"got 0 files of arrays .* and 1 images .*, 1 of other kinds \['b.tif'\], .*convert",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, files, message):
    for name, value in files.items():
        _save(tmp_path, name, value)
    with pytest.raises(UserError, match=message):
        read_user_data(tmp_path)


def test_paths_that_are_refused(tmp_path):
    for path in ('', tmp_path / 'none'):
        with pytest.raises(UserError, match=r'no such file or folder.*relative path starts from'):
            read_user_data(path)
    (tmp_path / 'x.npy').write_bytes(pickle.dumps([1]))
    with pytest.raises(
        UserError,
        match=f'{re.escape(str(tmp_path / "x.npy"))}: got a pickle, which is never opened',
    ):
        read_user_data(tmp_path / 'x.npy')


def test_the_example_obeys_its_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name='__main__')
    x = read_user_data('own_data.npy')
    assert x.shape == (1200, 16, 16, 1) and x.std() > 0.02
    rule = function_rule(load_function(f'{EXAMPLE}:rows_sum_to_one'))
    measured = check_rule(rule, x[:32], jax.random.key(0), x.std())
    assert measured['floor_max'] < 1e-6 < 1e-3 < measured['perturbed_mean']


def save_rows(path, n, width):
    """Writes samples whose rows sum to 1: in each, one pixel that is 1."""
    ones = np.random.default_rng(0).integers(width, size=(n, 4))
    np.save(path, np.eye(width, dtype=np.float32)[ones][..., None])


@pytest.mark.slow
def test_what_was_read_off_the_data_follows_them(tmp_path, monkeypatch, launch, capsys):
    monkeypatch.chdir(tmp_path)
    save_rows('a.npy', 40, 6)
    save_rows('b.npy', 60, 8)
    arguments = ['--config=configs/own.py:tiny', '--workdir=run', '--stages=data']
    arguments += ['--config.data.validation=6', '--config.data.test=6']
    arguments += [f'--config.constraint.distance={EXAMPLE}:rows_sum_to_one']
    assert launch(*arguments, '--config.data.path=a.npy') == 0
    run = nj.open_run('run')
    assert run.problem.shape == (4, 6, 1) and run.config.data.train == len(run.data('train')) == 28
    saved = read_json(tmp_path / 'run' / 'config.json')['config']['data']
    assert saved['train'] == saved['height'] == 0 and saved['mean'] == []  # what was said, no more

    other = [*arguments[:3], '--config.data.path=b.npy']
    capsys.readouterr()
    assert launch(*other) == 2 and '--redo=data' in capsys.readouterr().err
    assert launch(*other, '--redo=data') == 0
    for name in ('a.npy', 'b.npy'):
        os.remove(name)  # what a finished stage has read is no longer needed
    run = nj.open_run('run')
    assert run.problem.shape == (4, 8, 1) and run.config.data.train == len(run.data('train')) == 48
    np.testing.assert_allclose(run.problem.mean, 1 / 8, rtol=1e-6)
    assert launch(*arguments[:3]) == 0


def test_only_images_are_decoded_and_none_is_too_large(tmp_path, monkeypatch):
    run = lambda *arguments, **options: pytest.fail(f'ran {arguments}')
    monkeypatch.setattr(subprocess, 'Popen', run)
    for name, data, told in (
        ('eps', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', 'identify'),
        ('bomb', png_of(30_000, 30_000), 'pixels'),
        ('large', png_of(9000, 9000), '9000x9000 pixels, expected at most 16777216'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a.png').write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            with pytest.raises(UserError, match=f'a.png: got .*{told}'):
                read_user_data(tmp_path / name)


def png_of(width, height):
    """Returns the start of an image, which promises so many pixels."""
    chunk = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    data = b'IDAT' + zlib.compress(bytes(1000))
    parts = (
        struct.pack('>I', len(c) - 4) + c + struct.pack('>I', zlib.crc32(c)) for c in (chunk, data)
    )
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.fixture
def own_run(tmp_path, monkeypatch, launch, capsys):
    """Returns the command of a run of own data and rule, whose stage `data` has finished."""
    monkeypatch.chdir(tmp_path)
    save_rows('x.npy', 40, 6)
    shutil.copy(EXAMPLE, 'rule.py')
    arguments = ['--config=configs/own.py:tiny', f'--workdir={tmp_path}/run', '--stages=data']
    fields = {'data.train': 24, 'data.validation': 8, 'data.test': 8, 'data.path': 'x.npy'}
    fields['constraint.distance'] = 'rule.py:rows_sum_to_one'
    arguments += [f'--config.{name}={value}' for name, value in fields.items()]
    assert launch(*arguments) == 0
    told = capsys.readouterr().err
    assert told.startswith('x.npy: 40 samples (4, 6, 1), 0 to 1, in their own unit\n')
    assert f'executing {tmp_path}/rule.py, which the config names\n' in told
    return arguments


BAD_RULES = """
import jax.numpy as jnp
import numpy as np
KEEPER = np.random.default_rng(0)

def branches(x):
    if x.mean() > 0:
        return x.mean((1, 2, 3))

def takes_nothing():
    return 0

def reads_the_batch(x):
    return jnp.abs(x - x.mean(0)).mean((1, 2, 3))

def is_random(x):
    return jnp.abs(x).mean((1, 2, 3)) * KEEPER.uniform(size=len(x))

def is_signed(x):
    return x.mean((1, 2, 3)) - 1

def reads_beyond(x):
    return jnp.abs(x[:, 99]).mean((1, 2))

def is_constant(x):
    print('hello')
    return jnp.zeros(len(x))
"""


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('branches', 'bad.py, line 7, `if x.mean() > 0:`: got TracerBool.*take jnp.where'),
        ('takes_nothing', 'bad.py, line 10: got TypeError: takes_nothing() takes 0 positional'),
        ('reads_the_batch', 'got another value alone .* one that depends on the sample alone'),
        ('is_random', 'got another value at another place in the batch'),
        ('is_signed', 'got -0.833 in .* expected numbers >= 0'),
        ('reads_beyond', 'index 99 is out of bounds for axis 1 with size 4'),
    ],
)
def test_a_rule_that_cannot_be_is_told_by_evaluate(name, message, tmp_path, capsys):
    (tmp_path / 'bad.py').write_text(BAD_RULES)
    save_rows(tmp_path / 'x.npy', 3, 6)
    arguments = [f'--samples={tmp_path}/x.npy', f'--config.constraint.distance={tmp_path}/bad.py:']
    command = ['evaluate', 'own:tiny', arguments[0], arguments[1] + name]
    assert program.main(command) == 2
    told = capsys.readouterr()
    message = message.replace('(', r'\(').replace(')', r'\)')
    errors = [line for line in told.err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and not told.out and 'Traceback' not in told.err
    assert re.search(f"the distance 'own': .*{message}", errors[0])


def test_what_a_rule_prints_is_beside_the_numbers(tmp_path, capsys):
    (tmp_path / 'bad.py').write_text(BAD_RULES)
    save_rows(tmp_path / 'x.npy', 3, 6)
    rule = f'--config.constraint.distance={tmp_path}/bad.py:is_constant'
    assert program.main(['evaluate', 'own:tiny', f'--samples={tmp_path}/x.npy', rule]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)['per_sample'] == [0, 0, 0] and 'hello' in told.err
    assert "the distance 'own' is 0 for noise, too; does it read its argument?" in told.err


def test_rows_and_problems_that_are_none_are_told_before_anything_runs(
    own_run, tmp_path, launch, capsys
):
    before = (tmp_path / 'run' / 'config.json').read_bytes()
    own = ['--config=configs/own.py:tiny', '--workdir=run']
    for arguments, message in (
        (["--config.sample.rows=('a',)", '--redo=sample'], "sample.rows: got 'a', expected one of"),
        (["--config.sample.rows=('dm_restored',)"], "got 'dm_restored', expected one of"),
        (['--config.data.problem=burgers'], "got 'burgers' for an experiment of 'own'"),
    ):
        assert launch(*own, *arguments) == 2
        told = capsys.readouterr().err
        assert message in told and 'discarded' not in told
    assert (tmp_path / 'run' / 'config.json').read_bytes() == before


def test_an_operator_that_cannot_be_is_told_before_the_first_stage(
    tmp_path, monkeypatch, launch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.py').write_text(BAD_RULES)
    save_rows('x.npy', 40, 6)
    arguments = ['--config=configs/own.py:tiny', '--workdir=run', '--config.data.path=x.npy']
    arguments += [f'--config.constraint.distance={EXAMPLE}:rows_sum_to_one']
    arguments += [
        '--config.assimilate.operator=own',
        '--config.assimilate.function=bad.py:branches',
    ]
    assert launch(*arguments, '--stages=data,mirror,mdm,finetune,dm,assimilate') == 2
    assert 'error: operator: ' in (told := capsys.readouterr().err) and 'bad.py, line 7' in told


def test_data_that_are_mended_in_place_are_taken(tmp_path, monkeypatch, launch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save('x.npy', np.full((40, 4, 6, 1), 1 / 6, np.float32))
    arguments = ['--config=configs/own.py:tiny', '--workdir=run', '--config.data.path=x.npy']
    arguments += [f'--config.constraint.distance={EXAMPLE}:rows_sum_to_one', '--stages=data']
    assert launch(*arguments) == 2 and 'not constant' in capsys.readouterr().err
    save_rows('x.npy', 40, 6)
    assert launch(*arguments) == 0
    assert len(np.load('run/data/train.npy')) == 28


@pytest.mark.parametrize(
    ('preset', 'n', 'sizes', 'batch'),
    [
        ('quick', 32, (22, 5, 5), 16),
        ('quick', 150, (100, 25, 25), 16),
        ('quick', 205, (137, 34, 34), 16),
        ('quick', 1000, (800, 100, 100), 16),
        ('paper', 60, (40, 10, 10), 40),
        ('paper', 200, (134, 33, 33), 64),
    ],
)
def test_held_out_sizes_and_batches_follow_the_number(preset, n, sizes, batch, tmp_path):
    save_rows(tmp_path / 'x.npy', n, 6)
    config = own_config(preset, tmp_path / 'x.npy')
    config.train.devices = 1
    config = with_own_data(config)
    assert tuple(config.data[split] for split in SPLITS) == sizes
    assert config.score.batch_size == batch
    check_ranges(config)


def own_config(preset, path):
    return cli.parse('run', [f'own:{preset}', f'--config.data.path={path}']).config


def test_too_few_samples_are_told_in_one_message(tmp_path):
    save_rows(tmp_path / 'x.npy', 31, 6)
    with pytest.raises(UserError, match='x.npy: got 31 samples, expected at least 32'):
        with_own_data(own_config('quick', tmp_path / 'x.npy'))


def test_every_image_is_read_once(tmp_path, monkeypatch):
    for i in range(40):
        PIL.Image.new('L', (6, 4), i).save(tmp_path / f'{i:02}.png')
    read, decoded = [], formats._read_image
    monkeypatch.setattr(formats, '_read_image', lambda path: read.append(path) or decoded(path))
    config = with_own_data(own_config('tiny', tmp_path))
    of = fields_of(with_own_data(config), make_problem(config))
    parts = [of(np.arange(40)[i::4]) for i in range(4)]
    assert len(read) == 40 and len(np.unique(np.concatenate(parts)[:, 0, 0, 0])) == 40


def unfinished(path):
    write_json(path, read_json(path) | {'finished': False})


@pytest.mark.slow
def test_own_files_that_have_changed_are_refused_by_name(own_run, tmp_path, launch, capsys):
    record = tmp_path / 'run' / 'stages' / 'data.json'
    assert set(read_json(record)['files']) == {'data.path', 'constraint.distance'}
    refused = lambda name: f'error: {name} has changed since stage data read it'
    for file, told in (('x.npy', 'x.npy'), ('rule.py', 'rule.py:rows_sum_to_one')):
        whole = (tmp_path / file).read_bytes()
        changed = whole + b'\n# more' if file == 'rule.py' else whole.replace(whole[-4:], b'abcd')
        (tmp_path / file).write_bytes(changed)
        capsys.readouterr()
        assert launch(*own_run) == 0, 'a finished stage needs neither'
        said = capsys.readouterr().err
        assert f'warning: {told} has changed' in said and 'executing' not in said
        assert launch(*own_run[:2], '--stages=data,dm') == 2, 'of which copy?'
        assert refused(told) in capsys.readouterr().err
        unfinished(record)
        assert launch(*own_run) == 2
        said = capsys.readouterr().err
        assert refused(told) in said and '--redo=data' in said and 'executing' not in said
        (tmp_path / file).write_bytes(whole)
        assert launch(*own_run) == 0
    (tmp_path / 'rule.py').write_text('raise SystemExit(9)')
    with pytest.raises(UserError, match='rule.py:rows_sum_to_one has changed'):
        nj.open_run(tmp_path / 'run')
    assert launch(*own_run[:2], '--stages=data,dm') == 2
    assert refused('rule.py:rows_sum_to_one') in capsys.readouterr().err


def test_a_relative_path_from_another_folder_is_never_another_file(
    own_run, tmp_path, monkeypatch, launch, capsys
):
    unfinished(tmp_path / 'run' / 'stages' / 'data.json')
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    assert launch(*own_run) == 2
    assert f'relative path starts from {tmp_path}/elsewhere' in capsys.readouterr().err
    (tmp_path / 'elsewhere' / 'rule.py').write_text('raise SystemExit(9)')
    shutil.copy(tmp_path / 'x.npy', 'x.npy')
    assert launch(*own_run) == 2
    said = capsys.readouterr().err
    assert 'rule.py:rows_sum_to_one has changed' in said and 'executing' not in said
    monkeypatch.chdir(tmp_path)
    assert launch(*own_run) == 0


FLAT = """
import jax.numpy as jnp


def flat_rows(x):
    return jnp.abs(x - x.mean(2, keepdims=True)).mean((1, 2, 3))
"""


@pytest.mark.slow
def test_a_run_draws_in_the_unit_of_its_data(tmp_path, launch):
    """Pressures, of mean 1000 and standard deviation 97: a map of raw numbers would miss them."""
    levels = np.random.default_rng(0).normal(1000, 97, size=(192, 16, 1, 1))
    np.save(tmp_path / 'x.npy', np.repeat(levels, 16, 2).astype(np.float32))
    (tmp_path / 'rule.py').write_text(FLAT)
    run = tmp_path / 'run'
    arguments = ['--config=configs/own.py:tiny', f'--workdir={run}', '--config.sample.rows=()']
    arguments += [f'--config.data.path={tmp_path}/x.npy', '--config.mirror.steps=100']
    arguments += [f'--config.constraint.distance={tmp_path}/rule.py:flat_rows']
    assert launch(*arguments) == 0
    x = np.load(run / 'sample' / 'mdm_finetuned.npy')
    assert 700 < x.mean() < 1300 and x.std() < 1000
    again = nj.open_run(run)
    np.testing.assert_allclose(again.sample(4, seed=again.config.seed), x[:4], rtol=1e-3)
