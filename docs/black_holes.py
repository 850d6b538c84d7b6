"""Draws `black-holes.png`: 36 black-hole images of the data family.
`python docs/black_holes.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from matplotlib.figure import Figure

from namm_jax.problems.black_hole_images import BlackHoles

x = np.asarray(BlackHoles().fields(jax.random.split(jax.random.key(0), 36)))
figure = Figure(figsize=(9, 9.6), layout='constrained')
axes = figure.subplots(6, 6)
for ax, image in zip(axes.ravel(), x[..., 0], strict=True):
    shown = ax.imshow(image, cmap='inferno', vmin=0, vmax=np.quantile(x, 0.999))
    ax.set(xticks=[], yticks=[])
figure.colorbar(
    shown,
    ax=axes,
    orientation='horizontal',
    label='brightness; the sum of each image is 120',
    aspect=50,
)
figure.savefig(Path(__file__).parent / 'black-holes.png', dpi=80)
