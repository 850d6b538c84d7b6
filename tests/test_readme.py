"""The README's program runs as it stands, with fewer fields and steps, and its sizes are the documented ones."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).resolve().parent.parent / 'README.md').read_text()


@pytest.mark.slow
def test_program_runs_and_its_samples_are_finite():
    (program,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    smaller = program.replace('fields, steps, key, axes = 1024, 500,', 'fields, steps, key, axes = 16, 2,')
    smaller = smaller.replace('points=32, states=32, inner_steps=10', 'points=16, states=16, inner_steps=2')
    smaller = smaller.replace('(32, 64)', '(8,)')
    assert smaller.count('(8,)') == 2 and '16, 2,' in smaller and 'points=16' in smaller
    scope = {}
    exec(compile(smaller, 'README.md', 'exec'), scope)
    assert scope['samples'].shape == (16, 16, 16, 1)
    assert np.isfinite(np.asarray(scope['constraint'].distance(scope['samples']))).all()


def test_files_that_the_readme_names_exist():
    root = Path(__file__).resolve().parent.parent
    named = set(re.findall(r'`((?:namm_jax|tests|configs|launch|benchmarks)/[\w/]*(?:\.py)?)`?', README))
    assert len(named) > 5
    assert not [name for name in named if not (root / name).exists()]
