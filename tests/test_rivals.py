"""Rivals: rejection, and a model that is told how far from the rule a field is."""

import itertools
import json
import math
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from namm_jax.denoising.denoisers import edm
from namm_jax.denoising.guidance import classifier_free
from namm_jax.denoising.samplers import make_sampler, sample_keys
from namm_jax.experiment import rejection
from namm_jax.experiment.experiment import Experiment
from namm_jax.experiment.files import read_json, write_json
from namm_jax.experiment.rejection import PATIENCE, accepted
from namm_jax.networks.unet import UNet
from namm_jax.training.recipes import conditioned_task, denoising_task, score

KEY = jax.random.key(0)


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
    assert accepted(blocks, lambda x: x < 0, 5) is None
    assert len(asked) == PATIENCE // 100 + 1  # the first block says too little
    asked.clear()
    rare = lambda x: np.arange(len(x)) < (x[0] == 0)  # one, and then none
    blocks = (asked.append(i) or np.zeros(100) + i for i in itertools.count())
    assert accepted(blocks, rare, 5) is None and len(asked) == PATIENCE // 100 + 1


@pytest.mark.slow
def test_a_run_draws_until_it_has_enough_and_goes_on_where_it_was(
    launch, tiny_run, tmp_path, monkeypatch, capsys
):
    folder, table = tmp_path / 'run', lambda: json.loads((folder / 'metrics.json').read_text())
    shutil.copytree(tiny_run, folder)
    rows = "--config.sample.rows=('dm','dm_ppr','dm_residual_conditioned','dm_rejected')"
    arguments = ('--config=configs/burgers.py:tiny', f'--workdir={folder}', rows)
    distances = np.sort(np.load(folder / 'evaluate' / 'arrays.npz')['distances/dm'])
    with monkeypatch.context() as patch:
        patch.setattr(rejection, 'bound', lambda experiment: float(distances[7]))
        assert launch(*arguments, '--redo=sample') == 0
        found = table()['rows']
        passed = found['dm_rejected']
        assert passed['n'] == 16 and passed['distance']['max'] <= distances[7] * (1 + 1e-6)
        assert passed['calls'] >= 2 * found['dm']['calls'] and found['dm_ppr']['calls'] == 21
        conditioned = found['dm_residual_conditioned']
        assert conditioned['calls'] == 14  # with and without the condition
        assert conditioned['training_seconds'] > found['dm']['training_seconds']
        assert conditioned['training_flops'] > found['dm']['training_flops']
        x, first = np.load(folder / 'sample/dm_rejected.npy'), np.load(folder / 'sample/dm.npy')
        assert all(any((a == b).all() for b in first) for a in x[:8])
        record = folder / 'stages/sample.json'
        write_json(record, read_json(record) | {'finished': False})
        (folder / 'sample/dm_rejected.npy').unlink()  # as if it had been stopped before
        kept = (folder / 'sample/candidates-1.npy').stat().st_mtime_ns
        assert launch(*arguments, '--stages=sample') == 0
        assert (folder / 'sample/candidates-1.npy').stat().st_mtime_ns == kept
        np.testing.assert_array_equal(np.load(folder / 'sample/dm_rejected.npy'), x)
    assert launch(*arguments, '--redo=sample') == 0
    assert 'dm_rejected: not one sample in 200' in capsys.readouterr().err
    assert 'dm_rejected' not in table()['rows'] and 'dm_ppr' in table()['rows']


@pytest.mark.slow
def test_samples_without_a_distance_condition_nothing(
    launch, tiny_run, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / 'run'
    shutil.copytree(tiny_run, folder)
    rows = "--config.sample.rows=('dm','dm_residual_conditioned')"
    arguments = ('--config=configs/burgers.py:tiny', f'--workdir={folder}', rows)
    measured = Experiment.distances
    for lost, status in ((4, 0), (9, 2)):
        spoiled = lambda self, x, lost=lost: np.r_[np.full(lost, np.nan), measured(self, x)[lost:]]
        monkeypatch.setattr(Experiment, 'distances', spoiled)
        more = ('--config.condition.samples=24', '--redo=condition', '--stages=condition')
        assert launch(*arguments, *more) == status
    assert 'condition: got 15 of 24 samples at a finite distance' in capsys.readouterr().err


@pytest.mark.slow
def test_samples_that_diverged_are_counted_and_left_out(
    launch, tiny_run, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / 'run'
    shutil.copytree(tiny_run, folder)
    table = lambda: json.loads((folder / 'metrics.json').read_text())['rows']
    before, load = table(), Experiment.load

    def spoiled(experiment, path):
        x = np.array(load(experiment, path))
        x[: {'dm': 3, 'dm_projected': 16}.get(path.stem, 0), 0, 0] = np.nan
        return x

    monkeypatch.setattr(Experiment, 'load', spoiled)
    assert launch('--config=configs/burgers.py:tiny', f'--workdir={folder}', '--redo=evaluate') == 0
    after, told = table(), capsys.readouterr().err
    assert 'dm: 3 of 16 samples are not finite' in told and 'dm_projected: 16 of 16' in told
    assert 'dm_projected' in before and 'dm_projected' not in after
    assert (after['dm']['n'], after['dm']['diverged'], after['dm']['distribution']) == (13, 3, {})
    distances = np.load(tiny_run / 'evaluate/arrays.npz')['distances/dm'][3:]
    np.testing.assert_allclose(after['dm']['distance']['max'], distances.max(), rtol=1e-6)
    assert after['mdm'] == before['mdm'] and after['data'] == before['data']


@pytest.mark.slow
def test_a_conditioned_model_starts_as_the_model_and_knows_no_level_below_zero():
    network, shape, zeros = UNet((8,), fold=1), (4, 4, 1), jnp.zeros(2)
    params = denoising_task(network, shape, optax.sgd(0.1)).init(KEY)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)
    started = conditioned_task(network, shape, params, optax.sgd(0.1)).init(KEY)
    x, label = jax.random.normal(KEY, (2, *shape)), jnp.array([-0.5, 0.3])
    at = lambda params, *level: score(network, params, x, label, *level)
    np.testing.assert_array_equal(at(started, zeros + 0.3), at(params))
    moved = started | {'level': jax.tree.map(lambda p: p + 1, started['level'])}
    np.testing.assert_array_equal(at(moved, zeros - 1), at(params))
    assert float(jnp.abs(at(moved, zeros + 0.3) - at(params)).min()) > 1e-3


class Affine(nn.Module):
    """A score network whose output is affine in x, as the best one of normal data is."""

    @nn.compact
    def __call__(self, x, label, level, *, train=False):
        told = jnp.stack([label, level, level < 0], 1)
        slope, shift = jnp.split(nn.Dense(2)(nn.tanh(nn.Dense(32)(told))), 2, 1)
        return slope[..., None, None] * x + shift[..., None, None]


@pytest.mark.slow
def test_what_is_trained_with_levels_draws_normal_data_at_level_zero():
    """Data are N(0.5, 0.2), the samples of the model N(-0.5, 0.2), half of what has no level."""
    task = conditioned_task(Affine(), (4, 4, 1), {}, optax.adam(1e-2))

    def step(state, key):
        params, moments = state
        x = 0.2 * jax.random.normal(key, (2, 64, 4, 4, 1))
        batch = {'x': x[0] + 0.5, 'z': x[1] - 0.5, 'level': jnp.full(64, 0.5)}
        slope = jax.grad(lambda p: task.loss(p, task.frozen, key, batch, train=True)[0])(params)
        updates, moments = task.optimizer.update(slope, moments)
        return (optax.apply_updates(params, updates), moments), None

    params = task.init(KEY)
    state = params, task.optimizer.init(params)
    (params, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(KEY, 1500)))(state)
    at = lambda level: edm(mean=0.0, std=1.0).denoiser(
        lambda u, label: score(Affine(), params, u, label, jnp.full(len(u), level))
    )
    draw = make_sampler('ddim', steps=40)
    keys = sample_keys(KEY, 200)
    mean = lambda denoiser: float(draw(keys, denoiser, (4, 4, 1)).mean())
    assert mean(at(0.0)) == pytest.approx(0.5, abs=0.05)
    assert mean(at(0.5)) == pytest.approx(-0.5, abs=0.05)
    assert mean(at(-1.0)) == pytest.approx(0.0, abs=0.3)  # of the two, by an affine network
    beyond = classifier_free(at(0.0), at(-1.0), 2.0)
    assert mean(beyond) > 0.55
