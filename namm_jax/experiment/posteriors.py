"""The posterior samplers: from a config and a run's models to `(keys, measurements) -> samples`.

A sampler acts in a space, of data or of mirror points: it sees the space's denoiser and the
measurement `A(to_data(.))`, and does not know which space it is in.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from namm_jax._arrays import Denoiser, Key, Measure, Params, normal
from namm_jax._checks import OF_FIELDS, call, check_within, choose
from namm_jax.denoising.guidance import measurement_guided
from namm_jax.denoising.samplers import make_sampler
from namm_jax.experiment import build
from namm_jax.experiment.devices import batch_sharding, replicated
from namm_jax.experiment.experiment import Experiment, finetuned_parameters, score_parameters
from namm_jax.experiment.files import UserError
from namm_jax.experiment.methods import METHODS, Method, selected
from namm_jax.experiment.own import load_function
from namm_jax.experiment.problem import make_problem
from namm_jax.inverse import daps, dps, fourdvar, tds
from namm_jax.inverse.closures import MEASUREMENTS
from namm_jax.inverse.likelihood import Likelihood, likelihood
from namm_jax.inverse.operators import Operator

Draw = Callable[[Key, Array], Array]  # keys (b,), y (b, *m) -> samples (b, h, w, c)
Gains = Callable[[str], tuple[Array, Array]]  # model -> levels and gains, as of `measured_gains`
CHUNK = 256  # samples that are drawn at once
GAIN_LEVELS, GAIN_FIELDS = 24, 16  # at and by which the error of measured estimates is measured
PUBLISHED = {'variance': 'forward', 'denoise_last': False}
# Of the descent after each step: to what noise and error of estimates explain, or as published.
STRENGTHS: dict[str, Callable[[ConfigDict], dps.Length | None]] = {
    'discrepancy': lambda section: None,
    'fixed': lambda section: dps.fixed(section.scale),
}


# A sampler is called with the section `assimilate`, with keys, denoiser and shape, and by name with
# the likelihood, the gain, and mean and standard deviation of the space.
def _levels(section: ConfigDict, moments: dict[str, Array]) -> Array:
    return make_sampler('ddim', steps=section.few_steps, **moments).levels()


def _dps(section: ConfigDict, *space: Any, strength: str = '', **given: Any) -> Array:
    length = choose('assimilate.strength', strength or section.strength, STRENGTHS)(section)
    given |= {'steps': section.steps, 'length': length, 'weight': section.constraint_weight}
    return dps.dps(*space, **given)


def _guided(
    section: ConfigDict, keys: Key, denoiser: Denoiser, shape: tuple, **given: Any
) -> Array:
    """Returns samples of few steps with a denoiser guided by the variance-weighted misfit."""
    residual, gain, std = given.pop('likelihood').residual, given.pop('gain'), given['std']
    denoiser = measurement_guided(denoiser, residual, std=std, gain=gain, limit=std)
    sampler = make_sampler('sde_dpm_solver_pp_2m', steps=section.few_steps, **given)
    return sampler(keys, denoiser, shape)


def _daps(section: ConfigDict, *space: Any, likelihood: Any, gain: Any, **moments: Array) -> Array:
    options = {'levels': _levels(section, moments), 'langevin_steps': section.langevin_steps}
    return daps.daps(*space, likelihood=likelihood, **moments, **options)


def _smc(section: ConfigDict, *space: Any, likelihood: Any, gain: Any, **moments: Array) -> Array:
    """Returns the particles of the twisted diffusion sampler, in groups that know nothing of each
    other.
    """
    particles = section.particles or section.samples
    options = {'levels': _levels(section, moments), 'particles': particles, 'gain': gain}
    return tds.tds(*space, likelihood=likelihood, **moments, **options)[0]


class Sampler(NamedTuple):
    """What acts on a denoiser given a measurement, and what it costs."""

    sample: Callable[..., Array] | None
    steps: str  # the field of `assimilate` that says how many steps, a network call each
    more: int = 0  # calls beyond those
    rule: bool = False  # whether it gets the distance from M
    noisy: bool = False  # whether it leaves the last step's noise in
    group: bool = False  # whether all samples of a measurement are drawn at once


_published = functools.partial(_dps, strength='fixed', **PUBLISHED)
SAMPLERS = {
    'dps': Sampler(_dps, 'steps'),
    'cg_dps': Sampler(_dps, 'steps', rule=True),
    'dps_published': Sampler(_published, 'steps', noisy=True),
    'cg_dps_published': Sampler(_published, 'steps', rule=True, noisy=True),
    'few_steps': Sampler(_guided, 'few_steps'),
    'daps': Sampler(_daps, 'few_steps', more=1),  # its last denoising
    'smc': Sampler(_smc, 'few_steps', group=True),
    'variational': Sampler(None, ''),  # up to `iterations` times through the solver and back
}
ROWS = {name: method for name, method in METHODS.items() if method.act in SAMPLERS}


def rows_of(config: ConfigDict) -> list[str]:
    """Returns the rows of a config's table; see `methods.selected`."""
    named = config.assimilate.sampler
    return list(selected(config, 'assimilate.sampler', [named] if named else [], ROWS))


def likelihood_of(config: ConfigDict, operator: Measure, y: Array) -> Likelihood:
    """Returns what a measurement says by the operator's own law, else by noise of the config's."""
    own = getattr(operator, 'whiten', None) is not None
    return likelihood(operator, y, None if own else config.assimilate.noise_std)


def _space(experiment: Experiment, model: str) -> tuple[Params, tuple[Partial, ...], Array]:
    """Returns a diffusion model's parameters; the maps from data to its space, back by a learned
    f's network alone, and back by its last steps too; mean and standard deviation of its training
    set.
    """
    record, maps = experiment.run.record(model), experiment.unit_maps
    end = maps[1]
    if model == 'mdm':
        params = finetuned_parameters(experiment)
        maps, (_, end) = experiment.mirror.bind(params), experiment.landed(params)
    moments = jnp.asarray([record['mean'], record['std']], jnp.float32)
    return score_parameters(experiment, model), (*maps, end), moments


def measured_gains(experiment: Experiment, operator: Measure, model: str) -> tuple[Array, Array]:
    """Returns noise levels, and at each the gain of held-out fields: the variance of measured
    estimates over that of isotropic data, in units of the noise's.
    """
    config, space = experiment.config, _space(experiment, model)
    mean, std = space[2]
    levels = make_sampler('ancestral', steps=GAIN_LEVELS, mean=mean, std=std).levels()
    keys = jax.random.split(experiment.key('assimilate'), len(levels))
    x = jnp.asarray(experiment.split('validation')[:GAIN_FIELDS])

    @jax.jit
    def gains(space: PyTree, operator: Any, keys: Key, x: Array, levels: Array) -> Array:
        score, (to_model, to_data, _), moments = space
        denoiser = build.make_denoiser(config, score, *moments)
        of_truth = likelihood_of(config, operator.after(to_data), operator(x))
        return dps.measured_gain(keys, denoiser, of_truth, to_model(x), levels, std=moments[1])

    return levels, gains(space, operator, keys, x, levels)


def draw_of(experiment: Experiment, row: Method, operator: Measure, gains: Gains) -> Draw:
    """Returns the compiled sampler of a row, its samples taken to data but not yet corrected.

    It measures what the network of f gives: the steps that end f are far smaller than the noise of
    a measurement, and take several times as long as the networks.
    """
    config, sampler, shape = experiment.config, SAMPLERS[row.act], experiment.problem.shape
    if sampler.sample is None:
        return _in_chunks(_variational(experiment, operator))

    @jax.jit
    def draw(space: PyTree, operator: Any, rule: Any, gain: tuple, keys: Key, y: Array) -> Array:
        score, (_, to_data, end), moments = space
        given = dict(zip(('mean', 'std'), moments, strict=True))
        denoiser = build.make_denoiser(config, score, **given)
        of_y = likelihood_of(config, operator.after(to_data), y)
        given |= {'likelihood': of_y, 'gain': dps.gain_at(*gain)}
        given |= {'distance': lambda z: rule.distance(to_data(z))} if sampler.rule else {}
        return end(sampler.sample(config.assimilate, keys, denoiser, shape, **given))

    inputs = _space(experiment, row.prior), operator, experiment.constraint, gains(row.prior)
    whole = functools.partial(draw, *inputs)
    return whole if sampler.group else _in_chunks(whole)


def _in_chunks(draw: Draw) -> Draw:
    def of_each(keys: Key, y: Array) -> Array:
        at = range(0, len(keys), CHUNK)
        return np.concatenate([np.asarray(draw(keys[i:][:CHUNK], y[i:][:CHUNK])) for i in at])

    return of_each


def _variational(experiment: Experiment, operator: Measure) -> Draw:
    """Returns 4D-Var: the trajectory that best explains the measurement, perturbed by its noise,
    and a start drawn from the background, normal like the training data's first states.
    """
    section, problem = experiment.config.assimilate, experiment.problem
    starts = problem.first_states(jnp.asarray(experiment.split('train')))

    @jax.jit
    def draw(operator: Any, starts: Array, keys: Key, y: Array) -> Array:
        noise, prior = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        u_0 = fourdvar.ensemble_background(starts)
        solve = lambda v: problem.rollout(u_0(v))
        v_0 = normal(prior, jnp.zeros((len(keys), len(starts))))
        of_y = likelihood(operator, y, section.noise_std)
        cost = fourdvar.cost(solve, of_y, mean=v_0, std=1.0, perturbation=normal(noise, y))
        v, _ = fourdvar.minimise(cost, jnp.zeros_like(v_0), iterations=section.iterations)
        return solve(v)

    return functools.partial(draw, operator, starts)


def with_noise_floor(experiment: Experiment, model: str, x: Array) -> Array:
    """Returns what the published samplers make of true fields `x (b, h, w, c)` by a denoiser that
    knows them, where nothing is measured: the noise of their last step, alone.
    """
    _, (forward, _, end), (mean, std) = _space(experiment, model)
    steps = experiment.config.assimilate.steps
    sampler = make_sampler('ancestral', steps=steps, mean=mean, std=std, **PUBLISHED)

    @jax.jit
    def draw(keys: Key, forward: Partial, end: Partial, x: Array) -> Array:
        point = forward(x)
        return end(sampler(keys, lambda point_t, sigma: point, x.shape[1:]))

    return draw(experiment.keys('posterior', 0, len(x)), forward, end, x)


NEEDS = {'states': 'indices', 'inpainting': 'occluded'}  # operators of arrays that no config holds


def operator_name(config: ConfigDict) -> str:
    """Returns the name of the measurement operator of a config."""
    return config.assimilate.operator or make_problem(config).operator


def make_operator(config: ConfigDict) -> Operator:
    """Returns the measurement operator of a config; raises a ValueError if it names none, or one
    that a config cannot make.
    """
    name, options = operator_name(config), {}
    if name in MEASUREMENTS:
        raise UserError(
            f'assimilate.operator: got {name!r}, expected one that needs no observation; it is '
            'one of namm_jax solve, with --measurement=FILE.csv'
        )
    if name in NEEDS:
        raise UserError(
            f'assimilate.operator: got {name!r}, which needs {NEEDS[name]} that no config holds; '
            'write a function of your own, and take the operator own'
        )
    if name == 'own':
        if not config.assimilate.function:
            raise UserError(
                'the operator own: got no function, expected one of yours; give '
                '--config.assimilate.function=FILE.py:FUNCTION'
            )
        options = {'function': load_function(config.assimilate.function)}
    return make_problem(config).measurement(name, **options)


def check_assimilation(config: ConfigDict, least: int = 2) -> None:
    """Raises a ValueError for a bad value of the section `assimilate`, such as fewer than the least
    samples, of which a table needs 2.
    """
    operator = make_operator(config)
    check_within(f'[{least}, inf)', **{'assimilate.samples': config.assimilate.samples})
    if operator_name(config) == 'own':
        function = load_function(config.assimilate.function)

        def slope(x: Array) -> PyTree:
            values, back = jax.vjp(lambda x: call('operator', function, OF_FIELDS, x), x)
            return back(values)

        x = jax.ShapeDtypeStruct((2, *operator.shape), np.float32)
        call('operator', jax.eval_shape, OF_FIELDS, slope, x)
    rows_of(config)


def samples_of(experiment: Experiment, draw: Draw, index: int, y: Array) -> np.ndarray:
    """Returns the samples `(assimilate.samples, h, w, c)` of measurement `index`, `y (*m)`, from
    keys of its own, split over the devices unless their number is no multiple of them.
    """
    k, mesh = experiment.config.assimilate.samples, experiment.local_mesh
    sharding = replicated(mesh) if k % mesh.size else batch_sharding(mesh)
    inputs = experiment.keys('posterior', index * k, k), jnp.broadcast_to(y, (k, *y.shape))
    return np.asarray(draw(*jax.device_put(inputs, sharding)))
