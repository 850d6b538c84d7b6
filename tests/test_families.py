"""What problems say of their data, against the data."""

import importlib

import jax
import numpy as np
import pytest

from namm_jax.experiment import build
from namm_jax.experiment.problem import make_problem


@pytest.mark.parametrize(
    'name', ['burgers', pytest.param('divergence', marks=pytest.mark.slow), 'periodic']
)
def test_the_law_of_data_repeats_after_a_cell_and_no_part_of_it_and_networks_are_told_so(name):
    config = importlib.import_module(f'configs.{name}').get_config('tiny')
    if name == 'divergence':
        config.data.burn_in, config.data.inner_steps = 1.0, 1  # for the force to be felt
    problem, n = make_problem(config), 1024
    x = np.asarray(problem.sample(jax.random.key(0), n))
    for network in (build.make_score(config), build.make_inverse(config)):
        assert network.cell == tuple(
            np.where(problem.periodic, problem.cell, 1)
        )  # elsewhere padding tells
    for axis in np.flatnonzero(problem.periodic):
        along, across, cell = axis + 1, 2 - axis, problem.cell[axis]
        profiles = [
            statistic.mean(across) for statistic in (x, (x - np.roll(x, 1, along)) ** 2)
        ]  # of each sample
        for roll in (d for d in range(1, cell + 1) if cell % d == 0):
            changes = [profile - np.roll(profile, roll, 1) for profile in profiles]
            scores = [
                np.abs(change.mean(0)) / (change.std(0) / np.sqrt(n) + 1e-9) for change in changes
            ]
            assert np.max(scores) < 5 if roll == cell else np.max(scores) > 8
