"""The cases of `fuzz.py`: `make_<fuzzer>(random)` returns one, which holds all that its outcome
depends on.
"""

import contextlib
import copy
import functools
import io
import json
import pickle
import tempfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import jax
import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from namm_jax.experiment import cli, dataset
from namm_jax.experiment.checkpoint import Checkpoints, _sealed
from namm_jax.experiment.config import flatten, override
from namm_jax.experiment.posteriors import ROWS, make_operator
from namm_jax.experiment.problem import make_problem
from namm_jax.experiment.schema import schema
from namm_jax.experiment.stages import STAGES
from namm_jax.inverse.operators import OPERATORS
from namm_jax.problems import PROBLEMS

SHAPE = (2, 3, 1)  # of a sample
CHECKPOINT = {'a': np.arange(3, dtype=np.float32)}
ORIGIN = {'stage': 'dm', 'config': {'seed': 0}, 'data': {'train.npy': 1}}
SIZES = {'train': 7, 'validation': 3, 'test': 2}
CONFIGS = ('burgers', 'kolmogorov', 'divergence', 'total_brightness', 'periodic', 'count', 'own')
DEFAULTS = {
    name: value
    for problem in PROBLEMS
    for name, value in flatten(schema(problem).to_dict()).items()
}
SECTIONS = sorted({name.split('.')[0] for name in DEFAULTS})
FLAGS = [
    *(
        'stages',
        'redo',
        'seeds',
        'workdir',
        'distributed',
        'nodistributed',
        'coordinator',
        'num_processes',
    ),
    *('process_index', 'flagfile', 'undefok', 'config', 'noconfig', 'data', '', '-'),
]
WORDS = [
    'heun',
    'edm',
    'vp',
    'resnet',
    'zeros',
    'fsdp',
    '.*=whole',
    '(=data',
    'constant',
    'identity',
    'box',
    'simplex',
]
CODE = [
    "__import__('os').system('touch X')",
    '$(touch X)',
    '`touch X`',
    "open('X', 'w')",
    'os:mkdir',
    'lambda: touch',
]
NUMBERS = [
    *(
        '0',
        '1',
        '-1',
        '2',
        '3',
        '8',
        '16',
        '+5',
        '0.5',
        '-0.5',
        '1e3',
        '1e400',
        '-inf',
        'inf',
        'nan',
        '1e-300',
        '1e308',
    ),
    *(
        '9' * 9,
        '9' * 10,
        '9' * 18,
        '9' * 19,
        '-' + '9' * 30,
        '9' * 400,
        '9' * 5000,
        '0x10',
        '1_000',
        '1j',
        'None',
    ),
]
TEXTS = [
    *(
        '',
        ' ',
        'True',
        'false',
        'none',
        '{}',
        '()',
        '(1,)',
        '(1, 2)',
        '(0,)',
        '(-1, 2)',
        '(1, 2',
        '[1, 2]',
        "('a',)",
    ),
    *(
        "(1.5, 'a')",
        '(1, (2, 3))',
        '(nan,)',
        '(1e400,)',
        '(None,)',
        "{'a': 1}",
        '1,2',
        '"',
        '"a',
        'a,"b',
        'é',
        '٣',
    ),
    *(
        '\u202e',
        '😀',
        '\udcff',
        '\n',
        '=',
        '--',
        '-' * 3000 + '1',
        '(' * 300,
        'a' * 300,
        'a' * 5000,
        '~',
        '~nobody/x',
    ),
    *('..', '/dev/null', 'a://b', '%s', '{0}', 'a:1', 'a:99999', ':', *NUMBERS),
]
JUNK = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        7,
        0.5,
        7.0,
        -0.0,
        2**31,
        2**40,
        2**63,
        10**30,
        float('nan'),
        float('inf'),
    ),
    *(
        '',
        'a',
        '7',
        '../outside.npy',
        '/etc/passwd',
        '\0',
        '\ud800',
        'a' * 300,
        'test-00000.npy',
        'train-00001.npy',
    ),
    *(
        [],
        {},
        [0],
        [2**40, 1, 1],
        [2, 3],
        [2, 3, 1],
        [2, 3, 1, 1],
        [-2, 3, -1],
        [1, 6, 1],
        {'n': 1},
        {'n': 2**50},
    ),
]
DTYPES = (
    '<f4 >f4 <f8 >f8 <f2 |i1 |u1 <i8 >i2 <u8 |b1 <c8 <U3 |S3 |S0 |V4 |V0 <M8[s] <m8[s] <f16'.split()
)
DESCRS = [
    *DTYPES,
    '|O',
    [('a', '<f4')],
    [('a', '|O')],
    [('', 3)],
    [1],
    'f',
    '',
    None,
    3,
    ('<f4', (2,)),
]
SHAPES = [(n, *SHAPE) for n in (1, 2, 3, 0, -1, True, 2**40, 2**62, 2**64, 2**70, 1.5)] + [
    *(
        (),
        (6,),
        SHAPE,
        (1, 6, 1, 1),
        (1, 0, 3, 1),
        (0,) * 4,
        (2**40, 1, 1, 1),
        (2**33, 2**33, 1, 1),
        (2**63,) * 4,
    ),
    *([1, *SHAPE], '(1, 2, 3, 1)', None, 6, {}, ('1', 2, 3, 1)),
]
HEADERS = ['[' * 300, '-' * 9000 + '1', '{[]: 1}', "{'descr': '''", '(', '1\n  2\n 3', '{}', 'None']


class Payload:
    """What a pickle would execute, if it were opened: it makes the file X."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ('X', 'w')


def saved_array(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    """Returns the bytes of a `.npy` file, pickled where it has to be."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=True)
    return file.getvalue()


PICKLES = [pickle.dumps(Payload()), saved_array(np.array([Payload()], object))]
OTHERS = [
    b'',
    b'1 2 3\n',
    b'PK\x03\x04',
    b'\x93NUMPY',
    b'\xff\xfe',
    b'[' * 100_000,
    b'{}',
    *PICKLES,
]


def mutated(random: Random, data: bytes) -> bytes:
    """Returns bytes with a few random changes."""
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        i = random.randint(0, len(data))
        j = min(len(data), i + random.choice((1, 1, 4, 50)))
        new = random.choice(
            (
                b'',
                b'',
                random.randbytes(1),
                b'0',
                b'-',
                b'9' * 20,
                b'[',
                b'"',
                b"'",
                b'\\',
                data[i:j] * 2,
            )
        )
        data = random.choice((data[:i] + new + data[j:], data[:i] + new + data[i:], data[:i]))
    return data


def make_overrides(random: Random) -> list[str]:
    """Returns arguments of launch/main.py, most of them for an existing config and preset."""
    file = f'configs/{_misspelt(random, random.choice(CONFIGS), 0.03)}.py'
    file = file if random.random() < 0.98 else random.choice(TEXTS)
    preset = random.choice(('tiny',) * 8 + ('quick', 'paper', 'published', random.choice(TEXTS)))
    arguments = random.choice(
        ([f'--config={file}:{preset}'], ['--config', f'{file}:{preset}'], [f'-config={file}'])
    )
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 6))):
        kind = random.random()
        name = random.choice(list(DEFAULTS))
        if kind < 0.75:
            value = _fitting(random, name) if random.random() < 0.8 else _text(random)
            text = f'--config.{name}={value}'
        elif kind < 0.85:
            text = f'--config.{_no_field(random, name)}={_text(random)}'
        else:
            text = f'--{_misspelt(random, random.choice(FLAGS), 0.1)}={_text(random)}'
        text = (
            text
            if random.random() < 0.97
            else random.choice((text.split('=')[0], text.strip('-'), '--', ''))
        )
        arguments.insert(len(arguments) if random.random() < 0.97 else 0, text)
    return [argument.replace('\0', '') for argument in arguments if random.random() < 0.998]


def _no_field(random: Random, name: str) -> str:
    section, _, field = name.rpartition('.')
    others = [
        f'{random.choice(SECTIONS)}.{field}',
        section,
        field,
        f'{name}.real',
        f'{section}.__class__',
        f'{name}(',
    ]
    return random.choice(
        (
            *others,
            f'{name}[0]',
            f'{name}[99]',
            f'{name}[a]',
            f'{name}[:]',
            _misspelt(random, name, 1),
        )
    )


def _misspelt(random: Random, text: str, chance: float) -> str:
    if not text or random.random() >= chance:
        return text
    i = random.randrange(len(text))
    return random.choice(
        (text[:i] + text[i + 1 :], text[:i] + random.choice('_x.é -') + text[i:], text.upper())
    )


def _fitting(random: Random, name: str) -> str:
    """Returns a value that the command line takes for a field, if no more."""
    default = DEFAULTS[name]
    if isinstance(default, list | tuple):
        item = lambda: random.choice(
            (random.choice(NUMBERS[:17]), repr(random.choice(WORDS + CODE)), 'True', '(1,)')
        )
        return f'({", ".join(item() for _ in range(random.randint(0, 3)))},)'.replace('(,', '(')
    if isinstance(default, bool):
        return random.choice(('true', 'False', '1', '0'))
    if isinstance(default, str):
        return random.choice((random.choice(WORDS), random.choice(CODE), random.choice(TEXTS)))
    digits = str(
        random.choice(
            (random.randint(-2, 40), random.randint(0, 2**70), 2 ** random.randint(0, 70))
        )
    )
    exponent = (
        ''
        if isinstance(default, int)
        else f'e{random.choice((0, -3, 3, random.randint(-320, 320)))}'
    )
    return random.choice((random.choice(NUMBERS), digits + exponent, digits + exponent))


def _text(random: Random) -> str:
    kinds = (
        lambda: random.choice(TEXTS),
        lambda: str(
            random.choice((random.randint(-2, 40), random.gauss(0, 3), random.randint(0, 2**70)))
        ),
        lambda: random.choice(CODE + WORDS),
        lambda: ','.join(
            random.choice((*STAGES, '0', '1', *WORDS)) for _ in range(random.randint(1, 3))
        ),
        lambda: f'({", ".join(random.choice(TEXTS + CODE) for _ in range(random.randint(1, 3)))},)',
        lambda: ''.join(
            chr(random.choice((random.randint(1, 255), random.randint(1, 0xFFFF))))
            for _ in range(9)
        ),
    )
    return random.choice(kinds)()


def make_npy(random: Random) -> bytes:
    """Returns the bytes of a file: a good one, a damaged one, one with a header that lies, or
    something else.
    """
    kind = random.random()
    if kind < 0.08:
        return random.choice(OTHERS)
    if kind < 0.5:
        data = _good_array(random, random.choice(DTYPES), random.choice(SHAPES[:3]))
        return data if kind < 0.2 else mutated(random, data)
    header: Any = {
        'descr': random.choice(DESCRS),
        'fortran_order': random.choice((False, False, True, 0, None)),
    }
    header['shape'] = random.choice(SHAPES)
    if random.random() < 0.2:
        header.pop(random.choice(list(header)))
    if random.random() < 0.1:
        header[random.choice(('x', 1, None))] = 1
    text = random.choice((*(repr(header),) * 12, *HEADERS)).encode()
    text = mutated(random, text) if random.random() < 0.3 else text
    return headed(
        text,
        random.choice((1, 1, 2, 3, 0, 9)),
        random.randbytes(random.choice((0, 4, 24, 48, 200, 5000))),
    )


def headed(header: bytes, version: int, body: bytes) -> bytes:
    """Returns a file with this header, whatever it says, and this body."""
    size = len(header).to_bytes(2 if version == 1 else 4, 'little')
    return b'\x93NUMPY' + bytes((version, 0)) + size + header + body


def _good_array(random: Random, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Returns a whole file, of numbers that may not be finite, or not in float32."""
    values = np.random.default_rng(random.getrandbits(32)).normal(0, 3, np.prod(shape, dtype=int))
    if values.size and random.random() < 0.2:
        values[0] = random.choice((float('nan'), float('inf'), 1e300, 1e39))
    with np.errstate(all='ignore'):
        array = values.astype(dtype if np.dtype(dtype).kind in 'fiucUS' else 'i8').astype(dtype)
    array = np.asarray(array.reshape(shape), order=random.choice('CF'))
    return saved_array(array, random.choice(((1, 0), (2, 0), (3, 0))))


def fields_of(indices: np.ndarray) -> np.ndarray:
    """Returns the samples of the data set: sample i is constant i."""
    return np.broadcast_to(
        np.asarray(indices, np.float64)[:, None, None, None], (len(indices), *SHAPE)
    )


def write(folder: Path, calls: int = 9) -> None:
    """Writes the data set, or goes on with it; stopped after so many parts."""
    left = iter(range(calls))
    source = lambda indices: fields_of(indices) if next(left, None) is not None else 1 / 0
    with contextlib.suppress(ZeroDivisionError):
        dataset.write_dataset(
            folder, source, sizes=SIZES, shard_size=3, provenance={'seed': 0, 'config': {'a': [1]}}
        )


@functools.cache
def good_files(calls: int = 9) -> dict[str, bytes]:
    """Returns the files of the data set, stopped after so many parts."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), calls)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def make_data_set(random: Random) -> dict[str, bytes]:
    """Returns the files of a folder: those of a data set, complete or half written, and some of
    them changed.
    """
    files = dict(good_files(random.choice((9, 9, 9, 1, 3, 4))))
    for _ in range(random.choice((1, 1, 2, 3))):
        name, kind = random.choice(('data.json', 'data.json', *files)), random.random()
        if name.endswith('.json') and kind < 0.8:
            with contextlib.suppress(ValueError, RecursionError):  # of one that is changed already
                files[name] = json.dumps(mutated_json(random, json.loads(files[name]))).encode()
        elif kind < 0.8:
            files[name] = make_npy(random)
        elif kind < 0.95:
            files[name] = mutated(random, files[name]) if kind < 0.9 else random.choice(OTHERS)
        elif name != 'data.json':
            files.pop(name)
    if random.random() < 0.7:
        files.pop('crc32.json', None)
    return files


def mutated_json(random: Random, value: Any) -> Any:
    """Returns a JSON value with one random change somewhere in it."""
    value = copy.deepcopy(value)
    places, todo = [], [value]
    while todo:
        node = todo.pop()
        keys = (
            list(node)
            if isinstance(node, dict)
            else range(len(node))
            if isinstance(node, list)
            else []
        )
        places += [(node, key) for key in keys]
        todo += [node[key] for key in keys]
    if not places or random.random() < 0.03:
        return random.choice(JUNK)
    (node, key), (other, there) = random.choice(places), random.choice(places)
    kind = random.choice(('junk', 'junk', 'number', 'drop', 'rename', 'exchange', 'add'))
    if kind == 'number' and isinstance(node[key], int | float):
        number = node[key]
        node[key] = random.choice(
            (-number, number + 1, number - 1, number * 2**40, float(number), str(number))
        )
    elif kind == 'drop':
        del node[key]
    elif kind == 'exchange':
        node[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(node[key])
    elif kind in ('rename', 'add') and isinstance(node, dict):
        name = random.choice(
            ('x', '../outside.npy', '/etc/passwd', 'train-00002.npz', 'test.npy', '\0', '')
        )
        node[name] = copy.deepcopy(node[key]) if kind == 'add' else node.pop(key)
    else:
        node[key] = random.choice(JUNK)
    return value


@functools.cache
def saved_config(name: str) -> dict[str, Any]:
    """Returns a config as a run folder holds it, of the preset tiny."""
    return override(cli.parse('fields', [f'{name}:tiny']).config.to_dict(), {})


@functools.cache
def measured_shape(config: str, operator: str) -> tuple[int, ...]:
    """Returns the shape of one measurement; that of a field where the config has no such
    operator.
    """
    settings = ConfigDict(saved_config(config))
    settings.assimilate.operator = operator
    field = make_problem(settings).shape
    try:
        made = make_operator(settings)
    except (ValueError, TypeError):
        return field
    return jax.eval_shape(made, jax.ShapeDtypeStruct((1, *field), 'f4')).shape[1:]


def make_measurement(random: Random) -> tuple[bytes, list[str]]:
    """Returns a file of measurements and the arguments of launch/solve.py, most of which fit each
    other.
    """
    config, operator = random.choice(CONFIGS[:-1]), random.choice(('', '', *OPERATORS))
    arguments = [f'--config=configs/{config}.py:tiny']
    arguments += (
        [f'--operator={_misspelt(random, operator, 0.1)}']
        if operator or random.random() < 0.1
        else []
    )
    for name in ('noise_std', 'num_samples', 'sampler'):
        if random.random() < 0.2:
            texts = {
                'noise_std': ('0.1', '3', *NUMBERS),
                'num_samples': ('4', *NUMBERS),
                'sampler': tuple(ROWS),
            }[name]
            arguments.append(
                f'--{name}={random.choice(texts) if random.random() < 0.8 else _text(random)}'
            )
    if random.random() < 0.2:
        names = list(flatten(saved_config(config)))
        name = random.choice(
            (random.choice(names), random.choice([name for name in names if 'assimilate' in name]))
        )
        arguments.append(f'--config.{name}={_fitting(random, name)}')
    shape = measured_shape(config, operator)
    shape = random.choice(
        (shape, (1, *shape), (2, *shape), shape[1:], (0, *shape), (1, 2, *shape), shape[::-1])
    )
    data = _good_array(random, random.choice(('<f4', *DTYPES)), shape)
    return random.choice((data, data, mutated(random, data), make_npy(random))), arguments


@functools.cache
def run_files() -> dict[str, Any]:
    """Returns name -> JSON of a run folder in which the data are made and training has begun."""
    config = saved_config('burgers')
    sections = {name: config[name] for name in ('data', 'constraint')}
    data = {'finished': True, 'sections': sections, 'arrays': {}, 'files': {}}
    mirror = sections | {name: config[name] for name in ('mirror', 'train', 'seed')}
    state = {'experiment': 'burgers:tiny', 'config': config}
    return {
        'config.json': state,
        'discard.json': state | {'stages': ['mirror']},
        'stages/data.json': data,
        'stages/mirror.json': {'finished': False, 'sections': mirror, 'files': {}},
        'metrics.json': {'rows': {'mdm': {'distance': {'mean': 1.0}, 'n': 2}}},
        'provenance.json': [],
        'data/crc32.json': {'train.npy': [1]},
        'mirror/crc32.json': {'origin': {'folder': 'mirror', 'config': mirror}, 'x.npy': [1]},
    }


def make_folder(random: Random) -> dict[str, bytes]:
    """Returns the files of a run folder, some of them changed; checksums tell of none."""
    files = dict(run_files())
    if random.random() < 0.8:
        files.pop('discard.json')
    names = random.choices(list(files), k=random.choice((1, 1, 2)))
    files |= {name: mutated_json(random, files[name]) for name in names}
    texts = {name: json.dumps(value).encode() for name, value in files.items()}
    texts['metrics.jsonl'] = b'{"stage": "mirror", "step": 1}\n'
    if random.random() < 0.3:
        name = random.choice(list(texts))
        texts[name] = mutated(random, texts[name])
    return texts


@functools.cache
def image(kind: str, mode: str) -> bytes:
    """Returns the bytes of an image of this format and mode."""
    file = io.BytesIO()
    PIL.Image.new(mode, (3, 2)).save(file, format=kind)
    return file.getvalue()


def make_image(random: Random) -> bytes:
    """Returns an image, most often a damaged one, or one that no folder of images may hold."""
    kind = random.choice(('PNG', 'PNG', 'JPEG', 'EPS', 'GIF', 'TIFF', 'PPM'))
    data = bytearray(image(kind, random.choice(('L', 'RGB'))))
    if kind == 'PNG' and random.random() < 0.5:  # a header that lies, with its checksum
        sizes = random.choices((0, 1, 3, 4096, 4097, 2**15, 2**31 - 1), k=2)
        data[16:24] = b''.join(size.to_bytes(4, 'big') for size in sizes)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    return mutated(random, bytes(data)) if random.random() < 0.6 else bytes(data)


@functools.cache
def checkpoint_files() -> dict[str, bytes]:
    """Returns the files of a checkpoint of step 3, `CHECKPOINT`."""
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(folder, origin=ORIGIN) as checkpoints:
            checkpoints.save(3, CHECKPOINT, {'seconds': 1.0})
        paths = [path for path in Path(folder).rglob('*') if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def make_checkpoint(random: Random) -> dict[str, bytes]:
    """Returns the files of a checkpoint whose description is changed, with its checksum or not."""
    files = dict(checkpoint_files())
    body = mutated_json(random, json.loads(files['3.json'])['body'])
    text = json.dumps(_sealed(body)).encode()
    files['3.json'] = text if random.random() < 0.8 else mutated(random, text)
    return files


def make_lock(random: Random) -> bytes:
    """Returns what a lock file may hold that another program wrote."""
    return random.choice((random.randbytes(40), b'', b'host a, process 1, start b', bytes(10**6)))
