"""A posterior that can be checked: a prior of known law, noisy sensors, and the exact answer.

The data are normal with a covariance that makes them smooth, so that the denoiser and the posterior
are both known. Samples of `given` are compared with the exact mean and standard deviation.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

N, NOISE = 48, 0.2
place = jnp.linspace(0, 1, N)
covariance = jnp.exp(-0.5 * ((place[:, None] - place) / 0.1) ** 2) + 1e-4 * jnp.eye(N)
values, vectors = jnp.linalg.eigh(covariance)


def denoiser(x, sigma):
    """Returns E[x_0 given x], fields (b, N, 1, 1)."""
    shrink = values / (values + jnp.reshape(sigma, (-1, 1)) ** 2)
    return ((x[..., 0, 0] @ vectors * shrink) @ vectors.T)[..., None, None]


draw = lambda key, n: (jax.random.normal(key, (n, N)) * values**0.5 @ vectors.T)[..., None, None]
truth, examples = draw(jax.random.key(0), 1), draw(jax.random.key(1), 16)
prior = nj.prior(denoiser, shape=(N, 1, 1), examples=examples)
sensors = nj.operators.random_sensors((N, 1, 1), n=8, seed=1)
y = sensors(truth) + NOISE * jax.random.normal(jax.random.key(2), sensors(truth).shape)

found = nj.sample(nj.given(prior, sensors, y, noise_std=NOISE), jax.random.key(3), 400)
found = found[..., 0, 0]

A = np.asarray(sensors(jnp.eye(N)[..., None, None])).reshape(N, -1).T
gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + NOISE**2 * np.eye(len(A)))
mean = gain @ np.ravel(y)
std = np.sqrt(np.diag(covariance - gain @ A @ covariance))

figure = Figure(figsize=(9, 3.6), layout='constrained')
ax = figure.subplots()
ax.fill_between(place, mean - 2 * std, mean + 2 * std, alpha=0.25, label='exact, two std')
ax.plot(place, np.asarray(found[:12]).T, color='tab:blue', lw=0.5, alpha=0.7)
ax.plot(place, found.mean(0), color='tab:blue', label='mean of 400 samples')
ax.plot(place, mean, 'k--', lw=1, label='exact mean')
ax.plot(place, truth[0, :, 0, 0], color='tab:red', lw=1, label='truth')
ax.plot(A @ np.asarray(place), np.ravel(y), 'o', color='tab:red', ms=4, label='measured')
ratio = float(found.std(0).mean() / std.mean())
ax.set_title(f'standard deviation of the samples: {ratio:.2f} times the exact one', fontsize=10)
ax.legend(fontsize=8, ncol=5, loc='lower center')
ax.set(xlabel='place', ylim=(-3.6, 3))
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
