"""Time grids, falling and above zero."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Grid = Float[Array, ' n']


def edm_grid(n: int, t_max: float, t_min: float, *, rho: float = 7.0) -> Grid:
    """Returns `n` times from `t_max` down to `t_min > 0`, evenly spaced in `t^(1/rho)`: dense where
    noise is small.

    `rho >= 1`: 1 spaces evenly, large ones as `log_grid`. A ValueError is raised for a number out
    of its range.

    Reference: Karras et al. 2022, arXiv 2206.00364, eq. 5, without its last point 0, which is the
    loop's last act.
    """
    _check_grid(n, t_max, t_min)
    if rho < 1:
        raise ValueError(f'rho: got {rho}, expected at least 1; 7 is usual')
    return jnp.linspace(t_max ** (1 / rho), t_min ** (1 / rho), n) ** rho


def uniform_grid(n: int, t_max: float, t_min: float) -> Grid:
    """Returns `n` evenly spaced times from `t_max` down to `t_min`, as published."""
    _check_grid(n, t_max, t_min)
    return jnp.linspace(t_max, t_min, n)


def log_grid(n: int, t_max: float, t_min: float) -> Grid:
    """Returns `n` times in geometric progression, evenly spaced in log-SNR on `edm_schedule`."""
    _check_grid(n, t_max, t_min)
    return jnp.geomspace(t_max, t_min, n)


GRIDS: dict[str, Callable[..., Grid]] = {'edm': edm_grid, 'uniform': uniform_grid, 'log': log_grid}


def _check_grid(n: int, t_max: float, t_min: float) -> None:
    if n < 1 or not 0 < t_min < t_max:
        raise ValueError(
            f'got n {n}, t_max {t_max}, t_min {t_min}, expected n >= 1 and 0 < t_min < t_max'
        )
