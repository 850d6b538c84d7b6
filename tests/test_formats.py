"""Data of one's own in the formats of the field: layouts, masks, files that stay on the disk."""

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import namm_jax as nj
from namm_jax import __main__ as program
from namm_jax.experiment import dataset, formats
from namm_jax.experiment.files import UserError
from namm_jax.experiment.formats import read_user_data, read_values
from namm_jax.experiment.own import checksum
from namm_jax.problems.own_arrays import moments, units

X = np.random.default_rng(0).normal(size=(40, 4, 6, 2)).astype(np.float32)
FIRST = np.moveaxis(X, -1, 1)  # (n, c, h, w)


ROOT = Path(__file__).resolve().parent.parent


def page_blocks(*signs):
    """Returns the programs of the page on data of one's own, each the one that has a sign in it."""
    text = (ROOT / 'docs' / 'your-own.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    return [next(block for block in blocks if sign in block) for sign in signs] or blocks


def save_page_files(folder):
    """Writes the data that the page reads, small."""
    np.savez(folder / 'flows.npz', vorticity=X[..., 0])
    np.save(folder / 'signals.npy', X[:, 0, :, 0])
    (folder / 'pictures').mkdir()
    PIL.Image.new('RGB', (6, 4)).save(folder / 'pictures' / 'a.png')
    save_hdf5(folder / 'flows.h5', velocity=FIRST)
    xarray = pytest.importorskip('xarray')
    pytest.importorskip('netCDF4')
    land = np.arange(24).reshape(4, 6) % 5 == 0
    fields = {
        'sst': (('day', 'lat', 'lon'), np.where(land, np.nan, X[..., 0])),
        'sea': (('lat', 'lon'), 1.0 - land),
        'forecast': (('start', 'time', 'lat', 'lon'), FIRST),
    }
    xarray.Dataset(fields).to_netcdf(folder / 'ocean.nc')
    return land


def save_net(folder):
    """Writes the weights that the page's denoisers read; returns their two programs."""
    import flax.serialization
    import jax

    flax_program, torch_program = page_blocks('net.msgpack', 'net.npz')
    scope = {}
    exec(flax_program.split('NET = ')[0], scope)
    params = scope['Net']().init(jax.random.key(0), np.zeros((1, 8, 8, 1)), np.zeros(1))
    (folder / 'net.msgpack').write_bytes(flax.serialization.to_bytes(params))
    layers = dict(first='Conv_0', level='Dense_0', last='Conv_1')
    weights = {name: params['params'][layer] for name, layer in layers.items()}
    state = {f'{name}.bias': layer['bias'] for name, layer in weights.items()}
    for name, layer in weights.items():
        kernel = np.asarray(layer['kernel'])
        state[f'{name}.weight'] = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
    np.savez(folder / 'net.npz', **state)
    return flax_program, torch_program


def test_the_page_reads_each_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    land = save_page_files(tmp_path)
    scope = {'nj': nj}
    exec(page_blocks('nj.read')[0], scope)
    np.testing.assert_array_equal(scope['flows'], X[..., :1])
    np.testing.assert_array_equal(scope['pairs'], X)
    np.testing.assert_array_equal(scope['states'], X)
    np.testing.assert_array_equal(scope['ocean'][:, ~land], X[:, ~land, :1])
    np.testing.assert_array_equal(scope['signals'][:, 0, :, 0], X[:, 0, :, 0])
    assert scope['pictures'].shape == (1, 4, 6, 3)


def save_hdf5(path, **arrays):
    h5py = pytest.importorskip('h5py')
    with h5py.File(path, 'w') as file:
        for name, array in arrays.items():
            # The group and chunks that others' files have.
            file.create_dataset(f'run/{name}', data=array, chunks=True, compression='gzip')


def save_netcdf(path, array, dims=('n', 'time', 'lat', 'lon'), coords=None, **encoding):
    xarray = pytest.importorskip('xarray')
    pytest.importorskip('netCDF4')
    field = xarray.DataArray(array, dims=dims, coords=coords, name='sst')
    field.to_netcdf(path, encoding={'sst': encoding})


@pytest.mark.parametrize('place', ['x.npy', 'x.npz:sst', 'x.h5:run/sst', 'x.nc:sst', 'parts:sst'])
@pytest.mark.parametrize('limit', [0, dataset.IN_MEMORY])
def test_every_format_gives_the_same_samples(place, limit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats, 'IN_MEMORY', limit)
    monkeypatch.setattr(dataset, 'BLOCK', 4 * 48 * 7)
    match place.partition('.')[2][:2]:
        case 'np' if ':' in place:
            np.savez_compressed('x.npz', other=np.zeros(3), sst=FIRST)
        case 'np':
            np.save('x.npy', np.asfortranarray(FIRST))
        case 'h5':
            save_hdf5('x.h5', sst=FIRST, other=np.zeros(3))
        case 'nc':
            save_netcdf('x.nc', FIRST)
        case _:
            (tmp_path / 'parts').mkdir()
            save_netcdf('parts/b.nc', FIRST[15:])
            save_netcdf('parts/a.nc', FIRST[:15])
    x = read_user_data(place, 'n,time,lat,lon')
    assert isinstance(x, np.ndarray) == (limit > 0)
    rows = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(x[rows], X[rows])
    assert x[rows].dtype == np.float32 and (x[3:5] == X[3:5]).all()
    assert checksum('data.path', place) != 0
    if not limit:
        assert [len(block) for block in x.blocks()] == [7, 7, 7, 7, 7, 5]
        np.testing.assert_allclose([x.mean(), x.std()], [X.mean(), X.std()], rtol=1e-5)
        sizes = []
        doubled = x.map(lambda x: (sizes.append(len(x)), 2 * x)[1], 16)
        np.testing.assert_array_equal(doubled[rows], 2 * X[rows])
        assert sizes == [16, 16, 8]


@pytest.mark.parametrize(
    ('shape', 'axes', 'expected'),
    [
        ((5, 9), 'n,length', (5, 1, 9, 1)),
        ((9, 5), 'x,n', (5, 1, 9, 1)),
        ((5, 3, 7), 'n,lat,lon', (5, 3, 7, 1)),
        ((5, 3, 7), 'n,lon,lat', (5, 7, 3, 1)),
        ((5, 2, 3, 4, 7), 'n,time,level,y,x', (5, 4, 7, 6)),
        ((2, 4, 5, 7), 'c,h,n,w', (5, 4, 7, 2)),
    ],
)
def test_axes_are_as_they_are_said(shape, axes, expected, tmp_path):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.save(tmp_path / 'x.npy', x)
    found = nj.read(tmp_path / 'x.npy', axes=axes)
    assert found.shape == expected
    n = axes.split(',').index('n')
    assert all(set(found[i].flat) == set(x.take(i, n).flat) for i in range(5))
    if axes == 'n,time,level,y,x':
        np.testing.assert_array_equal(found[1, 2, 3], x[1, :, :, 2, 3].ravel())


def test_one_sample_a_file(tmp_path):
    for i, sample in enumerate(FIRST[:3]):
        np.savez(tmp_path / f'{i}.npz', sample)
    np.testing.assert_array_equal(read_user_data(tmp_path, 'c,h,w'), X[:3])
    np.testing.assert_array_equal(read_user_data(tmp_path, 'n,c,h,w'), X[:3])


def test_pixels_without_data_hold_the_mean_of_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sea = np.random.default_rng(2).uniform(size=(4, 6)) < 0.7
    x = np.where(sea[..., None], X + [3, -300], np.nan)
    np.save('x.npy', x)
    np.save('sea.npy', sea.astype(float))
    found = nj.read('x.npy', mask='sea.npy')
    np.testing.assert_array_equal(found[:, sea], x[:, sea].astype(np.float32))
    np.testing.assert_allclose(
        found[:, ~sea], np.broadcast_to(x[:, sea].mean((0, 1)), (40, (~sea).sum(), 2)), rtol=1e-5
    )
    with pytest.raises(UserError, match=f'got {np.isnan(x).sum()} of .*give a mask'):
        nj.read('x.npy')
    x[3, 1:] = np.nan
    np.save('x.npy', x)
    with pytest.raises(UserError, match='values NaN or infinite'):
        nj.read('x.npy', mask='sea.npy')
    np.save('sea.npy', sea.T)
    with pytest.raises(UserError, match=r'sea.npy: got a mask of shape \(6, 4\).*\(4, 6\)'):
        nj.read('x.npy', mask='sea.npy')


def test_packed_and_missing_values_of_netcdf_are_decoded(tmp_path):
    x = np.round(FIRST, 2)
    x[0, 0, 0, 0] = np.nan
    packed = dict(dtype='int16', scale_factor=0.01, _FillValue=-999)
    save_netcdf(tmp_path / 'x.nc', x, **packed)
    with pytest.raises(UserError, match='x.nc: got 1 of .* values NaN'):
        read_user_data(f'{tmp_path}/x.nc:sst', 'n,time,lat,lon')
    x[0, 0, 0, 0] = 0
    save_netcdf(tmp_path / 'x.nc', x, **packed)
    found = read_user_data(f'{tmp_path}/x.nc:sst', 'n,time,lat,lon')
    np.testing.assert_allclose(found, np.moveaxis(x, 1, -1), atol=1e-6)


def refused(place, message, capsys, *more):
    """Asserts that `evaluate` ends with status 2 and one message, and nothing else."""
    rule = '--config.constraint.distance=docs/own_rule.py:rows_sum_to_one'
    command = ['evaluate', 'own:tiny', f'--samples={place}', rule, *more]
    assert program.main(command) == 2
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'Traceback' not in told.err and not told.out
    assert all(part in errors[0] for part in message.split(' ... ')), errors[0]


class Spy:
    """What a pickle would execute."""

    def __reduce__(self):
        return (exec, ('import sys; sys.spied = True',))


def test_a_pickle_in_an_archive_is_never_opened(tmp_path, capsys):
    np.savez(tmp_path / 'x.npz', x=np.array([Spy()], object))
    refused(tmp_path / 'x.npz:x', 'x.npz: got Object arrays cannot be loaded', capsys)
    (tmp_path / 'y.npz').write_bytes(pickle.dumps(Spy()))
    refused(tmp_path / 'y.npz:x', 'y.npz: got ', capsys)
    assert not hasattr(sys, 'spied')


def test_what_is_not_there_is_told_with_what_is(tmp_path, capsys):
    np.savez(tmp_path / 'x.npz', vorticity=X, other=X)
    refused(
        tmp_path / 'x.npz:vortcity',
        "x.npz: got 'vortcity', expected one of vorticity, other; did you mean vorticity",
        capsys,
    )
    refused(tmp_path / 'x.npz', "got '', expected one of vorticity, other ... x.npz:NAME", capsys)
    save_hdf5(tmp_path / 'x.h5', sst=X, mask=X)
    refused(tmp_path / 'x.h5:sst', "x.h5: got 'sst', expected one of run/mask, run/sst", capsys)
    save_netcdf(tmp_path / 'x.nc', X)
    refused(tmp_path / 'x.nc:T', "x.nc: got 'T', expected one of sst", capsys)
    (tmp_path / 'y.h5').write_bytes((tmp_path / 'x.h5').read_bytes()[:900])
    refused(tmp_path / 'y.h5:run/sst', 'y.h5: got ... expected a whole file', capsys)
    np.save(tmp_path / 'x.npy', X)
    refused(tmp_path / 'x.npy:sst', "x.npy: got the name 'sst'", capsys)


def test_axes_that_cannot_be(tmp_path, capsys):
    np.save(tmp_path / 'x.npy', X[..., 0])
    refused(tmp_path / 'x.npy', 'got shape (40, 4, 6), expected (n, h, w, c); say what', capsys)
    for axes, message in {
        'n,c,h,w': 'got shape (40, 4, 6), expected axes n,c,h,w',
        'n,lattitude,w': "axes: got 'lattitude', expected one of ... did you mean latitude",
        'n,h,lat': 'axes: got n,h,lat, expected one of n, one of h, one of w at most',
        'c,h,w': 'expected axes c,h,w; say what they are, n for samples',
    }.items():
        refused(tmp_path / 'x.npy', message, capsys, f'--config.data.axes={axes}')
    save_netcdf(tmp_path / 'x.nc', FIRST)
    (tmp_path / 'folder').mkdir()
    np.save(tmp_path / 'folder' / 'x.npy', X[0])
    with pytest.raises(UserError, match='x.npy: got shape .* expected axes c,n,h,w'):
        read_user_data(tmp_path / 'folder', 'c,n,h,w')
    refused(
        f'{tmp_path}/x.nc:sst',
        'with the axes n,time,lat,lon, expected axes n,lat,time,lon',
        capsys,
        '--config.data.axes=n,lat,time,lon',
    )


def test_an_axis_of_text_is_refused(tmp_path, capsys):
    save_netcdf(tmp_path / 'x.nc', FIRST, coords={'time': ['June', 'July']})
    message = "x.nc: got text on the axis 'time' of sst, such as 'June', expected numbers"
    refused(f'{tmp_path}/x.nc:sst', message, capsys, '--config.data.axes=n,time,lat,lon')
    save_hdf5(tmp_path / 'x.h5', name=np.array([[b'June']] * 4))
    refused(f'{tmp_path}/x.h5:run/name', 'got dtype ', capsys, '--config.data.axes=n,w')


@pytest.mark.parametrize(
    ('file', 'package', 'extra'), [('x.h5', 'h5py', 'hdf5'), ('x.nc', 'xarray', 'netcdf')]
)
def test_a_package_that_is_not_there_is_one_message(
    file, package, extra, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / file).write_bytes(b'')
    refused(
        tmp_path / file, f"got no package {package} ... pip install 'namm_jax[{extra}]'", capsys
    )


def test_measurements_come_from_the_same_files(tmp_path):
    y = np.arange(6.0).reshape(2, 3)
    save_hdf5(tmp_path / 'y.h5', y=y)
    np.testing.assert_array_equal(read_values(f'{tmp_path}/y.h5:run/y'), y)


@pytest.mark.parametrize('over', [None, (0, 1, 2)])
def test_moments_of_blocks_are_those_of_the_whole(over):
    offset = X + np.float32([300, -2])
    mean, scale, low, high = moments([offset[:1], offset[1:25], offset[25:]], over)
    np.testing.assert_allclose(mean, offset.mean(over, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(scale, offset.std(over, dtype=np.float64), rtol=1e-9)
    np.testing.assert_array_equal([low, high], [offset.min(over), offset.max(over)])


def test_units_of_one_block_are_numpys_to_the_bit():
    mean, scale = units([X])
    assert mean == tuple(X.mean((0, 1, 2), dtype=np.float64))
    assert scale == tuple(X.std((0, 1, 2), dtype=np.float64))
