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

from namm_jax._arrays import Constraint, Denoiser, Key, Measure, Params
from namm_jax._checks import choose
from namm_jax.denoising.sampling import make_sampler
from namm_jax.inverse import dps as inverse_problems
from namm_jax.inverse.daps import daps
from namm_jax.inverse.dps import Length, Potential
from namm_jax.inverse.gains import gain_at, measured_gain
from namm_jax.inverse.tds import smc
from namm_jax.train import tasks
from namm_jax.train.experiment import Experiment, finetuned_parameters, score_parameters
from namm_jax.train.families import make_family
from namm_jax.train.measurements import make_config_operator
from namm_jax.train.rows import polish, projection
from namm_jax.train.sharding import batch_sharding, replicated
from namm_jax.train.variational import TRAJECTORIES, variational_draw

Draw = Callable[[Key, Array], Array]
Gains = Callable[[str], tuple[Array, Array]]  # model -> levels and gains, as of `measured_gains`
GAIN_LEVELS, GAIN_FIELDS = 24, 16  # at and by which the error of measured estimates is measured


class Problem(NamedTuple):
    """A posterior in the space of a diffusion model.

    Attributes:
        denoiser: of that space.
        measure: A, of its points.
        distance: of its points from the set M, `(b,)`.
        y: measurements `(b, *m)`, one for each sample.
        mean: of the model's training set.
        std: its standard deviation.
        gain: sigma -> the variance of a measured estimate over that of isotropic data, per unit of
            this space.
        shape: of one sample.
        section: the config's `assimilate`.
    """

    denoiser: Denoiser
    measure: Measure
    distance: Callable[[Array], Array]
    y: Array
    mean: Array
    std: Array
    gain: Callable[[Array], Array]
    shape: tuple[int, ...]
    section: ConfigDict

    @property
    def misfit(self) -> Potential:
        """The misfit of a point, in noise units."""
        return inverse_problems.misfit(self.measure, self.y, self.section.noise_std)

    @property
    def misfit_and_distance(self) -> Potential:
        """The misfit and the weighted distance, as of CG-DPS."""
        return inverse_problems.with_constraint(
            self.misfit, self.distance, self.section.constraint_weight
        )


def _discrepancy(problem: Problem) -> Length:
    target = inverse_problems.discrepancy(
        int(np.prod(problem.y.shape[1:])),
        noise_std=problem.section.noise_std,
        # the step is in units of the std
        gain=lambda r: problem.std**2 * problem.gain(problem.std * r),
    )
    return inverse_problems.polyak(target)


def _fixed(problem: Problem) -> Length:
    return inverse_problems.fixed(
        problem.section.scale / problem.std**2
    )  # the step is in units of the std


STRENGTHS: dict[str, Callable[[Problem], Length]] = {'discrepancy': _discrepancy, 'fixed': _fixed}


def _descent(
    potential: Callable[[Problem], Potential],
    length: Callable[[Problem], Length],
    options: dict[str, Any],
    problem: Problem,
    keys: Key,
) -> Array:
    """Returns samples of an ancestral sampler, each step of which is followed by a descent of the
    potential.
    """
    mean, std, steps = problem.mean, problem.std, problem.section.steps
    sampler = make_sampler('ancestral', steps=steps, mean=mean, std=std, **options)
    of_point = potential(problem)
    step = inverse_problems.guided_step(
        sampler.step, sampler.schedule, lambda u: of_point(mean + std * u), length(problem)
    )
    return sampler._replace(step=step)(keys, problem.denoiser, problem.shape)


def _by_config(problem: Problem) -> Length:
    return choose('assimilate.strength', problem.section.strength, STRENGTHS)(problem)


PUBLISHED = {'variance': 'forward', 'denoise_last': False}
_misfit, _with_rule = (
    (lambda problem: problem.misfit),
    (lambda problem: problem.misfit_and_distance),
)
dps = functools.partial(_descent, _misfit, _by_config, {})
cg_dps = functools.partial(_descent, _with_rule, _by_config, {})
published_dps = functools.partial(_descent, _misfit, _fixed, PUBLISHED)
published_cg_dps = functools.partial(_descent, _with_rule, _fixed, PUBLISHED)


def few_steps(problem: Problem, keys: Key) -> Array:
    """Returns samples of the few-step sampler with a denoiser guided by the variance-weighted
    misfit.
    """
    section = problem.section
    guided = inverse_problems.weighted_guidance(
        problem.denoiser,
        problem.measure,
        problem.y,
        noise_std=section.noise_std,
        prior_std=problem.std,
        gain=problem.gain,
        limit=problem.std,
    )
    sampler = make_sampler(
        'sde_dpm_solver_pp_2m', steps=section.few_steps, mean=problem.mean, std=problem.std
    )
    return sampler(keys, guided, problem.shape)


def _levels(problem: Problem) -> Array:
    return make_sampler(
        'ddim', steps=problem.section.few_steps, mean=problem.mean, std=problem.std
    ).levels()


def annealed(problem: Problem, keys: Key) -> Array:
    """Returns samples of decoupled annealing."""
    return daps(
        keys,
        problem.denoiser,
        problem.shape,
        measure=problem.measure,
        y=problem.y,
        levels=_levels(problem),
        noise_std=problem.section.noise_std,
        prior_std=problem.std,
        prior_mean=problem.mean,
        langevin_steps=problem.section.langevin_steps,
    )


def monte_carlo(problem: Problem, keys: Key) -> Array:
    """Returns the particles of twisted sequential Monte Carlo, one group a measurement."""
    x, _ = smc(
        keys,
        problem.denoiser,
        problem.shape,
        particles=problem.section.samples,
        measure=problem.measure,
        y=problem.y,
        noise_std=problem.section.noise_std,
        levels=_levels(problem),
        prior_std=problem.std,
        prior_mean=problem.mean,
        gain=problem.gain,
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


def _drawn_by(model: str, sample: Callable[[Problem, Key], Array], **details: Any) -> Row:
    """Returns the row of a sampler in the space of a diffusion model, `dm` (data) or `mdm` (mirror
    points).
    """
    applies = {'dm': lambda config: True, 'mdm': tasks.learns_map}[model]
    return Row(functools.partial(_diffusion, model, sample), applies=applies, **details)


def _long(model: str, sample: Callable[[Problem, Key], Array], **details: Any) -> Row:
    return _drawn_by(model, sample, calls=lambda section: section.steps, long=True, **details)


def _few(model: str, sample: Callable[[Problem, Key], Array], more: int = 0, **details: Any) -> Row:
    return _drawn_by(model, sample, calls=lambda section: section.few_steps + more, **details)


def measured_gains(experiment: Experiment, operator: Measure, model: str) -> tuple[Array, Array]:
    """Returns noise levels, and the gain of `measured_gain` at each, of the models' held-out
    fields.
    """
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
        denoiser, measure = _in_space(experiment, score, maps[1], operator, moments)
        return measured_gain(keys, denoiser, measure, maps[0](x), levels, prior_std=moments[1])

    return levels, gains(
        score_parameters(experiment, model), maps, operator, moments, keys, x, levels
    )


def _diffusion(
    model: str,
    sample: Callable[[Problem, Key], Array],
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
        denoiser, measure = _in_space(experiment, score, to_data, operator, moments)
        problem = Problem(
            denoiser,
            measure,
            lambda z: constraint.distance(to_data(z)),
            y,
            *moments,
            gain_at(*gain),
            experiment.family.shape,
            experiment.config.assimilate,
        )
        return to_data(sample(problem, keys))

    _, to_data = _maps(experiment, model)
    score, moments = score_parameters(experiment, model), _moments(experiment, model)
    return functools.partial(
        draw, score, to_data, experiment.constraint, operator, moments, gains(model)
    )


def _moments(experiment: Experiment, model: str) -> Array:
    """Returns mean and standard deviation of a model's training set."""
    record = experiment.run.record(model)
    return jnp.asarray([record['mean'], record['std']], jnp.float32)


def _in_space(
    experiment: Experiment, score: Params, to_data: Partial, operator: Any, moments: Array
) -> tuple[Denoiser, Measure]:
    """Returns the denoiser of a model's space, and the measurement of its points."""
    return tasks.make_denoiser(experiment.config, score, *moments), lambda z: operator(to_data(z))


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
    same = Partial(lambda x: x)
    maps = {
        'dm': lambda: (same, same),
        'mdm': lambda: experiment.mirror.bind(finetuned_parameters(experiment)),
    }
    return maps[model]()


ROWS = {
    'dps': _long('dm', dps),
    'cg_dps': _long('dm', cg_dps),
    'dps_projected': _long('dm', dps, way=projection, draws='dps'),
    'mirror_dps': _long('mdm', dps),
    'dps_published': _long('dm', published_dps, noisy='dm'),
    'cg_dps_published': _long('dm', published_cg_dps, noisy='dm'),
    'mirror_dps_published': _long('mdm', published_dps, noisy='mdm'),
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
        applies=lambda config: config.data.family in TRAJECTORIES,
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


def check_assimilation(config: ConfigDict) -> None:
    """Builds what the section `assimilate` names, without data or networks.

    Raises:
        ValueError: by the function that takes the bad value.
    """
    make_config_operator(config, make_family(config).shape)
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
