"""Fields of every built-in problem, and how far noise takes them from their rule."""

from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj

HERE = Path(__file__).resolve().parent
PROBLEMS = {
    'burgers': nj.problems.burgers(points=64, states=64),
    'kolmogorov': nj.problems.kolmogorov(points=32, states=1),
    'black_holes': nj.problems.black_holes(points=64),
    'textures': nj.problems.textures(points=64),
    'galaxies': nj.problems.galaxies(points=64),
}

figure = Figure(figsize=(9, 5.6), layout='constrained')
axes = figure.subplots(3, 5)
for column, (name, problem) in zip(axes.T, PROBLEMS.items(), strict=True):
    x = problem.sample(jax.random.key(3), 3)
    images = np.asarray(problem.image(x))
    limits = np.quantile(images, [0.001, 0.999])
    for ax, image in zip(column, images, strict=True):
        colours = problem.view.colours
        ax.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation='nearest')
        ax.set(xticks=[], yticks=[])
    title = name.replace('_', ' ')
    if name != 'galaxies':  # its rule is a network, which a run trains
        noise = 0.1 * jax.random.normal(jax.random.key(4), x.shape)
        clean, noisy = (float(problem.distance(y).mean()) for y in (x, x + noise))
        title += f'\ndistance {clean:.1g}, noisy {noisy:.2g}'
    column[0].set_title(title, fontsize=9)

    thumb = Figure(figsize=(1, 1))
    ax = thumb.add_axes((0, 0, 1, 1))
    ax.imshow(images[0], cmap=problem.view.colours, vmin=limits[0], vmax=limits[1])
    ax.axis('off')
    thumb.savefig(HERE.parent / f'problem-{name}.png', dpi=128)
figure.savefig(HERE / 'problems.png', dpi=100)
