"""The fuzzers of `fuzz.py`: 150 cases of each, and every case in which one of them has found a
defect.
"""

import json

import fuzz
import numpy as np
import pytest
from fuzz_cases import OTHERS, PICKLES, good_files, headed, image, saved_array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from namm_jax.experiment.files import UserError
from namm_jax.experiment.own import load_function
from namm_jax.experiment.processes import Place

QUIET = pytest.mark.filterwarnings(
    'ignore:Reading `.npy`'
)  # of headers that look as if Python 2 wrote them


@pytest.mark.slow
@QUIET
@pytest.mark.parametrize('name', fuzz.FUZZERS)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(random=st.randoms(use_true_random=False))
def test_random_cases(name, random):
    make, check = fuzz.FUZZERS[name]
    check(make(random))


def test_the_script_counts_its_cases(capsys):
    assert fuzz.main(['--only=npy', '--cases=20', '--seed=3']) == 0
    assert capsys.readouterr().out.startswith('npy: 20 cases, ')


def test_the_script_shows_failures_of_one_kind_once(capsys, monkeypatch):
    monkeypatch.setitem(
        fuzz.FUZZERS,
        'npy',
        fuzz.Fuzzer(lambda random: 'x.npy', lambda case: fuzz.outcome(lambda: 1 / 0)),
    )
    assert fuzz.main(['--only=npy', '--cases=3']) == 1
    told = capsys.readouterr()
    assert told.err.count("npy, seed 0, case 0: 'x.npy'") == 1 and 'case 1' not in told.err
    assert 'ZeroDivisionError' in told.out and ': 3}' in told.out


BURGERS, FLOW, OWN = (
    f'--config=configs/{name}.py:tiny' for name in ('burgers', 'kolmogorov', 'own')
)


@pytest.mark.parametrize(
    'arguments',
    [
        ['--config=' + 'a' * 300],
        ['--config=', '--config.seed=1'],
        [BURGERS, '--flagfile=/missing'],
        [BURGERS, '--config.mirror.channels[0]=3'],
        [BURGERS, '--config.constraint.name[99]=a'],
        [BURGERS, '--config.data.seed[0]=1'],
        [BURGERS, '--config.mirror.channels=' + '-' * 3000 + '1'],
        [BURGERS, "--config.score.channels=(8, 'a')"],
        [BURGERS, '--config.sample.rows=1j'],
        [BURGERS, '--config.sharding.rules=(1,)'],
        [BURGERS, '--config.train.budget=inf'],
        [BURGERS, '--config.train.budget=1e300', '--config.dm.steps=1000000000000'],
        [BURGERS, '--config.data.seed=654045052149284081562'],
        [BURGERS, f'--config.mirror.steps={10**400}'],
        [FLOW, '--config.data.burn_in=1e308', '--config.data.dt=1e-3'],
        [FLOW, '--config.data.reynolds=0'],
        [OWN, '--config.data.path=~nobody_of_this_name/x'],
        [OWN, '--config.data.path=' + 'a' * 300],
    ],
)
def test_command_lines_that_ended_in_a_traceback(arguments):
    fuzz.check_overrides(arguments)


def test_a_seed_of_more_than_64_bits_is_refused(launch, capsys, tmp_path):
    assert launch(BURGERS, f'--seeds={10**20}', f'--workdir={tmp_path}') == 2
    assert 'error: seed: got 100000000000000000000' in capsys.readouterr().err


def described(shape, descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()


FILES = {
    'terabytes': headed(described((2**40, 1, 1, 1)), 1, bytes(64)),
    'terabytes_of_no_numbers': headed(described((2**40, 1, 1, 1), "'|V4'"), 1, bytes(64)),
    'a_gigabyte_that_memory_has': headed(described((2**26, 2, 3, 1)), 1, bytes(64)),
    'half_a_gigabyte_of_header': b'\x93NUMPY\x03\x00'
    + (2**29).to_bytes(4, 'little')
    + described((2, 2, 3, 1)),
    'more_than_64_bits': headed(described((2**70, 2, 3, 1)), 3, bytes(64)),
    'a_shape_of_a_boolean': headed(described((True, 2, 3, 1)), 1, bytes(48)),
    'no_pixels': headed(described((1, 0, 3, 1)), 1, bytes(48)),
    'depth': headed(b'-' * 9000 + b'1', 3, b''),
    'an_open_string': headed(b"{'descr': '''", 1, b'k2.N'),
    'an_open_bracket': headed(b'(', 1, b''),
    'indentation': headed(b'1\n  2\n 3', 1, b''),
    'no_key': headed(b'{[]: 1}', 2, b''),
    'keys_that_do_not_compare': headed(described((2, 2, 3, 1))[:-1] + b', 1: 1}', 2, bytes(48)),
    **{f'pickle_{i}': data for i, data in enumerate(PICKLES)},
}


@QUIET
@pytest.mark.parametrize('data', FILES.values(), ids=FILES)
def test_files_that_ended_in_a_traceback_or_took_memory(data):
    fuzz.check_npy(data)


def changed(calls=9, **files):
    """Returns the files of the data set, some of them replaced, and no checksum that tells."""
    whole = good_files(calls) | {name.replace('_', '.'): data for name, data in files.items()}
    return {name: data for name, data in whole.items() if name != 'crc32.json'}


def record(calls=9, **fields):
    """Returns the files of the data set with a change of its record."""
    facts = json.loads(good_files(calls)['data.json']) | fields
    return changed(calls, data_json=json.dumps(facts).encode())


FOLDERS = {
    'no_sizes': record(sizes=None),
    'sizes_of_a_list': record(sizes=[7, 3, 2]),
    'size_of_a_boolean': record(sizes={'train': True, 'validation': 3, 'test': 2}),
    'gigabytes': record(sizes={'train': 2**33, 'validation': 2**33, 'test': 2**33}),
    'complete_before_it_is': record(3, complete=True),
    'complete_is_a_number': record(3, complete=1),
    'another_shard_size': record(3, shard_size=4),
    'infinite_number_of_no_use': record(4, more=float('inf')),
    'list': changed(3, data_json=b'[1]'),
    'depth': changed(data_json=OTHERS[5]) | {'crc32.json': b'{}'},
    'depth_of_checksums': good_files() | {'crc32.json': OTHERS[5]},
    'no_checksum_of_several': good_files() | {'crc32.json': b'{"data.json": []}'},
    'no_record': {name: data for name, data in good_files().items() if name != 'data.json'},
    **{
        f'{place}_of_{name}': changed(calls, **{place: data})
        for place, calls in {'train_npy': 9, 'train-00000_npz': 3}.items()
        for name, data in {
            **FILES,
            'empty': b'',
            'zip': b'PK\x05\x06' + bytes(18),
            'version': headed(b'', 0, b''),
        }.items()
    },
}


@QUIET
@pytest.mark.parametrize('files', FOLDERS.values(), ids=FOLDERS)
def test_folders_that_ended_in_a_traceback_or_were_misread(files):
    fuzz.check_data_set(files)


def test_an_image_that_promises_more_than_it_holds():
    data = image('PNG', 'L')
    fuzz.check_image(data[:33] + b'\x81\0\0\x0b' + data[37:])  # two gigabytes of pixels


Y = np.zeros((1, 16, 2, 1), np.float32)


@pytest.mark.parametrize(
    ('y', 'more'),
    [
        (Y.astype('>f4'), []),
        (Y.astype('<f16'), []),
        (Y.astype('<m8[s]'), []),
        (np.full(Y.shape, 1e300), []),
        (Y, ['--operator=inpainting']),
        (Y, ['--operator=states']),
        (Y, ['--config.data.points=2147483647']),  # an operator of 128 GB
    ],
)
def test_measurements_that_ended_in_a_traceback_or_in_infinity(y, more):
    fuzz.check_measurement((saved_array(y), [BURGERS, *more]))


def test_a_function_that_is_not_jax_is_refused_by_solve(tmp_path):
    (tmp_path / 'mine.py').write_text(
        'import numpy\ndef mean(x):\n    return numpy.asarray(x).mean((1, 2))\n'
    )
    function = f'--config.assimilate.function={tmp_path}/mine.py:mean'
    fuzz.check_measurement((saved_array(np.zeros((1, 1))), [BURGERS, '--operator=own', function]))


def test_a_home_that_is_not_there_is_no_file():
    with pytest.raises(UserError, match='no such file'):
        load_function('~nobody_of_this_name/x.py:f')


@pytest.mark.parametrize('port', ['65536', '99999', '9' * 5000, '', 'a'])
def test_a_port_that_is_none_is_refused(port):
    assert Place('host:65535', 2, 0).count == 2
    with pytest.raises(UserError, match='expected --coordinator=HOST:PORT'):
        Place(f'host:{port}', 2, 0)
