"""Rejection needs a test alone, true or false, and pays for each equation of the rule.

Samples of a prior of points in the plane are kept where they are near a circle, or near a point of
it. How many draws one of them takes grows with the demand: tenfold for one equation, a hundredfold
for two.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

WIDTH = 0.8
TOLERANCES = np.geomspace(0.01, 0.5, 9)
LEAST = 8  # kept, for their number to mean something
prior = nj.prior(
    lambda x, sigma: x * WIDTH**2 / (WIDTH**2 + sigma**2).reshape(-1, 1, 1, 1),
    shape=(1, 1, 2),
    std=WIDTH,
)
x, y = np.asarray(nj.sample(prior, jax.random.key(0), 16384, steps=20))[:, 0, 0].T
from_circle = np.abs(np.hypot(x, y) - 1)
from_point = np.hypot(x - 1, y)
rules = {
    'circle, one equation': (from_circle, 'tab:blue'),
    'point, two equations': (from_point, 'tab:red'),
}

figure = Figure(figsize=(9, 3.6), layout='constrained')
left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
left.scatter(x[:3000], y[:3000], s=2, color='0.8')
for name, (distance, colour) in rules.items():
    kept = distance[:3000] < 0.05
    left.scatter(x[:3000][kept], y[:3000][kept], s=6, color=colour)
    passed = (distance < TOLERANCES[:, None]).sum(1)
    told = passed >= LEAST
    right.plot(TOLERANCES[told], len(distance) / passed[told], 'o-', color=colour, ms=4, label=name)
left.set(title='3,000 draws, kept within 0.05', xlabel='x', ylabel='y', aspect='equal')
left.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
right.set(xscale='log', yscale='log', xlabel='distance that passes', ylabel='draws for each kept')
right.legend()
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
