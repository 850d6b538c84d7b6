"""What all tests share: eight devices, a cold compilation cache of their own, checked types, and one tiny run."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # configs/ is no installed package
_CACHE = tempfile.TemporaryDirectory(prefix='namm_jax_tests_')  # removed when the session ends
os.environ |= {'JAX_COMPILATION_CACHE_DIR': _CACHE.name, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'}
os.environ |= {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}  # most of the tests' time is compilation
os.environ.setdefault('MPLBACKEND', 'agg')

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_compilation_cache_dir', _CACHE.name)
jax.config.update('jax_disable_most_optimizations', True)

# Shapes and types of annotated functions are checked at each call, in tests only. The hook cannot read `typing.Self`,
# so the modules whose classes return themselves go without; so do layout and pdes, whose tests also give them arrays
# for numbers, and shapes that their own errors are about.
MATHS = 'types data constraints networks mirror diffusion sampling evaluation'.split()
TRAINING = [f'train.{name}' for name in 'config dataset experiment loop sharding stages state tasks'.split()]
jaxtyping.install_import_hook([f'namm_jax.{name}' for name in MATHS + TRAINING], 'beartype.beartype')

from namm_jax.train import command  # noqa: E402

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
        return command.main(['launch/main.py', *map(str, arguments)])


@pytest.fixture
def launch() -> Callable[..., int]:
    """Returns `launch/main.py` as a function of its arguments, run in this process, that returns the exit status."""
    return _launch


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished run folder of the preset `tiny`; copy it before changing anything."""
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    assert _launch(TINY, f'--workdir={folder}') == 0
    return folder
