"""The schema of an experiment: every field once, with its default, unit and meaning.

The defaults are those of `quick`, a laptop CPU in minutes; the sizes and coefficients of the data
are the parameters of the problem's dataclass, with its defaults. An experiment file gives dotted
overrides for each preset:

    def get_config(preset='quick'):
        return experiment(PRESETS, preset, problem='burgers')
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from namm_jax import problems
from namm_jax._checks import choose, nearest
from namm_jax.experiment.fields import FIELDS, optimizer_section
from namm_jax.problems.base import Problem, parameters


def sampler_section() -> dict[str, Any]:
    """Returns the fields of a sampler."""
    return dict(
        # a key of namm_jax.denoising.samplers.SAMPLERS: euler_maruyama, heun, ...
        sampler='sde_dpm_solver_pp_2m',
        steps=40,  # the last denoising counted as one
        denoise_last=True,  # whether the last step's noise is removed
    )


def _data() -> dict[str, Any]:
    """The data and their number; the problem's parameters are added."""
    return dict(
        problem='',  # a key of namm_jax.problems.PROBLEMS; fixed by the experiment's file
        seed=0,  # of the data
        train=4000,  # number of training samples
        validation=1000,  # number of held-out samples watched while training
        test=1000,  # number of held-out samples that the final table compares with
        shard_size=1000,  # samples a file
    )


def _constraint() -> dict[str, Any]:
    """The set M."""
    return dict(
        name='',  # a rule of the problem, or several joined by +; its first one when empty
        weights=(),  # of the terms of a sum; all 1 when empty
    )


def _mirror() -> dict[str, Any]:
    """The mirror map: networks, loss and training."""
    return dict(
        map='namm',  # namm (learned), or a closed form: box, ball, simplex; identity
        # of a closed form: share of the interior point that data on the set's edge are mixed with
        floor=1e-3,
        forward='icnn',  # network of g: icnn (its gradient), or for ablations resnet or identity
        filters=16,  # of the input-convex network
        layers=2,  # of the input-convex network: its number of convolutions w_k
        strong_convexity=0.9,  # a in g(x) = (1 - a) grad ICNN(x) + a x; 0 to 1
        # of the input-convex network's last layer: sum, row_sum (published) or mean
        reduction='sum',
        forward_padding='periodic',  # of g: periodic (as the data), circular (published) or zeros
        inverse='unet',  # network of f: unet, resnet (published), or file.py:Class
        inverse_padding='periodic',  # of f: periodic, circular or zeros (published)
        channels=(48, 96),  # of f; for resnet one number
        blocks=1,  # of f: residual blocks a resolution
        fold=2,  # of f: factor by which pixels are folded into channels
        head=16,  # of f: channels at full resolution, before the output
        norm='none',  # of f: group or none
        attention=False,  # of f, at the lowest resolution
        global_convolution=False,  # of f: for rules that compare places far apart
        dropout=0.0,  # of f; 0 to 1
        # of f: residual, centred (for a rule on a sum), plain, softplus, residual_softplus
        output='residual',
        sigma_max=0.1,  # largest noise in mirror space, in its units
        # sigma = sigma_max u^power, u uniform; 1 published, larger favours small noise
        sigma_power=2.0,
        lambda_cycle=1.0,  # weight of both cycle terms
        lambda_constr=5.0,  # weight of the constraint term; 1 published
        lambda_reg=1e-3,  # weight of the regularisation term
        batch_size=8,
        steps=1500,  # at budget 1
        optimizer=optimizer_section(warmup=0.1),
    )


def _score() -> dict[str, Any]:
    """The network and the training of both diffusion models, DM and MDM."""
    return dict(
        network='unet',  # of both diffusion models: unet, or file.py:Class
        parameterisation='edm',  # edm or vp (published)
        reduction='mean',  # of the squared error over pixels: mean or half_sum (published)
        padding='periodic',  # periodic, circular or zeros (published)
        channels=(48, 96),
        blocks=1,  # residual blocks a resolution
        fold=2,  # factor by which pixels are folded into channels
        head=16,  # channels at full resolution, before the output
        norm='group',  # group or none
        attention=False,  # at the lowest resolution
        global_convolution=False,  # as of f
        dropout=0.0,
        batch_size=16,
        optimizer=optimizer_section(),
    )


def _tune() -> dict[str, Any]:
    """The stage that says what sigma_max and lambda_constr the experiment asks for."""
    return dict(
        steps=500,  # of a short mirror diffusion model, at budget 1
        samples=128,  # drawn from it
        batches=8,  # over which the loss's gradients are averaged
    )


def _mdm() -> dict[str, Any]:
    """The mirror diffusion model."""
    return dict(
        steps=3000,  # at budget 1
    )


def _finetune() -> dict[str, Any]:
    """The finetuning of f."""
    return dict(
        samples=1024,  # mirror samples drawn from the MDM; drawing them counts as training
        sigma_max=0.1,  # largest noise added to them
        sigma_power=3.0,  # law of that noise, as in mirror
        lambda_constr=5.0,  # weight of the constraint term
        batch_size=8,
        steps=1500,  # at budget 1
        optimizer=optimizer_section(learning_rate=1e-3, warmup=0.1),
    )


def _dm() -> dict[str, Any]:
    """The plain diffusion model."""
    return dict(
        # at budget 1; its training takes as long as that of mirror, mdm and finetune together
        steps=10_000,
    )


def _sample() -> dict[str, Any]:
    """Sampling, and the projection of samples."""
    return sampler_section() | dict(
        n=256,  # samples of each row
        # of the table, such as dm, dm_projected, mdm_finetuned; all that apply when empty
        rows=(),
        batch_size=64,  # samples drawn at once
        # of the Gauss-Newton projection, on the mean absolute residual
        projection_tolerance=1e-6,
        projection_iterations=20,  # of the Gauss-Newton projection, at most
        # of the same at every step of dm_projected_sampling, where no exact way is
        projected_sampling_iterations=1,
        polish_iterations=1,  # of the same on the finetuned samples, for mdm_polished
        guidance_scales=(
            0.0,
            0.03,
            0.1,
            0.3,
            1.0,
        ),  # of dm_guided, which takes that of the smallest median distance
    )


def _evaluate() -> dict[str, Any]:
    """The table."""
    return dict(
        resamples=200,  # of the bootstrap
        projections=128,  # of the sliced Wasserstein distance
        noise_levels=9,  # at which f is measured, from 0 to twice mirror.sigma_max
        noise_fields=128,  # test fields that f is measured on
        frames=24,  # of the animated trajectory, at most; the sampler's steps if they are fewer
    )


def _assimilate() -> dict[str, Any]:
    """The stage that draws posterior samples of test fields, given noisy measurements of them."""
    return dict(
        # a key of namm_jax.inverse.operators.OPERATORS: first_states, sparse_fourier, ...; the
        # problem's usual one when empty
        operator='',
        function='',  # of the operator own: package.module:function or path/to/file.py:function
        # a row of the table: dps, mirror_dps, mirror_few_steps, ...; all that apply when empty
        sampler='',
        noise_std=0.2,  # of the measurements, in their unit
        measurements=8,  # test fields that are measured
        # of these, how many the samplers of `steps` steps, and 4D-Var, draw for
        long_measurements=2,
        samples=16,  # posterior samples of each
        steps=1000,  # of DPS and its kin
        few_steps=50,  # network calls of the other samplers
        langevin_steps=20,  # of daps at each noise level, each a gradient of the measurement
        iterations=100,  # of the optimizer of 4D-Var, at most
        # of DPS's guidance: discrepancy (to a misfit of one noise std) or fixed (published)
        strength='discrepancy',
        scale=0.05,  # of the fixed strength, in data units
        constraint_weight=200.0,  # of the distance in constraint-guided DPS, in noise units
    )


def _report() -> dict[str, Any]:
    """The figures and the page."""
    return dict(
        dpi=110,  # pixels an inch; figures are 9 inches wide
        frame_seconds=0.25,  # for which each frame of the animation is shown
    )


def _sharding() -> dict[str, Any]:
    """What of the training state lies where, when there are several devices; it may change when a
    run goes on.
    """
    return dict(
        # and averages, and the optimizer's state: replicated, or fsdp, split over the devices
        parameters='replicated',
        # PATTERN=AXES for paths of the state, the first match wins, such as .*Dense.*/kernel=-,data
        rules=(),
    )


def _train() -> dict[str, Any]:
    """What all training stages share."""
    return dict(
        budget=1.0,  # multiplies the steps of every training stage; > 0
        compute_dtype='float32',  # of the networks: float32 or bfloat16; all else stays float32
        devices=0,  # how many devices of each process to use; 0 for all
        # whether the networks' blocks are computed again backwards: less memory, a third more work
        remat=False,
        # steps that a device takes before it is asked again: for models that are faster than Python
        steps_per_call=1,
        # of a batch, whose gradients are computed side by side, at most; 2 for a CPU, elsewhere 1
        parts=2,
        log_every=100,  # steps
        validate_every=500,  # steps; also between checkpoints
        checkpoints=2,  # how many are kept
        probes=4,  # times at which mdm, finetune and dm draw samples while they train
        probe_samples=32,  # drawn at each of them
        sample=sampler_section(),  # draws the probes and the set that f is finetuned on
    )


SECTIONS = (
    _data,
    _constraint,
    _mirror,
    _score,
    _tune,
    _mdm,
    _finetune,
    _dm,
    _sample,
    _evaluate,
    _report,
    _assimilate,
    _sharding,
    _train,
)


def problem_class(name: str) -> type[Problem]:
    """Returns the class of a problem; a ValueError names the nearest if there is none."""
    choose('data.problem', name, problems.PROBLEMS)
    return getattr(problems, name)


def schema(problem: str = 'burgers') -> ConfigDict:
    """Returns every field with its default, in the order in which an experiment meets them.

    Args:
        problem: a key of `problems.PROBLEMS`; its parameters are fields of the section `data`.

    Raises:
        ValueError: if the problem is unknown.
    """
    cls = problem_class(problem)
    sections = {section.__name__.removeprefix('_'): section() for section in SECTIONS}
    sections['data'] |= parameters(cls) | {'problem': problem}
    sections['constraint']['name'] = cls.rule_name
    for section, fields in FIELDS.get(problem, dict)().items():
        sections[section] = sections.get(section, {}) | fields
    # `seed` is that of initialisation, batches and samples; the data have their own.
    return ConfigDict({'seed': 0} | sections)


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns `config` with the fields of the given dotted names replaced, in place.

    Raises:
        ValueError: if a name is no field.
        TypeError: if a value has another type than the default.
    """
    fields = list(_names(config))
    for name, value in changes.items():
        if name not in fields:
            raise ValueError(f'config field: {nearest(name, fields)}')
        config.update_from_flattened_dict({name: value})
    return config


def _names(config: ConfigDict, prefix: str = '') -> list[str]:
    names = []
    for name, value in config.items():
        names += (
            _names(value, f'{prefix}{name}.') if isinstance(value, ConfigDict) else [prefix + name]
        )
    return names


def field_names(config: ConfigDict) -> list[str]:
    """Returns the dotted names of all fields."""
    return _names(config)


def experiment(
    presets: Mapping[str, Mapping[str, Any]], preset: str | None = None, *, problem: str = 'burgers'
) -> ConfigDict:
    """Returns the locked config of a preset.

    Args:
        presets: preset -> dotted overrides of the schema.
        preset: a name in `presets`; `quick` when absent.
        problem: a key of `problems.PROBLEMS`.

    Raises:
        ValueError: if the preset is unknown.
    """
    return override(schema(problem), choose('preset', preset or 'quick', presets)).lock()


def steps_of(config: ConfigDict, stage: str) -> int:
    """Returns the number of training steps of a stage: its `steps` times `train.budget`, at least
    1.
    """
    return max(1, round(config[stage].steps * config.train.budget))
