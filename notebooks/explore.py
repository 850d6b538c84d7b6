# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Neural approximate mirror maps: a look around
#
# Fields that obey a rule, a mirror map that brings points back onto it, a diffusion model in mirror
# space, and a rule of your own. A CPU is enough. The next cell installs namm_jax where it is
# missing, from the repository, and leaves an installed JAX as it is.

# %%
import importlib.util
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# its address; used only where namm_jax is not installed, and this notebook is not in a clone
REPOSITORY = 'https://github.com/OWNER/namm_jax'
if importlib.util.find_spec('namm_jax') is None:
    folders = (
        folder for folder in (Path.cwd(), Path.cwd().parent) if (folder / 'setup.cfg').exists()
    )
    wanted = [str(next(folders, f'git+{REPOSITORY}'))]
    try:
        wanted.append(f'jax=={version("jax")}')  # as it is here, where it fits the GPU's plugin
    except PackageNotFoundError:
        pass
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', *wanted], check=True)

# %%
import jax
import jax.numpy as jnp

import namm_jax as nj
from namm_jax.__main__ import main as namm_jax
from namm_jax.report import figures


def show(figure):
    """Shows a figure in a notebook; a script has nowhere to."""
    try:
        from IPython.display import Image, display
    except ImportError:
        return
    display(Image(figures.png(figure)))


# %% [markdown]
# ## A run
#
# `RUN` is a run folder: one of yours, or a new one that the preset `tiny` fills in a minute or two.
# Its models have seen a dozen batches: they show how things fit together, not how good they get.
# For that, train with `python launch/main.py --config=configs/burgers.py` and put its folder here.

# %%
RUN = Path('runs', 'explore')
if not (RUN / 'config.json').exists():
    namm_jax(['run', 'burgers:tiny', f'--workdir={RUN}'])

run = nj.open_run(RUN)  # read only
x = jnp.asarray(run.data('test')[:64])
g, f, constraint = run.g, run.f, run.constraint

# %% [markdown]
# ## Sampling
#
# The mirror diffusion model draws `z`, in mirror space; `f` takes it to `x`. The sample of a key
# of index i depends on the key and i alone. `run.sample(64)` is both in one call.

# %%
z = nj.sample(run.mdm, jax.random.key(0), 64, steps=run.config.sample.steps)
samples = f(z)
print(
    'constraint distance, mean of 64: data',
    constraint.distance(x).mean(),
    'samples',
    constraint.distance(samples).mean(),
)

# %% [markdown]
# Where is the rule broken? Each sample stands above the map of its residual.

# %%
maps = lambda x: run.problem.residual_map(constraint, x)
rows = {'data': (x, maps(x)), 'mdm_finetuned': (samples, maps(samples))}
samples_figure = figures.samples_with_residuals(rows, units=('u', '|residual|'))
show(samples_figure)

# %% [markdown]
# The same samples on both sides of the map.

# %%
mirror_figure = figures.mirror_and_inverse(z, samples)
show(mirror_figure)

# %% [markdown]
# ## Applying f
#
# `f` undoes `g`, and it was trained to land on the rule from noisy mirror points, which is what a
# diffusion model gives. The same noise on `x` itself stays there.

# %%
sigma = run.config.mirror.sigma_max
noise = sigma * jax.random.normal(jax.random.key(1), x.shape)
print('mean |f(g(x)) - x|:', jnp.abs(f(g(x)) - x).mean())
distances = {'data': x, 'x + noise': x + noise, 'f(g(x) + noise)': f(g(x) + noise)}
noise_figure = figures.distance_histograms(
    {name: constraint.distance(fields) for name, fields in distances.items()}
)
show(noise_figure)

# %% [markdown]
# ## A rule of your own
#
# Any function of fields that is 0 where the rule holds, and that JAX can differentiate: here, how
# far values lie outside of two bounds. No config: a problem, a recipe, and `fit`.


# %%
outside = lambda x: jax.nn.relu(x - 0.5) - jax.nn.relu(-0.5 - x)
fields = x.clip(-0.5, 0.5)  # data that obey it
own = nj.problem(fields, residual=outside, periodic=run.problem.periodic)
print('distance of x:', own.distance(x).mean(), 'of the fields:', own.distance(fields).max())

# %%
sigma = 0.3
small = {
    'forward': nj.networks.ICNN(8, 1, periodic=own.periodic),
    'inverse': nj.networks.UNet((16,), periodic=own.periodic, norm='none'),
}
recipe = nj.namm(own, sigma_max=sigma, **small)
learned = nj.fit(recipe, fields, steps=300, key=jax.random.key(3), progress=False)

# %% [markdown]
# How far from the rule the same noise takes the fields, without the mirror map and with it.

# %%
noise = sigma * jax.random.normal(jax.random.key(4), fields.shape)
noisy = {
    'data': fields,
    'x + noise': fields + noise,
    'f(g(x) + noise)': learned.inverse(learned.forward(fields) + noise),
}
print({name: float(own.distance(fields).mean()) for name, fields in noisy.items()})
rows = {name: (fields, outside(fields)[..., 0]) for name, fields in noisy.items()}
own_figure = figures.samples_with_residuals(rows, units=('u', 'outside by'))
show(own_figure)
