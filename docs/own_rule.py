"""A rule of one's own: every row of an image sums to 1.

`python own_rule.py` writes data that obey it.
"""

import jax.numpy as jnp
import numpy as np


def rows_sum_to_one(x):
    """Returns the mean over the rows of |sum - 1|, one number `(b,)` for each image of a batch
    `(b, h, w, c)`.
    """
    return jnp.mean(jnp.abs(x.sum(axis=2) - 1), axis=(1, 2))


if __name__ == '__main__':
    # In each row a bump, whose place and width change smoothly from row to row.
    rng = np.random.default_rng(0)
    row, column = np.linspace(0, 2 * np.pi, 16)[:, None], np.linspace(-1, 1, 16)
    phase, tilt, width = rng.uniform(0, 2 * np.pi, (3, 1200, 1, 1))
    place = 0.7 * np.sin(row + phase) * np.cos(tilt)
    bumps = np.exp(-((column - place) ** 2) / (0.2 + 0.1 * np.sin(row + width)))
    x = bumps / bumps.sum(axis=2, keepdims=True)
    np.save('own_data.npy', x[..., None].astype(np.float32))
