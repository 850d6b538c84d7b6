"""Mirror maps in closed form: whatever comes out of mirror space is inside the set.

Left, the simplex of three numbers; right, a box and a disc in the plane. Mirror points of data take
noise, a diffusion model's error, and are mapped back.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from namm_jax import mirror

NOISE = 0.6
MAPS = {
    'simplex': (mirror.simplex_map(1.0), 3),
    'box': (mirror.box_map(-1.0, 1.0), 2),
    'ball': (mirror.ball_map(1.0), 2),
}
key_data, key_noise = jax.random.split(jax.random.key(0))
data = {
    'simplex': jax.random.dirichlet(key_data, jnp.array([4.0, 2.0, 1.5]), (600,)),
    'box': jax.random.uniform(key_data, (600, 2), minval=-0.98, maxval=0.98),
    'ball': 0.98 * jax.random.ball(key_data, 2, shape=(600,)),
}


def drawn(name, x):
    """Returns points of the plane: those of a simplex as in a triangle."""
    x = np.asarray(x).reshape(len(x), -1)
    return x @ np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]]) if name == 'simplex' else x


figure = Figure(figsize=(9, 3.4), layout='constrained')
for ax, (name, (of, size)) in zip(figure.subplots(1, 3), MAPS.items(), strict=True):
    x = data[name].reshape(-1, 1, 1, size)
    z = of.forward({}, x)
    noisy = z + NOISE * jax.random.normal(key_noise, z.shape)
    for label, points in {'data': x, 'f(g(data) + noise)': of.inverse({}, noisy)}.items():
        ax.scatter(*drawn(name, points).T, s=4, alpha=0.5, label=label)
    corners = {
        'simplex': drawn(name, np.eye(3)[[0, 1, 2, 0]]),
        'box': np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]),
        'ball': np.stack([f(np.linspace(0, 2 * np.pi, 200)) for f in (np.cos, np.sin)], 1),
    }
    ax.plot(*corners[name].T, color='black', lw=1)
    ax.set(title=name, xticks=[], yticks=[], aspect='equal')
ax.legend(loc='lower right', fontsize=8)
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
