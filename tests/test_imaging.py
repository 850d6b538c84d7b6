"""Visibilities from a file: averages over scans, what is refused, and what is told of images."""

import json

import numpy as np
import pytest

from namm_jax.experiment import imaging
from namm_jax.experiment.cli import main
from namm_jax.experiment.files import UserError
from namm_jax.experiment.visibilities import read_observation
from namm_jax.inverse.closures import chi_squares
from namm_jax.inverse.rings import rings

TITLE = '#time(UTC),T1,T2,U(lambda),V(lambda),Iamp(Jy),Iphase(d),Isigma(Jy)'
SETTINGS = dict(scan_gap=60.0, systematic=0.0, least_snr=3.0, least_baseline=1e8)
PLACES = {'AA': (0, 0), 'LM': (1e9, 4e9), 'PV': (-4e9, 3e9), 'AZ': (2e9, 5e9), 'SM': (5e9, 2e9)}


def write(path, rows, title=TITLE):
    lines = ['#SRC:M87,DATE(MJD):57849', title, *(','.join(map(str, row)) for row in rows)]
    path.write_text('\n'.join(lines) + '\n')
    return path


def row(time, i='AA', j='LM', V=0.5 + 0j, sigma=0.01, uv=(1e9, 4e9)):
    return [f'{time:.8f}', i, j, *uv, abs(V), np.rad2deg(np.angle(V)), sigma]


def image(diameter=0.35, side=180.0, points=32):
    """Returns a ring on a field of view of 1, brighter at a position angle."""
    r = (np.arange(points) + 0.5) / points - 0.5
    right, down = np.meshgrid(r, r)
    bright = 1 + 0.7 * np.cos(np.arctan2(-right, -down) - np.deg2rad(side))
    x = bright * np.exp(-0.5 * ((np.hypot(right, down) - diameter / 2) / 0.06) ** 2)
    return x / x.sum()


def rows_of(x, flux=0.6, scans=4, records=6, noise=0.0, seed=0):
    """Returns rows of a file, as seen by five stations whose gains are bad; u and v by the sign of
    the published files.
    """
    rng, found, points = np.random.default_rng(seed), [], len(x)
    east = -((np.arange(points) + 0.5) / points - 0.5) * 120 * np.pi / 180 / 3600e6
    names = list(PLACES)
    for scan in range(scans):
        turn = np.exp(0.4j * scan)
        at = {name: complex(*place) * turn for name, place in PLACES.items()}
        gain = {name: rng.uniform(0.5, 2) * np.exp(1j * rng.uniform(0, 6)) for name in names}
        for i, j in [(i, j) for a, i in enumerate(names) for j in names[a + 1 :]]:
            b = at[i] - at[j]
            waves = np.exp(2j * np.pi * (b.real * east[None] + b.imag * east[:, None]))
            V = flux * (x * waves).sum() * gain[i] * np.conj(gain[j])
            for k in range(records):
                seen = V + noise * abs(V) * rng.normal(size=2) @ [1, 1j]
                uv = b.real, b.imag
                found.append(row(scan + k / 360, i, j, seen, max(noise, 1e-3) * abs(V), uv))
    return found


def test_a_scan_is_averaged_without_bias_and_with_its_error(tmp_path):
    rng, n = np.random.default_rng(0), 4000
    truth, sigma = 0.02, 0.02  # as large as the noise of a record
    V = truth * np.exp(2j) + sigma * rng.normal(size=(n, 2)) @ [1, 1j]
    rows = [row(k / 360, V=one, sigma=sigma) for k, one in enumerate(V)]
    found = read_observation(write(tmp_path / 'a.csv', rows), **SETTINGS)
    assert len(found.std) == 1 and found.uv[0] == pytest.approx([-1e9, -4e9])
    # The error grows where the noise is as large as the signal: (1 + 1/2)^(1/2).
    assert found.std[0] == pytest.approx(sigma / n**0.5 * 1.5**0.5, rel=0.02)
    assert abs(abs(found.visibility[0]) - truth) < 4 * found.std[0]
    assert np.angle(found.visibility[0]) == pytest.approx(2, abs=5 * sigma / n**0.5 / truth)
    noisier = read_observation(tmp_path / 'a.csv', **SETTINGS | {'systematic': 0.1})
    size = abs(found.visibility[0])
    assert noisier.std[0] ** 2 == pytest.approx(found.std[0] ** 2 + (0.1 * size) ** 2)


def test_scans_directions_flags_and_short_baselines(tmp_path):
    V = 0.3 * np.exp(1j)
    rows = [
        row(1.0, V=V),
        row(1.0 + 10 / 3600, 'LM', 'AA', np.conj(V), uv=(-1e9, -4e9)),  # the same, reversed
        row(1.0 + 10 / 3600, 'AA', 'AP', 1.1, uv=(1e6, 1e6)),  # sees the whole galaxy
        row(1.1, V=2 * V),  # another scan
        row(1.1, 'PV', 'PV', uv=(0, 0)),
        row(1.1 + 10 / 3600, sigma=-1.0),
    ]
    found = read_observation(write(tmp_path / 'a.csv', rows), **SETTINGS)
    np.testing.assert_array_equal(found.scan, [0, 1])
    np.testing.assert_allclose(found.visibility, [V, 2 * V], rtol=1e-3)
    assert (found.stations == ['AA', 'LM']).all()
    flagged = [[*one, flag] for one, flag in zip(rows, (0, 0, 0, 1, 0, 0), strict=True)]
    found = read_observation(write(tmp_path / 'b.csv', flagged, TITLE + ',flag'), **SETTINGS)
    assert len(found.std) == 1
    with_all = read_observation(tmp_path / 'a.csv', **SETTINGS | {'least_baseline': 0.0})
    assert len(with_all.std) == 3


BAD = {
    'no header': ([row(1.0)], '', 'no line that names the columns.*missing: time, T1'),
    'column': ([row(1.0)], TITLE.replace(',Isigma(Jy)', ''), 'missing: Isigma'),
    'station': ([row(1.0, 'AA', 'XX')], TITLE, "line 3: station: got 'XX', expected one of AA"),
    'text': ([[*row(1.0)[:5], 'high', 0, 0.1]], TITLE, 'line 3: got .*high.* numbers'),
    'short row': ([row(1.0)[:4]], TITLE, 'line 3: got .* expected 8 cells'),
    'nan': ([row(1.0, V=np.nan)], TITLE, 'line 3: got .* expected finite numbers'),
    'negative': ([[*row(1.0)[:5], -0.1, 0, 0.1]], TITLE, 'an amplitude >= 0'),
    'all flagged': ([row(1.0, sigma=0.0)], TITLE, 'no rows, 1 flagged'),
    'noise alone': ([row(1.0, V=0.01)], TITLE, 'got 1 averages .* none 3 times its error'),
    'short': ([row(1.0, uv=(1e5, 0))], TITLE, '0 of them on baselines of 1e'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_refused_in_one_message(tmp_path, name):
    rows, title, told = BAD[name]
    with pytest.raises(ValueError, match=told):
        read_observation(write(tmp_path / 'a.csv', rows, title), **SETTINGS)
    with pytest.raises((UserError, OSError), match='none'):
        read_observation(tmp_path / 'none.csv', **SETTINGS)


def test_a_ring_is_found_wherever_it_is():
    given = [(0.2, 90.0, 0, 0), (0.35, 180.0, 3, -2), (0.45, 300.0, -2, 1)]
    x = np.stack([np.roll(image(d, side), (a, b), (0, 1)) for d, side, a, b in given])
    found = rings(x)
    for k, (diameter, side, _, _) in enumerate(given):
        assert found.peak[k] == pytest.approx(diameter, abs=0.01)
        assert found.brighter_side[k] == pytest.approx(side, abs=3)
    assert (found.depression < 0.6).all()
    # A thin ring, blurred: its peak moves inwards, its diameter is known.
    r = (np.arange(256) + 0.5) / 256 - 0.5
    thin = np.exp(-0.5 * ((np.hypot(r, r[:, None]) - 0.175) / 0.005) ** 2)
    blur = np.exp(-0.5 * ((r[:, None] - r) / 0.06) ** 2)
    blurred = (blur @ thin @ blur).reshape(32, 8, 32, 8).mean((1, 3))
    assert rings(blurred[None]).diameter[0] == pytest.approx(0.35, abs=0.006)
    assert rings(blurred[None]).peak[0] < 0.33
    blob = np.exp(-0.5 * (np.arange(32)[:, None] - 15.5) ** 2 / 9)
    assert rings((blob * blob.T)[None]).depression[0] > 0.95


@pytest.fixture(scope='module')
def config():
    from namm_jax.experiment.config import experiment

    return experiment({'quick': {'data.points': 32, 'data.total': 30.0}}, problem='black_holes')


@pytest.mark.slow
def test_the_image_that_was_seen_fits_and_is_told(tmp_path, config):
    noise = 0.01
    path = write(tmp_path / 'a.csv', rows_of(image(0.35, 200.0), noise=noise, records=12))
    observation = imaging.observation_of(config, path)
    x = 30 * np.stack([image(0.35, 200.0), image(0.25, 200.0), image(0.35, 20.0)])[..., None]
    x = x.astype(np.float32)
    for name in ('closure_phases', 'log_closure_amplitudes'):
        chi = chi_squares(*imaging.measured(config, observation, name), x)[name]
        assert chi[0] < 1.2 and chi[1] > 3
    facts = imaging.facts_of(config, observation, x[:1])
    assert facts['peak']['median'] == pytest.approx(42, abs=1.5)
    assert facts['brighter_side']['low'] == pytest.approx(200, abs=4)
    assert facts['total_error'] < 1e-6
    turned = imaging.facts_of(config, observation, x[[2]])
    assert turned['chi_square_closure_phases']['median'] > 3  # it is not the same turned by half
    from namm_jax.report.imaging import sky

    figure = sky(imaging.arrays_of(config, observation, x))
    figure.savefig(tmp_path / 'sky.png')
    titles = [ax.get_title() for ax in figure.axes]
    assert {'mean', 'standard deviation', 'sample 3', 'AA-AZ-LM'} & set(titles)


@pytest.mark.slow
def test_solve_makes_images_of_visibilities(tmp_path, capsys, launch):
    config, run = '--config=configs/total_brightness.py:tiny', tmp_path / 'run'
    assert launch(config, f'--workdir={run}', '--stages=data,mirror,mdm,finetune,dm') == 0
    path = write(tmp_path / 'a.csv', rows_of(image(), noise=0.01))
    common = [config, f'--workdir={run}', f'--measurement={path}', '--num_samples=2']
    solve = lambda *more: main(['launch/solve.py', *common, *more], 'solve')
    for sampler in ('mirror_dps', 'few_steps'):
        capsys.readouterr()
        out = f'--out={tmp_path}/{sampler}.npy'
        assert solve(out, '--operator=closures', f'--sampler={sampler}') == 0
        told = json.loads(capsys.readouterr().out)
        assert told['n'] == 2 and told['diverged'] == 0 and told['diameter']['median'] > 0
        assert len(told['chi_squares']['chi_square_closure_phases']) == 2
        assert np.load(tmp_path / f'{sampler}.npy').shape == (2, 16, 16, 1)
        assert (tmp_path / f'{sampler}.png').exists()
        assert np.load(tmp_path / f'{sampler}.npz')['amplitude_samples'].shape[0] == 2
    assert solve(f'--out={tmp_path}/few_steps.npy', '--operator=closures') == 2
    assert 'a file that is there' in capsys.readouterr().err
    path.write_text(path.read_text().replace('PV', 'XX'))
    assert solve(f'--out={tmp_path}/b.npy', '--operator=closures') == 2
    assert "station: got 'XX'" in capsys.readouterr().err
    arguments = [config, f'--workdir={run}', '--stages=assimilate']
    assert launch(*arguments, '--config.assimilate.operator=closures') == 2
    assert 'namm_jax solve' in capsys.readouterr().err
