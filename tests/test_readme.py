"""The README's program runs as it stands, with fewer fields and steps, and its sizes are the
documented ones.
"""

import importlib.util
import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()


PROGRAMS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
SMALLER = {
    'points=32, states=32': 'points=16, states=8, inner_steps=1',
    ', 1024)': ', 64)',
    '(512, 16, 16, 1)': '(64, 8, 8, 1)',
    'steps=500': 'steps=2',
    '16))': '2))',
    ', 16)': ', 2)',
    'k=4': 'k=2',
}


@pytest.mark.parametrize('index', range(len(PROGRAMS)))
def test_a_program_runs_as_printed_but_for_its_sizes(index):
    program = PROGRAMS[index]
    for large, small in SMALLER.items():
        program = program.replace(large, small)
    scope = {}
    exec(compile(program, 'README.md', 'exec'), scope)
    arrays = [value for name, value in scope.items() if name in ('samples', 'found', 'guided')]
    assert len(PROGRAMS) == 3 and all(np.isfinite(array).all() for array in arrays)


def test_the_first_program_is_the_front_door():
    assert 'nj.fit(nj.namm(burgers), x, steps=500)' in PROGRAMS[0]
    assert README[: README.index('```python')].count('\n') < 40


def test_files_that_the_readme_names_exist():
    named = set(
        re.findall(r'`((?:namm_jax|tests|configs|launch|benchmarks)/[\w/]*(?:\.\w+)?)`?', README)
    )
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]


OWN = re.findall(
    r'^python (docs/own_rule\.py|launch/main\.py --config=configs/own\.py.*)$', README, re.MULTILINE
)


def own_rule(tmp_path, monkeypatch):
    """Follows the README's page up to its command, in another folder; returns that command's
    arguments.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'docs').mkdir()
    shutil.copy(ROOT / OWN[0], tmp_path / 'docs')
    runpy.run_path(str(tmp_path / OWN[0]), run_name='__main__')
    return OWN[1].replace('own.py ', 'own.py:tiny ').split()[1:]


def test_rule_of_ones_own_is_checked_first(tmp_path, monkeypatch, launch, capsys):
    arguments = own_rule(tmp_path, monkeypatch)
    assert launch('--workdir=run', '--stages=data', *arguments) == 0
    told = capsys.readouterr().err
    assert re.search(r'distance: \S+e-0[6-9] on your data', told) and 'warning' not in told
    record = json.loads((tmp_path / 'run' / 'stages' / 'data.json').read_text())
    assert record['floor_max'] < 1e-5 < 1e-2 < record['perturbed_mean']


def test_data_that_do_not_obey_are_told(tmp_path, monkeypatch, launch, capsys):
    arguments = own_rule(tmp_path, monkeypatch)
    np.save(
        'own_data.npy', np.random.default_rng(0).normal(size=(200, 16, 16, 1)).astype(np.float32)
    )
    assert launch('--workdir=run', '--stages=data', *arguments) == 0
    assert 'warning: your data do not obey your rule well' in capsys.readouterr().err


@pytest.mark.slow
def test_rule_of_ones_own_from_data_to_report(tmp_path, monkeypatch, launch):
    arguments = own_rule(tmp_path, monkeypatch)
    assert launch('--workdir=run', *arguments) == 0
    assert (tmp_path / 'run' / 'report.html').exists()
    rows = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['rows']
    assert rows['data']['distance']['max'] < 1e-5 and np.isfinite(
        rows['mdm_finetuned']['distance']['mean']
    )


def test_tables_are_those_of_the_results():
    spec = importlib.util.spec_from_file_location('results', ROOT / 'benchmarks' / 'results.py')
    results = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(results)
    assert results.with_tables(README) == README, (
        'write them again: python benchmarks/results.py --readme'
    )
