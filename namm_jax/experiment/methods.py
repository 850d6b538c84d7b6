"""The rows of both tables: a prior, what acts on its denoiser while it draws, a map to data.

Rivals that act while sampling are other draws of the same diffusion model; those that mend samples
afterwards, and the mirror map's inverse f, are maps.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
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
from namm_jax.denoising.guidance import classifier_free, guided, projected, renoised
from namm_jax.experiment import build
from namm_jax.experiment.drawing import UNCHANGED, Around, in_batches, make_draw
from namm_jax.experiment.experiment import (
    Experiment,
    finetuned_parameters,
    mirror_parameters,
    score_parameters,
)
from namm_jax.experiment.files import read_json, write_json
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.schema import problem_class

Way = Callable[[Array], Array]
ENOUGH = 60.0  # seconds for which a way is timed, compilation aside
LEARNED = ('finetuned', 'network')  # maps that only a learned mirror map has
MIRRORED = ('f', *LEARNED)  # maps that go through f


class Method(NamedTuple):
    """A row of a table.

    Attributes:
        prior: the diffusion model, `dm` of data or `mdm` of mirror points; none where empty.
        act: what acts on its denoiser: nothing where empty, a key of `ACTS` or, given a
            measurement, of `posteriors.SAMPLERS`.
        map: of what is drawn, none where empty: `f`, `finetuned` f, its `network` without the
            steps that end f, these steps as `landing`, `restore`, `projection`; of draws of `dm`,
            f and finetuned f are behind g; `rejection` leaves out those far from the rule, and
            draws more.
    """

    prior: str
    act: str = ''
    map: str = ''

    @property
    def draw(self) -> str:
        """The row whose draws it maps: the first that has its prior and act."""
        return next(name for name, other in METHODS.items() if other[:2] == self[:2])


METHODS = {
    # Of `sample` and `evaluate`.
    'dm': Method('dm'),
    'dm_guided': Method('dm', 'guidance'),
    'dm_restored': Method('dm', map='restore'),  # one for each restore of the constraint
    'dm_projected': Method('dm', map='projection'),
    'dm_landed': Method('dm', map='landing'),
    'dm_restored_sampling': Method('dm', 'restore'),
    'dm_projected_sampling': Method('dm', 'projection'),
    'dm_ppr': Method('dm', 'ppr'),
    'dm_residual_conditioned': Method('dm', 'level'),
    'dm_rejected': Method('dm', map='rejection'),  # of as many draws as it takes
    'dm_mapped': Method('dm', map='f'),
    'dm_mapped_finetuned': Method('dm', map='finetuned'),
    'mdm': Method('mdm', map='f'),
    'mdm_finetuned': Method('mdm', map='finetuned'),
    'mdm_unlanded': Method('mdm', map='network'),
    # Of `assimilate`.
    'dps': Method('dm', 'dps'),
    'cg_dps': Method('dm', 'cg_dps'),
    'dps_projected': Method('dm', 'dps', 'projection'),
    'mirror_dps': Method('mdm', 'dps', 'finetuned'),
    'dps_published': Method('dm', 'dps_published'),
    'cg_dps_published': Method('dm', 'cg_dps_published'),
    'mirror_dps_published': Method('mdm', 'dps_published', 'finetuned'),
    'few_steps': Method('dm', 'few_steps'),
    'mirror_few_steps': Method('mdm', 'few_steps', 'finetuned'),
    'daps': Method('dm', 'daps'),
    'mirror_daps': Method('mdm', 'daps', 'finetuned'),
    'smc': Method('dm', 'smc'),
    'mirror_smc': Method('mdm', 'smc', 'finetuned'),
    'variational': Method('', 'variational'),
}


def selected(
    config: ConfigDict, field: str, names: Sequence[str], rows: dict[str, Method]
) -> dict[str, Method]:
    """Returns the named ones of the rows that a config can have, all where none is named; raises a
    ValueError that names the field for another.
    """
    learned, rollout = build.learns_map(config), problem_class(config.data.problem).rollout
    trained = lambda row: learned or row.map not in {'dm': MIRRORED, 'mdm': LEARNED}[row.prior]
    has = lambda row: trained(row) if row.prior else rollout is not None
    ending = () if learned and config.sample.landing else ('landing', 'network')
    rows = {name: row for name, row in rows.items() if has(row) and row.map not in ending}
    for name in names:
        choose(field, name, rows)
    return {name: row for name, row in rows.items() if name in (names or rows)}


def rows_of(config: ConfigDict, constraint: Constraint) -> dict[str, Method]:
    """Returns the config's rows of the table of samples, `data` aside; see `selected`."""
    rows = {}
    restores = list(getattr(constraint, 'restores', {}))
    has = {'restore': bool(restores), 'level': build.takes_level(config)}
    mirror = 'mdm' if build.learns_map(config) else f'mdm_{config.mirror.map}'
    for name, method in METHODS.items():
        if method.map == 'restore':
            for way in restores:
                row = f'{name}_{way}' if len(restores) > 1 else name
                rows[row] = method._replace(map=f'restore_{way}')
        elif method.act in ACTS and has.get(method.act, True):
            rows[mirror if name == 'mdm' else name] = method
    return selected(config, 'sample.rows', config.sample.rows, rows)


def trained_by(config: ConfigDict, method: Method) -> tuple[str, ...]:
    """Returns the stages whose training a row needs."""
    finetuned = method.map in LEARNED
    mirrored = method.map in MIRRORED
    needs = {
        # All but the plain diffusion model ask the network that the constraint holds.
        'counter': build.holds_network(config) and method != METHODS['dm'],
        'mirror': mirrored and build.learns_map(config),
        'mdm': method.prior == 'mdm' or finetuned,  # f is finetuned on its samples
        'finetune': finetuned,
        'dm': method.prior != 'mdm',
        'condition': method.act == 'level',
    }
    return tuple(stage for stage, needed in needs.items() if needed)


def way_of(experiment: Experiment, method: Method) -> Way:
    """Returns the map to data of what a row draws."""
    if method.map not in MIRRORED:
        return correction(experiment, method.map)
    params = (finetuned_parameters if method.map in LEARNED else mirror_parameters)(experiment)
    bind = experiment.mirror.bind if method.map == 'network' else experiment.landed
    g, f = map(jax.jit, bind(params))
    return (lambda x: f(g(x))) if method.prior == 'dm' else f


def correction(experiment: Experiment, name: str) -> Way:
    """Returns the part of a method's `map` that takes fields onto M, compiled; the identity where
    it has none.

    A sample for which a map is not finite stays as it is.
    """
    if name in ('', *MIRRORED):
        return lambda x: x
    if name == 'landing':
        return jax.jit(experiment.landing)
    iterations = experiment.config.sample.projection_iterations

    @jax.jit
    def way(constraint: Constraint, x: Array) -> Array:
        if name == 'projection':
            mapped = _newton(experiment, constraint, iterations)(x)[0]
        else:
            mapped = constraint.restores[name.removeprefix('restore_')](x)[0]
        return jnp.where(jnp.isfinite(mapped).all((1, 2, 3), keepdims=True), mapped, x)

    return Partial(way, experiment.constraint)  # an argument, as it may hold a network


def _newton(experiment: Experiment, constraint: Constraint, iterations: int) -> Callable:
    tolerance = experiment.config.sample.projection_tolerance
    settings = dict(tolerance=tolerance, max_iterations=iterations)
    unit = experiment.unit
    residual = lambda x: constraint.residual(x) / unit
    return functools.partial(gauss_newton_projection, residual, **settings)


def _root_mean_square(constraint: Constraint, x: Array) -> Array:
    residual = constraint.residual(x).reshape(len(x), -1)
    return jnp.sqrt(jnp.mean(residual**2, axis=1))


RENOISED = 2  # times that an estimate of `dm_ppr` is
CALLS = {'ppr': 1 + RENOISED, 'level': 2}  # of the network, a call of the denoiser; else 1

# What guidance lowers. One residual a field has no other size than its distance.
FORMS = {'distance': lambda constraint, x: constraint.distance(x), 'residual': _root_mean_square}


def _guidance(experiment: Experiment) -> Around:
    """Returns guidance of the form, steps a call and scale, of the config's, that leave the
    smallest median distance.
    """
    section, path = experiment.config.sample, experiment.run.directory / 'sample' / 'guidance.json'
    limit = experiment.run.record('dm')['std']  # a step is no longer than the data are wide
    standard = experiment.standard_constraint

    @functools.cache
    def act(form: str, steps: int) -> Callable:
        def guide(constraint: Constraint, scale: Array, denoiser: Denoiser, keys: Key) -> Denoiser:
            measure = functools.partial(FORMS[form], constraint)
            move = guided(lambda x_0, _: x_0, measure, scale=scale, limit=limit)
            step = lambda _, x_0: move(x_0, jnp.float32(0))
            return projected(denoiser, lambda x_0: jax.lax.fori_loop(0, steps, step, x_0))

        return guide

    def around(form: str, steps: int, scale: float) -> Around:
        return Partial(act(form, steps), standard, jnp.float32(scale))

    if not from_first(path.exists):
        keys = experiment.keys('probe', 0, 32)
        draw = sampler(experiment, 'dm', section)
        x = jax.ShapeDtypeStruct((1, *experiment.problem.shape), jnp.float32)
        forms = list(FORMS)[: 1 if jax.eval_shape(standard.residual, x).size == 1 else 2]
        trials = []
        for form, steps in itertools.product(forms, section.guidance_steps):
            for scale in section.guidance_scales:
                experiment.pause()
                settings = {'form': form, 'steps': steps, 'scale': scale}
                x = draw(keys, around=around(**settings))
                median = float(jnp.nan_to_num(np.median(experiment.distances(x)), nan=jnp.inf))
                trials.append(settings | {'median_distance': median})
        best = min(trials, key=lambda trial: trial['median_distance'])
        from_first(lambda: write_json(path, {'best': best, 'trials': trials}))
    best = read_json(path, dict)['best']
    return around(best['form'], best['steps'], best['scale'])


def _restoration(experiment: Experiment) -> Around:
    """Returns the exact way back of each estimate."""
    project = lambda constraint, D, keys: projected(D, lambda x: constraint.restore(x)[0])
    return Partial(project, experiment.standard_constraint)


def _projection(experiment: Experiment) -> Around:
    """Returns Gauss-Newton steps of each estimate."""
    iterations = experiment.config.sample.projected_sampling_iterations

    def project(constraint: Constraint, denoiser: Denoiser, keys: Key) -> Denoiser:
        way = _newton(experiment, constraint, iterations)
        return projected(denoiser, lambda x: way(x)[0])

    return Partial(project, experiment.standard_constraint)


def _ppr(experiment: Experiment) -> Around:
    """Returns project, perturb, repeat: each estimate is projected, by the exact way where there is
    one, takes noise of its level, and is estimated and projected again, `RENOISED` times.
    """
    exact = getattr(experiment.standard_constraint, 'restores', None)
    onto = (_restoration if exact else _projection)(experiment)
    return Partial(lambda onto, D, keys: renoised(onto(D, keys), keys, rounds=RENOISED), onto)


def _conditioned(experiment: Experiment) -> Around:
    """Returns the DM that was trained on with a field's distance as a condition, in the place of
    the DM: at distance 0, by classifier-free guidance.
    """
    config, record = experiment.config, experiment.run.record('dm')
    moments = record['mean'], record['std']

    def instead(params: Params, D: Denoiser, keys: Key) -> Denoiser:
        at_zero = build.make_denoiser(config, params, *moments, jnp.zeros(len(keys)))
        plain = build.make_denoiser(config, params, *moments)
        return classifier_free(at_zero, plain, config.sample.level_weight)

    return Partial(instead, score_parameters(experiment, 'condition'))


ACTS: dict[str, Callable[[Experiment], Around]] = {
    '': lambda experiment: UNCHANGED,
    'guidance': _guidance,
    'restore': _restoration,
    'projection': _projection,
    'ppr': _ppr,
    'level': _conditioned,
}


def sampler(
    experiment: Experiment, model: str, section: Any, around: Around = UNCHANGED
) -> Callable[[Key], Array]:
    """Returns the compiled `keys, around=... -> samples` of a trained diffusion model; see
    `make_draw`.
    """
    record = experiment.run.record(model)
    to_data = experiment.unit_maps[1] if model == 'dm' else UNCHANGED
    draw = make_draw(experiment.config, section, record['mean'], record['std'], to_data)
    return functools.partial(draw, score_parameters(experiment, model), around=around)


def load_or_draw(
    experiment: Experiment, path: Path, draw: Callable[[], Callable[[Key], Array]], keys: Key
) -> tuple[np.ndarray, float]:
    """Returns samples by keys and the seconds that one takes, from disk if they are there; `draw`
    returns the sampler.
    """
    clock = path.with_suffix('.json')
    if not from_first(path.exists):
        x, seconds = time_each(experiment, draw(), keys)
        from_first(lambda: write_json(clock, {'seconds_per_sample': seconds}))
        experiment.save(path, x)
    seconds = read_json(clock, dict)['seconds_per_sample']
    return experiment.load(path), seconds


def time_each(experiment: Experiment, function: Way, inputs: Any) -> tuple[np.ndarray, float]:
    """Returns a function of all inputs `(n, ...)`, and its seconds a sample: the median but for the
    first batch, which compiles, of at least three, or of one where that takes more than a minute.
    """
    size, times = min(len(inputs), experiment.config.sample.batch_size), []
    devices = experiment.local_mesh

    def clocked(batch: Any) -> Array:
        begun = time.perf_counter()
        result = jax.block_until_ready(function(batch))
        times.append((time.perf_counter() - begun) / size)
        return result

    # One process's clock decides, as all draw together.
    while len(times) < 4 and from_first(lambda: size * sum(times[1:]) < ENOUGH):
        result = in_batches(clocked, inputs, size, devices, between=experiment.pause)
    return result, float(np.median(times[1:]))
