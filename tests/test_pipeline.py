"""The whole pipeline, tiny: what it leaves behind, what a second call does, and what it refuses to
mix.
"""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest

from configs.burgers import get_config
from namm_jax.experiment.cli import main
from namm_jax.experiment.stages import stages_of

STAGES = [name for name, stage in stages_of(get_config('tiny')).items() if not stage.on_request]
TINY = '--config=configs/burgers.py:tiny'
ROWS = ('dm', 'dm_projected', 'mdm', 'mdm_finetuned')
PICTURES = ('data', 'samples', 'distances', 'training_time', 'losses', 'mirror', 'robustness')
TRAINED = {'mirror': 12, 'mdm': 12, 'finetune': 8, 'dm': 16}  # stage -> steps


def read(path):
    return json.loads(path.read_text())


def records(run, stage):
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return [record for record in lines if record['stage'] == stage]


def files_of(folder, *names):
    """Returns the time of the last change of every file below the named parts of a folder."""
    paths = [path for name in names for path in (folder / name, *(folder / name).rglob('*'))]
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in paths if path.is_file()}


@pytest.fixture
def run(tiny_run, tmp_path):
    """Returns a copy of the finished run, to be changed."""
    return shutil.copytree(tiny_run, tmp_path / 'copy')


def test_every_stage_has_finished(tiny_run):
    for stage in STAGES:
        record = read(tiny_run / 'stages' / f'{stage}.json')
        assert record['finished'] is True
        assert ('training_seconds' in record) == (stage in TRAINED)
    saved = read(tiny_run / 'config.json')
    assert saved['experiment'] == 'burgers:tiny' and saved['config']['mirror']['steps'] == 12
    assert set(read(tiny_run / 'stages' / 'dm.json')['sections']) == {
        'data',
        'constraint',
        'score',
        'dm',
        'train',
        'seed',
    }


def test_metrics_are_those_of_the_contract(tiny_run):
    metrics = read(tiny_run / 'metrics.json')
    assert set(metrics) == {'rows', 'robustness', 'advice'} and set(metrics['rows']) == {
        'data',
        *ROWS,
    }
    of_samples = {'distance', 'distribution', 'n'}
    for name, row in metrics['rows'].items():
        costs = {
            'seconds_per_sample',
            'calls',
            'training_seconds',
            'training_flops',
            'memorisation',
        }
        costs = costs if name in ROWS else set()
        assert set(row) == of_samples | costs
        assert set(row['distance']) == {'mean', 'median', 'max'}
        kinds = {'mmd', 'sliced_wasserstein', 'spectrum', 'two_sample'}
        assert set(row['distribution']) == kinds
        for kind, metric in row['distribution'].items():
            floor = metrics['rows']['data']['distribution'][kind]
            if name in ROWS:
                z = (metric['value'] - floor['value']) / floor['std']
                assert metric['z'] == pytest.approx(z)
            else:
                assert metric == floor and floor['n'] == 16 and floor['sets'] == 4
        assert row['n'] == (16 if name in ROWS else 32)
        assert all(row[cost] > 0 for cost in costs)


def test_robustness_is_measured_up_to_twice_the_noise_of_training(tiny_run):
    robustness = read(tiny_run / 'metrics.json')['robustness']
    assert (
        robustness['sigma'] == [0, 0.1, 0.2]
        and robustness['sigma_max'] == 0.1
        and robustness['n'] == 16
    )
    for name in ('f', 'f_finetuned'):
        assert set(robustness[name]) == {'distance_mean', 'distance_std', 'error_mean'}
        assert all(len(values) == 3 for values in robustness[name].values())
        assert robustness[name]['distance_mean'] == sorted(
            robustness[name]['distance_mean']
        )  # untrained: noise adds


def test_rows_tell_apart_what_is_known(tiny_run):
    rows = read(tiny_run / 'metrics.json')['rows']
    assert rows['data']['distance']['max'] < 1e-6  # the floor
    assert rows['dm_projected']['distance']['max'] <= 1e-6  # the projection's tolerance
    assert rows['dm']['distance']['mean'] > 0.1  # a few steps of training teach nothing
    assert {rows[row]['calls'] for row in ROWS} == {7}  # Heun: two a step, one for the last
    seconds = {row: rows[row]['training_seconds'] for row in ROWS}
    records = {
        stage: read(tiny_run / 'stages' / f'{stage}.json')['training_seconds'] for stage in TRAINED
    }
    assert seconds['dm'] == seconds['dm_projected'] == records['dm']
    assert math.isclose(seconds['mdm'], records['mirror'] + records['mdm'])
    assert math.isclose(seconds['mdm_finetuned'], seconds['mdm'] + records['finetune'])


def test_samples_are_whole(tiny_run):
    for row in (*ROWS, 'mirror'):
        x = np.load(tiny_run / 'sample' / f'{row}.npy', allow_pickle=False)
        assert x.shape == (16, 16, 16, 1) and x.dtype == np.float32 and np.isfinite(x).all()
        assert len(np.unique(x[:, 0, 0, 0])) == 16  # no sample twice


@pytest.mark.parametrize('stage', TRAINED)
def test_records_of_training(tiny_run, stage):
    found, steps = records(tiny_run, stage), TRAINED[stage]
    validated = set(range(4, steps + 1, 4))
    probed = {steps}
    assert [record['step'] for record in found] == sorted(validated | probed)
    mirror = {'cycle_data', 'cycle_mirror', 'constraint', 'regularisation', 'loss'}
    terms = mirror if stage in ('mirror', 'finetune') else {'denoising', 'loss'}
    for record in found:
        held_out, probe = record['step'] in validated, record['step'] in probed
        expected = {'stage', 'step', 'seconds', 'train/gradient_norm'} | {
            f'train/{name}' for name in terms
        }
        expected |= {f'heldout/{name}' for name in terms} if held_out else set()
        expected |= {'distance_mean', 'distance_std'} if probe else set()
        assert set(record) == expected
        assert all(math.isfinite(value) for name, value in record.items() if name != 'stage')


@pytest.mark.parametrize('picture', PICTURES)
def test_pictures_are_there(tiny_run, picture):
    data = (tiny_run / 'figures' / f'{picture}.png').read_bytes()
    assert data.startswith(b'\x89PNG') and len(data) > 10_000


def test_second_call_changes_nothing(run, launch, capsys):
    parts = (*STAGES, 'stages', 'figures', 'metrics.json', 'metrics.jsonl')
    before = files_of(run, *parts)
    assert launch(TINY, f'--workdir={run}') == 0
    told = capsys.readouterr().err
    assert all(f'{stage}: finished before, skipped' in told for stage in STAGES)
    assert 'median distance, mdm_finetuned / dm' in told  # the table is shown again
    assert max(map(len, told.splitlines()[:-1])) <= 120  # but for the folder's own name
    assert files_of(run, *parts) == before


@pytest.mark.parametrize(
    'spelling', [f'--config={os.path.abspath("configs/burgers.py")}:tiny', TINY]
)
def test_other_config_for_the_folder_is_refused(run, launch, capsys, spelling):
    assert launch(spelling.replace(':tiny', ''), f'--workdir={run}') == 2
    told = capsys.readouterr().err
    assert (
        'got the experiment burgers:quick, but' in told
        and 'burgers:tiny' in told
        and 'Traceback' not in told
    )


@pytest.mark.parametrize(
    ('field', 'new', 'stage'),
    [('mirror.lambda_constr', 0.5, 'mirror'), ('data.nu', 0.1, 'data'), ('seed', 1, 'mirror')],
)
def test_override_of_what_a_finished_stage_has_read_is_refused(
    run, launch, capsys, field, new, stage
):
    before, old = files_of(run, '.'), read(run / 'config.json')['config']
    for part in field.split('.'):
        old = old[part]
    assert launch(TINY, f'--workdir={run}', f'--config.{field}={new}') == 2
    told = capsys.readouterr().err
    assert f'got {field} = {new}, but stage {stage} has finished with {field} = {old}' in told
    assert f'--redo={stage}' in told and 'Traceback' not in told
    after = files_of(run, '.')
    assert {path.name for path in after if after[path] != before.get(path)} <= {'lock'}


def test_an_override_is_checked_where_no_stage_is_left(run, launch, capsys):
    before = read(run / 'config.json')
    for field, value in (('assimilate.operator', 'nothing'), ('sharding.rules', "('a',)")):
        assert launch(TINY, f'--workdir={run}', f'--config.{field}={value}') == 2
        assert field in capsys.readouterr().err and read(run / 'config.json') == before


def test_what_differs_from_the_preset_is_told_at_every_start(run, launch, capsys):
    for override in (['--config.sample.steps=5'], []):  # the second time, it is the saved config's
        assert launch(TINY, f'--workdir={run}', '--stages=data', *override) == 0
        assert capsys.readouterr().err.startswith(
            'burgers:tiny, with\n  sample.steps = 5 (preset: 4)\n'
        )
    assert launch(TINY, f'--workdir={run}', '--stages=data', '--config.sample.steps=4') == 0
    assert capsys.readouterr().err.startswith('burgers:tiny\n')


def timeless(records):
    return [
        {name: value for name, value in record.items() if name != 'seconds'} for record in records
    ]


@pytest.mark.slow
def test_redo_discards_a_stage_and_what_was_built_on_it(run, launch, capsys):
    """Nothing else is touched, and what is done again comes out as before, to the bit."""
    kept, before = files_of(run, 'data', 'mirror', 'mdm', 'dm'), records(run, 'finetune')
    z = np.load(run / 'finetune' / 'mirror_samples.npy')
    assert launch(TINY, f'--workdir={run}', '--redo=finetune', '--stages=finetune') == 0
    told = capsys.readouterr().err
    assert 'discarded: finetune, sample, evaluate' in told
    assert re.findall(r'^(\w+): starting$', told, re.MULTILINE) == ['finetune']
    assert files_of(run, 'data', 'mirror', 'mdm', 'dm') == kept
    assert not (run / 'sample').exists() and 'rows' not in read(run / 'metrics.json')
    assert (np.load(run / 'finetune' / 'mirror_samples.npy') == z).all()
    assert (
        timeless(records(run, 'finetune')) == timeless(before)
        and records(run, 'finetune') != before
    )


@pytest.mark.slow
def test_redone_pipeline_gives_the_same_table(run, launch):
    before = read(run / 'metrics.json')['rows']
    samples = {row: np.load(run / 'sample' / f'{row}.npy') for row in (*ROWS, 'mirror')}
    assert launch(TINY, f'--workdir={run}', '--redo=mirror,dm') == 0
    rows = read(run / 'metrics.json')['rows']
    assert all((np.load(run / 'sample' / f'{row}.npy') == x).all() for row, x in samples.items())
    assert all(
        rows[row][part] == before[row][part]
        for row in rows
        for part in ('distance', 'distribution')
    )


def test_evaluate_reads_the_samples_of_a_run(tiny_run, capsys):
    row = read(tiny_run / 'metrics.json')['rows']['mdm']
    samples = tiny_run / 'sample' / 'mdm.npy'
    assert main(['launch/evaluate.py', TINY, f'--samples={samples}'], 'evaluate') == 0
    told = capsys.readouterr()
    result = json.loads(told.out)  # one object and nothing else
    assert set(result) == {'constraint', 'n', 'distance', 'per_sample'}
    assert result['constraint'] == 'burgers' and result['n'] == len(result['per_sample']) == 16
    for name, summary in {'mean': np.mean, 'median': np.median, 'max': np.max}.items():
        np.testing.assert_allclose(
            result['distance'][name], summary(result['per_sample']), rtol=1e-5
        )
        np.testing.assert_allclose(result['distance'][name], row['distance'][name], rtol=1e-5)


@pytest.mark.slow
def test_seeds_are_aggregated(tiny_run, tmp_path, launch):
    folder = tmp_path / 'seeds'
    assert launch(TINY, f'--workdir={folder}', '--seeds=0,1') == 0
    parts = [read(folder / f'seed{seed}' / 'metrics.json')['rows'] for seed in (0, 1)]
    rows = read(folder / 'metrics.json')['rows']
    assert set(rows) == set(parts[0]) == {'data', *ROWS}
    values = [part['mdm']['distance']['mean'] for part in parts]
    assert values[0] != values[1]
    expected = {'mean': np.mean(values), 'std': np.std(values, ddof=1), 'n': 2}
    assert rows['mdm']['distance']['mean'] == pytest.approx(expected)
    data = [np.load(folder / f'seed{seed}' / 'data' / 'train.npy') for seed in (0, 1)]
    assert (data[0] == data[1]).all()  # seeds share the data
    # Seed 0 of a set is the run without seeds.
    for row in ROWS:
        again, single = (
            np.load(path / 'sample' / f'{row}.npy') for path in (folder / 'seed0', tiny_run)
        )
        assert (again == single).all()
