"""Drawing samples with a denoiser: time grids, steps, the one sampling loop, and samplers.

Symbols: `x_t = alpha_t x_0 + sigma_t noise` along a schedule; a step goes from `x_t` to `x_s`,
`s < t`. Divided by `alpha`, every schedule is the same path: `u = x_t / alpha_t`,
`r = sigma_t / alpha_t`, and the probability-flow equation is `du/dr = (u - D(u, r)) / r`. Steps
work there.

A grid ends above zero and the loop's last act, common to all steps, is `D` at its end: the step to
zero noise. So `n` grid points are `n - 1` steps and one more call of the denoiser.

Sample `i` depends on its key alone: neither on its batch nor on the number of devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from namm_jax._arrays import Denoiser, Key, Schedule, Step, fold_in, normal
from namm_jax._checks import check_keys, check_within, choose
from namm_jax.denoising.denoisers import positive_std, rescaled
from namm_jax.denoising.schedules import PATHS, denoiser_to_score, estimate, noise_level

Grid: TypeAlias = Float[Array, ' n']
State: TypeAlias = tuple[Array, PyTree]  # of a step's end: x_s, and its memory


def edm_grid(n: int, t_max: ArrayLike, t_min: ArrayLike, *, rho: float = 7.0) -> Grid:
    """Returns `n` times from `t_max` down to `t_min > 0`, evenly spaced in `t^(1/rho)`, rho >= 1: 1
    spaces evenly, large ones as `log_grid`.

    Reference: Karras et al. 2022, arXiv 2206.00364, eq. 5, without its last point 0.
    """
    check_within('[1, inf)', rho=rho)
    return jnp.linspace(t_max ** (1 / rho), t_min ** (1 / rho), n) ** rho


def uniform_grid(n: int, t_max: float, t_min: float) -> Grid:
    """Returns `n` evenly spaced times from `t_max` down to `t_min`, as published."""
    return jnp.linspace(t_max, t_min, n)


def log_grid(n: int, t_max: float, t_min: float) -> Grid:
    """Returns `n` times in geometric progression, evenly spaced in log-SNR where `sigma_t = t`."""
    return jnp.geomspace(t_max, t_min, n)


GRIDS: dict[str, Callable[..., Grid]] = {'edm': edm_grid, 'uniform': uniform_grid, 'log': log_grid}


def euler_maruyama(schedule: Schedule) -> Step:
    """Returns the Euler-Maruyama step of the reverse stochastic equation: first order, one call.

    `x_s = x_t - (t - s) (f x_t - g^2 score) + g (t - s)^(1/2) noise` with `f = d log alpha / dt`
    and `g^2 = d sigma^2 / dt - 2 f sigma^2` (Song et al. 2021, arXiv 2011.13456, eq. 6).
    """

    def step(denoiser: Denoiser, keys: Key, x: Array, memory: PyTree, t: Array, s: Array) -> State:
        _, f = jax.jvp(lambda t: jnp.log(schedule.alpha(t)), (t,), (jnp.ones_like(t),))
        variance, growth = jax.jvp(lambda t: schedule.sigma(t) ** 2, (t,), (jnp.ones_like(t),))
        g2 = growth - 2 * f * variance
        score = denoiser_to_score(schedule, estimate(schedule, denoiser, x, t), x, t)
        return x - (t - s) * (f * x - g2 * score) + jnp.sqrt(g2 * (t - s)) * normal(keys, x), memory

    return step


# Variance of the noise that an ancestral step adds to u (Ho, Jain & Abbeel 2020, section 3.2).
VARIANCES: dict[str, Callable[[Array, Array], Array]] = {
    'posterior': lambda r_t, r_s: r_s**2 * (1 - (r_s / r_t) ** 2),
    # The beta_t = 1 - alpha_t^2 / alpha_s^2 of a variance-preserving path, over alpha_s^2.
    'forward': lambda r_t, r_s: (1 + r_s**2) * (r_t**2 - r_s**2) / (1 + r_t**2),
}


def ancestral(schedule: Schedule, *, variance: str = 'posterior') -> Step:
    """Returns the draw from `p(x_s given x_t, x_0 = D)`; first order, one call.

    `u_s = D + (r_s / r_t)^2 (u_t - D) + v^(1/2) noise`, where `variance` is `posterior`,
    `v = r_s^2 (1 - r_s^2 / r_t^2)`, or `forward`, the published `beta_t` of such paths.

    Reference: Ho, Jain & Abbeel 2020, arXiv 2006.11239, eq. 6 and 7.
    """
    added = choose('variance', variance, VARIANCES)

    def update(D: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array) -> State:
        x_0 = D(u, r_t)
        mean = x_0 + (r_s / r_t) ** 2 * (u - x_0)
        return mean + jnp.sqrt(added(r_t, r_s)) * normal(keys, u), memory

    return _divided_by_alpha(schedule, update)


def ddim(schedule: Schedule, *, eta: float = 0.0) -> Step:
    """Returns the DDIM step: first order, one call.

    `u_s = D + (r_s^2 - v)^(1/2) (u_t - D) / r_t + v^(1/2) noise`,
    `v = eta^2 r_s^2 (1 - r_s^2 / r_t^2)`, with `eta` in [0, 1]: 0 is the Euler step of `du/dr`, 1
    the ancestral step with the posterior variance.

    Reference: Song, Meng & Ermon 2021, arXiv 2010.02502, eq. 12 and 16.
    """
    check_within('[0, 1]', eta=eta)

    def update(D: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array) -> State:
        return _towards(D(u, r_t), keys, u, r_t, r_s, eta), memory

    return _divided_by_alpha(schedule, update)


def heun(schedule: Schedule) -> Step:
    """Returns Heun's step of `du/dr`: second order, two calls (Karras et al. 2022, algorithm 1)."""

    def update(D: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array) -> State:
        slope = (u - D(u, r_t)) / r_t
        u_euler = u + (r_s - r_t) * slope
        slope_there = (u_euler - D(u_euler, r_s)) / r_s
        return u + (r_s - r_t) * (slope + slope_there) / 2, memory

    return _divided_by_alpha(schedule, update)


def dpm_solver_pp_2m(schedule: Schedule, *, eta: float = 0.0) -> Step:
    """Returns the DPM-Solver++ 2M step: second order at `eta` 0, one call.

    The DDIM step towards `E = D + h / (2 h') (D - D')`, the estimate extrapolated from `D'`, the
    one before it; `h = log(r_t / r_s)` and `h'` the same of the step before. The first step has
    `E = D`. `eta` is DDIM's, with its error: 0 solves the probability-flow equation, 1 the reverse
    stochastic one (SDE-DPM-Solver++). Its memory is `(D', h')`; `h' = 0` means that there is none.

    Reference: Lu et al. 2022, arXiv 2211.01095, eq. 14 and 18.
    """
    check_within('[0, 1]', eta=eta)

    def update(D: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array) -> State:
        x_0 = D(u, r_t)
        h = jnp.log(r_t / r_s)
        x_0_before, h_before = memory or (x_0, jnp.zeros_like(h))
        slope = jnp.where(h_before > 0, h / (2 * jnp.where(h_before > 0, h_before, 1)), 0)
        return _towards(x_0 + slope * (x_0 - x_0_before), keys, u, r_t, r_s, eta), (x_0, h)

    return _divided_by_alpha(schedule, update)


class Scheme(NamedTuple):
    """What a sampler is made of, of one's own too: `(schedule, **options) -> Step`, its denoiser
    calls a step, and where it is at home, keys of `PATHS` and `GRIDS`.
    """

    step: Callable[..., Step]
    calls: int = 1
    path: str = 'edm'
    grid: str = 'edm'


SAMPLERS: dict[str, Scheme] = {
    'euler_maruyama': Scheme(euler_maruyama, path='vp', grid='uniform'),
    'ancestral': Scheme(ancestral, path='vp', grid='uniform'),
    'ddim': Scheme(ddim),
    'heun': Scheme(heun, calls=2),
    'dpm_solver_pp_2m': Scheme(dpm_solver_pp_2m, grid='log'),
    'sde_dpm_solver_pp_2m': Scheme(functools.partial(dpm_solver_pp_2m, eta=1.0)),
}
__getattr__ = lambda name: choose('samplers', name, SAMPLERS, AttributeError)


def _towards(x_0: Array, keys: Key, u: Array, r_t: Array, r_s: Array, eta: float) -> Array:
    """Returns the draw of `u_s` towards an estimate, with `eta^2` of the posterior variance."""
    v = eta**2 * VARIANCES['posterior'](r_t, r_s)
    mean = x_0 + jnp.sqrt(r_s**2 - v) / r_t * (u - x_0)
    return mean + jnp.sqrt(v) * normal(keys, u) if eta else mean


def _divided_by_alpha(schedule: Schedule, update: Step) -> Step:
    """Returns the step in x and t of an update in u and r."""

    def step(denoiser: Denoiser, keys: Key, x: Array, memory: PyTree, t: Array, s: Array) -> State:
        r_t = noise_level(schedule, t)
        r_s = noise_level(schedule, s)
        u, memory = update(denoiser, keys, x / schedule.alpha(t), memory, r_t, r_s)
        return schedule.alpha(s) * u, memory

    return step


def sample_keys(key: Key, n: int, start: int = 0) -> Key:
    """Returns the keys `(n,)` of samples `start, ..., start + n - 1`: `fold_in(key, index)`."""
    key = jax.random.wrap_key_data(key) if key.dtype == jnp.uint32 else key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(n))


class Sampler(NamedTuple):
    """Samples in data units, `mean + std x`: x starts as `sigma noise` at the grid's first time,
    goes down the grid by steps, and is denoised.

    The denoiser of x is the rescaled one of data; a step that needs data units (guidance by a
    measurement) finds them as `mean + std x_0`. Arguments are those of `make_sampler`.
    """

    schedule: Schedule
    step: Step  # built with this schedule
    grid: Grid  # falling times (n,), the last above 0
    calls: int  # of the denoiser, a sample
    mean: ArrayLike = 0.0
    std: ArrayLike = 1.0
    denoise_last: bool = True

    def __call__(self, keys: Key, denoiser: Denoiser, shape: tuple[int, ...]) -> Array:
        """Returns samples `(b, *shape)` in data units, of a denoiser in these, by keys `(b,)`, one
        a sample, as of `sample_keys`; a ValueError is raised for others.
        """
        denoiser = self._standard(denoiser)
        x, _ = self._descend(keys, denoiser, shape)
        if self.denoise_last:
            x = estimate(self.schedule, denoiser, x, self.grid[-1])
        return self._in_data_units(x)

    def trajectory(
        self, keys: Key, denoiser: Denoiser, shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Returns the states along the grid, as `mean + std x`, and the denoiser's estimates there,
        `(n, b, *shape)` each, by `n` more of its calls. The last estimate is the sample.
        """
        denoiser = self._standard(denoiser)
        last, states = self._descend(keys, denoiser, shape, keep=True)
        states = jnp.concatenate([states, last[None]])
        estimate_at = lambda now: estimate(self.schedule, denoiser, *now)
        estimates = jax.lax.map(estimate_at, (states, self.grid))
        return self._in_data_units(states), self._in_data_units(estimates)

    def levels(self) -> Array:
        """Returns the noise levels `std sigma / alpha` of the grid `(n,)`, in data units."""
        return jnp.asarray(self.std) * noise_level(self.schedule, self.grid)

    def _descend(
        self, keys: Key, denoiser: Denoiser, shape: tuple[int, ...], keep: bool = False
    ) -> tuple[Array, Array | None]:
        """The one sampling loop: returns the state at the grid's end, and those before if kept."""
        check_keys(keys)
        grid = self.grid

        def advance(carry: State, now: tuple[Array, ...]) -> tuple[State, Array | None]:
            index, t, s = now
            state = self.step(denoiser, fold_in(keys, index), carry[0], carry[1], t, s)
            return state, carry[0] if keep else None

        x = self.schedule.sigma(grid[0]) * normal(fold_in(keys, 0), jnp.zeros((len(keys), *shape)))
        # A step's memory starts as zeros of whatever structure it returns from none: a scan's carry
        # cannot change.
        memory = jax.eval_shape(lambda x: self.step(denoiser, keys, x, (), grid[0], grid[-1])[1], x)
        memory = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), memory)
        times = jnp.arange(1, len(grid)), grid[:-1], grid[1:]
        (x, _), states = jax.lax.scan(advance, (x, memory), times)
        return x, states

    def _standard(self, denoiser: Denoiser) -> Denoiser:
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return rescaled(denoiser, mean=-mean / std, std=1 / std)

    def _in_data_units(self, x: Array) -> Array:
        return jnp.asarray(self.mean) + jnp.asarray(self.std) * x


def make_sampler(
    step: str | Scheme | Callable[..., Step],
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
    """Returns the sampler of a step, on the path and grid where it is at home.

    Args:
        step: a name in `SAMPLERS`, or one's own: a `Scheme`, or its `(schedule) -> Step` alone.
        steps: grid points, >= 1, the last denoising counted as a step: 18 for `heun` is 35 calls.
        mean, std: of the data; the mean may be one a channel.
        sigma_min: noise level at the grid's end, in units of `std`; None is 0.002 on `edm`, 0.0105
            (t = 1e-3) on `vp`.
        sigma_max: the same at its start; None is 80 on `edm`, 152 (t = 1) on `vp`.
        path, grid: keys of `PATHS` and `GRIDS`; None is the step's own.
        denoise_last: False returns the state at the grid's end, with its noise (published).
        **options: of the step: `eta` of `ddim` and `dpm_solver_pp_2m`, `variance` of `ancestral`.
    """
    check_within('[1, inf)', kinds='iu', steps=steps)
    own = Scheme(step) if callable(step) else step
    scheme = own if isinstance(own, Scheme) else choose('sampler', step, SAMPLERS)
    where = choose('path', path or scheme.path, PATHS)
    t_max = where.t_max if sigma_max is None else float(where.time(sigma_max))
    t_min = where.t_min if sigma_min is None else float(where.time(sigma_min))
    if not 0 < t_min < t_max:
        raise ValueError(f'sigma_min: got {sigma_min}, expected 0 < sigma_min < sigma_max')
    times = choose('grid', grid or scheme.grid, GRIDS)(steps, t_max, t_min)
    schedule = where.schedule()
    positive_std(std)
    calls = (steps - 1) * scheme.calls + denoise_last
    own_step = scheme.step(schedule, **options)
    return Sampler(schedule, own_step, times, calls, mean, std, denoise_last)
