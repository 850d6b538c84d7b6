"""Gauss-Newton projection: a noisy trajectory of Burgers' equation, back on the equation.

The projection knows the residual alone. Solving on from the first column obeys too, and forgets
all other columns.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

burgers = nj.problems.burgers(points=32, states=32)
rule = burgers.constraint()
truth = burgers.sample(jax.random.key(0), 16)
noisy = truth + 0.03 * jax.random.normal(jax.random.key(1), truth.shape)
fields = {
    'truth': truth,
    'noisy': noisy,
    'projected': nj.project_onto(rule, noisy)[0],
    'solved on from\nthe first column': rule.restore(noisy)[0],
}

figure = Figure(figsize=(9, 3.2), layout='constrained')
for ax, (name, x) in zip(figure.subplots(1, 4), fields.items(), strict=True):
    ax.imshow(burgers.image(x)[0], vmin=0, vmax=1)
    error = float(np.sqrt(((x - truth) ** 2).mean()))
    told = f'{name}\ndistance {float(rule.distance(x).mean()):.1g}\nerror {error:.3f}'
    ax.set_title(told, fontsize=9)
    ax.set(xticks=[], yticks=[], xlabel='time')
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
