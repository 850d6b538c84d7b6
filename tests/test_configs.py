"""Every config with every preset: it loads, it is locked, and all its objects can be built."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from namm_jax.experiment.config import flatten, override, steps_of
from namm_jax.experiment.experiment import check
from namm_jax.experiment.schema import check_ranges, fields, schema
from namm_jax.training.optimizers import learning_rate_schedule

ROOT = Path(__file__).resolve().parent.parent


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIGS = {path.stem: load(path) for path in sorted((ROOT / 'configs').glob('*.py'))}
EVERY = [(name, preset) for name, config in CONFIGS.items() for preset in config.PRESETS]
DEAR = {  # large networks take a second each to trace, and those of one constraint stand for all
    (name, preset)
    for name, preset in EVERY
    if preset in ('paper', 'published') and name != 'burgers'
}
BUILT = [
    pytest.param(*both, marks=[pytest.mark.slow] * (both in DEAR))
    for both in EVERY
    if both[0] != 'own'
]


@pytest.mark.parametrize(('name', 'preset'), EVERY)
def test_config_is_whole_locked_and_typed(name, preset):
    config = CONFIGS[name].get_config(preset)
    assert flatten(config).keys() == fields(config.data.problem).keys()
    with pytest.raises((AttributeError, KeyError)):
        config.mirror.stepz = 1
    with pytest.raises(TypeError):
        config.mirror.steps = 'ten'


@pytest.mark.parametrize(('name', 'preset'), BUILT)
def test_every_object_can_be_built(name, preset):
    check(CONFIGS[name].get_config(preset))


@pytest.mark.parametrize('name', CONFIGS)
def test_quick_is_the_default_and_unknown_presets_are_refused(name):
    assert CONFIGS[name].get_config() == CONFIGS[name].get_config('quick')
    with pytest.raises(
        ValueError, match=r"preset: got 'papr', expected one of .*; did you mean paper"
    ):
        CONFIGS[name].get_config('papr')


def test_config_loads_from_any_directory_and_imports_no_solver(tmp_path):
    path = str(ROOT / 'configs' / 'burgers.py')
    code = (
        f'import runpy, sys; runpy.run_path({path!r})["get_config"](); '
        'assert "jax_cfd" not in sys.modules'
    )
    environment = {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_override_refuses_what_is_no_field():
    config = override(schema(), {'mirror.optimizer.b1': 0.5})
    assert (
        config.mirror.optimizer.b1 == 0.5 and config.finetune.optimizer.b1 == 0.9
    )  # each has its own
    with pytest.raises(ValueError, match=r'did you mean mirror\.lambda_constr or'):
        override(schema(), {'mirror.lamda_constr': 1.0})


PUBLISHED = {  # a deviation from the paper -> the option that switches it back
    'time stepper': ('data.stepper', 'forward_euler'),
    'average of the weights': ('mirror.optimizer.ema', 0.0),
    'average of the weights of f': ('finetune.optimizer.ema', 0.0),
    'padding of g': ('mirror.forward_padding', 'circular'),
    'padding of f': ('mirror.inverse_padding', 'zeros'),
    'padding of the score network': ('score.padding', 'zeros'),
    'network of f': ('mirror.inverse', 'resnet'),
    'output of f': ('mirror.output', 'residual_softplus'),
    'dropout of f': ('mirror.dropout', 0.5),
    'parameterisation': ('score.parameterisation', 'vp'),
    'reduction of the denoising loss': ('score.reduction', 'half_sum'),
    'sampler': ('sample.sampler', 'euler_maruyama'),
    'steps of the sampler': ('sample.steps', 1000),
    'clipping': ('mirror.optimizer.clip', 0.0),
    'schedule': ('mirror.optimizer.decay', 'constant'),
    'warm-up': ('mirror.optimizer.warmup', 0.0),
    'law of the noise': ('mirror.sigma_power', 1.0),
    'law of the noise in finetuning': ('finetune.sigma_power', 1.0),
    'momentum': ('mirror.optimizer.b1', 0.5),
}


@pytest.mark.parametrize('deviation', PUBLISHED)
def test_published_switches_every_deviation_back(deviation):
    (name, expected), config = PUBLISHED[deviation], CONFIGS['burgers']
    *sections, field = name.split('.')
    values = []
    for preset in ('published', 'paper'):
        section = config.get_config(preset)
        for part in sections:
            section = section[part]
        values.append(section[field])
    assert values[0] == expected != values[1]


def test_published_burgers_setting():
    for preset in ('paper', 'published'):
        config = CONFIGS['burgers'].get_config(preset)
        assert (config.data.train, config.data.validation, config.data.test) == (
            10_000,
            1_000,
            1_000,
        )
        assert (config.data.points, config.data.states, config.data.inner_steps) == (64, 64, 5)
        assert (config.mirror.steps, config.mirror.sigma_max, config.mirror.lambda_constr) == (
            100 * 625,
            0.1,
            1.0,
        )
        assert (config.mdm.steps, config.dm.steps) == (300 * (10_000 // 64), 1500 * (10_000 // 64))
        assert config.mirror.reduction == 'row_sum' and config.finetune.samples == 12_800


def test_learning_rate():
    settings = dict(learning_rate=0.2, warmup=0.1, decay='cosine', accumulate=1)
    rates = [learning_rate_schedule(100, **settings)(step) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.1, 0], atol=1e-7)
    settings |= dict(decay='constant')
    rates = [learning_rate_schedule(100, **settings)(step) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.2, 0.2], atol=1e-7)
    settings |= dict(warmup=0.0)
    rates = [learning_rate_schedule(100, **settings)(step) for step in (0, 99)]
    np.testing.assert_allclose(rates, 0.2, rtol=1e-6)


def test_budget_multiplies_steps():
    config = override(schema(), {'mdm.steps': 10, 'train.budget': 0.25})
    assert steps_of(config, 'mdm') == 2
    assert steps_of(override(config, {'train.budget': 0.001}), 'mdm') == 1


@pytest.mark.parametrize('low', AT_LEAST)
def test_numbers_below_their_range_are_refused(low):
    for name in AT_LEAST[low].split():
        with pytest.raises(
            ValueError, match=f'^{name}: got -?{abs(low - 1)}(.0)?, expected at least {low}'
        ):
            check_ranges(override(schema(), {name: low - 1}))


def test_sizes_that_do_not_fit_are_refused():
    for changes, message in (
        (
            {'score.batch_size': 5000},
            'data.train: got 4000, expected at least 5000, the largest batch',
        ),
        ({'data.validation': 15}, 'data.validation: got 15, expected at least 16'),
        ({'finetune.samples': 15}, 'finetune.samples: got 15, expected at least 16'),
        ({'score.channels': ()}, 'score.channels: got 0, expected a positive number'),
        ({'mirror.dropout': 1.0}, '1 - mirror.dropout: got 0.0, expected a positive number'),
        ({'train.budget': float('nan')}, 'train.budget: got nan, expected a positive number'),
    ):
        with pytest.raises(ValueError, match=message):
            check_ranges(override(schema(), changes))
