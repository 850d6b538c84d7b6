"""Two exact rules of the heat equation: its mass is conserved, and its first state is known.

A noisy wave is taken onto one rule, onto the other, and onto both at once, by one projection.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

heat = nj.problems.heat(points=32, states=32)
truth = heat.sample(jax.random.key(0), 1)
noisy = truth + 0.15 + 0.2 * jax.random.normal(jax.random.key(1), truth.shape)
mass = heat.constraint()
start = nj.constraint(residual=lambda x: x[:, :, 0] - truth[:, :, 0], name='first state')
both = nj.weighted_sum({'mass': mass, 'start': start}, {'mass': 1, 'start': 1})
fields = {
    'noisy': (noisy, 'tab:orange'),
    'onto mass': (nj.project_onto(mass, noisy)[0], 'tab:green'),
    'onto first state': (nj.project_onto(start, noisy)[0], 'tab:red'),
    'onto both': (nj.project_onto(both, noisy)[0], 'tab:blue'),
    'truth': (truth, 'black'),
}

figure = Figure(figsize=(9, 5), layout='constrained')
axes = figure.subplot_mosaic([list(fields), ['mass of each'] * 3 + ['start of each'] * 2])
place, time = np.linspace(0, 2 * np.pi, 32, endpoint=False), np.linspace(0, 1, 32)
for name, (x, colour) in fields.items():
    ax = axes[name]
    ax.imshow(x[0, ..., 0], cmap='RdBu_r', vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[], xlabel='time', ylabel='place' if name == 'noisy' else '')
    ax.set_title(name, fontsize=10, color=colour)
    wide = name in ('noisy', 'truth')  # they lie under those that agree with them
    line = dict(color=colour, lw=3 if wide else 1.2, zorder=1 if wide else 2, label=name)
    axes['mass of each'].plot(time, heat.mass(x)[0], **line)
    axes['start of each'].plot(place, x[0, :, 0, 0], **line)
axes['mass of each'].set(xlabel='time', ylabel='mass')
axes['start of each'].set(xlabel='place', ylabel='first state')
axes['start of each'].legend(fontsize=8)
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
