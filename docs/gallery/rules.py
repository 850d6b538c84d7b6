"""Rules as they are: a noisy signal, and the nearest one that obeys, for three rules.

Growth never falls, what flows in flows out, and means over four hours have a limit. Each rule has
its exact way back, `restore`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

N = 48
t = np.linspace(0, 24, N)
bells = np.exp(-(((t[:, None] - [6, 14, 19]) / [2, 3, 1.5]) ** 2)) @ [0.5, 0.75, 0.6]
blocks = np.kron(np.eye(6), np.full(N // 6, 6 / N))[..., None, None]  # means over four hours
cases = {  # rule, signal, standard deviation of the noise, name of the vertical axis
    'never falls': (nj.rules.monotone(), 1 / (1 + np.exp(4 - t / 3)), 0.12, 'growth'),
    'sums to 0': (nj.rules.sum_to(0.0), bells - bells.mean(), 0.15, 'flow in litres per second'),
    'means at most 0.66 kW': (nj.rules.at_most(blocks, 0.66), bells, 0.22, 'load in kW'),
}

figure = Figure(figsize=(9, 3.4), layout='constrained')
axes = figure.subplots(1, 3)
for ax, (name, (rule, signal, noise, label)) in zip(axes, cases.items(), strict=True):
    noisy = signal + noise * (0.5 + np.asarray(jax.random.normal(jax.random.key(0), (N,))))
    fields = jnp.asarray(noisy, jnp.float32).reshape(1, N, 1, 1)
    back, _ = rule.restore(fields)
    ax.plot(t, signal, color='black', lw=1, label='signal')
    ax.plot(t, noisy, 'o', color='tab:orange', ms=3, label='noisy')
    ax.plot(t, np.ravel(back), color='tab:blue', label='nearest that obeys')
    before, after = (float(rule.distance(x)[0]) for x in (fields, back))
    ax.set_title(f'{name}\ndistance {before:.2g}, then {after:.1g}', fontsize=10)
    ax.set(xlabel='hours', ylabel=label, xticks=range(0, 25, 4))
axes[0].legend(fontsize=8)
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
