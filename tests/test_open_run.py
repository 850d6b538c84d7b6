"""A finished run folder, read and never written."""

import os
import shutil
import stat

import jax.numpy as jnp
import numpy as np
import pytest

import namm_jax as nj
from namm_jax.experiment.files import read_json, write_json


@pytest.fixture(scope='module')
def run(tiny_run):
    return nj.open_run(tiny_run)


@pytest.mark.slow
def test_its_samples_are_those_of_the_table(tiny_run, run):
    kept = np.load(tiny_run / 'sample' / 'mdm_finetuned.npy')
    settings = run.config.sample
    assert settings.denoise_last and settings.n >= 4
    np.testing.assert_allclose(run.sample(4, seed=run.config.seed), kept[:4], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_data_rule_maps_and_priors_are_there(run):
    x = jnp.asarray(run.data('test')[:4])
    assert x.shape[1:] == run.problem.shape
    np.testing.assert_allclose(run.constraint.distance(jnp.asarray(x)), 0, atol=1e-6)
    np.testing.assert_allclose(
        run.f(run.g(x)), nj.land(run.constraint, run.mirror.project(x)), atol=1e-4
    )
    for prior in (run.dm, run.mdm):
        assert nj.sample(prior, jax_key(), 2, steps=2).shape == (2, *run.problem.shape)


def jax_key():
    import jax

    return jax.random.key(0)


@pytest.mark.slow
def test_a_posterior_in_one_call(run):
    operator = nj.operators.first_states(run.problem.shape, k=2)
    y = operator(jnp.asarray(run.data('test')[:1]))
    x = run.posterior(y[0], operator, 0.2, 3)
    assert x.shape == (3, *run.problem.shape) and bool(jnp.isfinite(x).all())
    np.testing.assert_array_equal(x, run.posterior(y, operator, 0.2, 3))
    function = lambda x: operator(x)
    np.testing.assert_allclose(x, run.posterior(y, function, 0.2, 3), atol=1e-5)
    with pytest.raises(ValueError, match='y: got shape'):
        run.posterior(y[:, :, :1], operator, 0.2, 3)


def test_nothing_is_written_and_no_lock_is_taken(tiny_run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(tiny_run, folder)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob('*')}
    for path in sorted(folder.rglob('*'), reverse=True):
        path.chmod(stat.S_IREAD | (stat.S_IEXEC if path.is_dir() else 0))
    try:
        first, second = nj.open_run(folder), nj.open_run(os.fspath(folder))
        np.testing.assert_array_equal(first.sample(2), second.sample(2))
        assert first.dm is not None and len(first.data('train'))
        after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob('*')}
        assert after == before
    finally:
        for path in folder.rglob('*'):
            path.chmod(stat.S_IRWXU)


def test_what_is_no_run_or_not_finished_is_said(tiny_run, tmp_path):
    with pytest.raises(ValueError, match='config.json is missing'):
        nj.open_run(tmp_path)
    folder = tmp_path / 'run'
    shutil.copytree(tiny_run, folder)
    record = folder / 'stages' / 'mdm.json'
    write_json(record, read_json(record) | {'finished': False})
    with pytest.raises(ValueError, match='stage mdm has not finished'):
        nj.open_run(folder).sample(1)
    (folder / 'stages' / 'mirror.json').unlink()
    shutil.rmtree(folder / 'mirror')
    with pytest.raises(ValueError, match='stage mirror has not finished; finish it with'):
        nj.open_run(folder).mirror  # noqa: B018
    saved = read_json(folder / 'config.json')
    saved['config']['constraint']['stepper'] = 'crank_nicolson'
    write_json(folder / 'config.json', saved)
    with pytest.raises(ValueError, match='of another version .*constraint.stepper'):
        nj.open_run(folder)
