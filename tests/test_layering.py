"""Imports point one way: data -> constraint -> mirror map -> diffusion -> sampling -> evaluation ->
experiment -> launch.
"""

import ast
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The maths never opens a file, reads a config or a clock, so its part of the standard library is
# short.
SEAMS = {'namm_jax._arrays', 'namm_jax._checks'}
MATHS = SEAMS | {'jax', 'jaxtyping', 'numpy', 'collections', 'dataclasses', 'difflib', 'functools'}
MATHS |= {'inspect', 'itertools', 'math', 'operator', 'types', 'typing', 'warnings'}
SYSTEM = SEAMS | {'jax', 'jaxtyping', 'numpy', 'rich', *sys.stdlib_module_names}

# Layer -> (what it may import of this package, what else). A module belongs to its longest prefix
# here; one that has none belongs to `namm_jax`, which imports nothing, so that a new module has to
# be given its place in this table.
ALLOWED = {
    'namm_jax': ('', {'difflib', 'importlib'}),
    'namm_jax.__main__': ('experiment report', SYSTEM),
    'namm_jax._arrays': ('', MATHS),
    # finds the line of a user's function that failed
    'namm_jax._checks': ('', MATHS | {'re', 'traceback'}),
    'namm_jax.constraints': ('constraints', MATHS),
    'namm_jax.problems': ('constraints inverse.operators problems', MATHS | {'importlib', 'scipy'}),
    'namm_jax.problems.kolmogorov_flow': ('constraints problems', MATHS | {'jax_cfd'}),
    'namm_jax.networks': ('networks', MATHS | {'flax'}),
    'namm_jax.mirror': ('networks.icnn networks.output_like', MATHS),
    'namm_jax.denoising': ('constraints denoising', MATHS),
    'namm_jax.inverse': ('denoising inverse', MATHS),
    'namm_jax.inverse.fourdvar': ('denoising inverse', MATHS | {'optax'}),
    'namm_jax.metrics': ('', MATHS),
    'namm_jax.training': (
        'constraints denoising mirror networks problems training',
        MATHS | {'optax', 'rich'},
    ),
    'namm_jax.report': (
        'problems report experiment.files experiment.records experiment.config experiment.progress',
        SYSTEM | {'jinja2', 'matplotlib', 'PIL'},
    ),
    'namm_jax.experiment': (
        '__version__ constraints denoising experiment inverse metrics mirror networks problems '
        'report training',
        SYSTEM | {'flax', 'ml_collections', 'optax'},
    ),
    'namm_jax.experiment.own': (
        'experiment.files experiment.formats experiment.progress',
        SYSTEM,
    ),
    'namm_jax.experiment.formats': (
        'experiment.files experiment.dataset experiment.progress problems.own_arrays',
        SYSTEM | {'PIL'},
    ),
    'namm_jax.experiment.checkpoint': ('experiment', SYSTEM | {'orbax'}),
    'namm_jax.experiment.records': ('experiment.files', SYSTEM | {'tensorboardX'}),
    'configs': ('experiment.config experiment.presets', set()),
    'launch': ('experiment', SYSTEM),
}


@pytest.fixture(autouse=True, scope='module')
def no_collection():
    """Holds the garbage collector: a future that it finalises inside `ast.parse` may log a
    traceback, which parses.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def starts_with(name: str, prefix: str) -> bool:
    """Returns whether the dotted name is the prefix or lies inside it."""
    return name == prefix or name.startswith(f'{prefix}.')


def imports(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Returns the dotted names that one statement imports, relative ones resolved;
    `from a import b` gives `a.b`.
    """
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = module.split('.')[: None if is_package else -1]
    base = package[: len(package) - node.level + 1] if node.level else []
    return ['.'.join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Returns a line for each import of `source`, wherever it stands, that the table does not allow
    to `module`.
    """
    layer = max((layer for layer in ALLOWED if starts_with(module, layer)), key=len)
    inside, outside = ALLOWED[layer]
    allowed = [f'namm_jax.{name}' for name in inside.split()] + sorted(outside)
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in imports(node, module, is_package):
            if not any(starts_with(name, prefix) for prefix in allowed):
                found.append(
                    f'{module}:{node.lineno} imports {name}; {layer} may import '
                    f'{inside or "nothing of ours"}'
                )
    return found


def eager(source: str, module: str, is_package: bool = False) -> list[str]:
    """Returns the dotted names that importing the module imports: all those outside functions."""
    names, todo = [], [ast.parse(source)]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names += imports(node, module, is_package)
            todo += ast.iter_child_nodes(node)
    return names


def modules(*folders: str) -> list[tuple[str, str, bool]]:
    """Returns (source, dotted name, whether a package) of every Python file under these folders of
    the repository.
    """
    found = []
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        is_package = parts[-1] == '__init__'
        found.append((path.read_text(), '.'.join(parts[:-1] if is_package else parts), is_package))
    return found


def run_python(program: str) -> str:
    return subprocess.run(
        [sys.executable, '-c', program],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        cwd=ROOT.anchor,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_imports_point_one_way():
    files = modules('namm_jax', 'configs', 'launch')
    assert len(files) > 20
    assert [line for file in files for line in violations(*file)] == []


def test_the_figures_are_imported_only_when_drawn():
    for source, module, is_package in modules('namm_jax/experiment'):
        assert not [
            name
            for name in eager(source, module, is_package)
            if starts_with(name, 'namm_jax.report.figures')
        ]


def test_no_tensorflow_anywhere():
    folders = ('namm_jax', 'configs', 'launch', 'benchmarks', 'tests')
    nodes = [(node, file) for file in modules(*folders) for node in ast.walk(ast.parse(file[0]))]
    names = {
        name
        for node, (_, module, is_package) in nodes
        for name in imports(node, module, is_package)
    }
    assert 'jax' in names and not {
        name for name in names if name.split('.')[0] in ('tensorflow', 'tensorflow_datasets')
    }


@pytest.mark.parametrize(
    ('module', 'source'),
    [
        ('namm_jax._arrays', 'from namm_jax.problems.base import Problem'),
        ('namm_jax.constraints.base', 'from namm_jax import problems'),
        ('namm_jax.problems.burgers_equation', 'from ..mirror import cycle'),
        ('namm_jax.problems.burgers_equation', 'import jax_cfd.base as cfd'),
        ('namm_jax.problems.base', 'from namm_jax.inverse.dps import dps'),
        ('namm_jax.networks.unet', 'import optax'),
        ('namm_jax.mirror', 'from namm_jax.networks import unet'),
        ('namm_jax.mirror', 'from namm_jax import problems'),
        ('namm_jax.mirror', 'from namm_jax import *'),
        ('namm_jax.denoising.samplers', 'from namm_jax.inverse.likelihood import likelihood'),
        ('namm_jax.denoising.samplers', 'def f():\n    from namm_jax.experiment import config'),
        ('namm_jax.inverse.dps', 'from namm_jax.mirror import cycle'),
        ('namm_jax.metrics', 'import matplotlib.pyplot as plt'),
        ('namm_jax.metrics', 'if True:\n    import time'),
        ('namm_jax.denoising.denoisers', 'import flax.linen as nn'),
        ('namm_jax.training.step', 'from namm_jax.experiment.loop import fit'),
        ('namm_jax.report.table', 'from namm_jax.experiment.folder import Run'),
        ('namm_jax.experiment.loop', 'import orbax.checkpoint as ocp'),
        ('namm_jax.experiment.stages', 'from matplotlib import figure'),
        ('namm_jax.experiment.folder', 'import tensorboardX'),
        ('namm_jax.experiment.devices', 'import tensorflow as tf'),
        ('namm_jax.novelty', 'import jax'),
        ('configs.burgers', 'from namm_jax.experiment.build import TASKS'),
        ('launch.main', 'import configs.burgers'),
    ],
)
def test_a_violation_is_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ('module', 'source', 'is_package'),
    [
        ('namm_jax.problems.burgers_equation', 'from . import base, steppers', False),
        ('namm_jax.constraints', 'from .base import rule', True),
        (
            'namm_jax.mirror',
            'from namm_jax.networks.icnn import gradient_map\nimport jax.numpy as jnp',
            False,
        ),
        ('namm_jax.experiment.formats', 'import PIL.Image', False),
        ('configs.burgers', 'from namm_jax.experiment.config import experiment', False),
    ],
)
def test_what_the_table_allows_passes(module, source, is_package):
    assert violations(source, module, is_package) == []


def test_an_import_inside_a_function_is_not_eager():
    source = 'import math\nclass A:\n    import json\n    def f(self):\n        import jax\n'
    assert sorted(eager(source, 'a')) == ['json', 'math']


def test_importing_the_package_does_no_work():
    program = (
        'import sys; before = set(sys.modules); import namm_jax; print(*sorted(set(sys.modules) - '
        'before))'
    )
    assert run_python(program) == 'namm_jax'


def test_a_config_imports_its_own_problem_and_no_network():
    heavy = ('jax_cfd', 'flax', 'optax', 'orbax', 'matplotlib')
    config = str(ROOT / 'configs' / 'burgers.py')
    program = (
        f'import runpy, sys; runpy.run_path({config!r})["get_config"](); '
        f'print(*(name for name in {heavy} if name in sys.modules))'
    )
    assert run_python(program) == ''
