"""Where results come from: versions, host, git revision, command line."""

import datetime
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from namm_jax import __version__

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def _git(*arguments: str) -> str | None:
    """Returns what git answers about this file's repository, None where there is none."""
    command = ['git', '-C', str(Path(__file__).parent), *arguments]
    try:
        return subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def provenance(seed: int | None = None) -> dict[str, Any]:
    """Returns time, host, command line, seed, versions, and git revision (or None)."""
    ours = _git('ls-files', '--error-unmatch', Path(__file__).name)  # not a repository around it
    return {
        'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'host': socket.gethostname(),
        'command': sys.argv,
        'seed': seed,
        'python': platform.python_version(),
        'versions': {'namm_jax': __version__} | {name: version(name) for name in PACKAGES},
        'git': ours and _git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'),
    }
