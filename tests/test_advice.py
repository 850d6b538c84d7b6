"""Which way to take: made tables whose answer is plain."""

import math

import pytest

from namm_jax.experiment.advice import advise


def row(distance, area=0.6, training=100.0, seconds=0.01):
    return {
        'distance': {'median': distance},
        'distribution': {'two_sample': {'value': area}},
        'training_seconds': training,
        'seconds_per_sample': seconds,
    }


DATA = {'distance': {'median': 1e-7}, 'distribution': {'two_sample': {'value': 0.5, 'std': 0.02}}}
# An exact projection costs nothing and loses nothing.
EXACT = {
    'data': DATA,
    'dm': row(0.1),
    'dm_restored': row(1e-8),
    'dm_projected': row(2e-8, seconds=0.1),
    'mdm': row(0.01, training=300),
    'mdm_polished': row(3e-8, training=300),
}
# Projecting deforms the samples, and so does f of the mirror model before it is finetuned.
DEFORMED = {
    'data': DATA,
    'dm': row(0.1),
    'dm_guided': row(0.04, seconds=0.02),
    'dm_projected': row(1e-6, area=0.9),
    'mdm': row(0.002, area=0.7, training=200),
    'mdm_finetuned': row(0.001, area=0.61, training=300),
}
# The solver in each step is as near as f, and slow.
SLOW = {
    'data': DATA,
    'dm': row(0.1),
    'dm_projected_sampling': row(0.001, seconds=2.5),
    'mdm_finetuned': row(0.0015, training=300, seconds=0.5),
}


def test_an_exact_way_back_is_nearest_and_cheapest():
    found = advise(EXACT)
    assert found['nearest'] == found['cheapest'] == 'dm_restored' and not found['mirror_map']
    assert found['text'] == (
        'Take dm_restored (median distance 1.00e-7): nearest to the rule, as like the data '
        'as dm, and cheapest. The mirror map is not worth its training here: mdm_polished '
        '(median distance 1.00e-7) against dm_restored (median distance 1.00e-7) without it.'
    )


def test_a_model_that_is_told_from_the_data_every_time_is_to_be_trained_longer():
    told = {name: row(of['distance']['median'], 1.0) for name, of in EXACT.items()} | {'data': DATA}
    ending = 'dm itself is told from the data every time: train it longer before you choose.'
    assert advise(told)['text'].endswith(ending)
    assert 'every time' not in advise(EXACT)['text']


def test_the_mirror_map_where_all_else_deforms():
    found = advise(DEFORMED)
    assert found['nearest'] == 'mdm_finetuned' and found['mirror_map']
    assert found['cheapest'] == 'dm_guided'  # 100 s + 20 s against 300 s + 10 s
    assert found['text'] == (
        'Take mdm_finetuned (median distance 0.00100): nearest to the rule, as like the data '
        'as dm; dm_guided (median distance 0.0400) is cheapest, at 0.387 of the time for '
        '1,000 samples. The mirror map is worth its training here: mdm_finetuned (median distance '
        '0.00100) against dm_guided (median distance 0.0400) without it.'
    )


def test_as_near_and_faster_pays_from_a_number_of_samples_on():
    found = advise(SLOW)
    assert found['nearest'] == 'dm_projected_sampling' and found['cheapest'] == 'mdm_finetuned'
    # 200 s more of training, 2 s less a sample
    assert found['mirror_map'] and 'it pays from 100 samples on.' in found['text']


def test_of_rows_as_near_the_cheapest_is_the_rival():
    rows = SLOW | {'dm_landed': row(0.0011, seconds=0.08)}
    found = advise(rows)
    assert found['cheapest'] == 'dm_landed' and not found['mirror_map']
    assert 'against dm_landed (median distance 0.00110) without it' in found['text']


def test_a_mirror_side_that_trained_a_little_less_is_not_the_cheaper_one():
    rows = EXACT | {'mdm_finetuned': row(1e-8, training=90)}
    found = advise(rows)
    assert found['nearest'] == found['cheapest'] == 'dm_restored' and not found['mirror_map']
    clearly = advise(rows | {'mdm_finetuned': row(1e-8, training=20)})
    assert clearly['nearest'] == clearly['cheapest'] == 'mdm_finetuned' and clearly['mirror_map']


def test_a_rule_that_the_model_keeps_by_itself_needs_nothing():
    rows = {'data': DATA, 'dm': row(0), 'dm_projected': row(0), 'mdm': row(0, training=10)}
    found = advise(rows)
    assert found['nearest'] == found['cheapest'] == 'dm' and not found['mirror_map']


def test_nothing_is_nearer():
    rows = {'data': DATA, 'dm': row(0.1), 'dm_guided': row(0.09), 'mdm': row(1e-3, area=0.8)}
    found = advise(rows)
    assert found['cheapest'] == 'dm' and not found['mirror_map']
    assert found['text'].startswith('Take dm (median distance 0.100): no row as like the data')
    assert found['text'].endswith('not worth its training here: all its rows lose distribution.')


def test_the_noise_of_the_floor_is_the_limit():
    rows = lambda area: {'data': DATA, 'dm': row(0.1), 'mdm': row(1e-3, area=area)}
    assert advise(rows(0.6199))['nearest'] == 'mdm'
    assert advise(rows(0.6201))['nearest'] == 'dm'


def test_means_over_seeds_count():
    mean = lambda value: {'mean': value, 'std': 0.1, 'n': 3}

    def over_seeds(tree):
        return {k: over_seeds(v) for k, v in tree.items()} if isinstance(tree, dict) else mean(tree)

    assert advise(over_seeds(DEFORMED)) == advise(DEFORMED)


def test_a_row_that_some_seeds_lack_is_passed_over():
    mean = lambda value, n=3: {'mean': value, 'std': 0.1, 'n': n}
    rows = {
        name: of | {'distance': {'median': mean(of['distance']['median'])}}
        for name, of in EXACT.items()
    }
    assert advise(rows)['nearest'] == 'dm_restored'
    rows['dm_restored'] = row(1e-8) | {'distance': {'median': mean(1e-8, 1)}}
    assert advise(rows)['nearest'] != 'dm_restored'


def test_a_row_that_costs_more_is_never_the_cheapest():
    rows = {
        'data': DATA,
        'dm': row(1.0),
        'dm_guided': row(0.4, seconds=0.13),
        'mdm_finetuned': row(0.1, training=80, seconds=0.05),
    }
    found = advise(rows)
    assert found['nearest'] == found['cheapest'] == 'mdm_finetuned' and found['mirror_map']


@pytest.mark.parametrize('rows', [{}, {'data': DATA}, {'dm': row(0.1)}, {'data': {}, 'dm': {}}])
def test_too_little_gives_none(rows):
    assert advise(rows) == {}


def test_a_row_that_is_not_finite_is_passed_over():
    for bad in (math.nan, None):
        rows = DEFORMED | {'mdm_finetuned': row(bad, training=300)}
        assert advise(rows)['nearest'] == 'dm_guided'
