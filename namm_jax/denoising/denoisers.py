"""Diffusion: noising paths, what a network may predict, and how it is trained to.

Symbols: `x_t = alpha_t x_0 + sigma_t noise` is data seen along a schedule. A denoiser sees it
divided by `alpha_t`: `x = x_0 + sigma noise` with `sigma = sigma_t / alpha_t`, and returns
`D(x, sigma) = E[x_0 given x]`. Both are in data units. `u` and `s` are the same `x` and `sigma` for
standardised data, `u = (x - mean) / std` and `s = sigma / std`; networks live there, so that one
setting suits data and mirror points of any scale.

`std` is one number: noise equal in all channels would not stay so if each were divided by its own.

Reference: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from namm_jax._arrays import Denoiser, Gain, Key, Metrics, Parameterisation, Schedule, broadcast
from namm_jax._checks import choose

Network = Callable[..., Array]  # (x (b, ...), label (b,)) -> like x
Batch = Float[Array, 'b *field']
Level = float | Float[Array, ''] | Float[Array, ' b']


def vp_schedule(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Returns the variance-preserving schedule: `alpha_t^2 + sigma_t^2 = 1`, t in [0, 1] (Song et
    al., eq. 33).

    `alpha_t^2 = exp(-B(t))`, `B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`.

    Args:
        beta_min: rate of noising at t = 0, > 0.
        beta_max: rate of noising at t = 1, >= `beta_min`.

    Raises:
        ValueError: if not `0 < beta_min <= beta_max`.
    """
    if not 0 < beta_min <= beta_max:
        raise ValueError(
            f'got beta_min {beta_min}, beta_max {beta_max}, expected 0 < beta_min <= beta_max'
        )

    def rate(t: Array) -> Array:
        return beta_min * t + (beta_max - beta_min) * t**2 / 2

    # expm1: 1 - exp(-B) would lose all digits at small t.
    return Schedule(
        alpha=lambda t: jnp.exp(-rate(t) / 2), sigma=lambda t: jnp.sqrt(-jnp.expm1(-rate(t)))
    )


def vp_time(sigma: ArrayLike, beta_min: float = 0.1, beta_max: float = 20.0) -> Array:
    """Returns the t at which `vp_schedule` has `sigma_t / alpha_t = sigma`.

    `B(t) = log(1 + sigma^2)`, a quadratic equation; its root is written without a difference of
    like numbers.

    Args:
        sigma: noise level for standardised data, > 0, any shape; t is beyond 1 where it exceeds the
            schedule's 152.
        beta_min: as of the schedule.
        beta_max: as of the schedule.
    """
    rate = jnp.log1p(jnp.asarray(sigma) ** 2)
    return 2 * rate / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * rate))


def edm_schedule() -> Schedule:
    """Returns the schedule whose time is the noise level: `alpha_t = 1`, `sigma_t = t`, t > 0
    (Karras et al. 2022).
    """
    return Schedule(alpha=jnp.ones_like, sigma=jnp.asarray)


SCHEDULES: dict[str, Callable[..., Schedule]] = {'vp': vp_schedule, 'edm': edm_schedule}


def perturb(schedule: Schedule, x_0: Batch, t: Level, noise: Batch) -> Batch:
    """Returns `x_t = alpha_t x_0 + sigma_t noise`, for standard normal noise like `x_0` and t a
    scalar or `(b,)`.
    """
    alpha, sigma = _scales(schedule, t, x_0)
    return alpha * x_0 + sigma * noise


def denoiser_to_noise(schedule: Schedule, x_0: Batch, x_t: Batch, t: Level) -> Batch:
    """Returns the noise that the estimate `x_0 = D(x_t / alpha_t, sigma_t / alpha_t)` says is in
    `x_t`.

    `noise = (x_t - alpha_t x_0) / sigma_t`; t a scalar or `(b,)`, where `sigma_t > 0`.
    """
    alpha, sigma = _scales(schedule, t, x_t)
    return (x_t - alpha * x_0) / sigma


def denoiser_to_score(schedule: Schedule, x_0: Batch, x_t: Batch, t: Level) -> Batch:
    """Returns the score `grad log p_t(x_t) = (alpha_t x_0 - x_t) / sigma_t^2` (Tweedie)."""
    alpha, sigma = _scales(schedule, t, x_t)
    return (alpha * x_0 - x_t) / sigma**2


def noise_to_denoiser(schedule: Schedule, noise: Batch, x_t: Batch, t: Level) -> Batch:
    """Returns the estimate `x_0 = (x_t - sigma_t noise) / alpha_t`."""
    alpha, sigma = _scales(schedule, t, x_t)
    return (x_t - sigma * noise) / alpha


def score_to_denoiser(schedule: Schedule, score: Batch, x_t: Batch, t: Level) -> Batch:
    """Returns `x_0 = (x_t + sigma_t^2 score) / alpha_t`."""
    alpha, sigma = _scales(schedule, t, x_t)
    return (x_t + sigma**2 * score) / alpha


def gaussian_denoiser(mean: ArrayLike, std: ArrayLike) -> Denoiser:
    """Returns the exact denoiser of independent normal pixels, `x_0 ~ N(mean, std^2)`.

    `D(x, sigma) = (std^2 x + sigma^2 mean) / (std^2 + sigma^2)`; `mean` and `std >= 0` broadcast
    against `x`.
    """
    mean, variance = jnp.asarray(mean), jnp.asarray(std) ** 2

    def denoise(x: Array, sigma: Array) -> Array:
        noise = broadcast(sigma, x) ** 2
        return (variance * x + noise * mean) / (variance + noise)

    return denoise


def rescaled(denoiser: Denoiser, *, mean: ArrayLike, std: ArrayLike) -> Denoiser:
    """Returns the denoiser of `mean + std x_0`, given that of `x_0`:
    `mean + std D((x - mean) / std, sigma / std)`.

    `mean` broadcasts against `x`; a ValueError is raised unless `std` is one positive number.
    """
    mean, std = jnp.asarray(mean), checked_std(std)
    return lambda x, sigma: mean + std * denoiser((x - mean) / std, sigma / std)


def edm(
    *,
    mean: ArrayLike,
    std: ArrayLike,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    level_mean: float = -1.2,
    level_std: float = 1.2,
    sigma_data: float = 1.0,
) -> Parameterisation:
    """Returns the preconditioning of Karras et al.: the network's input, target and loss have unit
    variance.

    For standardised data, `D(u, s) = c_skip u + c_out network(c_in u, log(s) / 4)` with
    `c_skip = d^2 / (s^2 + d^2)`, `c_out = s d / (s^2 + d^2)^(1/2)`, `c_in = (s^2 + d^2)^(-1/2)`,
    `d = sigma_data`, and `weight = 1 / c_out^2` (over `std^2`, as it weighs errors in data units).
    A network that returns 0 is the exact denoiser of standard normal data, and its expected loss is
    1 at every level.

    All arguments but `mean` and `std` are for standardised data; `levels` returns and the denoiser
    takes sigma > 0 in data units.

    Args:
        mean: mean of the training set, data units; a scalar or one a channel.
        std: its standard deviation, a positive scalar in data units (root mean square over
            channels).
        sigma_min: smallest level trained on, > 0.
        sigma_max: largest level trained on.
        level_mean: mean of `log s` in training, before it is cut off at both ends.
        level_std: standard deviation of `log s`, > 0.
        sigma_data: standard deviation of standardised data, > 0: 1, unless another is meant on
            purpose.

    Raises:
        ValueError: if a number is out of its range.

    Reference: Karras et al. 2022, arXiv 2206.00364, table 1.
    """
    std = checked_std(std)
    if not (0 < sigma_min < sigma_max and level_std > 0 and sigma_data > 0):
        raise ValueError(
            f'edm: got sigma_min {sigma_min}, sigma_max {sigma_max}, level_std {level_std}, '
            f'sigma_data {sigma_data}, expected 0 < sigma_min < sigma_max, the others > 0; give '
            'levels in units of the standard deviation'
        )

    def denoiser(network: Network) -> Denoiser:
        return rescaled(functools.partial(_edm_denoise, network, sigma_data), mean=mean, std=std)

    def levels(key: Key, n: int) -> Array:
        low, high = ((jnp.log(end) - level_mean) / level_std for end in (sigma_min, sigma_max))
        return std * jnp.exp(
            level_mean + level_std * jax.random.truncated_normal(key, low, high, (n,))
        )

    def weight(sigma: Array) -> Array:
        return (1 / sigma_data**2 + (std / sigma) ** 2) / std**2

    return Parameterisation(denoiser, levels, weight)


def vp(
    *,
    mean: ArrayLike,
    std: ArrayLike,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    t_min: float = 1e-3,
) -> Parameterisation:
    """Returns the noise prediction of the published method, along `vp_schedule`.

    For standardised data, `D(u, s) = u - s network(alpha_t u, 999 t)` with t from `vp_time(s)`, and
    `weight = 1 / sigma^2`: the weighted error is that of the noise. The reduction `half_sum` of
    `denoising_loss` gives the published loss. With mean 0 and std 1 the path is that of the raw
    data, as published.

    Args:
        mean: as of `edm`.
        std: as of `edm`.
        beta_min: as of `vp_schedule`.
        beta_max: as of `vp_schedule`.
        t_min: training draws t uniformly from [t_min, 1]; 0 < t_min < 1.

    Raises:
        ValueError: if a number is out of its range.

    Reference: Song et al. 2021, arXiv 2011.13456, section 3.4 and appendix C.
    """
    std, schedule = checked_std(std), vp_schedule(beta_min, beta_max)
    if not 0 < t_min < 1:
        raise ValueError(f't_min: got {t_min}, expected a time in (0, 1); 1e-3 is usual')

    def denoise(network: Network, u: Array, s: Array) -> Array:
        s = jnp.broadcast_to(s, u.shape[:1])
        t = vp_time(s, beta_min, beta_max)
        return u - broadcast(s, u) * network(broadcast(schedule.alpha(t), u) * u, 999 * t)

    def levels(key: Key, n: int) -> Array:
        t = jax.random.uniform(key, (n,), minval=t_min)
        return std * schedule.sigma(t) / schedule.alpha(t)

    return Parameterisation(
        denoiser=lambda network: rescaled(functools.partial(denoise, network), mean=mean, std=std),
        levels=levels,
        weight=lambda sigma: 1 / sigma**2,
    )


PARAMETERISATIONS: dict[str, Callable[..., Parameterisation]] = {'edm': edm, 'vp': vp}


def make_parameterisation(
    name: str, *, mean: ArrayLike, std: ArrayLike, **options: Any
) -> Parameterisation:
    """Returns the parameterisation of that name in `PARAMETERISATIONS`; Args and Raises as of `edm`
    and `vp`.
    """
    return choose('parameterisation', name, PARAMETERISATIONS)(mean=mean, std=std, **options)


# How a sample's weighted squared errors become one number.
REDUCTIONS: dict[str, Callable[[Array], Array]] = {
    'mean': jnp.mean,
    'half_sum': lambda errors: jnp.sum(errors) / 2,
}


def denoising_loss(
    denoiser: Denoiser,
    parameterisation: Parameterisation,
    key: Key,
    x_0: Batch,
    *,
    reduction: str = 'mean',
) -> tuple[Array, Metrics]:
    """Returns the weighted denoising error, with one noise level and one noise a sample.

    `mean over the batch of weight(sigma) reduce (D(x_0 + sigma noise, sigma) - x_0)^2`; the exact
    denoiser is its minimum, whatever the weight.

    Args:
        denoiser: what is trained.
        parameterisation: gives the levels and their weight.
        key: draws levels and noise.
        x_0: data `(b, ...)`, data units.
        reduction: a key of `REDUCTIONS`: `mean` over a sample's values, or `half_sum` (half their
            sum, published).

    Returns:
        The loss, and `{'denoising': loss}`; a ValueError is raised if `reduction` is unknown.
    """
    reduce = choose('reduction', reduction, REDUCTIONS)
    key_levels, key_noise = jax.random.split(key)
    sigma = parameterisation.levels(key_levels, len(x_0))
    x = x_0 + broadcast(sigma, x_0) * jax.random.normal(key_noise, x_0.shape, x_0.dtype)
    errors = jax.vmap(reduce)((denoiser(x, sigma) - x_0) ** 2)
    loss = jnp.mean(parameterisation.weight(sigma) * errors)
    return loss, {'denoising': loss}


def _edm_denoise(network: Network, sigma_data: float, u: Array, s: Array) -> Array:
    s = jnp.broadcast_to(s, u.shape[:1])
    level, total = broadcast(s, u), jnp.sqrt(broadcast(s, u) ** 2 + sigma_data**2)
    output = network(u / total, jnp.log(s) / 4)
    return (sigma_data / total) ** 2 * u + level * sigma_data / total * output


def _scales(schedule: Schedule, t: ArrayLike, x: Array) -> tuple[Array, Array]:
    t = jnp.asarray(t)
    return broadcast(schedule.alpha(t), x), broadcast(schedule.sigma(t), x)


def known(value: ArrayLike) -> bool:
    """Returns whether a value can be looked at, as a traced one inside a compiled function
    cannot.
    """
    return not isinstance(value, jax.core.Tracer)


def conditional_variance(sigma: ArrayLike, std: ArrayLike, gain: Gain = 1.0) -> Array:
    """Returns `gain v`, `v = std^2 sigma^2 / (sigma^2 + std^2)`: the variance of a measured `x_0`
    given x.

    v is that of isotropic normal data; `gain` makes it that of their measurement, or of other data.

    Args:
        sigma: noise level, >= 0.
        std: of the data, > 0, in the same unit.
        gain: a number, or a function of `sigma`.
    """
    variance = std**2 * (sigma**2 / (sigma**2 + std**2))
    return (gain(sigma) if callable(gain) else gain) * variance


def checked_std(std: ArrayLike) -> Array:
    """Returns `std` as an array; a traced one, as inside a compiled training step, has only its
    shape checked.
    """
    if jnp.ndim(std) or (known(std) and not np.asarray(std) > 0):
        raise ValueError(
            f'std: got {std} of shape {jnp.shape(std)}, expected one positive number in data '
            'units; for several channels pass the root mean square of their standard deviations'
        )
    return jnp.asarray(std)
