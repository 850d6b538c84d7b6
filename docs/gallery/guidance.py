"""Guidance and projection act on a denoiser that one has already: points, and a circle as rule.

The data are two normal clusters in the plane, so that the best denoiser is known exactly. A field
has one pixel and two channels. The rule is to lie on the unit circle.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

CENTRES = jnp.array([[0.9, 0.5], [-0.6, 0.7]])
WIDTH = 0.25


def denoiser(x, sigma):
    """Returns E[x_0 given x] of the two clusters."""
    sigma = jnp.reshape(sigma, (-1, 1, 1, 1))
    variance = WIDTH**2 + sigma**2
    gap = x - CENTRES.reshape(2, 1, 1, 1, 2)
    weight = jax.nn.softmax(-(gap**2).sum(-1, keepdims=True) / (2 * variance), axis=0)
    estimates = x - gap * sigma**2 / variance
    return (weight * estimates).sum(0)


def radius(x):
    """Returns the norm of each point, `(b,)`."""
    return jnp.sqrt((x**2).sum((1, 2, 3)) + 1e-12)


prior = nj.prior(denoiser, shape=(1, 1, 2), std=0.9)
circle = nj.constraint(lambda x: jnp.abs(radius(x) - 1), name='circle')
priors = {
    'prior': prior,
    'guided, scale 0.5': nj.guided(prior, circle, scale=0.5),
    'projected': nj.projected(prior, lambda x: x / radius(x)[:, None, None, None]),
}

figure = Figure(figsize=(9, 3.4), layout='constrained')
turn = np.linspace(0, 2 * np.pi, 200)
for ax, (name, one) in zip(figure.subplots(1, 3), priors.items(), strict=True):
    x = nj.sample(one, jax.random.key(0), 1000)
    ax.plot(np.cos(turn), np.sin(turn), color='tab:red', lw=1)
    ax.scatter(x[:, 0, 0, 0], x[:, 0, 0, 1], s=3, color='tab:blue', alpha=0.5)
    ax.set(xlim=(-1.7, 1.9), ylim=(-0.9, 1.7), aspect='equal')
    ax.set_title(f'{name}\nmean distance {float(circle.distance(x).mean()):.2g}', fontsize=10)
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
