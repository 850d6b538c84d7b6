"""Rejection: candidates until enough obey."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest

from namm_jax.experiment import rejection
from namm_jax.experiment.rejection import PATIENCE, accepted


def normal_blocks(size=2000):
    generator = np.random.default_rng(0)
    for _ in itertools.count():
        yield generator.normal(size=(size, 3))


def within(limit):
    return lambda x: np.abs(x.sum(1)) <= limit


def test_what_passes_is_the_truncated_law_at_the_cost_of_its_probability():
    """A sum of three is N(0, 3); within its standard deviation are 68 %."""
    limit = math.sqrt(3)
    x, candidates = accepted(normal_blocks(), within(limit), 20_000)
    assert len(x) == 20_000 and within(limit)(x).all()
    inside = math.erf(1 / math.sqrt(2))
    assert candidates == pytest.approx(1 / inside, rel=0.02)
    density = math.exp(-0.5) / math.sqrt(2 * math.pi)
    assert x.sum(1).var() == pytest.approx(3 * (1 - 2 * density / inside), rel=0.02)
    assert (x[:, 0] - x[:, 1]).var() == pytest.approx(2, rel=0.03)  # of which the rule says nothing


def test_it_takes_the_first_that_pass_and_asks_for_no_more_than_it_needs():
    asked = []
    blocks = (asked.append(i) or np.arange(4.0) + 4 * i for i in itertools.count())
    x, candidates = accepted(blocks, lambda x: x % 2 == 1, 3)
    assert list(x) == [1, 3, 5] and candidates == 2 and asked == [0, 1]


def test_it_ends_where_fewer_than_one_in_200_passes():
    asked = []
    blocks = (asked.append(i) or np.zeros(100) + i for i in itertools.count())
    assert accepted(blocks, lambda x: x < 0, 5) is None and asked == [0]
    rare = lambda x: np.arange(len(x)) < (x[0] == 0)  # one, and then none
    blocks = (asked.append(i) or np.zeros(100) + i for i in itertools.count())
    assert accepted(blocks, rare, 5) is None and len(asked) == 1 + PATIENCE // 100 + 1


@pytest.mark.slow
def test_a_run_draws_until_it_has_enough_and_goes_on_where_it_was(
    launch, tiny_run, tmp_path, monkeypatch, capsys
):
    folder, table = tmp_path / 'run', lambda: json.loads((folder / 'metrics.json').read_text())
    shutil.copytree(tiny_run, folder)
    rows = "--config.sample.rows=('dm','dm_ppr','dm_rejected','mdm_finetuned')"
    arguments = ('--config=configs/burgers.py:tiny', f'--workdir={folder}', rows)
    distances = np.sort(np.load(folder / 'evaluate' / 'arrays.npz')['distances/dm'])
    with monkeypatch.context() as patch:
        patch.setattr(rejection, 'bound', lambda experiment: float(distances[7]))
        assert launch(*arguments, '--redo=sample') == 0
        found = table()['rows']
        passed = found['dm_rejected']
        assert passed['n'] == 16 and passed['distance']['max'] <= distances[7] * (1 + 1e-6)
        assert passed['calls'] >= 2 * found['dm']['calls'] and found['dm_ppr']['calls'] == 21
        x, first = np.load(folder / 'sample/dm_rejected.npy'), np.load(folder / 'sample/dm.npy')
        assert all(any((a == b).all() for b in first) for a in x[:8])
        kept = (folder / 'sample/candidates-1.npy').read_bytes()
        (folder / 'stages/sample.json').unlink()
        (folder / 'stages/evaluate.json').unlink()
        (folder / 'stages/report.json').unlink()
        assert launch(*arguments) == 0
        assert (folder / 'sample/candidates-1.npy').read_bytes() == kept
        np.testing.assert_array_equal(np.load(folder / 'sample/dm_rejected.npy'), x)
    assert launch(*arguments, '--redo=sample') == 0
    assert 'dm_rejected: not one sample in 200' in capsys.readouterr().err
    assert 'dm_rejected' not in table()['rows'] and 'dm_ppr' in table()['rows']
