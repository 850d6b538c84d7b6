"""Denoisers: exact ones, what a network may predict, and how it is trained to.

Symbols: `D(x, sigma) = E[x_0 given x]` with `x = x_0 + sigma noise`, in data units. Networks
see standardised data, `u = (x - mean) / std` and `s = sigma / std`, so that one setting suits data
and mirror points of any scale. `std` is one number: noise equal in all channels would not stay so
if each were divided by its own.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from namm_jax._arrays import Denoiser, Gain, Key, Metrics, Parameterisation, broadcast
from namm_jax._checks import check_within, choose
from namm_jax.denoising import schedules

Network = Callable[..., Array]  # (x (b, ...), label (b,)) -> like x


def gaussian_denoiser(mean: ArrayLike, std: ArrayLike) -> Denoiser:
    """Returns the exact denoiser of normal pixels `x_0 ~ N(mean, std^2)`, which broadcast against
    x: `D(x, sigma) = (std^2 x + sigma^2 mean) / (std^2 + sigma^2)`.
    """
    mean = jnp.asarray(mean)
    variance = jnp.asarray(std) ** 2

    def denoise(x: Array, sigma: Array) -> Array:
        noise = broadcast(sigma, x) ** 2
        return (variance * x + noise * mean) / (variance + noise)

    return denoise


def rescaled(denoiser: Denoiser, *, mean: ArrayLike, std: ArrayLike) -> Denoiser:
    """Returns the denoiser of `mean + std x_0`, given that of `x_0`:
    `mean + std D((x - mean) / std, sigma / std)`; mean broadcasts against x, std is one number > 0.
    """
    mean = jnp.asarray(mean)
    std = positive_std(std)
    return lambda x, sigma: mean + std * denoiser((x - mean) / std, sigma / std)


def edm(
    *,
    mean: ArrayLike,
    std: ArrayLike,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    level_mean: float = -1.2,
    level_std: float = 1.2,
) -> Parameterisation:
    """Returns the preconditioning of Karras et al.: the network's input, target and loss have unit
    variance.

    `D(u, s) = c_skip u + c_out network(c_in u, log(s) / 4)` with `c_skip = 1 / (s^2 + 1)`,
    `c_out = s / (s^2 + 1)^(1/2)`, `c_in = (s^2 + 1)^(-1/2)`, and `weight = 1 / c_out^2` (over
    `std^2`, as it weighs errors in data units). A network that returns 0 is the exact denoiser of
    standard normal data, and its expected loss is 1 at every level.

    Args:
        mean: of the training set, in data units; a scalar or one a channel.
        std: of the training set, a positive scalar in data units (root mean square over channels).
        sigma_min, sigma_max: ends of the levels trained on, of standardised data, > 0.
        level_mean, level_std: of `log s` in training, before it is cut off at both ends.

    Reference: Karras et al. 2022, arXiv 2206.00364, table 1.
    """
    std = positive_std(std)
    check_within('(0, inf)', sigma_min=sigma_min, level_std=level_std)
    check_within(f'({sigma_min}, inf)', sigma_max=sigma_max)

    def denoise(network: Network, u: Array, s: Array) -> Array:
        s = jnp.broadcast_to(s, u.shape[:1])
        level = broadcast(s, u)
        total = jnp.sqrt(broadcast(s, u) ** 2 + 1)  # not `level`: one ulp of gradients
        output = network(u / total, jnp.log(s) / 4)
        return (1 / total) ** 2 * u + level / total * output

    def levels(key: Key, n: int) -> Array:
        low, high = ((jnp.log(end) - level_mean) / level_std for end in (sigma_min, sigma_max))
        draw = jax.random.truncated_normal(key, low, high, (n,))
        return std * jnp.exp(level_mean + level_std * draw)

    return Parameterisation(
        denoiser=lambda network: rescaled(functools.partial(denoise, network), mean=mean, std=std),
        levels=levels,
        weight=lambda sigma: (1 + (std / sigma) ** 2) / std**2,
    )


def vp(*, mean: ArrayLike, std: ArrayLike, t_min: float = 1e-3) -> Parameterisation:
    """Returns the noise prediction of the published method, along `schedules.vp`.

    `D(u, s) = u - s network(alpha_t u, 999 t)` with t from `vp_time(s)`, and
    `weight = 1 / sigma^2`: the weighted error is that of the noise. The published loss has the
    reduction `half_sum` of `denoising_loss`, mean 0 and std 1. Training draws t uniformly from
    [t_min, 1]. Other args are those of `edm`.

    Reference: Song et al. 2021, arXiv 2011.13456, section 3.4 and appendix C.
    """
    std = positive_std(std)
    schedule = schedules.vp()
    check_within('(0, 1)', t_min=t_min)

    def denoise(network: Network, u: Array, s: Array) -> Array:
        s = jnp.broadcast_to(s, u.shape[:1])
        t = schedules.vp_time(s)
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
    """Returns the parameterisation of that name in `PARAMETERISATIONS`, with its options."""
    return choose('parameterisation', name, PARAMETERISATIONS)(mean=mean, std=std, **options)


# How a sample's weighted squared errors become one number.
REDUCTIONS: dict[str, Callable[[Array], Array]] = {
    'mean': jnp.mean,
    'half_sum': lambda errors: jnp.sum(errors) / 2,  # published
}


def denoising_loss(
    denoiser: Denoiser,
    parameterisation: Parameterisation,
    key: Key,
    x_0: Array,
    *,
    reduction: str = 'mean',
) -> tuple[Array, Metrics]:
    """Returns the weighted denoising error of data `x_0 (b, ...)`, and it as `{'denoising': loss}`:
    `mean over the batch of weight(sigma) reduce (D(x_0 + sigma noise, sigma) - x_0)^2`.

    Each sample has one level, as the parameterisation draws it, and one noise. The exact denoiser
    is the minimum, whatever the weight. The `reduction` over a sample's values is in `REDUCTIONS`.
    """
    reduce = choose('reduction', reduction, REDUCTIONS)
    key_levels, key_noise = jax.random.split(key)
    sigma = parameterisation.levels(key_levels, len(x_0))
    x = x_0 + broadcast(sigma, x_0) * jax.random.normal(key_noise, x_0.shape, x_0.dtype)
    errors = jax.vmap(reduce)((denoiser(x, sigma) - x_0) ** 2)
    loss = jnp.mean(parameterisation.weight(sigma) * errors)
    return loss, {'denoising': loss}


def conditional_variance(sigma: ArrayLike, std: ArrayLike, gain: Gain = 1.0) -> Array:
    """Returns `gain v`, the variance of a measured `x_0` given x.

    `v = std^2 sigma^2 / (sigma^2 + std^2)` is that of isotropic normal data of standard deviation
    `std > 0` at noise level `sigma >= 0`; `gain`, a number or a function of sigma, makes it that of
    their measurement, or of other data.
    """
    variance = std**2 * (sigma**2 / (sigma**2 + std**2))
    return (gain(sigma) if callable(gain) else gain) * variance


def is_concrete(value: ArrayLike) -> bool:
    """Returns whether a value can be read, as a traced one in a compiled function cannot."""
    return not isinstance(value, jax.core.Tracer)


def positive(name: str, value: ArrayLike, remedy: str = '') -> Array:
    """Returns one finite number > 0 as an array, else a ValueError; only its shape if traced."""
    if jnp.ndim(value) or (is_concrete(value) and not 0 < float(value) < math.inf):
        got = f'{value} of shape {jnp.shape(value)}' if jnp.ndim(value) else value
        raise ValueError(f'{name}: got {got}, expected one finite number > 0{remedy}')
    return jnp.asarray(value)


def positive_std(std: ArrayLike) -> Array:
    """Returns the data's standard deviation as `positive` does."""
    remedy = ', in data units; for several channels pass the root mean square of their deviations'
    return positive('std', std, remedy)
