"""Steps from `x_t` to `x_s`, `s < t`, along any schedule.

Divided by `alpha`, every schedule is the same path: `u = x_t / alpha_t`, `r = sigma_t / alpha_t`,
and the probability-flow equation is `du/dr = (u - D(u, r)) / r`. Steps work there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from namm_jax._arrays import Denoiser, Key, Schedule, Step, normal
from namm_jax._checks import choose
from namm_jax.denoising.denoisers import denoiser_to_score


def ratio(schedule: Schedule, t: Array) -> Array:
    """Returns `r = sigma / alpha` at a time."""
    return schedule.sigma(t) / schedule.alpha(t)


def estimate(schedule: Schedule, denoiser: Denoiser, x: Array, t: Array) -> Array:
    """Returns the denoiser's estimate of `x_0` from a state at a time."""
    return denoiser(x / schedule.alpha(t), ratio(schedule, t))


def euler_maruyama(schedule: Schedule) -> Step:
    """Returns the Euler-Maruyama step of the reverse stochastic equation (Song et al. 2021, arXiv
    2011.13456, eq. 6).

    `x_s = x_t - (t - s) (f x_t - g^2 score) + g (t - s)^(1/2) noise` with `f = d log alpha / dt`
    and `g^2 = d sigma^2 / dt - 2 f sigma^2`. First order, one call; needs hundreds of steps.
    """

    def step(
        denoiser: Denoiser, keys: Key, x: Array, memory: PyTree, t: Array, s: Array
    ) -> tuple[Array, PyTree]:
        _, f = jax.jvp(lambda t: jnp.log(schedule.alpha(t)), (t,), (jnp.ones_like(t),))
        variance, growth = jax.jvp(lambda t: schedule.sigma(t) ** 2, (t,), (jnp.ones_like(t),))
        g2 = growth - 2 * f * variance
        score = denoiser_to_score(schedule, estimate(schedule, denoiser, x, t), x, t)
        return x - (t - s) * (f * x - g2 * score) + jnp.sqrt(g2 * (t - s)) * normal(keys, x), memory

    return step


# Variance of the noise that an ancestral step adds to u; both are in Ho, Jain & Abbeel 2020,
# section 3.2.
VARIANCES: dict[str, Callable[[Array, Array], Array]] = {
    'posterior': lambda r_t, r_s: r_s**2 * (1 - (r_s / r_t) ** 2),
    # The beta_t = 1 - alpha_t^2 / alpha_s^2 of a variance-preserving path, over alpha_s^2.
    'forward': lambda r_t, r_s: (1 + r_s**2) * (r_t**2 - r_s**2) / (1 + r_t**2),
}


def ancestral(schedule: Schedule, *, variance: str = 'posterior') -> Step:
    """Returns the draw from `p(x_s given x_t, x_0 = D)`; first order, one call.

    `u_s = D + (r_s / r_t)^2 (u_t - D) + v^(1/2) noise`, where `variance` is `posterior`,
    `v = r_s^2 (1 - r_s^2 / r_t^2)`, or `forward`, the `beta_t` of variance-preserving paths
    (published). Any other raises a ValueError.

    Reference: Ho, Jain & Abbeel 2020, arXiv 2006.11239, eq. 6 and 7.
    """
    added = choose('variance', variance, VARIANCES)

    def update(
        denoiser: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array
    ) -> tuple[Array, PyTree]:
        x_0 = denoiser(u, r_t)
        return x_0 + (r_s / r_t) ** 2 * (u - x_0) + jnp.sqrt(added(r_t, r_s)) * normal(
            keys, u
        ), memory

    return _divided_by_alpha(schedule, update)


def ddim(schedule: Schedule, *, eta: float = 0.0) -> Step:
    """Returns the DDIM step: first order, one call.

    `u_s = D + (r_s^2 - v)^(1/2) (u_t - D) / r_t + v^(1/2) noise`,
    `v = eta^2 r_s^2 (1 - r_s^2 / r_t^2)`.

    `eta` in [0, 1], or a ValueError is raised: 0 is deterministic, the Euler step of `du/dr`; 1 is
    the ancestral step with the posterior variance.

    Reference: Song, Meng & Ermon 2021, arXiv 2010.02502, eq. 12 and 16.
    """
    _check_eta(eta)

    def update(
        denoiser: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array
    ) -> tuple[Array, PyTree]:
        return _towards(denoiser(u, r_t), keys, u, r_t, r_s, eta), memory

    return _divided_by_alpha(schedule, update)


def heun(schedule: Schedule) -> Step:
    """Returns Heun's step of `du/dr`: second order, deterministic, two calls (Karras et al. 2022,
    algorithm 1).
    """

    def update(
        denoiser: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array
    ) -> tuple[Array, PyTree]:
        slope = (u - denoiser(u, r_t)) / r_t
        u_euler = u + (r_s - r_t) * slope
        slope_there = (u_euler - denoiser(u_euler, r_s)) / r_s
        return u + (r_s - r_t) * (slope + slope_there) / 2, memory

    return _divided_by_alpha(schedule, update)


def dpm_solver_pp_2m(schedule: Schedule, *, eta: float = 0.0) -> Step:
    """Returns the DPM-Solver++ 2M step: second order at `eta` 0, one call.

    The DDIM step towards `E = D + h / (2 h') (D - D')`, the estimate extrapolated from `D'`, the
    one before it; `h = log(r_t / r_s)` and `h'` the same of the step before. The first step has
    `E = D`. `eta` is DDIM's, with its error: 0 solves the probability-flow equation, 1 the reverse
    stochastic one (SDE-DPM-Solver++).

    Its memory is `(D', h')`; `h' = 0` means that there is none yet.

    Reference: Lu et al. 2022, arXiv 2211.01095, eq. 14 and 18.
    """
    _check_eta(eta)

    def update(
        denoiser: Denoiser, keys: Key, u: Array, memory: PyTree, r_t: Array, r_s: Array
    ) -> tuple[Array, PyTree]:
        x_0, h = denoiser(u, r_t), jnp.log(r_t / r_s)
        x_0_before, h_before = memory or (x_0, jnp.zeros_like(h))
        slope = jnp.where(h_before > 0, h / (2 * jnp.where(h_before > 0, h_before, 1)), 0)
        return _towards(x_0 + slope * (x_0 - x_0_before), keys, u, r_t, r_s, eta), (x_0, h)

    return _divided_by_alpha(schedule, update)


class Scheme(NamedTuple):
    """A builder `(schedule, **options) -> Step`, its denoiser calls a step, and its home: keys of
    `PATHS`, `GRIDS`.
    """

    step: Callable[..., Step]
    calls: int
    path: str
    grid: str


SAMPLERS: dict[str, Scheme] = {
    'euler_maruyama': Scheme(euler_maruyama, 1, 'vp', 'uniform'),
    'ancestral': Scheme(ancestral, 1, 'vp', 'uniform'),
    'ddim': Scheme(ddim, 1, 'edm', 'edm'),
    'heun': Scheme(heun, 2, 'edm', 'edm'),
    'dpm_solver_pp_2m': Scheme(dpm_solver_pp_2m, 1, 'edm', 'log'),
    'sde_dpm_solver_pp_2m': Scheme(functools.partial(dpm_solver_pp_2m, eta=1.0), 1, 'edm', 'edm'),
}


def _towards(x_0: Array, keys: Key, u: Array, r_t: Array, r_s: Array, eta: float) -> Array:
    """Returns the draw of u_s given `u_t` and an estimate `x_0`, with `eta^2` of the posterior
    variance.
    """
    v = eta**2 * VARIANCES['posterior'](r_t, r_s)
    mean = x_0 + jnp.sqrt(r_s**2 - v) / r_t * (u - x_0)
    return mean + jnp.sqrt(v) * normal(keys, u) if eta else mean


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f'eta: got {eta}, expected a number in [0, 1]; 0 is deterministic')


def _divided_by_alpha(schedule: Schedule, update: Step) -> Step:
    """Returns the step in x and t of an update in u and r."""

    def step(
        denoiser: Denoiser, keys: Key, x: Array, memory: PyTree, t: Array, s: Array
    ) -> tuple[Array, PyTree]:
        u, memory = update(
            denoiser, keys, x / schedule.alpha(t), memory, ratio(schedule, t), ratio(schedule, s)
        )
        return schedule.alpha(s) * u, memory

    return step
