"""Every config with every preset: it loads, it is locked, and all its objects can be built."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from namm_jax import mirror
from namm_jax.denoising import denoisers, samplers
from namm_jax.experiment import build, devices, posteriors
from namm_jax.experiment.config import flatten, override, steps_of
from namm_jax.experiment.experiment import check
from namm_jax.experiment.schema import check_ranges, fields, schema
from namm_jax.networks import counter, icnn, unet
from namm_jax.training import recipes
from namm_jax.training.optimizers import learning_rate_schedule, make_optimizer

ROOT = Path(__file__).resolve().parent.parent


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIGS = {path.stem: load(path) for path in sorted((ROOT / 'configs').glob('[!_]*.py'))}
EVERY = [(name, preset) for name, config in CONFIGS.items() for preset in config.PRESETS]
# of the others each takes seconds to trace
BUILT = [
    pytest.param(*both, marks=[pytest.mark.slow] * (both[1] != 'tiny'))
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
    with pytest.raises(ValueError, match=r'did you mean mirror\.lambda_constr, '):
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
    'steps that end f': ('sample.landing', 0),
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


def test_numbers_out_of_their_range_are_refused():
    config, beyond = schema('galaxies'), {'least': -1, 'above': 0, 'most': 1, 'below': 0}
    words = {'least': 'at least', 'above': 'more than', 'most': 'at most', 'below': 'less than'}
    found = {name: field for name, field in fields('galaxies').items() if field.limits}
    assert len(found) > 80
    for name, field in found.items():
        for limit, bound in field.limits.items():
            value = bound + beyond[limit]
            value = (value,) if isinstance(field.default, tuple) else value
            with pytest.raises(
                ValueError, match=f'^{name}: got .*, expected {words[limit]} {bound}$'
            ):
                check_ranges(override(config, {name: value}))
        check_ranges(override(config, {name: field.default}))


def test_values_of_another_type_are_refused():
    for name, value, message in (
        ('mirror.channels', (8, 'a'), "got (8, 'a'), expected items of type int"),
        ('mirror.channels', (True,), 'got (True,), expected items of type int'),
        ('score.channels', (), 'got (), expected at least one'),
        ('sample.rows', (1,), 'got (1,), expected items of type str'),
        ('constraint.weights', ('1',), "got ('1',), expected items of type float"),
        ('mirror.optimizer.clip', float('inf'), 'got inf, expected finite numbers'),
        ('dm.steps', 2**31, f'got {2**31}, expected at most {2**31 - 1}'),
        ('mirror.output', 'plane', "got 'plane', expected one of .*did you mean plain"),
    ):
        pattern = message if '.*' in message else re.escape(message)
        with pytest.raises(ValueError, match=f'^{name}: {pattern}'):
            check_ranges(override(schema(), {name: value}))
    check_ranges(override(schema(), {'seed': 2**40, 'mirror.inverse': 'my_network.py:Mine'}))


def test_ranges_as_text():
    table = fields('burgers')
    for name, text in {
        'mirror.steps': '>= 1',
        'train.budget': '> 0',
        'mirror.strong_convexity': '(0, 1]',
        'mirror.dropout': '[0, 1)',
        'mirror.optimizer.name': 'adam | muon',
        'data.stepper': 'crank_nicolson | forward_euler',
        'data.mu': '',
    }.items():
        assert table[name].range == text, name
    assert fields('kolmogorov')['data.drag'].range == '<= 0'


def test_choices_are_the_names_that_choose():
    for name, choices in {
        'mirror.map': build.MAPS,
        'mirror.forward_padding': build.PADDINGS,
        'mirror.output': mirror.OUTPUTS,
        'mirror.reduction': icnn.REDUCTIONS,
        'mirror.norm': unet.NORMS,
        'mirror.inverse': build.F.kinds,
        'mirror.forward': build.G.kinds,
        'score.network': build.SCORE.kinds,
        'score.parameterisation': denoisers.PARAMETERISATIONS,
        'sample.sampler': samplers.SAMPLERS,
        'train.compute_dtype': build.DTYPES,
        'assimilate.strength': posteriors.STRENGTHS,
        'sharding.parameters': devices.PARAMETERS,
        'counter.network': counter.COUNTERS,
    }.items():
        found = [choice for choice in fields('galaxies')[name].choices if ':' not in choice]
        assert sorted(found) == sorted(choices), name


def test_defaults_are_those_of_the_front_door():
    table = flatten(schema('galaxies'))
    for section, function in {
        'mirror': recipes.namm,
        'finetune': recipes.finetune,
        'score': recipes.diffusion,
        'score.optimizer': make_optimizer,
        'counter': counter.DensityCounter,
    }.items():
        arguments = inspect.signature(function).parameters.items()
        defaults = {name: of.default for name, of in arguments if of.default is not None}
        shared = {name: of for name, of in defaults.items() if f'{section}.{name}' in table}
        assert len(shared) > 1
        assert shared == {name: table[f'{section}.{name}'] for name in shared}, section


def test_a_closed_form_asks_for_data_in_its_set():
    config = schema()
    build.check_map(config, lambda: pytest.fail('read for a learned map'))
    for name, good, bad in (('box', 1.0, 1.1), ('simplex', 9.0, -0.1)):
        config.mirror.map = name
        build.check_map(config, lambda good=good: np.array([0.0, good]))
        with pytest.raises(ValueError, match=f'mirror.map: got {name} for data from .* to '):
            build.check_map(config, lambda bad=bad: np.array([0.5, bad]))


def test_sizes_that_do_not_fit_are_refused():
    for changes, message in (
        (
            {'score.batch_size': 5000},
            'data.train: got 4000, expected at least 5000, the largest batch',
        ),
        ({'finetune.samples': 15}, 'finetune.samples: got 15, expected at least 16'),
        ({'train.budget': float('nan')}, 'train.budget: got nan, expected finite numbers'),
        ({'train.budget': 1e9}, 'train.budget: got 1000000000.0 for mirror.steps = 1500, expected'),
    ):
        with pytest.raises(ValueError, match=message):
            check_ranges(override(schema(), changes))
