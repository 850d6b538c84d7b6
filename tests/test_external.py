"""A trained denoiser of one's own in the place of the diffusion model of data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_formats import save_net

from namm_jax import __main__ as program
from namm_jax.experiment import build, cli
from namm_jax.experiment.files import UserError
from namm_jax.experiment.problem import with_own_data

RULE = 'docs/own_rule.py:rows_sum_to_one'
# The mean of x_0 given x, of pixels that are normal with mean 1 / 6 and standard deviation 0.3.
GAUSSIAN = """
import jax.numpy as jnp

def denoiser(x, sigma):
    sigma = jnp.reshape(sigma, (-1, 1, 1, 1))
    return (0.3**2 * x + sigma**2 / 6) / (0.3**2 + sigma**2)

def of_another_shape(x, sigma):
    return x.mean(3)

def wrong_unit(x, sigma):
    return 1000 * denoiser(x / 1000, sigma / 1000)
"""


@pytest.fixture
def config(tmp_path):
    """Returns a function from overrides to the config of own data with a denoiser."""
    (tmp_path / 'mine.py').write_text(GAUSSIAN)
    x = np.random.default_rng(0).normal(1 / 6, 0.3, size=(40, 4, 6, 2)) * [1, 3]
    np.save(tmp_path / 'x.npy', x.astype(np.float32))

    def make(name='denoiser'):
        fields = {'data.path': tmp_path / 'x.npy', 'constraint.distance': RULE}
        fields['score.external'] = f'{tmp_path}/mine.py:{name}'
        overrides = [f'--config.{field}={value}' for field, value in fields.items()]
        return cli.parse('run', ['own:tiny', *overrides]).config

    return make


def test_its_noise_has_one_level_for_all_channels(config):
    config = with_own_data(config())
    assert len(config.data.mean) == 2 and len(set(config.data.scale)) == 1
    scale = config.data.scale[0]
    assert scale == pytest.approx(0.3 * np.sqrt((1 + 9) / 2), rel=0.1)
    u = jax.random.normal(jax.random.key(0), (3, 4, 6, 2))
    s = jnp.array([0.1, 1.0, 10.0])
    x = jnp.asarray(config.data.mean) + scale * u
    noise = (scale * s).reshape(3, 1, 1, 1) ** 2
    mean = (0.09 * x + noise / 6) / (0.09 + noise)
    expected = (mean - jnp.asarray(config.data.mean)) / scale
    np.testing.assert_allclose(build.external_denoiser(config)(u, s), expected, atol=1e-4)
    config.data.scale = (1.0, 2.0)
    with pytest.raises(UserError, match='score.external: got data of the scales .* --redo=data'):
        build.external_denoiser(config)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('of_another_shape', 'denoiser: got .* expected a JAX function'),
        ('denoise', "got 'denoise', expected one of .*did you mean denoiser"),
    ],
)
def test_one_that_cannot_be_is_refused(config, name, message):
    with pytest.raises(ValueError, match=message):
        build.external_denoiser(with_own_data(config(name)))


def test_the_two_programs_of_the_page_agree(tmp_path, monkeypatch):
    """The same weights, in Flax and as PyTorch exports them."""
    monkeypatch.chdir(tmp_path)
    flax, torch = save_net(tmp_path)
    scopes = [{}, {}]
    for source, scope in zip((flax, torch), scopes, strict=True):
        exec(compile(source, 'docs/your-own.md', 'exec'), scope)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    for sigma in (jnp.float32(0.5), jnp.array([0.1, 3.0])):
        one, other = (scope['denoiser'](x, sigma) for scope in scopes)
        assert one.shape == x.shape and float(jnp.abs(one - x).max()) > 0.01
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_a_run_takes_it_and_trains_no_model_of_data(tmp_path, monkeypatch, launch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(GAUSSIAN)
    x = np.random.default_rng(0).normal(1 / 6, 0.3, size=(120, 8, 8, 1))
    np.save('x.npy', x.astype(np.float32))
    (tmp_path / 'rule.py').write_text('def rule(x): return abs(x).mean((1, 2, 3))')
    fields = ['data.path=x.npy', 'constraint.distance=rule.py:rule', "sample.rows=('dm', 'mdm')"]
    arguments = ['run', 'own:tiny', '--workdir=run', *(f'--config.{field}' for field in fields)]
    arguments += ['--config.sample.steps=40']  # four steps of Heun are not of the law
    fields += ['score.external=mine.py:denoiser']
    assert program.main([*arguments, f'--config.{fields[-1]}']) == 0
    told = capsys.readouterr().err
    assert 'score.external: error 0.' in told and 'warning: score.external' not in told
    # sigma half the standard deviation: the error is sqrt(1 / 1.25) of the noise
    error = float(told.split('score.external: error ')[1].split()[0])
    assert error == pytest.approx(np.sqrt(1 / 1.25), rel=0.1)  # of 20 held-out fields of 64 values
    record = json.loads((tmp_path / 'run/stages/dm.json').read_text())
    assert record['training_seconds'] == 0 and not (tmp_path / 'run/dm/checkpoints').exists()
    samples = np.load('run/sample/dm.npy')
    assert samples.mean() == pytest.approx(1 / 6, abs=0.02)
    assert samples.std() == pytest.approx(0.3, rel=0.1)
    assert (tmp_path / 'run/report.html').exists()
