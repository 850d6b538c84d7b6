"""The stage `assimilate`: every sampler on the tiny run, in its table, resumable between
measurements.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax import problems
from namm_jax.denoising.samplers import VARIANCES, make_sampler
from namm_jax.experiment import build, methods, posteriors, solve, stages
from namm_jax.experiment.cli import main
from namm_jax.experiment.experiment import make_experiment
from namm_jax.experiment.files import UserError, read_json
from namm_jax.experiment.folder import Folder
from namm_jax.experiment.posteriors import PUBLISHED, ROWS, SAMPLERS, with_noise_floor
from namm_jax.problems import PROBLEMS

TINY = '--config=configs/burgers.py:tiny'


@pytest.fixture
def folder(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / 'run')


@pytest.mark.slow
def test_a_named_sampler_fills_its_entry_and_its_files(launch, folder, capsys):
    (folder / 'report.html').unlink()  # not to be drawn again
    assert (
        launch(
            TINY, f'--workdir={folder}', '--stages=assimilate', '--config.assimilate.sampler=dps'
        )
        == 0
    )
    entry = read_json(folder / 'metrics.json')['assimilation']['first_states']['dps']
    assert entry['n'] == 4 and entry['calls'] == 3 and entry['diverged'] == 0
    assert entry['error'].keys() == {'rmse', 'crps', 'spread_skill'}
    assert all(error > 0 for error in entry['error'].values())
    assert all(np.isfinite(entry[name]) for name in ('rmse', 'crps', 'spread_skill', 'misfit'))
    assert 'first_states, noise 0.2' in capsys.readouterr().err
    samples = np.load(folder / 'assimilate' / 'first_states' / 'dps' / '0.npy')
    assert samples.shape == (2, 16, 16, 1)
    kept = np.load(folder / 'assimilate' / 'first_states' / 'arrays.npz')
    np.testing.assert_allclose(kept['dps/mean'], samples[..., 0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(kept['dps/std'], samples[..., 0].std(0, ddof=1), rtol=1e-4)
    assert (
        np.isfinite(kept['truth/measured'][:, :2]).all()
        and np.isnan(kept['truth/measured'][:, 2:]).all()
    )
    assert (folder / 'figures' / 'assimilation_first_states.png').exists()


@pytest.mark.slow
def test_another_sampler_has_its_entry_beside_the_first_and_its_place_in_the_report(launch, folder):
    command = (TINY, f'--workdir={folder}', '--stages=assimilate')
    page = (folder / 'report.html').rename(
        folder.parent / 'report.html'
    )  # to be drawn once, with both
    assert launch(*command, '--config.assimilate.sampler=dps') == 0
    page.rename(folder / 'report.html')
    assert launch(*command, '--config.assimilate.sampler=variational') == 0
    entries = read_json(folder / 'metrics.json')['assimilation']['first_states']
    assert (
        set(entries) == {'dps', 'variational'} and entries['variational']['distance']['max'] < 1e-5
    )
    report = (folder / 'report.html').read_text()
    assert 'id="assimilation"' in report and 'by dps and variational' in report


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ('sampler=mirror_dsp', 'mirror_dps'),
        ('operator=first_stats', 'first_states'),
        ('noise_std=0.0', 'noise_std'),
        ('strength=fixd', 'fixed'),
        ('operator=own', 'function'),
    ],
)
def test_bad_values_are_refused_before_anything_runs(launch, folder, capsys, change, told):
    assert (
        launch(TINY, f'--workdir={folder}', '--stages=assimilate', f'--config.assimilate.{change}')
        == 2
    )
    said = capsys.readouterr().err
    assert told in said and 'assimilate: starting' not in said and 'Traceback' not in said


def test_every_problem_names_an_operator_that_measures_it():
    for name in PROBLEMS.keys() - {'own'}:
        problem = getattr(problems, name)()
        y = jax.eval_shape(
            problem.measurement(), jax.ShapeDtypeStruct((2, *problem.shape), 'float32')
        )
        assert y.shape[0] == 2


def solving(folder, y, *more):
    np.save(folder / 'y.npy', y)
    paths = [
        f'--workdir={folder}',
        f'--measurement={folder}/y.npy',
        f'--out={folder}/posterior.npy',
    ]
    return main(['launch/solve.py', TINY, *paths, *more], 'solve')


def test_solve_writes_samples_and_says_how_well_they_fit(folder, capsys):
    y = np.load(folder / 'data' / 'test.npy')[:2, :, :2]  # the first 2 of 16 states
    assert solving(folder, y, '--num_samples=3', '--sampler=dps', '--noise_std=0.1') == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        told['measurements'] == 2
        and told['n'] == 6
        and told['diverged'] == 0
        and told['misfit'] > 0
    )
    assert np.load(folder / 'posterior.npy').shape == (6, 16, 16, 1)
    config = read_json(folder / 'config.json')['config']['assimilate']
    assert config['noise_std'] == 0.2 and 'assimilation' not in read_json(
        folder / 'metrics.json'
    )  # as they were


@pytest.mark.slow
def test_solve_takes_one_number_a_measurement_and_draws_one_sample(folder, capsys):
    (folder / 'own.py').write_text('def total(x):\n    return x.mean((1, 2, 3))\n')
    own = ['--operator=own', f'--config.assimilate.function={folder}/own.py:total']
    assert solving(folder, np.float32([0.4, 0.5]), *own, '--num_samples=1') == 0
    assert json.loads(capsys.readouterr().out)['measurements'] == 2
    assert np.load(folder / 'posterior.npy').shape == (2, 16, 16, 1)


def test_many_samples_are_drawn_in_chunks(monkeypatch):
    monkeypatch.setattr(posteriors, 'CHUNK', 3)
    sizes = []
    draw = posteriors._in_chunks(lambda keys, y: sizes.append(len(keys)) or keys + y)
    np.testing.assert_array_equal(draw(np.arange(8), np.ones(8)), np.arange(1, 9))
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize(
    ('y', 'more', 'told'),
    [
        (np.zeros((1, 16, 3, 1)), [], r'expected (b, 16, 2, 1)'),
        (np.zeros((1, 16, 3, 1)), [], '--operator=first_states, which --measurement is of: y: got'),
        (np.full((16, 2, 1), np.nan), [], 'NaN'),
        (np.zeros((16, 2, 1)), ['--noise_std=0'], 'noise_std'),
        (np.zeros((16, 2, 1)), ['--operator=own'], '--config.assimilate.function=FILE.py:FUNCTION'),
        (np.zeros((16, 2, 1)), ['--sampler=mirror_dsp'], 'mirror_dps'),
        (np.zeros((16, 2, 1)), ['--noise_std=1e30'], 'have diverged'),
    ],
)
def test_solve_refuses_measurements_that_do_not_fit(folder, capsys, y, more, told):
    assert solving(folder, y, *more) == 2
    said = capsys.readouterr().err
    assert told in said and 'Traceback' not in said


@pytest.mark.parametrize(
    ('out', 'more', 'told'),
    [
        ('run', ['--overwrite'], 'a folder, expected a file'),
        ('none/x.npy', [], 'no folder for it, expected one that exists'),
        ('there.npy', [], 'a file that is there, expected .* --overwrite'),
        ('run/sample/x.npy', [], 'a name that the run .* has or may take'),
        ('run/metrics.json', ['--overwrite'], 'a name that the run .* has or may take'),
        ('link/config.json', ['--overwrite'], 'a name that the run .* has or may take'),
    ],
)
def test_solve_refuses_where_it_cannot_write_before_it_draws(tmp_path, out, more, told):
    (tmp_path / 'run' / 'sample').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'run')
    (tmp_path / 'there.npy').touch()
    with pytest.raises(UserError, match=f'--out: got {tmp_path / out}, {told}'):
        solve._check_out(tmp_path / out, tmp_path / 'run', '--overwrite' in more)
    assert not [path for path in tmp_path.rglob('*.np*') if path.stat().st_size]
    for good in ('new.npy', 'run/new.npy'):
        solve._check_out(tmp_path / good, tmp_path / 'run', False)
    solve._check_out(tmp_path / 'there.npy', tmp_path / 'run', True)


TWO_DEVICES = """
import sys
import jax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
from namm_jax.experiment.cli import main
sys.exit(main(['launch/main.py', *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('sampler', ['mirror_dps', 'mirror_few_steps', 'smc'])
def test_samples_do_not_depend_on_the_number_of_devices(launch, folder, sampler):
    command = [
        TINY,
        f'--workdir={folder}',
        '--stages=assimilate',
        f'--config.assimilate.sampler={sampler}',
    ]
    assert launch(*command) == 0
    path = folder / 'assimilate' / 'first_states' / sampler / '0.npy'
    one = np.load(path)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, '-c', TWO_DEVICES, *command, '--redo=assimilate'],
        env=environment,
        check=True,
    )
    np.testing.assert_allclose(np.load(path), one, atol=1e-4)


def test_noise_beyond_the_spread_of_mirror_points_is_told(tiny_run, monkeypatch, capsys):
    experiment = make_experiment(Folder(tiny_run))
    monkeypatch.setattr(stages, '_train_diffusion', lambda *arguments: {})
    for sigma_max, told in ((0.01, False), (99.0, True)):
        experiment.config.mirror.sigma_max = sigma_max
        assert stages.mdm(experiment) == {}
        assert ('mirror.sigma_max = 99 is more than' in capsys.readouterr().err) == told


def test_the_noise_floor_of_data_is_that_of_the_last_step(tiny_run):
    experiment = make_experiment(Folder(tiny_run))
    x = jnp.zeros((4, 16, 16, 1)) + 3.0
    noisy, std = with_noise_floor(experiment, 'dm', x), experiment.run.record('dm')['std']
    sampler = make_sampler(
        'ancestral', steps=experiment.config.assimilate.steps, mean=0.0, std=std, **PUBLISHED
    )
    r_t, r_s = np.asarray(sampler.levels()[-2:]) / std
    added = std * np.sqrt(
        VARIANCES['forward'](r_t, r_s) / (1 + r_s**2)
    )  # times alpha_s; what came before has faded
    np.testing.assert_allclose((noisy - x).std(), added, rtol=0.1)
    np.testing.assert_allclose(noisy.mean(), 3, atol=0.2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_sampler_is_in_the_table_and_goes_on_where_it_was(launch, folder):
    command = (TINY, f'--workdir={folder}', '--stages=assimilate')
    assert launch(*command) == 0
    entries = read_json(folder / 'metrics.json')['assimilation']['first_states']
    assert set(entries) == {*ROWS}
    path = folder / 'assimilate' / 'first_states' / 'mirror_daps' / '1.npy'
    kept = path.read_bytes()
    path.unlink()
    assert (
        launch(*command, '--config.assimilate.sampler=mirror_daps') == 0
    )  # opens the stage again, discards nothing
    assert path.read_bytes() == kept


def rows_of_samples(name, mirror_map='namm', landing=1):
    """Returns the rows of a table of samples, each with the stages that train it."""
    preset = importlib.import_module(f'configs.{name}').get_config('tiny')
    config = preset.copy_and_resolve_references()
    config.sample.rows, config.sample.landing, config.mirror.map = (), landing, mirror_map
    constraint = build.make_constraint(config, {})
    rows = methods.rows_of(config, constraint)
    return {row: methods.trained_by(config, method) for row, method in rows.items()}


def test_both_tables_are_made_of_one_list():
    rows = methods.METHODS
    assert {row.act for row in rows.values()} == {*methods.ACTS, *SAMPLERS}
    for row in rows.values():  # what another row draws is as its prior makes it
        assert rows[row.draw].draw == row.draw and rows[row.draw][:2] == row[:2]
        assert rows[row.draw].map in ('', 'f', 'finetuned')


def test_rows_of_samples_depend_on_restores_and_map():
    plain = 'dm dm_guided dm_projected dm_projected_sampling dm_ppr dm_rejected'.split()
    plain = {name: ('dm',) for name in plain}
    restored = {name: ('dm',) for name in ('dm_restored', 'dm_restored_sampling')}
    mirrors = {
        'dm_mapped': ('mirror', 'dm'),
        'dm_mapped_finetuned': ('mirror', 'mdm', 'finetune', 'dm'),
        'mdm': ('mirror', 'mdm'),
        'mdm_finetuned': ('mirror', 'mdm', 'finetune'),
    }
    plain['dm_residual_conditioned'] = ('dm', 'condition')
    landed = {'dm_landed': ('dm',), 'mdm_unlanded': ('mirror', 'mdm', 'finetune')}
    assert rows_of_samples('burgers') == plain | restored | mirrors | landed
    assert rows_of_samples('burgers', landing=0) == plain | restored | mirrors
    rows = rows_of_samples('total_brightness', 'simplex')
    restored = [row for row in rows if row.startswith('dm_restored_')]
    assert 'dm_restored_sampling' in restored
    assert rows == plain | dict.fromkeys(restored, ('dm',)) | {'mdm_simplex': ('mdm',)}
    assert len(restored) > 2 and list(rows)[2 : 1 + len(restored)] == restored[:-1]
    counted = rows_of_samples('count')
    assert counted.pop('dm') == ('dm',) and 'dm_restored' not in counted
    assert all(stages[0] == 'counter' for stages in counted.values())
