"""Data sets on disk and the order of batches: what is written is read back, what is damaged is
named.
"""

import json

import numpy as np
import pytest

from namm_jax.experiment import files
from namm_jax.experiment.dataset import (
    batch_indices,
    batches,
    load_split,
    read_fields,
    write_dataset,
)
from namm_jax.experiment.files import UserError, write_json

SIZES = {'train': 7, 'validation': 3, 'test': 2}


def fields_of(indices):
    """Sample i is constant i, so that a misplaced sample shows."""
    return np.broadcast_to(
        np.asarray(indices, np.float64)[:, None, None, None], (len(indices), 2, 3, 1)
    )


def write(directory, source=fields_of, seed=0, **kwargs):
    write_dataset(
        directory,
        source,
        sizes=SIZES,
        shard_size=3,
        provenance={'seed': seed, 'config': {'a': (1, 2)}},
        **kwargs,
    )
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_samples_are_numbered_through_the_splits(tmp_path):
    write(tmp_path / 'data')
    numbers = [load_split(tmp_path / 'data', split)[:, 0, 0, 0].tolist() for split in SIZES]
    assert numbers == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11]]
    fields = load_split(tmp_path / 'data', 'test')
    assert fields.dtype == np.float32 and fields.shape == (2, 2, 3, 1)
    record = json.loads((tmp_path / 'data/data.json').read_text())
    assert record['sizes'] == SIZES and record['provenance']['seed'] == 0 and record['complete']
    names = ['crc32.json', 'data.json', 'test.npy', 'train.npy', 'validation.npy']
    assert sorted(contents(tmp_path / 'data')) == names


@pytest.mark.parametrize('calls', [0, 1, 3, 4])
def test_stopped_writing_goes_on_to_the_same_bytes(tmp_path, calls):
    done, left = [], [calls]

    def stopping(indices):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return fields_of(indices)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'stopped', stopping)
    with pytest.raises(ValueError, match='data.json: got no complete data set'):
        load_split(tmp_path / 'stopped', 'train')
    (tmp_path / 'stopped' / 'train-00001.npz.tmp').write_bytes(b'half')
    later = []
    write(
        tmp_path / 'stopped',
        lambda i: later.append(i) or fields_of(i),
        progress=lambda *x: done.append(x),
    )
    assert len(later) == 5 - calls and done[-1] == (12, 12) and len(done) == 5
    (tmp_path / 'stopped' / 'train-00001.npz.tmp').unlink(missing_ok=True)
    assert contents(tmp_path / 'stopped') == contents(write(tmp_path / 'whole'))


def test_complete_data_is_never_generated_again(tmp_path):
    before = contents(write(tmp_path))
    write(tmp_path, lambda indices: pytest.fail('generated again'))
    assert contents(tmp_path) == before


def test_other_data_in_the_folder_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(
        ValueError, match="data.json describes another.*'seed': 0.*'seed': 1.*--redo=data"
    ):
        write(tmp_path, seed=1)
    (tmp_path / 'data.json').unlink()
    with pytest.raises(ValueError, match='data.json is missing, expected it beside test.npy'):
        write(tmp_path)


@pytest.mark.parametrize('first', [3, 7])
def test_a_kill_while_parts_become_one_file_is_made_good(tmp_path, monkeypatch, first):
    """Before the file is there, and before its parts are gone."""
    function = files.write_blocks

    def killed(path, data):
        if path.name == 'train.npy':
            if first == 7:
                function(path, data)
            raise KeyboardInterrupt
        function(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, 'write_blocks', killed)
        write(tmp_path / 'killed')
    later = []
    write(tmp_path / 'killed', lambda i: later.extend(i) or fields_of(i))
    assert later == [7, 8, 9, 10, 11]
    assert contents(tmp_path / 'killed') == contents(write(tmp_path / 'whole'))


def test_parts_of_other_places_or_data_are_refused(tmp_path):
    half = lambda indices: fields_of(indices) if indices[0] < 6 else 1 / 0
    for seed, name in enumerate(('ours', 'theirs')):
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / name, half, seed=seed)
    ours = [tmp_path / 'ours' / f'train-0000{k}.npz' for k in (0, 1)]
    first, second = (path.read_bytes() for path in ours)
    theirs = (tmp_path / 'theirs/train-00000.npz').read_bytes()
    for parts in ((second, first), (theirs, second)):
        for path, data in zip(ours, parts, strict=True):
            path.write_bytes(data)
        with pytest.raises(ValueError, match='train-00000.npz is damaged: .* of another place'):
            write(tmp_path / 'ours')
    ours[0].write_bytes(first)
    write(tmp_path / 'ours')


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'empty'])
def test_a_damaged_part_is_named_when_writing_goes_on(tmp_path, damage):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, lambda indices: fields_of(indices) if indices[0] < 3 else 1 / 0)
    path = tmp_path / 'train-00000.npz'
    data = path.read_bytes()
    place = data.index(np.float32(2).tobytes())  # of sample 2
    flipped = data[:place] + b'\1' + data[place + 1 :]
    path.write_bytes({'flip': flipped, 'truncate': data[:-9], 'empty': b''}[damage])
    with pytest.raises(ValueError, match='train-00000.npz is damaged: got .*--redo=data'):
        write(tmp_path)
    path.unlink()
    write(tmp_path)
    assert load_split(tmp_path, 'train')[:, 0, 0, 0].tolist() == [*range(7)]


def test_bad_fields_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'returned the shape \(3, 2\), expected \(3, h, w, c\)'):
        write(tmp_path / 'a', lambda indices: np.zeros((3, 2)))
    with pytest.raises(ValueError, match='1 generated samples, the first of index 5'):
        write(
            tmp_path / 'b', lambda indices: np.where(indices == 5, np.nan, 0.0)[:, None, None, None]
        )


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def replace_by_float64(path):
    np.save(path, np.load(path).astype(np.float64))


@pytest.mark.parametrize('damage', [flip, truncate, replace_by_float64])
def test_damage_is_named(tmp_path, damage):
    damage(write(tmp_path) / 'train.npy')
    with pytest.raises(
        ValueError, match='train.npy is damaged: got the checksum .* expected .*--redo'
    ):
        load_split(tmp_path, 'train')
    assert len(load_split(tmp_path, 'validation')) == 3


def test_missing_files_and_a_damaged_record_are_named(tmp_path):
    (write(tmp_path) / 'train.npy').unlink()
    with pytest.raises(ValueError, match='train.npy: got no such file'):
        load_split(tmp_path, 'train')
    (tmp_path / 'data.json').write_text('{"sizes": ')
    with pytest.raises(ValueError, match='data.json is damaged: got the checksum'):
        load_split(tmp_path, 'train')
    (tmp_path / 'crc32.json').unlink()  # of a folder without checksums, JSON at least
    with pytest.raises(ValueError, match='data.json is damaged: got .*expected JSON'):
        load_split(tmp_path, 'train')
    for record in ([], {'sizes': SIZES}, {'complete': True, 'sizes': []}):
        write_json(tmp_path / 'data.json', record)
        with pytest.raises(ValueError, match='data.json: got no complete data set'):
            load_split(tmp_path, 'train')


@pytest.mark.parametrize('shape', [(8, 2, 3, 1), (2, 3, 1), (7, 6)])
def test_a_file_of_another_shape_is_named_without_checksums(tmp_path, shape):
    np.save(write(tmp_path) / 'train.npy', np.zeros(shape, np.float32))
    (tmp_path / 'crc32.json').unlink()
    with pytest.raises(ValueError, match='train.npy: got '):
        load_split(tmp_path, 'train')


def test_reads_what_a_user_saved(tmp_path):
    np.save(tmp_path / 'x.npy', np.arange(12, dtype=np.int16).reshape(2, 2, 3, 1))
    fields = read_fields(tmp_path / 'x.npy', (2, 3, 1))
    assert fields.dtype == np.float32 and fields.ravel().tolist() == list(range(12))
    np.save(tmp_path / 'f.npy', np.asfortranarray(np.arange(12.0).reshape(2, 2, 3, 1)))
    assert (read_fields(tmp_path / 'f.npy') == fields).all()


@pytest.mark.parametrize(
    'array, message',
    [
        (np.array([{}, []], object), 'Python objects'),
        (np.full((1, 2, 2, 1), 'a'), 'dtype <U1 .*expected real'),
        (np.zeros((1, 2, 2, 1), complex), 'complex128'),
        (np.zeros((2, 2, 1)), r'shape \(2, 2, 1\), expected real numbers, \(n, 2, 3, 1\)'),
        (np.zeros((4, 3, 2, 1)), r'shape \(4, 3, 2, 1\), expected real numbers, \(n, 2, 3, 1\)'),
        (np.zeros((0, 2, 3, 1)), 'n >= 1'),
        (
            np.array([0, np.nan, np.inf, 1e300, 0, 0]).reshape(1, 2, 3, 1),
            '3 of 6 values NaN or infinite',
        ),
    ],
)
def test_bad_arrays_are_refused_by_name(tmp_path, array, message):
    np.save(tmp_path / 'bad.npy', array)
    with pytest.raises(UserError, match=f'bad.npy: got .*{message}|bad.npy: {message}'):
        read_fields(tmp_path / 'bad.npy', (2, 3, 1))


def test_files_that_are_no_arrays_are_refused_by_name(tmp_path):
    path = tmp_path / 'bad.npy'
    with pytest.raises(UserError, match='bad.npy: got no such file'):
        read_fields(path)
    for data, message in [
        (b'', 'expected 8 bytes got 0'),
        (b'1 2 3\n4\n', 'magic string is not correct.*1 2 3'),
        (b'\x80\x04N.', 'a pickle, which is never'),
        (b'PK', 'expected 8 bytes got 2'),
    ]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=f'bad.npy: got .*{message}'):
            read_fields(path)
    np.save(path, np.zeros((1, 2, 2, 1)))
    for size in (7, 50, -1):
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match='bad.npy: got .*expected a whole'):
            read_fields(path)
        path.write_bytes(whole)


@pytest.mark.parametrize('n, batch_size', [(12, 4), (13, 4), (5, 5), (3, 1)])
def test_an_epoch_visits_each_sample_at_most_once(n, batch_size):
    per_epoch = n // batch_size
    orders = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = np.concatenate(
            [batch_indices(3, step, n=n, batch_size=batch_size) for step in steps]
        )
        assert len(set(seen.tolist())) == len(seen) == per_epoch * batch_size and set(seen) <= set(
            range(n)
        )
        orders.append(tuple(seen.tolist()))
    assert n < 5 or len(set(orders)) == 3


def test_batches_depend_on_seed_and_step_alone():
    def order(seed, steps):
        return {step: batch_indices(seed, step, n=50, batch_size=8).tolist() for step in steps}

    forward = order(1, range(20))
    assert forward == order(1, reversed(range(20)))
    assert forward[0] != order(2, [0])[0]
    data = np.arange(50)
    resumed = [batch.tolist() for batch in batches(data, seed=1, batch_size=8, start=13, steps=20)]
    assert resumed == [forward[step] for step in range(13, 20)]


def test_first_samples_of_an_epoch_are_uniform():
    counts = np.bincount(
        [batch_indices(0, step, n=8, batch_size=8)[0] for step in range(2000)], minlength=8
    )
    assert ((counts - 250) ** 2 / 250).sum() < 30  # chi-squared with 7 degrees of freedom: p = 1e-4


@pytest.mark.parametrize('count', [1, 2, 4])
def test_the_slices_of_the_processes_make_up_the_batch(count):
    data = np.arange(40)[:, None]
    arguments = {'seed': 5, 'batch_size': 8, 'start': 3, 'steps': 9}
    whole = np.stack(list(batches(data, **arguments)))
    parts = [
        np.stack(list(batches(data, **arguments, process_index=p, process_count=count)))
        for p in range(count)
    ]
    assert (np.concatenate(parts, axis=1) == whole).all() and whole.shape == (6, 8, 1)


def test_bad_batches_are_refused_at_once():
    data = np.zeros((10, 1))
    with pytest.raises(ValueError, match='batch_size 11 for 10 samples'):
        batches(data, seed=0, batch_size=11, start=0, steps=1)
    with pytest.raises(ValueError, match='batch_size 9, expected a multiple of 2'):
        batches(data, seed=0, batch_size=9, start=0, steps=1, process_count=2)
