"""The rows of the table: what each is drawn from, its way to data, and what its training took.

A row is a draw followed by a map. Rivals that act while sampling are other draws of the same
diffusion model; those that mend samples afterwards, and the mirror map's inverse, are maps.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array
from ml_collections import ConfigDict

from namm_jax._arrays import Constraint, Denoiser, Key, Params
from namm_jax._checks import choose
from namm_jax.constraints.projection import gauss_newton_projection
from namm_jax.denoising.guidance import guided, projected
from namm_jax.experiment import build, dataset
from namm_jax.experiment.drawing import UNCHANGED, Around, in_batches, make_draw
from namm_jax.experiment.experiment import (
    Experiment,
    finetuned_parameters,
    mirror_parameters,
    score_parameters,
)
from namm_jax.experiment.files import read_json, write_json
from namm_jax.experiment.processes import from_first

Way = Callable[[Array], Array]
Restore = Callable[[Array], tuple[Array, Any]]


class Draw(NamedTuple):
    """Samples of a diffusion model.

    Attributes:
        model: `dm` or `mdm`.
        file: the name of the file that holds them.
        around: experiment -> what acts on the denoiser.
    """

    model: str
    file: str
    around: Callable[[Experiment], Around] = lambda experiment: UNCHANGED


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        draw: a key of `DRAWS`.
        way: experiment -> the map from what is drawn to data.
        trained_by: the stages whose training it needs.
    """

    draw: str
    way: Callable[[Experiment], Way]
    trained_by: tuple[str, ...]


def _newton(experiment: Experiment, iterations: int) -> Callable[[Constraint], Restore]:
    """Returns `constraint -> its Gauss-Newton projection`, of so many iterations at most."""
    settings = dict(
        tolerance=experiment.config.sample.projection_tolerance, max_iterations=iterations
    )
    return lambda constraint: functools.partial(
        gauss_newton_projection, constraint.residual, **settings
    )


def _compiled(experiment: Experiment, map_of: Callable[[Constraint], Restore]) -> Way:
    """Returns the jitted map of a restore or projection; a sample for which that is not finite
    stays as it is.
    """

    @jax.jit
    def way(constraint: Constraint, x: Array) -> Array:
        mapped = map_of(constraint)(x)[0]
        return jnp.where(jnp.isfinite(mapped).all((1, 2, 3), keepdims=True), mapped, x)

    return Partial(way, experiment.constraint)  # an argument, as it may hold a network


def _unchanged(experiment: Experiment) -> Way:
    return lambda x: x


def projection(experiment: Experiment) -> Way:
    """Returns the Gauss-Newton projection, by the settings of the config's section `sample`."""
    return _compiled(
        experiment, _newton(experiment, experiment.config.sample.projection_iterations)
    )


def polish(experiment: Experiment) -> Way:
    """Returns the few Gauss-Newton steps, one by default, that leave a sample near where f has put
    it.
    """
    return _compiled(experiment, _newton(experiment, experiment.config.sample.polish_iterations))


def _restored(name: str) -> Callable[[Experiment], Way]:
    return lambda experiment: _compiled(experiment, lambda constraint: constraint.restores[name])


def _inverse(experiment: Experiment, params: Params) -> Way:
    return Partial(jax.jit(experiment.mirror.inverse), params)


def _polished(experiment: Experiment) -> Way:
    f, polished = _inverse(experiment, finetuned_parameters(experiment)), polish(experiment)
    return lambda z: polished(f(z))


def rows_of(experiment: Experiment) -> dict[str, Row]:
    """Returns the config's rows of the table, `data` aside, in their order; all that apply where it
    names none.

    Raises:
        ValueError: if one that the config names does not apply.
    """
    rows = _all_rows(experiment)
    for name in experiment.config.sample.rows:
        choose('sample.rows', name, rows)
    return {
        name: row for name, row in rows.items() if name in (experiment.config.sample.rows or rows)
    }


def _all_rows(experiment: Experiment) -> dict[str, Row]:
    restores = list(getattr(experiment.constraint, 'restores', {}))
    names = {
        name: f'dm_restored_{name}' if len(restores) > 1 else 'dm_restored' for name in restores
    }
    rows = {
        'dm': Row('dm', _unchanged, ('dm',)),
        'dm_guided': Row('dm_guided', _unchanged, ('dm',)),
    }
    rows |= {row: Row('dm', _restored(name), ('dm',)) for name, row in names.items()}
    rows |= {
        'dm_projected': Row('dm', projection, ('dm',)),
        'dm_projected_sampling': Row('dm_projected_sampling', _unchanged, ('dm',)),
    }
    rows |= _mirror_rows(experiment.config)
    if build.holds_network(experiment.config):  # all but the plain diffusion model needed it
        rows |= {
            name: row._replace(trained_by=('counter', *row.trained_by))
            for name, row in rows.items()
            if name != 'dm'
        }
    return rows


def _mirror_rows(config: ConfigDict) -> dict[str, Row]:
    plain = lambda experiment: _inverse(experiment, mirror_parameters(experiment))
    if not build.learns_map(config):
        return {f'mdm_{config.mirror.map}': Row('mdm', plain, ('mdm',))}
    finetuned = lambda experiment: _inverse(experiment, finetuned_parameters(experiment))
    all_three = ('mirror', 'mdm', 'finetune')
    return {
        'mdm': Row('mdm', plain, all_three[:2]),
        'mdm_finetuned': Row('mdm', finetuned, all_three),
        'mdm_polished': Row('mdm', _polished, all_three),
    }


def _guide(limit: float, constraint: Constraint, scale: Array, denoiser: Denoiser) -> Denoiser:
    return guided(denoiser, constraint.distance, scale=scale, limit=limit)


def _guidance(experiment: Experiment) -> Around:
    """Returns guidance by the distance, at the scale of the config's that leaves the smallest
    median distance.
    """
    config, constraint, keys = (
        experiment.config,
        experiment.constraint,
        experiment.keys('probe', 0, 32),
    )
    standard = experiment.standard_constraint
    path = experiment.run.directory / 'sample' / 'guidance.json'
    guide = functools.partial(
        _guide, experiment.run.record('dm')['std']
    )  # a step is no longer than the data are wide
    if not from_first(path.exists):
        medians = []
        for scale in config.sample.guidance_scales:
            around = Partial(guide, standard, jnp.float32(scale))
            x = sampler(experiment, 'dm', config.sample, around)(keys)
            medians.append(float(jnp.median(constraint.distance(x))))
        best = int(np.nanargmin(medians)) if np.isfinite(medians).any() else 0
        scales = dict(zip(map(str, config.sample.guidance_scales), medians, strict=True))
        result = {'scale': config.sample.guidance_scales[best], 'median_distances': scales}
        from_first(lambda: write_json(path, result))
    return Partial(guide, standard, jnp.float32(read_json(path)['scale']))


def _project(
    constraint: Constraint, project: Callable[[Constraint], Restore], denoiser: Denoiser
) -> Denoiser:
    return projected(denoiser, lambda x: project(constraint)(x)[0])


def _projected_sampling(experiment: Experiment) -> Around:
    """Returns the projection of each estimate: by the first exact restore, else by some
    Gauss-Newton steps.
    """
    steps = _newton(experiment, experiment.config.sample.projected_sampling_iterations)
    exact = lambda constraint: constraint.restore
    project = exact if getattr(experiment.constraint, 'restores', {}) else steps
    return Partial(
        lambda constraint, denoiser: _project(constraint, project, denoiser),
        experiment.standard_constraint,
    )


DRAWS = {
    'dm': Draw('dm', 'dm'),
    'mdm': Draw('mdm', 'mirror'),
    'dm_guided': Draw('dm', 'dm_guided', _guidance),
    'dm_projected_sampling': Draw('dm', 'dm_projected_sampling', _projected_sampling),
}


def sampler(
    experiment: Experiment, model: str, section: Any, around: Around = UNCHANGED
) -> Callable[[Key], Array]:
    """Returns a trained diffusion model's sampler, jitted `keys -> samples`.

    Args:
        experiment: the experiment.
        model: `dm` or `mdm`.
        section: the sampler's, `config.sample` or `config.train.sample`.
        around: as of `make_draw`.
    """
    record = experiment.run.record(model)
    to_data = experiment.unit_maps[1] if model == 'dm' else UNCHANGED
    draw = make_draw(experiment.config, section, record['mean'], record['std'], around, to_data)
    return functools.partial(draw, score_parameters(experiment, model))


def drawn(
    experiment: Experiment, path: Path, draw: Callable[[], Callable[[Key], Array]], keys: Key
) -> tuple[np.ndarray, float]:
    """Returns samples, and the seconds that one of them takes; from disk if they are there.

    Args:
        experiment: the experiment.
        path: of their file; the seconds are in a file beside it.
        draw: returns the sampler, if it is needed.
        keys: `(n,)`, one a sample.
    """
    clock = path.with_suffix('.json')
    if not from_first(path.exists):
        x, seconds = timed(experiment, draw(), keys)
        from_first(lambda: write_json(clock, {'seconds_per_sample': seconds}))
        experiment.save(path, x)
    return experiment.packed(dataset.read_fields(path)), read_json(clock)['seconds_per_sample']


def timed(experiment: Experiment, function: Way, inputs: Any) -> tuple[np.ndarray, float]:
    """Returns a function of all inputs, and its seconds a sample: the median of three batches after
    one to warm up.

    Args:
        experiment: the experiment; a signal stops it between two batches.
        function: `(b, ...) -> (b, ...)`.
        inputs: `(n, ...)`.
    """
    size, times = min(len(inputs), experiment.config.sample.batch_size), []

    def clocked(batch: Any) -> Array:
        begun = time.perf_counter()
        result = jax.block_until_ready(function(batch))
        times.append((time.perf_counter() - begun) / size)
        return result

    run = functools.partial(
        in_batches, clocked, inputs, size, experiment.local_mesh, between=experiment.pause
    )
    result = run()
    while len(times) < 4:
        run()
    return result, float(np.median(times[1:]))
