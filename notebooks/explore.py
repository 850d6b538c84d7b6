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
# space, and a rule of your own. A CPU is enough. The next cell finds the repository, or clones it,
# and installs it.

# %%
import subprocess
from pathlib import Path

# its address; used only where this notebook is not in a clone
REPOSITORY = 'https://github.com/OWNER/namm_jax'
HERE = Path.cwd()
CLONE = next(
    (folder for folder in (HERE, HERE.parent) if (folder / 'launch').is_dir()), HERE / 'namm_jax'
)
if not CLONE.exists():
    subprocess.run(['git', 'clone', '--quiet', REPOSITORY, str(CLONE)], check=True)
# %pip install -q "{CLONE}"

# %%
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(CLONE))

from namm_jax import mirror
from namm_jax.networks.icnn import ICNN, nonnegative_mask
from namm_jax.networks.unet import UNet
from namm_jax.report import figures
from namm_jax.train import command, drawing, experiment


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
RUN = CLONE / 'runs' / 'explore'
if not (RUN / 'config.json').exists():
    command.main(
        ['launch/main.py', f'--config={CLONE}/configs/burgers.py:tiny', f'--workdir={RUN}']
    )

with command.open_experiment(RUN) as run:
    x = jnp.asarray(run.split('test')[:64])
    g, f = run.mirror.bind(experiment.finetuned_parameters(run))
    score, moments = experiment.score_parameters(run, 'mdm'), run.run.record('mdm')
    constraint, residual_map = run.constraint, run.problem.residual_map

# %% [markdown]
# ## Sampling
#
# The mirror diffusion model draws `z`, in mirror space; `f` takes it to `x`. The sample of a key
# depends on that key alone, so another `seed` gives other samples and the same seed the same ones.

# %%
seed = 0
draw = drawing.make_draw(run.config, run.config.sample, moments['mean'], moments['std'])
z = draw(score, jax.random.split(jax.random.key(seed), 64))
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
maps = lambda x: residual_map(constraint, x)
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
# A constraint is a pytree with `terms`, `distance` and `residual`; here, that every value lies
# between two bounds. Anything that JAX can differentiate will do. No config: a mirror map, its
# loss, and a loop.


# %%
class Between(NamedTuple):
    """Fields with values in `[low, high]`: `l(x)` is the mean over pixels of how far they lie
    outside.
    """

    low: jax.Array
    high: jax.Array

    def terms(self, x):
        return {
            'below': jax.nn.relu(self.low - x).mean((1, 2, 3)),
            'above': jax.nn.relu(x - self.high).mean((1, 2, 3)),
        }

    def distance(self, x):
        return jnp.abs(self.residual(x)).mean((1, 2, 3))

    def residual(self, x):
        return jax.nn.relu(x - self.high) - jax.nn.relu(self.low - x)


between = Between(jnp.float32(-0.5), jnp.float32(0.5))
fields = x.clip(between.low, between.high)  # data that obey it
print(
    'distance of x:', between.distance(x).mean(), 'of the fields:', between.distance(fields).max()
)

# %%
STEPS = 300
axes, sigma = run.problem.periodic, 0.3
own = mirror.neural_mirror_map(ICNN(8, 1, periodic=axes), UNet((16,), periodic=axes, norm='none'))
adam = optax.chain(
    optax.adam(2e-3), optax.masked(optax.keep_params_nonnegative(), nonnegative_mask)
)


@jax.jit
def step(params, state, key):
    key_batch, key_loss = jax.random.split(key)
    batch = jax.random.choice(key_batch, fields, (16,))
    loss = lambda p: mirror.namm_loss(own, p, key_loss, batch, between, sigma_max=sigma)
    (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = adam.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, terms


params = own.init(jax.random.key(2), fields[:1])
state = adam.init(params)
for k, key in enumerate(jax.random.split(jax.random.key(3), STEPS)):
    params, state, terms = step(params, state, key)
    if k % 100 == 0 or k == STEPS - 1:
        print(k, {name: float(value) for name, value in terms.items()})

# %% [markdown]
# How far from the rule the same noise takes the fields, without the mirror map and with it.

# %%
own_g, own_f = own.bind(params)
noise = sigma * jax.random.normal(jax.random.key(4), fields.shape)
noisy = {
    'data': fields,
    'x + noise': fields + noise,
    'f(g(x) + noise)': own_f(own_g(fields) + noise),
}
print({name: float(between.distance(fields).mean()) for name, fields in noisy.items()})
rows = {name: (fields, between.residual(fields)[..., 0]) for name, fields in noisy.items()}
own_figure = figures.samples_with_residuals(rows, units=('u', 'outside by'))
show(own_figure)
