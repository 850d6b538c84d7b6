"""Names that choose: one dictionary a module, and one error that lists its keys and says the
nearest.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

_T = TypeVar('_T')


def nearest(got: str, choices: Iterable[str]) -> str:
    """Returns the end of an error message: what was got, all choices, and those most like it, if
    any is.
    """
    names = list(choices)
    near = difflib.get_close_matches(str(got), names, n=2, cutoff=0.5)
    hint = f'; did you mean {" or ".join(near)}?' if near else ''
    return f'got {got!r}, expected one of {", ".join(names)}{hint}'


def choose(kind: str, name: str, choices: Mapping[str, _T]) -> _T:
    """Returns `choices[name]`.

    Raises:
        ValueError: if there is none: the kind, what was got, all choices and the nearest.
    """
    if name not in choices:
        raise ValueError(f'{kind}: {nearest(name, choices)}')
    return choices[name]


def check_keys(keys: jax.Array) -> None:
    """Raises a ValueError unless the keys are `(n,)`, typed, one a sample."""
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise ValueError(
            f'keys: got {keys.dtype}{list(keys.shape)}, expected one typed key a sample; use '
            'jax.random.split(jax.random.key(seed), n)'
        )
