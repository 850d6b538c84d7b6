"""Anything at all as a command line, an array file, a manifest or a measurement: an answer, or an error that says why.

    NAMM_JAX_FUZZ=100000 python -m pytest tests/test_fuzz.py -n 0 --timeout=0     # as many cases of each, for hours

What a user mistypes, or a disk damages, ends in a ValueError (exit status 2, one message) or an OSError (1), never in
another exception; no case has code executed, a file written, or memory asked for that it has not paid for in bytes.
"""

import io
import json
import os
import shutil
import zlib

import hypothesis.extra.numpy as arrays_of
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from namm_jax.operator_checks import check_measurement
from namm_jax.operators import make_operator
from namm_jax.train import arguments, dataset
from namm_jax.train.config import field_names, schema
from namm_jax.train.fields import FIELDS
from namm_jax.train.ranges import check_ranges
from namm_jax.train.stages import STAGES, check_stages

CASES = int(os.environ.get('NAMM_JAX_FUZZ', '60'))
fuzzed = settings(
    max_examples=CASES, deadline=None, derandomize=CASES < 1000, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

FIELD_NAMES = sorted({name for family in FIELDS for name in field_names(schema(family))})
CODE = "__import__('pathlib').Path('executed').touch()"
VALUES = st.one_of(
    st.text(max_size=12), st.integers().map(str), st.floats().map(str),
    st.sampled_from(['', 'True', 'none', '()', '(1,', "('dm',)", '[]', '1e400', '0x10', '\x00', CODE, f'({CODE},)']),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(FIELD_NAMES).map('config.{}'.format),
    st.text('abcdefgmirrosth._-=', max_size=14).map('config.{}'.format),
    st.sampled_from(
        ['workdir', 'stages', 'redo', 'seeds', 'distributed', 'coordinator', 'num_processes', 'process_index']
    ),
    st.text(max_size=8),
)
CONFIGS = st.sampled_from(
    ['burgers', 'burgers:tiny', 'count:quick', 'own', 'periodic:papr', 'burgers:', 'no:tiny', '../setup']
)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty current folder, in which nothing may appear."""
    folder = tmp_path / 'empty'
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


def command(words):
    """Goes the way of `launch/main.py` up to where it would open a folder."""
    values = arguments.main_flags(words)
    config = arguments.parse(values, words, None)
    arguments.place_of(values)
    check_stages([*(values.stages or []), *values.redo], STAGES)
    arguments.overrides_of(values)
    arguments.preset_of(values)
    check_ranges(config)


@fuzzed
@given(CONFIGS, st.lists(st.tuples(NAMES, VALUES), max_size=4))
@example('burgers', [('config.sample.rows', CODE)])
@example('burgers', [('config.mirror.steps', '1' * 5000)])
def test_command_lines(empty, config, pairs):
    words = [
        'main.py',
        f'--config=configs/{config}.py'
        if ':' not in config
        else '--config=configs/{}.py:{}'.format(*config.split(':')),
    ]
    try:
        command(words + [f'--{name}={value}' for name, value in pairs])
    except (ValueError, OSError):
        pass
    except SystemExit as stop:
        assert stop.code == 0  # --help


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


class Executed:
    """Touches a file when it is unpickled."""

    def __reduce__(self):
        return exec, (CODE,)


def header(text):
    """Returns an array file with any header at all, and 64 bytes of data."""
    text = text.encode('latin1', 'replace')
    return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text + bytes(64)


def described(shape, descr="'<f4'"):
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


FIELD = npy(np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1))
DTYPES = st.one_of(
    arrays_of.scalar_dtypes(),
    arrays_of.unicode_string_dtypes(),
    arrays_of.array_dtypes(),
    arrays_of.complex_number_dtypes(),
)
ARRAYS = DTYPES.flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=5, max_side=3))
)
FLIPS = st.lists(st.tuples(st.integers(0, len(FIELD) - 1), st.integers(0, 255)), max_size=4)


def flipped(flips, length):
    data = bytearray(FIELD)
    for where, value in flips:
        data[where] = value
    return bytes(data[:length])


FILES = st.one_of(
    ARRAYS.map(npy), st.builds(flipped, FLIPS, st.integers(0, len(FIELD))), st.binary(max_size=200),
    st.text(max_size=80).map(header), st.lists(st.integers(), max_size=5).map(lambda shape: described(tuple(shape))),
)  # fmt: skip


@fuzzed
@given(FILES)
@example(npy(np.array([Executed()], object)))
@example(npy(np.zeros((0, 2, 2, 1), np.float32)))
@example(described((2**40, 1, 1, 1)))  # four terabytes in a file of 200 bytes
@example(described((2**62, 2**62, 4, 1)))
@example(described((2, 2, 2, -1)))
@example(header('(' * 60000))
def test_array_files(empty, tmp_path, data):
    path = tmp_path / 'user.npy'
    path.write_bytes(data)
    try:
        found = dataset.read_fields(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert found.dtype == np.float32 and found.ndim == 4 and len(found) and np.isfinite(found).all()


OPERATOR = make_operator('first_states', (8, 8, 1), k=2)
MEASUREMENTS = st.one_of(
    FILES, arrays_of.arrays(np.float32, st.sampled_from([(8, 2, 1), (3, 8, 2, 1), (0, 8, 2, 1), (8, 3, 1)])).map(npy)
)


@fuzzed
@given(MEASUREMENTS, st.one_of(st.floats(), st.sampled_from([0.2, 0.0, -1.0])))
def test_measurement_files(empty, tmp_path, data, noise_std):
    path = tmp_path / 'y.npy'
    path.write_bytes(data)
    try:
        y = dataset.read_array(path)
        y = check_measurement(OPERATOR, y[None] if y.ndim == 3 else y, noise_std, (8, 8, 1))
    except ValueError:
        return
    assert y.shape[1:] == (8, 2, 1) and np.isfinite(y).all() and 0 < noise_std < np.inf


SIZES = {'train': 5, 'validation': 2, 'test': 2}


def fields(indices):
    return np.float32(indices)[:, None, None, None] + np.zeros((1, 2, 2, 1), np.float32)


def write(folder):
    dataset.write_dataset(folder, fields, sizes=SIZES, shard_size=2, provenance={'seed': 0})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A whole data set."""
    folder = tmp_path_factory.mktemp('data')
    write(folder)
    return folder


STRANGE = ['', '../secret.npy', '/etc/passwd', 'train-00000.npy']
KEYS = st.sampled_from(['n', 'crc32', 'train', '../secret.npy'])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(STRANGE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=4,
)


def paths_in(tree, path=()):
    """Returns where the values of a tree are."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for name, part in items for found in paths_in(part, (*path, name)))]


def replaced(tree, path, value):
    """Returns a tree with the value at a path replaced."""
    if not path:
        return value
    tree = json.loads(json.dumps(tree))
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return tree


@fuzzed
@given(st.data(), st.booleans())
def test_manifests(whole, tmp_path, data, partial):
    folder = tmp_path / 'data'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / 'crc32.json').unlink()  # else its checksum would tell
    secret = npy(np.zeros((2, 2, 2, 1), np.float32))
    (tmp_path / 'secret.npy').write_bytes(secret)
    manifest = json.loads((folder / 'manifest.json').read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        manifest = replaced(manifest, data.draw(st.sampled_from(paths_in(manifest))), data.draw(JSON))
    text = json.dumps(manifest)
    (folder / 'manifest.json').unlink()
    (folder / (dataset.PARTIAL if partial else 'manifest.json')).write_text(
        text[: data.draw(st.integers(len(text) - 20, len(text)))]
    )
    try:
        if partial:
            write(folder)
        for split in SIZES:
            found = dataset.load_split(folder, split)
            assert (found == dataset.load_split(whole, split)).all()
    except ValueError as error:
        assert str(folder) in str(error)


def test_a_shard_of_another_folder_is_not_read(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / 'data')
    secret = npy(np.full((2, 2, 2, 1), 7, np.float32))
    (tmp_path / 'secret.npy').write_bytes(secret)
    manifest = json.loads((folder / 'manifest.json').read_text())
    manifest['shards']['test'] = {'../secret.npy': {'n': 2, 'crc32': zlib.crc32(secret)}}
    (folder / 'crc32.json').unlink()
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match='secret'):
        dataset.load_split(folder, 'test')
    assert jax.process_count() == 1
