"""Samples of diffusion models, and functions of many samples, batch by batch over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array
from ml_collections import ConfigDict

from namm_jax._arrays import Denoiser, Key, Params
from namm_jax.denoising.samplers import Sampler, make_sampler
from namm_jax.experiment import build, dataset
from namm_jax.experiment.devices import batch_sharding
from namm_jax.experiment.own import load_function
from namm_jax.experiment.problem import make_problem
from namm_jax.experiment.processes import gather_rows

# What acts on a denoiser while it draws samples of keys `(n,)`, a `Partial`.
Around = Callable[[Denoiser, Key], Denoiser]
UNCHANGED: Around = Partial(lambda x, keys=None: x)


def sampler_of(section: ConfigDict, mean: Array | float, std: Array | float) -> Sampler:
    """Returns a section's sampler, for training data of this mean and standard deviation."""
    options = dict(steps=section.steps, mean=mean, std=std, denoise_last=section.denoise_last)
    return make_sampler(scheme_of(section), **options)


def scheme_of(section: ConfigDict) -> Any:
    """Returns the name of a section's sampler, or the function that it names."""
    with jax.ensure_compile_time_eval():  # a user's file may compute as it is imported
        return load_function(section.sampler) if ':' in section.sampler else section.sampler


def make_draw(
    config: ConfigDict,
    section: ConfigDict,
    mean: float,
    std: float,
    to_data: Callable[[Array], Array] = UNCHANGED,
) -> Callable[..., Array]:
    """Returns the compiled `(score parameters, keys (n,), around=UNCHANGED) -> samples
    (n, h, w, c)` of the sampler of a section, for a model whose training set has this mean and
    standard deviation; what is `around` its denoiser compiles once a function, not once a value.
    """
    shape = make_problem(config).shape

    @jax.jit
    def draw(params: Params, keys: Key, mean: Array, std: Array, around: Around) -> Array:
        denoiser = around(build.make_denoiser(config, params, mean, std), keys)
        return to_data(sampler_of(section, mean, std)(keys, denoiser, shape))

    # Mean and std are arguments, so that DM and MDM are one program in the compilation cache.
    def of_model(params: Params, keys: Key, around: Around = UNCHANGED) -> Array:
        return draw(params, keys, jnp.float32(mean), jnp.float32(std), around)

    return of_model


def in_batches(
    function: Callable, inputs: Any, size: int, mesh: Mesh, *, between: Callable = lambda: None
) -> np.ndarray:
    """Returns a jitted function of inputs `(n, ...)`, batch by batch, each split over the devices
    of all processes.

    Args:
        size: of a batch, rounded up to a multiple of the devices; the last one is filled up.
        mesh: the devices of this process; every process has as many.
        between: called before each batch; may raise.
    """
    n, parts, processes = len(inputs), [], jax.process_count()
    size += -size % (mesh.size * processes)
    local = dataset.local_rows(size, process_index=jax.process_index(), process_count=processes)
    for start in range(0, n, size):
        between()
        indices = (np.arange(start, start + size) % n)[local]
        chunk = jax.device_put(inputs[indices], batch_sharding(mesh))
        parts.append(gather_rows(np.asarray(function(chunk)))[: n - start])
    return np.concatenate(parts)
