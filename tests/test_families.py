"""What families say of their data, against the data."""

import importlib

import numpy as np
import pytest

from namm_jax.train import tasks
from namm_jax.train.families import make_family


@pytest.mark.parametrize('name', ['burgers', 'divergence', 'periodic'])
def test_data_that_wrap_are_homogeneous_where_their_family_says_so_and_networks_are_told_where_not(name):
    config = importlib.import_module(f'configs.{name}').get_config('tiny')
    if name == 'divergence':
        config.data.burn_in, config.data.inner_steps = 1.0, 1  # for the force to be felt
    family, n = make_family(config), 1024
    x = np.asarray(family.pack(family.fields(np.arange(n))))
    for axis in np.flatnonzero(family.periodic):
        along, across = axis + 1, 2 - axis
        scores = []
        for statistic in (x, (x - np.roll(x, 1, along)) ** 2):
            profiles = statistic.mean(across)  # of each sample
            profile, error = profiles.mean(0), profiles.std(0) / np.sqrt(n) + 1e-9
            scores.append(np.abs((profile - profile.mean(0)) / error).max())
        assert max(scores) < 5 if family.homogeneous[axis] else max(scores) > 8
        for network in (tasks.make_score(config), tasks.INVERSES['unet'](config)):
            assert network.position[axis] != family.homogeneous[axis]
