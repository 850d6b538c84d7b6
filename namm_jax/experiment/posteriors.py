"""The posterior samplers of the table: from a config and a run's models to
`(keys, measurements) -> samples`.

A row is a space, of data or of mirror points, and a sampler in it: all see the space's denoiser and
the measurement `A(to_data(.))`, and none knows which space it is in.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array
from ml_collections import ConfigDict

from namm_jax._arrays import Constraint, Denoiser, Key, Measure, Params, normal
from namm_jax._checks import choose
from namm_jax.denoising.guidance import measurement_guided
from namm_jax.denoising.samplers import make_sampler
from namm_jax.experiment import build
from namm_jax.experiment.devices import batch_sharding, replicated
from namm_jax.experiment.experiment import Experiment, finetuned_parameters, score_parameters
from namm_jax.experiment.files import UserError
from namm_jax.experiment.methods import polish, projection
from namm_jax.experiment.own import load_function
from namm_jax.experiment.problem import make_problem
from namm_jax.experiment.schema import problem_class
from namm_jax.inverse import dps, fourdvar
from namm_jax.inverse.daps import daps
from namm_jax.inverse.likelihood import Likelihood, likelihood
from namm_jax.inverse.operators import Operator
from namm_jax.inverse.tds import tds

Draw = Callable[[Key, Array], Array]
Gains = Callable[[str], tuple[Array, Array]]  # model -> levels and gains, as of `measured_gains`
GAIN_LEVELS, GAIN_FIELDS = 24, 16  # at and by which the error of measured estimates is measured


class Posterior(NamedTuple):
    """A posterior in the space of a diffusion model.

    Attributes:
        denoiser: of that space.
        likelihood: of its points, for measurements `y (b, *m)`, one for each sample.
        distance: of its points from the set M, `(b,)`.
        mean: of the model's training set.
        std: its standard deviation.
        gain: sigma -> the variance of measured estimates over that of isotropic data, in units of
            the noise's, per unit of this space.
        shape: of one sample.
        section: the config's `assimilate`.
    """

    denoiser: Denoiser
    likelihood: Likelihood
    distance: Callable[[Array], Array]
    mean: Array
    std: Array
    gain: Callable[[Array], Array]
    shape: tuple[int, ...]
    section: ConfigDict

    def draw(self, sampler: Callable[..., Any], keys: Key, **options: Any) -> Any:
        """Returns what a posterior sampler makes of it."""
        own = {'likelihood': self.likelihood, 'mean': self.mean, 'std': self.std}
        return sampler(keys, self.denoiser, self.shape, **own, **options)


# Of the descent after each step: to what noise and error of estimates explain, or as published.
STRENGTHS: dict[str, Callable[[Posterior], dps.Length | None]] = {
    'discrepancy': lambda posterior: None,
    'fixed': lambda posterior: dps.fixed(posterior.section.scale),
}
PUBLISHED = {'variance': 'forward', 'denoise_last': False}


def descent(
    posterior: Posterior, keys: Key, *, rule: bool = False, published: bool = False
) -> Array:
    """Returns samples of DPS, of CG-DPS if by the rule too, as configured or as published."""
    section = posterior.section
    strength = 'fixed' if published else section.strength
    return posterior.draw(
        dps.dps,
        keys,
        steps=section.steps,
        length=choose('assimilate.strength', strength, STRENGTHS)(posterior),
        gain=posterior.gain,
        distance=posterior.distance if rule else None,
        weight=section.constraint_weight,
        **(PUBLISHED if published else {}),
    )


def few_steps(posterior: Posterior, keys: Key) -> Array:
    """Returns samples of the few-step sampler with a denoiser guided by the variance-weighted
    misfit.
    """
    std = posterior.std
    guided = measurement_guided(
        posterior.denoiser, posterior.likelihood.residual, std=std, gain=posterior.gain, limit=std
    )
    sampler = make_sampler(
        'sde_dpm_solver_pp_2m', steps=posterior.section.few_steps, mean=posterior.mean, std=std
    )
    return sampler(keys, guided, posterior.shape)


def _levels(posterior: Posterior) -> Array:
    return make_sampler(
        'ddim', steps=posterior.section.few_steps, mean=posterior.mean, std=posterior.std
    ).levels()


def annealed(posterior: Posterior, keys: Key) -> Array:
    """Returns samples of decoupled annealing."""
    steps = posterior.section.langevin_steps
    return posterior.draw(daps, keys, levels=_levels(posterior), langevin_steps=steps)


def monte_carlo(posterior: Posterior, keys: Key) -> Array:
    """Returns the particles of the twisted diffusion sampler, one group a measurement."""
    particles = posterior.section.samples
    x, _ = posterior.draw(
        tds, keys, levels=_levels(posterior), particles=particles, gain=posterior.gain
    )
    return x


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        draw: `(experiment, operator, gains) -> compiled (keys (b,), y (b, *m)) -> samples (b, h, w,
            c)`, as networks see them.
        calls: section -> network calls a sample.
        long: whether it takes `steps` steps, or as long, and gets `long_measurements`, rather than
            few.
        applies: config -> whether an experiment has it.
        way: experiment -> the map of what is drawn, such as a projection.
        draws: the row whose draws it maps; its own where empty.
        noisy: the model, `dm` or `mdm`, whose last step's noise it leaves in; none where empty.
    """

    draw: Callable[[Experiment, Measure, Gains], Draw]
    calls: Callable[[ConfigDict], int]
    long: bool = False
    applies: Callable[[ConfigDict], bool] = lambda config: True
    way: Callable[[Experiment], Callable[[Array], Array]] | None = None
    draws: str = ''
    noisy: str = ''


def _drawn_by(model: str, sample: Callable[[Posterior, Key], Array], **details: Any) -> Row:
    """Returns the row of a sampler in the space of a diffusion model, `dm` (data) or `mdm` (mirror
    points).
    """
    applies = {'dm': lambda config: True, 'mdm': build.learns_map}[model]
    return Row(functools.partial(_diffusion, model, sample), applies=applies, **details)


def _long(model: str, sample: Callable[[Posterior, Key], Array], **details: Any) -> Row:
    return _drawn_by(model, sample, calls=lambda section: section.steps, long=True, **details)


def _few(
    model: str, sample: Callable[[Posterior, Key], Array], more: int = 0, **details: Any
) -> Row:
    return _drawn_by(model, sample, calls=lambda section: section.few_steps + more, **details)


def measured_gains(experiment: Experiment, operator: Measure, model: str) -> tuple[Array, Array]:
    """Returns noise levels, and the gain of `measured_gain` at each, of the models' held-out
    fields.
    """
    section = experiment.config.assimilate
    record, maps = experiment.run.record(model), _maps(experiment, model)
    levels = make_sampler(
        'ancestral', steps=GAIN_LEVELS, mean=record['mean'], std=record['std']
    ).levels()
    keys = jax.random.split(experiment.key('assimilate'), len(levels))
    x, moments = (
        jnp.asarray(experiment.split('validation')[:GAIN_FIELDS]),
        _moments(experiment, model),
    )

    @jax.jit
    def gains(
        score: Params,
        maps: tuple,
        operator: Any,
        moments: Array,
        keys: Key,
        x: Array,
        levels: Array,
    ) -> Array:
        return dps.measured_gain(
            keys,
            build.make_denoiser(experiment.config, score, *moments),
            likelihood(operator.after(maps[1]), operator(x), section.noise_std),
            maps[0](x),
            levels,
            std=moments[1],
        )

    return levels, gains(
        score_parameters(experiment, model), maps, operator, moments, keys, x, levels
    )


def _diffusion(
    model: str,
    sample: Callable[[Posterior, Key], Array],
    experiment: Experiment,
    operator: Measure,
    gains: Gains,
) -> Draw:
    """Returns the draw of a sampler in the space of a diffusion model, its samples mapped to
    data.
    """

    @jax.jit
    def draw(
        score: Params,
        to_data: Partial,
        constraint: Constraint,
        operator: Any,
        moments: Array,
        gain: tuple,
        keys: Key,
        y: Array,
    ) -> Array:
        section = experiment.config.assimilate
        posterior = Posterior(
            build.make_denoiser(experiment.config, score, *moments),
            likelihood(operator.after(to_data), y, section.noise_std),
            lambda z: constraint.distance(to_data(z)),
            *moments,
            dps.gain_at(*gain),
            experiment.problem.shape,
            section,
        )
        return to_data(sample(posterior, keys))

    _, to_data = _maps(experiment, model)
    score, moments = score_parameters(experiment, model), _moments(experiment, model)
    return functools.partial(
        draw, score, to_data, experiment.constraint, operator, moments, gains(model)
    )


def _moments(experiment: Experiment, model: str) -> Array:
    """Returns mean and standard deviation of a model's training set."""
    record = experiment.run.record(model)
    return jnp.asarray([record['mean'], record['std']], jnp.float32)


def with_noise_floor(experiment: Experiment, model: str, x: Array) -> Array:
    """Returns what the published samplers make of true fields `x (b, h, w, c)`: the noise of their
    last step, alone.

    Their denoiser is one that knows the truth, and nothing is measured; samples of the model `mdm`
    are mapped by f.
    """
    record, (to_model, to_data) = experiment.run.record(model), _maps(experiment, model)
    sampler = make_sampler(
        'ancestral',
        steps=experiment.config.assimilate.steps,
        mean=record['mean'],
        std=record['std'],
        **PUBLISHED,
    )

    @jax.jit
    def draw(keys: Key, to_model: Partial, to_data: Partial, x: Array) -> Array:
        point = to_model(x)
        return to_data(sampler(keys, lambda point_t, sigma: point, x.shape[1:]))

    return draw(experiment.keys('posterior', 0, len(x)), to_model, to_data, x)


def _maps(experiment: Experiment, model: str) -> tuple[Partial, Partial]:
    """Returns the maps from data to a model's space and back."""
    maps = {
        'dm': lambda: experiment.unit_maps,
        'mdm': lambda: experiment.mirror.bind(finetuned_parameters(experiment)),
    }
    return maps[model]()


def variational_draw(experiment: Experiment, operator: Measure) -> Draw:
    """Returns 4D-Var's compiled `(keys (b,), y (b, *m)) -> samples (b, h, w, c)`.

    Each is the trajectory that best explains the measurement, perturbed by its noise, and a start
    drawn from the background, which has the mean and the covariance of the training data's first
    states.
    """
    section, problem = experiment.config.assimilate, experiment.problem
    starts = problem.first_states(jnp.asarray(experiment.split('train')))

    @jax.jit
    def draw(operator: Any, starts: Array, keys: Key, y: Array) -> Array:
        noise, prior = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key))(keys), 1, 0)
        u_0 = fourdvar.ensemble_background(starts)
        solve = lambda v: problem.rollout(u_0(v))
        v_0 = normal(prior, jnp.zeros((len(keys), len(starts))))
        of_y = likelihood(operator, y, section.noise_std)
        cost = fourdvar.cost(solve, of_y, mean=v_0, std=1.0, perturbation=normal(noise, y))
        v, _ = fourdvar.minimise(cost, jnp.zeros_like(v_0), iterations=section.iterations)
        return solve(v)

    return functools.partial(draw, operator, starts)


ROWS = {
    'dps': _long('dm', descent),
    'cg_dps': _long('dm', functools.partial(descent, rule=True)),
    'dps_projected': _long('dm', descent, way=projection, draws='dps'),
    'mirror_dps': _long('mdm', descent),
    'dps_published': _long('dm', functools.partial(descent, published=True), noisy='dm'),
    'cg_dps_published': _long(
        'dm', functools.partial(descent, rule=True, published=True), noisy='dm'
    ),
    'mirror_dps_published': _long('mdm', functools.partial(descent, published=True), noisy='mdm'),
    'few_steps': _few('dm', few_steps),
    'mirror_few_steps': _few('mdm', few_steps),
    'mirror_few_steps_polished': _few('mdm', few_steps, way=polish, draws='mirror_few_steps'),
    'daps': _few('dm', annealed, more=1),  # its last denoising
    'mirror_daps': _few('mdm', annealed, more=1),
    'smc': _few('dm', monte_carlo),
    'mirror_smc': _few('mdm', monte_carlo),
    'variational': Row(
        lambda experiment, operator, gains: variational_draw(experiment, operator),
        calls=lambda section: 0,
        long=True,  # up to `iterations` times through the solver and back
        applies=lambda config: problem_class(config.data.problem).rollout is not None,
    ),
}


def rows_of(config: ConfigDict) -> list[str]:
    """Returns the rows of a config's table: the one that it names, or all that apply.

    Raises:
        ValueError: if the config names one that is not there.
    """
    named, rows = (
        config.assimilate.sampler,
        {name: row for name, row in ROWS.items() if row.applies(config)},
    )
    if named:
        choose('assimilate.sampler', named, rows)
    return [named] if named else list(rows)


NEEDS = {'states': 'indices', 'inpainting': 'occluded'}  # operators of arrays that no config holds


def operator_name(config: ConfigDict) -> str:
    """Returns the name of the measurement operator of a config."""
    return config.assimilate.operator or make_problem(config).operator


def make_operator(config: ConfigDict) -> Operator:
    """Returns the measurement operator of a config.

    Raises:
        ValueError: if there is no such operator, or a config cannot make it.
    """
    name, options = operator_name(config), {}
    if name in NEEDS:
        raise UserError(
            f'assimilate.operator: got {name!r}, which needs {NEEDS[name]}, expected one that a '
            'config can make; write a function of your own, and take the operator own'
        )
    if name == 'own':
        options = {'function': load_function(config.assimilate.function)}
    return make_problem(config).measurement(name, **options)


def check_assimilation(config: ConfigDict) -> None:
    """Builds what the section `assimilate` names, without data or networks.

    Raises:
        ValueError: by the function that takes the bad value.
    """
    make_operator(config)
    choose('assimilate.strength', config.assimilate.strength, STRENGTHS)
    rows_of(config)


def samples_of(experiment: Experiment, draw: Draw, index: int, y: Array) -> np.ndarray:
    """Returns the samples `(assimilate.samples, h, w, c)` of measurement `index`, `y (*m)`, from
    keys of its own.

    They are split over the devices, unless their number is no multiple of them.
    """
    k, mesh = experiment.config.assimilate.samples, experiment.local_mesh
    sharding = replicated(mesh) if k % mesh.size else batch_sharding(mesh)
    inputs = experiment.keys('posterior', index * k, k), jnp.broadcast_to(y, (k, *y.shape))
    return np.asarray(draw(*jax.device_put(inputs, sharding)))
