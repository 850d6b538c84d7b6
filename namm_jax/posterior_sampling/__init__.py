"""Posterior samplers that are loops of their own: decoupled annealing, and sequential Monte Carlo.

Symbols: `y = A(x_0) + s noise` is measured, with `A` a function `measure` (in mirror space `A`
after f) and `s` its `noise_std`. `x = x_0 + sigma noise` is data seen at a noise level,
`D(x, sigma)` the denoiser, all in data units; the levels fall. `tau` is the standard deviation of
the data (`prior_std`), and `r = sigma tau / (sigma^2 + tau^2)^(1/2)` that of `x_0` given `x` if the
data are normal and isotropic. Both start at `x ~ N(prior_mean, sigma_1^2 + tau^2)`.

`daps` never differentiates the network, and is as exact as its normal law of `x_0` given `x`. `smc`
differentiates the network once a level, and is exact for many particles, many levels and the exact
denoiser.

Keys are one a sample. A sample of `daps` depends on its key alone, a group of particles of `smc` on
its keys alone.
"""

from namm_jax.posterior_sampling.annealing import daps, squared_gain
from namm_jax.posterior_sampling.monte_carlo import smc

__all__ = ['daps', 'smc', 'squared_gain']
