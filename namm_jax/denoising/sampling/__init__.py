"""Drawing samples with a denoiser: time grids, steps, and the one sampling loop.

Symbols: `x_t = alpha_t x_0 + sigma_t noise` along a schedule; a step goes from `x_t` to `x_s`,
`s < t`.

A grid ends above zero and the loop's last act, common to all steps, is `D` at its end: the step to
zero noise, which is what each of these methods would do there. So `n` grid points are `n - 1` steps
and one more call of the denoiser.

Sample `i` depends on its key alone: neither on the batch it is drawn in nor on the number of
devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Denoiser, Key, Schedule, Step
from namm_jax._checks import choose
from namm_jax.denoising.denoisers import checked_std, edm_schedule, rescaled, vp_schedule, vp_time
from namm_jax.denoising.sampling.grids import GRIDS, edm_grid, log_grid, uniform_grid
from namm_jax.denoising.sampling.loop import check_keys, sample, sample_keys, trajectory
from namm_jax.denoising.sampling.steps import (
    SAMPLERS,
    VARIANCES,
    ancestral,
    ddim,
    dpm_solver_pp_2m,
    euler_maruyama,
    heun,
    ratio,
)

__all__ = [
    'GRIDS',
    'PATHS',
    'SAMPLERS',
    'VARIANCES',
    'Path',
    'Sampler',
    'ancestral',
    'calls',
    'check_keys',
    'ddim',
    'dpm_solver_pp_2m',
    'edm_grid',
    'euler_maruyama',
    'heun',
    'log_grid',
    'make_sampler',
    'sample',
    'sample_keys',
    'trajectory',
    'uniform_grid',
]


def calls(name: str, grid: Sequence | Array, *, denoise_last: bool = True) -> int:
    """Returns the denoiser calls a sample of `sample`, with the step of that name in `SAMPLERS`, on
    `grid (n,)`.
    """
    return (len(grid) - 1) * choose('sampler', name, SAMPLERS).calls + denoise_last


class Path(NamedTuple):
    """A schedule, the time `sigma -> t` at which it has a noise level, and the usual ends of a grid
    on it.
    """

    schedule: Callable[[], Schedule]
    time: Callable[[float], ArrayLike]
    t_max: float
    t_min: float


PATHS: dict[str, Path] = {
    'edm': Path(edm_schedule, float, 80.0, 0.002),
    'vp': Path(vp_schedule, vp_time, 1.0, 1e-3),
}


class Sampler(NamedTuple):
    """Samples in data units: `mean + std x`, with `x` drawn by `sample` and the denoiser rescaled
    to `x`.

    A step that needs data units (guidance by a measurement) finds them as `mean + std x_0`.

    `calls` are the denoiser's, a sample; the other attributes are arguments of `sample` and
    `make_sampler`.
    """

    schedule: Schedule
    step: Step
    grid: Array
    calls: int
    mean: ArrayLike = 0.0
    std: ArrayLike = 1.0
    denoise_last: bool = True

    def __call__(self, keys: Key, denoiser: Denoiser, shape: tuple[int, ...]) -> Array:
        """Returns samples `(b, *shape)` in data units, for keys `(b,)` and a denoiser in data
        units.
        """
        x = sample(
            keys, self._standard(denoiser), shape, **self._path(), denoise_last=self.denoise_last
        )
        return self._in_data_units(x)

    def trajectory(
        self, keys: Key, denoiser: Denoiser, shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Returns the states and estimates of `trajectory`, `(n, b, *shape)` each, as
        `mean + std x`.
        """
        states, estimates = trajectory(keys, self._standard(denoiser), shape, **self._path())
        return self._in_data_units(states), self._in_data_units(estimates)

    def levels(self) -> Array:
        """Returns the noise levels `std sigma / alpha` of the grid `(n,)`, in data units."""
        return jnp.asarray(self.std) * ratio(self.schedule, self.grid)

    def _standard(self, denoiser: Denoiser) -> Denoiser:
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return rescaled(denoiser, mean=-mean / std, std=1 / std)

    def _in_data_units(self, x: Array) -> Array:
        return jnp.asarray(self.mean) + jnp.asarray(self.std) * x

    def _path(self) -> dict[str, Any]:
        return {'schedule': self.schedule, 'step': self.step, 'grid': self.grid}


def make_sampler(
    name: str,
    *,
    steps: int,
    mean: ArrayLike = 0.0,
    std: ArrayLike = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    path: str | None = None,
    grid: str | None = None,
    denoise_last: bool = True,
    **options: Any,
) -> Sampler:
    """Returns the sampler of a name in `SAMPLERS`, with the path and grid where it is at home.

    Args:
        name: the step.
        steps: grid points, >= 1, the last denoising counted as a step: 18 for `heun` is 35 calls.
        mean: of the data, a scalar or one a channel.
        std: of the data, a positive scalar.
        sigma_min: noise level at the grid's end, in units of `std`; None is 0.002 on `edm`, 0.0105
            (t = 1e-3) on `vp`.
        sigma_max: the same at its start; None is 80 on `edm`, 152 (t = 1) on `vp`.
        path: a key of `PATHS`; None is the step's own.
        grid: a key of `GRIDS`; None is the step's own.
        denoise_last: as of `sample`.
        **options: of the step: `eta` of `ddim` and `dpm_solver_pp_2m`, `variance` of `ancestral`.

    Raises:
        ValueError: if a name is unknown or a number out of its range.
    """
    scheme = choose('sampler', name, SAMPLERS)
    where = choose('path', path or scheme.path, PATHS)
    t_max = where.t_max if sigma_max is None else float(where.time(sigma_max))
    t_min = where.t_min if sigma_min is None else float(where.time(sigma_min))
    times = choose('grid', grid or scheme.grid, GRIDS)(steps, t_max, t_min)
    schedule = where.schedule()
    checked_std(std)
    cost = calls(name, times, denoise_last=denoise_last)
    return Sampler(schedule, scheme.step(schedule, **options), times, cost, mean, std, denoise_last)
