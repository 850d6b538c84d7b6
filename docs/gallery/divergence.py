"""Divergence of a noisy flow, before and after its exact projection.

The projection takes a gradient away: about half of the noise, and nothing of the vorticity. What is
left obeys the rule, and is not the truth.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import namm_jax as nj

flow = nj.problems.kolmogorov(points=32, states=1)
rule = flow.constraint()
truth = flow.sample(jax.random.key(3), 2)
noisy = truth + 0.3 * jax.random.normal(jax.random.key(4), truth.shape)
fields = {'truth': truth, 'noisy': noisy, 'projected': rule.restore(noisy)[0]}

figure = Figure(figsize=(9, 5.8), layout='constrained')
axes = figure.subplots(2, 3)
limit = float(np.abs(flow.image(truth)[0]).max())
for (top, bottom), (name, x) in zip(axes.T, fields.items(), strict=True):
    curl = top.imshow(flow.image(x)[0], cmap='RdBu_r', vmin=-limit, vmax=limit)
    sizes = np.maximum(flow.residual_map(rule, x)[0], 1e-8)
    div = bottom.imshow(sizes, cmap='viridis', norm=LogNorm(1e-7, 10))
    error = float(np.sqrt(((x - truth) ** 2).mean()))
    told = f'{name}\ndistance {float(rule.distance(x).mean()):.1g}, error {error:.2f}'
    top.set_title(told, fontsize=10)
for ax in axes.ravel():
    ax.set(xticks=[], yticks=[])
figure.colorbar(curl, ax=axes[0], label='vorticity')
figure.colorbar(div, ax=axes[1], label='|divergence|')
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
