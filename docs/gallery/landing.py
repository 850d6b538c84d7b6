"""How an inverse map ends: a few steps of `nj.land`, towards the rule.

The rule is that a magnet's spins, a vector a pixel, all have the length 1. A step knows the
residual, a number a pixel, or the distance alone, one number a field. By the residual a small
distance is about squared with every step, until single precision ends it.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

STEPS = 6
NOISES = {0.3: '-', 0.1: '--', 0.03: ':'}
residual = lambda x: (x**2).sum(-1) - 1
rule = nj.constraint(residual=residual, name='spins')
alone = nj.constraint(rule.distance, name='mean length')
angle = jnp.cumsum(jax.random.normal(jax.random.key(0), (16, 16, 16)), 1)
truth = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
steps = {
    'by the residual': (jax.jit(lambda x: nj.land(rule, x)), 'tab:blue'),
    'by the distance': (jax.jit(lambda x: nj.land(alone, x)), 'tab:red'),
}

figure = Figure(figsize=(9, 3.6), layout='constrained')
ax = figure.subplots()
for label, (step, colour) in steps.items():
    for noise, line in NOISES.items():
        x = truth + noise * jax.random.normal(jax.random.key(1), truth.shape)
        distances = [float(rule.distance(x).mean())]
        for _ in range(STEPS):
            x = step(x)
            distances.append(float(rule.distance(x).mean()))
        ax.plot(distances, line, marker='o', ms=4, color=colour, label=f'{label}, noise {noise}')
ax.axhline(np.finfo(np.float32).eps, color='black', lw=1, label='single precision')
ax.set(yscale='log', xlabel='steps', ylabel='mean distance', xticks=range(STEPS + 1))
ax.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
