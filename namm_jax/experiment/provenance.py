"""Where results come from: versions, host, git revision, command line."""

import datetime
import importlib.metadata
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def _git(*arguments: str) -> str | None:
    """Returns what git answers about this file's repository, None where there is no git or no
    repository.
    """
    command = ['git', '-C', str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(seed: int | None = None) -> dict[str, Any]:
    """Returns where results come from: time, host, command line, seed, versions, and git revision
    (or None).
    """
    tracked = (
        _git('ls-files', '--error-unmatch', Path(__file__).name) is not None
    )  # not some repository around
    packages = ('namm_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')
    return {
        'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'host': socket.gethostname(),
        'command': sys.argv,
        'seed': seed,
        'python': platform.python_version(),
        'versions': {package: _version(package) for package in packages},
        'git': _git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')
        if tracked
        else None,
    }
