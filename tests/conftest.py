"""What all tests share: eight devices, a cold compilation cache of their own, checked types, and
one tiny run.
"""

import collections
import contextlib
import fcntl
import gc
import importlib.metadata
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # configs/ is no installed package
if 'PYTEST_XDIST_WORKER' not in os.environ:  # the workers of a parallel run share it
    _CACHE = tempfile.TemporaryDirectory(prefix='namm_jax_tests_')  # removed when the session ends
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'}
# Most of the tests' time is compilation.
os.environ |= {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'JAX_TRACEBACK_IN_LOCATIONS_LIMIT': '0'}
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 11):
    # Later ones have no such flag.
    os.environ['XLA_FLAGS'] = '--xla_cpu_use_fusion_emitters=false'
os.environ.setdefault('MPLBACKEND', 'agg')

import jax
import jaxtyping
import pytest

gc.set_threshold(100_000, 50, 1000)  # tracing makes many objects, few of them garbage
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
jax.config.update('jax_disable_most_optimizations', True)
if not hasattr(jax, 'enable_x64'):  # before JAX 0.8
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

# Shapes and types of annotated functions are checked at each call, in tests only. The hook cannot
# read `typing.Self`, so the modules whose classes return themselves go without; so does `inverse`,
# whose own errors are about what a user's function returns.
MATHS = '_arrays problems constraints networks mirror denoising training metrics'.split()
TRAINING = [
    f'experiment.{name}' for name in 'config dataset experiment loop devices stages build'.split()
]
jaxtyping.install_import_hook(
    [f'namm_jax.{name}' for name in MATHS + TRAINING], 'beartype.beartype'
)

from namm_jax.experiment import cli  # noqa: E402

TINY = '--config=configs/burgers.py:tiny'


@contextlib.contextmanager
def _signals_restored():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _launch(*arguments: object) -> int:
    with _signals_restored():
        return cli.main(['launch/main.py', *map(str, arguments)])


@pytest.fixture
def launch() -> Callable[..., int]:
    """Returns `launch/main.py` as a function of its arguments, run in this process, that returns
    the exit status.
    """
    return _launch


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished run folder of the preset `tiny`, one for all workers; copy it before
    changing anything.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if 'PYTEST_XDIST_WORKER' in os.environ else root
    with open(root / 'tiny.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker that comes second waits, and finds it done
        if not (root / 'tiny').exists():
            assert _launch(TINY, f'--workdir={root / "tiny"}') == 0
    return root / 'tiny'


# The file that makes the tiny run, so that no worker waits for it, then those that take long.
FIRST = (
    'pipeline front_door readme networks open_run assimilate extending own faults processes page '
    'kill command counter sampling'
).split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, then files with many tests, so that workers end together."""
    tests = collections.Counter(item.path for item in items)
    place = {f'test_{name}': i for i, name in enumerate(FIRST)}
    rank = lambda path: (place.get(path.stem, len(FIRST)), -tests[path], path)
    items.sort(key=lambda item: rank(item.path))
