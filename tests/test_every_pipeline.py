"""Every constraint from data to report, tiny, with all rows of the table; the stages that only some
of them have.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from namm_jax.experiment.cli import main
from namm_jax.experiment.files import read_json

NAMES = ('divergence', 'kolmogorov', 'total_brightness', 'periodic', 'count')
NAMES += ('heat', 'reaction_diffusion', 'decaying_flow')
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(launch, folder, name, *arguments):
    """Runs the preset `tiny` with all rows; returns the results."""
    assert (
        launch(
            f'--config=configs/{name}.py:tiny',
            f'--workdir={folder}',
            '--config.sample.rows=()',
            *arguments,
        )
        == 0
    )
    return read_json(folder / 'metrics.json')


@pytest.mark.parametrize('name', NAMES)
def test_every_constraint_from_data_to_report(launch, tmp_path, capsys, name):
    rows = run(launch, tmp_path, name)['rows']
    assert {
        'data',
        'dm',
        'dm_guided',
        'dm_projected',
        'dm_projected_sampling',
        'dm_mapped',
        'dm_mapped_finetuned',
        'mdm_finetuned',
    } <= set(rows)
    restored = [row for row in rows if row.startswith('dm_restored')]
    assert bool(restored) == (name != 'count')
    for row in restored:  # to round-off, beside samples of a model that has seen a dozen batches
        assert rows[row]['distance']['max'] < 1e-4 * rows['dm']['distance']['median']
    # The rule's own distance, which a row of `count` has beside that of its held-out counters.
    own = lambda row, name: (
        row.get('counts', {}).get('counter', {}).get('error', row['distance'][name])
    )
    # chosen on other samples, of a model that has learned nothing
    assert own(rows['dm_guided'], 'median') <= 1.1 * own(rows['dm'], 'median')
    assert (tmp_path / 'report.html').exists()
    assert (
        ('counts' in rows['dm'])
        == (name == 'count')
        == (tmp_path / 'stages' / 'counter.json').exists()
    )
    capsys.readouterr()
    arguments = [
        f'--config=configs/{name}.py:tiny',
        f'--samples={tmp_path}/sample/dm.npy',
        f'--workdir={tmp_path}',
    ]
    assert main(['launch/evaluate.py', *arguments], 'evaluate') == 0
    told = json.loads(capsys.readouterr().out)
    assert told['n'] == 16
    assert told['distance']['mean'] == pytest.approx(own(rows['dm'], 'mean'), rel=1e-4)
    for sampler in ('dps_projected', 'mirror_few_steps'):
        arguments = (
            f'--workdir={tmp_path}',
            '--stages=assimilate',
            f'--config.assimilate.sampler={sampler}',
        )
        assert launch(f'--config=configs/{name}.py:tiny', *arguments) == 0
    (entries,) = read_json(tmp_path / 'metrics.json')['assimilation'].values()
    assert all(entries[sampler]['misfit'] > 0 for sampler in ('dps_projected', 'mirror_few_steps'))


def test_images_with_maps_are_judged_by_counts_that_no_row_is_made_with(launch, tmp_path):
    rows = run(launch, tmp_path, 'count', '--config.data.maps=True')['rows']
    assert {'dm_projected', 'dm_rejected', 'dm_ppr', 'mdm_finetuned'} <= set(rows)
    assert all(set(row['counts']) == {'second', 'classical'} for row in rows.values())
    for name in ('dm_projected', 'dm_rejected'):  # by the rule, which the table does not tell
        x = np.load(tmp_path / 'sample' / f'{name}.npy')
        assert x.shape[1:] == (32, 32, 2)
        assert np.abs(x[..., 1].sum((1, 2)) - 2).max() < 0.26
    arguments = (f'--workdir={tmp_path}', '--stages=assimilate')
    arguments += ('--config.data.maps=True', '--config.assimilate.sampler=mirror_dps')
    assert launch('--config=configs/count.py:tiny', *arguments) == 0
    (entries,) = read_json(tmp_path / 'metrics.json')['assimilation'].values()
    assert entries['mirror_dps']['misfit'] > 0


def test_closed_form_has_nothing_to_learn_and_leaves_the_set_never(launch, tmp_path):
    rows = run(launch, tmp_path, 'total_brightness', '--config.mirror.map=simplex')['rows']
    assert rows['mdm_simplex']['distance']['max'] < 1e-4 and 'mdm_finetuned' not in rows
    assert {path.stem for path in (tmp_path / 'stages').iterdir()} & {
        'mirror',
        'finetune',
        'counter',
        'tune',
    } == set()
    # The saved config is the base of later commands, the stages that it has not included.
    assert launch('--config=configs/total_brightness.py:tiny', f'--workdir={tmp_path}') == 0
    assert (
        launch(
            '--config=configs/total_brightness.py:tiny',
            f'--workdir={tmp_path}',
            '--stages=finetune',
        )
        == 2
    )


def test_a_sum_of_rules_has_a_line_a_term(launch, tmp_path):
    # Not the row that is projected, which takes minutes.
    arguments = (
        '--config.constraint.name=divergence+kolmogorov',
        "--config.sample.rows=('dm','mdm','mdm_finetuned')",
    )
    assert run(launch, tmp_path, 'kolmogorov', *arguments)['rows']['mdm']
    records = [
        json.loads(line) for line in Path(tmp_path, 'metrics.jsonl').read_text().splitlines()
    ]
    last = [record for record in records if record['stage'] == 'mirror'][-1]
    total = last['train/constraint/divergence'] + last['train/constraint/kolmogorov']
    assert last['train/constraint'] == pytest.approx(total, rel=1e-4)


def test_tune_chooses_and_changes_nothing(launch, tmp_path, capsys):
    arguments = ('--config=configs/burgers.py:tiny', f'--workdir={tmp_path}')
    assert launch(*arguments, '--stages=data,mirror,tune') == 0
    assert 'sigma_max = ' in capsys.readouterr().err
    found = read_json(tmp_path / 'metrics.json')['tune']
    assert found['chosen']['sigma_max'] > 0 and found['chosen']['lambda_constr'] > 0
    assert found['now'] == {'sigma_max': 0.1, 'lambda_constr': 5.0}
    assert read_json(tmp_path / 'config.json')['config']['mirror']['sigma_max'] == 0.1
