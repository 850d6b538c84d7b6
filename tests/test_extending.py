"""What `docs/extending.md` shows, executed."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import namm_jax as nj
from namm_jax.problems import PROBLEMS

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'extending.md'
FILES = dict(re.findall(r'<!-- file: (\S+) -->\n```python\n(.*?)```', PAGE.read_text(), re.DOTALL))


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Returns the folder that holds the page's files; the problem is entered as the page says."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    spec = importlib.util.spec_from_file_location(
        'namm_jax.problems.warm_rod', tmp_path / 'warm_rod.py'
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    (line,) = re.findall(r"'rod': \('warm_rod', 'Rod'\)", PAGE.read_text())
    monkeypatch.setitem(PROBLEMS, *eval(f'({line.replace(":", ",", 1)})'))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_every_part():
    assert set(FILES) >= {'warm_rod.py', 'rod.py', 'my_network.py', 'my_sampler.py'}


def test_a_problem_obeys_its_rule_and_no_other_field_does(shown):
    rod = nj.problems.rod(points=16, states=8)
    x = rod.sample(jax.random.key(0), 4)
    assert float(rod.distance(x).max()) < 1e-6
    assert float(rod.distance(x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)).min()) > 0.01


@pytest.mark.slow
def test_every_stage_works_for_the_problem(shown, launch):
    arguments = ['--config=rod.py:tiny', '--workdir=run', '--config.data.train=64']
    assert launch(*arguments) == 0
    assert launch(*arguments, '--stages=assimilate') == 0
    assert (shown / 'run' / 'report.html').exists()
    assert {path.name for path in (shown / 'run' / 'assimilate').iterdir()} >= {'first_states'}


@pytest.mark.slow
def test_a_network_and_a_sampler_of_ones_own_in_a_program(shown):
    sys.path.insert(0, str(shown))
    try:
        import my_network
        import my_operator
        import my_sampler
    finally:
        sys.path.remove(str(shown))
    rod = nj.problems.rod(points=16, states=8)
    x = rod.sample(jax.random.key(0), 40)
    mine = my_network.Mine()
    mirror = nj.fit(nj.namm(rod, inverse=mine), x, steps=2, progress=False)
    prior = nj.fit(nj.diffusion(rod, network=mine), mirror.forward(x), steps=2, progress=False)
    samples = nj.sample(prior, jax.random.key(1), 3, sampler=my_sampler.euler, steps=5)
    ddim = nj.sample(prior, jax.random.key(1), 3, sampler='ddim', steps=5)
    np.testing.assert_allclose(samples, ddim, atol=1e-4)  # which it is
    operator = my_operator.make(prior.shape)
    assert float(jnp.abs(operator.whiten(operator(x), operator(x))).max()) == 0
    posterior = nj.given(prior, operator, operator(x[:1]))
    assert jnp.isfinite(nj.sample(posterior, jax.random.key(2), 2, steps=3)).all()


@pytest.mark.slow
def test_they_work_from_the_command_line(shown, launch):
    config = Path(__file__).resolve().parent.parent / 'configs' / 'burgers.py'
    arguments = [
        f'--config={config}:tiny',
        '--workdir=run',
        '--config.mirror.inverse=my_network.py:Mine',
        '--config.score.network=my_network.py:Mine',
        '--config.sample.sampler=my_sampler.py:euler',
        '--config.assimilate.operator=own',
        '--config.assimilate.function=my_operator.py:edges',
        '--config.assimilate.sampler=mirror_few_steps',
    ]
    assert launch(*arguments) == 0
    assert launch(*arguments, '--stages=assimilate') == 0
