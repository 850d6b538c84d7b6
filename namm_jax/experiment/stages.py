"""The stages of an experiment, in order: each reads the run folder, does one thing, and writes its
result there.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from namm_jax._arrays import Key, Params
from namm_jax._checks import check_rule, choose
from namm_jax.experiment import build, dataset, flops, methods
from namm_jax.experiment.assimilate import assimilate
from namm_jax.experiment.config import steps_of
from namm_jax.experiment.counter import check_counters, train_counters
from namm_jax.experiment.drawing import in_batches, make_draw, sampler_of
from namm_jax.experiment.evaluate import SHOWN, evaluate, views
from namm_jax.experiment.experiment import (
    Experiment,
    counter_shapes,
    mirror_parameters,
    restore,
    score_parameters,
    splits,
    train,
)
from namm_jax.experiment.files import UserError
from namm_jax.experiment.loop import Fitted
from namm_jax.experiment.posteriors import check_assimilation
from namm_jax.experiment.problem import fields_of, forget_samples
from namm_jax.experiment.processes import from_first
from namm_jax.experiment.progress import Bar, say
from namm_jax.experiment.rejection import PATIENCE, rejection
from namm_jax.experiment.tune import tune
from namm_jax.mirror import add_noise
from namm_jax.problems.base import parameters
from namm_jax.training.optimizers import moments_of

Facts = dict[str, Any]


class Stage(NamedTuple):
    """A stage.

    Attributes:
        run: does it, and returns its facts.
        needs: the stages it builds on.
        sections: of the config, those that it reads itself.
        on_request: whether it runs only when it is named.
        check: raises for a bad value of the config before any stage starts.
        ready: raises for bad data of a user's before this stage is on record; returns facts.
    """

    run: Callable[[Experiment], Facts]
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    on_request: bool = False
    check: Callable[[ConfigDict], None] = lambda config: None
    ready: Callable[[Experiment], Facts] = lambda experiment: {}


def check_rows(config: ConfigDict) -> None:
    """Raises a ValueError if the table of samples names a row that the config cannot have."""
    methods.rows_of(config, build.make_constraint(config, counter_shapes(config)))


def data(experiment: Experiment) -> Facts:
    """Generates the data set, and draws a picture of it."""
    config = experiment.config
    sizes = {split: config.data[split] for split in dataset.SPLITS}
    size = config.data.shard_size
    if not experiment.problem.generated:  # of large ones, no more than fit into memory
        size = min(size, max(1, dataset.BLOCK // (4 * math.prod(experiment.problem.shape))))
    with Bar('data', sum(sizes.values()), unit='field') as bar:
        dataset.write_dataset(
            experiment.run.directory / 'data',
            fields_of(config, experiment.problem),
            sizes=sizes,
            shard_size=size,
            provenance={name: config[name].to_dict() for name in ('data', 'constraint')},
            progress=lambda done, total: (bar.update(done), experiment.pause()),
        )
    if not build.counts(config):
        _draw(experiment, 'data', {})
    if experiment.problem.generated:
        return {}
    forget_samples()
    own = {name: config.data[name] for name in parameters(type(experiment.problem))}
    return {'own': own | sizes}


def counter(experiment: Experiment) -> Facts:
    """Trains the networks that count, and draws the data, whose picture may need one of them."""
    facts = train_counters(experiment)
    _draw(experiment, 'data', {})
    return facts


def _checked_data(experiment: Experiment) -> Facts:
    """Returns the distances of a user's own data under their rule, and its unit, {} for generated
    ones; warns, or raises, where the two are not fit for training.
    """
    config, problem = experiment.config, experiment.problem
    fields = lambda n: fields_of(config, problem)(np.arange(min(n, config.data.train)))
    build.check_map(config, lambda: fields(64 if problem.generated else config.data.train))
    if problem.generated:
        return {}
    key = experiment.key('evaluate')
    found = check_rule(experiment.constraint, fields(64), key, problem.units[1])
    floor, worst, noisy = (found[name] for name in ('floor_mean', 'floor_max', 'perturbed_mean'))
    sizes = [f'{config.data[split]} for {split}' for split in dataset.SPLITS]
    say(f'{config.data.path}: {", ".join(sizes)}')
    say(f'distance: {floor:.3g} on your data (at most {worst:.3g}), {noisy:.3g} with 10 % of noise')
    if floor > 0.1 * noisy:
        say(
            f'warning: your data do not obey your rule well: a mean distance of {floor:.3g}, '
            f'expected far less than the {noisy:.3g} of the same data with 10 % of noise; no '
            'sample will be much better than the data; look at the axes, units and indices in the '
            'rule'
        )
    return found


def _draw(experiment: Experiment, name: str, rows: dict[str, np.ndarray]) -> None:
    """Draws fields below test data and writes `figures/<name>.png`."""
    from namm_jax.report import figures  # matplotlib takes a second to import

    path = experiment.run.directory / 'figures' / f'{name}.png'
    rows = {'data': experiment.split('test')} | rows
    panels = {row: views(experiment, x[:SHOWN]) for row, x in rows.items()}
    options = experiment.problem.view._asdict() | {'extent': experiment.problem.extent}
    options['distances'] = {row: experiment.distances(x[:SHOWN]) for row, x in rows.items()}

    def draw() -> None:
        path.parent.mkdir(exist_ok=True)
        figures.save(figures.samples_with_residuals(panels, **options), path)

    from_first(draw)


def _probe(experiment: Experiment, what: str, x: np.ndarray) -> dict[str, float]:
    """Draws `figures/progress.png` of samples; returns their distances' mean and spread."""
    distances = experiment.distances(x)
    _draw(experiment, 'progress', {what: x})
    return {'distance_mean': float(distances.mean()), 'distance_std': float(distances.std())}


def mirror(experiment: Experiment) -> Facts:
    """Trains the mirror map, g and f together."""
    config = experiment.config
    rule = experiment.standard_constraint
    task = build.mirror_task(config, steps_of(config, 'mirror'), rule, experiment.unit)
    x, held_out = splits(experiment)
    key, fields = experiment.key('probe'), jnp.asarray(held_out[: config.train.probe_samples])

    @jax.jit
    def noisy(params: Params) -> jax.Array:
        z = experiment.mirror.forward(params, fields)
        z, _ = add_noise(key, z, sigma_max=config.mirror.sigma_max, power=0.0)
        return experiment.mirror.inverse(params, z)

    def probe(params: Params) -> dict[str, float]:
        return _probe(experiment, 'mirror: f(g(x) + noise)', np.asarray(noisy(params)))

    fitted = train(experiment, 'mirror', task, {'x': x}, {'x': held_out}, config.mirror, probe)
    return _costs(fitted)


def _train_diffusion(
    experiment: Experiment,
    stage: str,
    x: np.ndarray | dataset.Stored,
    held_out: np.ndarray,
    to_data: Callable[[Any], Any],
) -> Facts:
    """Trains a diffusion model on `x`; `to_data` maps its samples to data, for the probes."""
    config = experiment.config
    mean = float(x.mean())
    std = float(x.std())
    draw = make_draw(config, config.train.sample, mean, std)
    keys = experiment.keys('probe', 0, config.train.probe_samples)

    def probe(params: Params) -> dict[str, float]:
        samples = lambda keys: to_data(draw(params, keys))
        x = in_batches(samples, keys, len(keys), experiment.local_mesh)
        return _probe(experiment, f'{stage}: samples', x)

    task = build.denoising_task(config, steps_of(config, stage), mean, std)
    fitted = train(experiment, stage, task, {'x': x}, {'x': held_out}, config.score, probe)
    return _costs(fitted) | {'mean': mean, 'std': std}


def dm(experiment: Experiment) -> Facts:
    """Trains the plain diffusion model on standardised data; takes a user's denoiser as it is."""
    standardise, to_data = experiment.unit_maps
    x, held_out = splits(experiment, standardise)
    if experiment.config.score.external:
        std = float(x.std())
        _try_denoiser(experiment, held_out[:64], 0.5 * std)
        return {'training_seconds': 0.0, 'training_flops': 0.0, 'mean': float(x.mean()), 'std': std}
    return _train_diffusion(experiment, 'dm', x, held_out, to_data)


def _try_denoiser(experiment: Experiment, x: np.ndarray, sigma: float) -> None:
    """Warns where a user's own denoiser is no better on standardised data with noise than none."""
    denoiser = jax.jit(score_parameters(experiment, 'dm'))
    noise = sigma * jax.random.normal(experiment.key('dm'), x.shape)
    error = float(jnp.sqrt(jnp.mean((denoiser(x + noise, jnp.float32(sigma)) - x) ** 2)))
    say(f'score.external: error {error / sigma:.3g} of the noise, of half a standard deviation')
    if not error < sigma:
        say(
            'warning: score.external: that is no better than no denoising, expected less than 1; '
            'are its x and sigma in the unit of the data, and does it return their mean?'
        )


def _checked_map(experiment: Experiment) -> Facts:
    build.check_map(experiment.config, lambda: experiment.split('train'))
    return {}


def mdm(experiment: Experiment) -> Facts:
    """Trains the mirror diffusion model: the same, on the data mirrored once by g."""
    g, f = map(jax.jit, experiment.mirror.bind(mirror_parameters(experiment)))
    z, held_out = splits(experiment, g)
    sigma_max, std = experiment.config.mirror.sigma_max, float(z.std())
    if build.learns_map(experiment.config) and sigma_max > std:
        say(
            f'warning: mirror.sigma_max = {sigma_max:g} is more than {std:.3g}, the standard '
            'deviation of mirror points: f is trained on little but noise; lower it, --redo=mirror'
        )
    return _train_diffusion(experiment, 'mdm', z, held_out, f)


def finetune(experiment: Experiment) -> Facts:
    """Trains f further, on samples of the mirror diffusion model in the place of mirrored data."""
    config = experiment.config
    section = config.finetune
    params = mirror_parameters(experiment)
    x, held_x = splits(experiment)
    draw = methods.sampler(experiment, 'mdm', config.train.sample)
    z, drawing = _drawn(experiment, 'finetune', draw, 'mirror_samples')
    last = max(section.batch_size, len(z) // 16)
    probe_z = draw(experiment.keys('probe', 0, config.train.probe_samples))

    @jax.jit
    def finetuned(inverse: Params) -> jax.Array:
        return experiment.mirror.inverse(params | inverse, probe_z)

    def probe(average: Params) -> dict[str, float]:
        return _probe(experiment, 'finetune: f of samples', np.asarray(finetuned(average)))

    of = steps_of(config, 'finetune'), experiment.standard_constraint, experiment.unit
    task = build.finetune_task(config, *of, params, _moments(experiment))
    arrays = {'x': x, 'z': z[:-last]}
    held_out = {'x': held_x, 'z': z[-last:]}
    fitted = train(experiment, 'finetune', task, arrays, held_out, section, probe)
    return _costs(fitted, *drawing) | {'drawing_seconds': drawing[0]}


def _moments(experiment: Experiment) -> Any:
    """Returns the moments of f's gradient at the end of the stage `mirror`."""
    task = build.mirror_task(experiment.config, 1, experiment.standard_constraint)
    init = lambda key: task.optimizer.init(task.init(key))['inverse']
    target = {'opt_state': {'inverse': jax.eval_shape(init, jax.random.key(0))}}
    return moments_of(restore(experiment, 'mirror', target)['opt_state'])


def _drawn(
    experiment: Experiment, stage: str, draw: Callable[[Key], jax.Array], file: str
) -> tuple[np.ndarray, tuple[float, float]]:
    """Returns the samples of a model that a stage trains on, and their seconds and operations."""
    path = experiment.run.directory / stage / f'{file}.npy'
    keys = experiment.keys(stage, 0, experiment.config[stage].samples)
    z, seconds = methods.load_or_draw(experiment, path, lambda: draw, keys)
    operations = float(flops.count(jax.make_jaxpr(draw)(keys[:1])))
    return z, (seconds * len(z), operations * len(z))


def condition(experiment: Experiment) -> Facts:
    """Trains the plain diffusion model on, with the distance l of a field from the rule as a
    condition: the level `l / (l + median l)` of its own samples, 0 of data.
    """
    config, record = experiment.config, experiment.run.record('dm')
    draw = methods.sampler(experiment, 'dm', config.train.sample)
    fields, drawing = _drawn(experiment, 'condition', draw, 'samples')
    distances = experiment.distances(fields)
    finite = np.isfinite(fields).all((1, 2, 3)) & np.isfinite(distances)
    if (n := np.count_nonzero(finite)) < (least := 2 * config.score.batch_size):
        raise UserError(
            f'condition: got {n} of {len(fields)} samples at a finite distance from the rule, '
            f'expected at least {least}; leave dm_residual_conditioned out of sample.rows'
        )
    fields, distances = fields[finite], distances[finite]
    level = distances / (distances + (np.median(distances) or 1))
    standardise = experiment.unit_maps[0]
    x, held_x = splits(experiment, standardise)
    last = max(config.score.batch_size, len(fields) // 16)
    z = np.asarray(standardise(jnp.asarray(fields)))
    drawn = {'z': z, 'level': level.astype(np.float32)}
    model = record['mean'], record['std'], score_parameters(experiment, 'dm')
    task = build.conditioned_task(config, steps_of(config, 'condition'), *model)
    arrays = {'x': x} | {name: array[:-last] for name, array in drawn.items()}
    held_out = {'x': held_x} | {name: array[-last:] for name, array in drawn.items()}
    fitted = train(experiment, 'condition', task, arrays, held_out, config.score)
    return _costs(fitted, *drawing) | {'drawing_seconds': drawing[0]}


def _costs(fitted: Fitted, seconds: float = 0.0, operations: float = 0.0) -> Facts:
    """Returns what a stage's training costs, and what came before it."""
    return {
        'training_seconds': fitted.seconds + seconds,
        'training_flops': fitted.flops + operations,
    }


def sample(experiment: Experiment) -> Facts:
    """Draws from both models, from the same noise, and maps to every row; times each whole way."""
    config = experiment.config
    sampler = functools.partial(methods.sampler, experiment)
    folder = experiment.run.directory / 'sample'
    rows = methods.rows_of(config, experiment.constraint)
    keys = experiment.keys('sample', 0, config.sample.n)
    draws = dict.fromkeys(['dm', 'mdm', *(row.draw for row in rows.values())])
    models = {}
    seconds = {}
    calls = {}
    each = sampler_of(config.sample, 0.0, 1.0).calls
    with Bar('sample', len(draws) + len(rows), unit='set') as bar:
        for name in draws:
            draw = lambda row=methods.METHODS[name]: sampler(
                row.prior, config.sample, methods.ACTS[row.act](experiment)
            )
            file = {'mdm': 'mirror'}.get(name, name)
            models[name] = methods.load_or_draw(experiment, folder / f'{file}.npy', draw, keys)
            bar.update(len(models), {'seconds_per_sample': models[name][1]})
        for name, row in rows.items():
            z, drawing = models[row.draw]
            candidates = 1.0  # for a sample
            if row.map == 'rejection':
                found = rejection(experiment, z, sampler(row.prior, config.sample))
                if found is None:
                    say(f'{name}: not one sample in {PATIENCE} is as near as data: no such row')
                    continue
                (x, candidates), mapping = found, 0.0
            else:
                x, mapping = methods.time_each(experiment, methods.way_of(experiment, row), z)
            if not from_first((folder / f'{name}.npy').exists):
                experiment.save(folder / f'{name}.npy', x)
            seconds[name] = candidates * drawing + mapping
            calls[name] = candidates * each * methods.CALLS.get(row.act, 1)
            bar.update(len(models) + len(seconds), {'seconds_per_sample': seconds[name]})
    return {'seconds_per_sample': seconds, 'calls': calls}


def report(experiment: Experiment) -> Facts:
    """Draws the figures, and the page that holds them all."""
    from namm_jax.report.writing import write_report  # matplotlib takes a second to import

    from_first(lambda: write_report(experiment.run.directory))
    return {}


TRAINING = ('train', 'seed')
MODELS = ('mdm', 'finetune', 'dm')
STAGES = {
    'data': Stage(data, (), ('data', 'constraint'), ready=_checked_data),
    'counter': Stage(counter, ('data',), ('counter', *TRAINING), check=check_counters),
    'mirror': Stage(mirror, ('data', 'counter'), ('mirror', *TRAINING)),
    'tune': Stage(tune, ('mirror',), ('score', 'tune', *TRAINING), on_request=True),
    'mdm': Stage(
        mdm,
        ('data', 'counter', 'mirror'),
        ('mirror', 'score', 'mdm', *TRAINING),
        ready=_checked_map,
    ),
    'finetune': Stage(finetune, ('mdm',), ('finetune', *TRAINING)),
    'dm': Stage(dm, ('data', 'counter'), ('score', 'dm', *TRAINING)),
    'condition': Stage(condition, ('dm',), ('condition', *TRAINING)),
    'sample': Stage(sample, (*MODELS, 'condition'), ('sample',), check=check_rows),
    'assimilate': Stage(assimilate, MODELS, ('assimilate', 'sample'), True, check_assimilation),
    'evaluate': Stage(evaluate, ('data', 'counter', 'sample'), ('evaluate',)),
    'report': Stage(report, ('evaluate',), ('report',)),
}


def stages_of(config: ConfigDict) -> dict[str, Stage]:
    """Returns the stages that an experiment has, in order, each with those of its needs that are
    among them: `counter` where samples are counted, which `evaluate` alone needs where the rule
    holds no network; `mirror`, `tune` and `finetune` where the mirror map is learned; `condition`
    where the table has its row.
    """
    rows = config.sample.rows or methods.METHODS
    conditioned = any(methods.METHODS[row].act == 'level' for row in rows if row in methods.METHODS)
    absent = set() if build.counts(config) else {'counter'}
    absent |= set() if build.learns_map(config) else {'mirror', 'tune', 'finetune'}
    absent |= set() if conditioned and build.takes_level(config) else {'condition'}
    judged = {'evaluate'} if not build.holds_network(config) else STAGES.keys()
    has = lambda name, need: need not in absent and (need != 'counter' or name in judged)
    needs = lambda name: tuple(need for need in STAGES[name].needs if has(name, need))
    stages = {name: stage._replace(needs=needs(name)) for name, stage in STAGES.items()}
    return {name: stage for name, stage in stages.items() if name not in absent}


def check_stages(names: Iterable[str], stages: Iterable[str]) -> list[str]:
    """Returns the named ones of `stages` in the order in which they run, all that need no naming
    where none is named; a ValueError names the nearest if one is unknown.
    """
    known = {name: name for name in stages}
    names = [choose('stage', name, known) for name in names]
    return [name for name in known if (name in names if names else not STAGES[name].on_request)]
