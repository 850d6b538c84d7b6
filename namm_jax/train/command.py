"""The two commands, from their arguments to their exit status. `launch/` holds the scripts that call them.

JAX is configured here, before its first use: the compilation cache.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from namm_jax.train.config import field_names, nearest
from namm_jax.train.files import UserError

ROOT = Path(__file__).resolve().parents[2]


def _flags(arguments: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        'config', None, 'Config file and preset: FILE.py[:preset].', flag_values=values, sys_argv=arguments
    )
    flags.DEFINE_string('workdir', None, 'Run folder; runs/<config>-<preset> when absent.', flag_values=values)
    return values


def _main_flags(arguments: list[str]) -> flags.FlagValues:
    values = _flags(arguments)
    flags.DEFINE_list('stages', None, 'Stages to run, in any order; all when absent.', flag_values=values)
    flags.DEFINE_list('redo', [], 'Stages to discard first, with all that was built on them.', flag_values=values)
    flags.DEFINE_list('seeds', [], 'Seeds; each has its own folder, and the table aggregates them.', flag_values=values)
    return values


def _evaluate_flags(arguments: list[str]) -> flags.FlagValues:
    values = _flags(arguments)
    flags.DEFINE_string('samples', None, 'A .npy file of samples (n, h, w, c).', flag_values=values)
    return values


def _find_config(arguments: list[str]) -> list[str]:
    """Returns the arguments with the config file's path made absolute: it may be relative to the clone, too."""
    found = []
    for argument in arguments:
        name, _, value = argument.partition('=')
        if name.lstrip('-') == 'config' and value:
            path, _, preset = value.partition(':')
            places = [place for place in (Path(path), ROOT / path) if place.is_file()]
            if not places:
                known = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').glob('*.py'))
                raise UserError(f'--config: no such file; {nearest(path, known)}')
            argument = f'--config={places[0].resolve()}' + (f':{preset}' if preset else '')
        found.append(argument)
    return found


def _parse(values: flags.FlagValues, arguments: list[str], usage: str | None) -> ConfigDict:
    """Parses the arguments; returns the config.

    Raises:
        UserError: for anything that a user may have mistyped.
    """
    given = [a for a in arguments[1:] if a.split('=')[0].lstrip('-') in ('help', 'h', 'helpfull')]
    if given:
        print(usage, values.main_module_help() or values, sep='\n')
        raise SystemExit(0)
    try:
        rest = values(_find_config(arguments))
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(_explain(error, arguments)) from error
    if rest[1:]:
        raise UserError(f'got the arguments {rest[1:]}, expected flags only, as --name=value')
    if values.config is None:
        raise UserError('--config is missing; expected --config=FILE.py[:preset], such as --config=configs/burgers.py')
    return values.config


def _explain(error: Exception, arguments: list[str]) -> str:
    """Returns the error's message; where a config field is unknown, the nearest ones."""
    from namm_jax.train.config import schema

    fields = field_names(schema())
    for argument in arguments:
        name = argument.lstrip('-').split('=')[0]
        if name.startswith('config.') and name.removeprefix('config.') not in fields:
            return f'config field: {nearest(name.removeprefix("config."), fields)}'
    *before, last = str(error).strip().splitlines() or [repr(error)]
    # An error inside the config file, such as an unknown preset, comes as the text of a traceback: its end says it.
    return last.removeprefix('ValueError: ') if any('Traceback' in line for line in before) else str(error)


def _overrides(values: flags.FlagValues) -> dict[str, Any]:
    return dict(config_flags.get_override_values(values['config'])) if values['config'].present else {}


def _experiment_name(values: flags.FlagValues) -> str:
    path, _, preset = config_flags.get_config_filename(values['config']).partition(':')
    return f'{Path(path).stem}:{preset or "quick"}'


def configure_jax() -> None:
    """Switches the persistent compilation cache on, in the user's cache folder; environment variables win."""
    import jax

    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'namm_jax'
        jax.config.update('jax_compilation_cache_dir', str(cache))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def say(text: str) -> None:
    """Writes a line for the user, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _guarded(command: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Runs a command; returns its exit status."""
    from namm_jax.train.loop import Diverged, Stopped

    try:
        command(arguments)
    except Stopped as stopped:
        say(f'{stopped}; the same command goes on from here')
        return 128 + stopped.signal
    except ValueError as error:  # raised where an object is built or a file is read: the values came from the user
        if os.environ.get('NAMM_JAX_TRACEBACK'):
            raise
        say(f'error: {error}')
        return 2
    except (Diverged, OSError) as error:
        say(f'error: {error}')
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Runs `launch/main.py` with these arguments, the program's name first; returns the exit status."""
    return _guarded(_main, arguments)


def evaluate(arguments: list[str]) -> int:
    """Runs `launch/evaluate.py` with these arguments, the program's name first; returns the exit status."""
    return _guarded(_evaluate, arguments)


def _main(arguments: list[str]) -> None:
    values = _main_flags(arguments)
    config = _parse(values, arguments, sys.modules['__main__'].__doc__)
    configure_jax()
    from namm_jax.train.experiment import check
    from namm_jax.train.stages import STAGES, check_stages

    stages = check_stages(values.stages or STAGES)
    check_stages(values.redo)
    name, overrides = _experiment_name(values), _overrides(values)
    workdir = Path(values.workdir or f'runs/{name.replace(":", "-")}')
    check(config)
    _say_differences(config, name, overrides)
    asked_to_stop = _listen()
    if not values.seeds:
        _run(workdir, config, name, overrides, stages, values.redo, asked_to_stop)
        return
    for seed in _seeds(values.seeds):
        with config.unlocked():
            config.seed = seed
        say(f'seed {seed}')
        changes = overrides | {'seed': seed}
        _run(workdir / f'seed{seed}', config, name, changes, stages, values.redo, asked_to_stop)
    _aggregate(workdir, _seeds(values.seeds))


def _seeds(texts: Iterable[str]) -> list[int]:
    if not all(text.strip().isdecimal() for text in texts):
        raise UserError(f'--seeds: got {",".join(texts)}, expected non-negative integers, such as 0,1,2')
    return [int(text) for text in texts]


def _say_differences(config: ConfigDict, name: str, overrides: Mapping[str, Any]) -> None:
    say(f'{name}' + (', with' if overrides else ''))
    for field, value in overrides.items():
        say(f'  {field} = {value!r}')


def _listen() -> Callable[[], int]:
    """Returns a function that tells the number of the first SIGINT or SIGTERM, 0 before; the second one kills."""
    received = []

    def handle(number: int, frame: object) -> None:
        say(f'signal {number}: saving, then stopping; once more to stop at once')
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return lambda: received[0] if received else 0


def _build(run: Any, asked_to_stop: Callable[[], int]) -> Any:
    """Returns the `Experiment` of an open run folder, every object of its config checked."""
    import jax

    from namm_jax.train import tasks
    from namm_jax.train.experiment import Experiment, check
    from namm_jax.train.sharding import make_mesh

    config = ConfigDict(run.config)
    check(config)
    parts = tasks.make_family(config), tasks.make_constraint(config), tasks.make_mirror(config)
    return Experiment(config, run, make_mesh(jax.devices()[: config.train.devices or None]), *parts, asked_to_stop)


@contextlib.contextmanager
def open_experiment(workdir: Path) -> Iterator[Any]:
    """Opens a run folder as it is, and yields its `Experiment`; for notebooks and benchmarks.

    Args:
        workdir: an existing run folder.

    Raises:
        UserError: if it is no run folder, or in use.
    """
    from namm_jax.train.files import read_json
    from namm_jax.train.run import Run
    from namm_jax.train.stages import STAGES

    saved = read_json(workdir / 'config.json')
    needs = {stage: STAGES[stage].needs for stage in STAGES}
    with Run(workdir, saved['config'], experiment=saved['experiment'], depends=needs) as run:
        yield _build(run, lambda: 0)


def _run(
    workdir: Path, config: ConfigDict, name: str, overrides: Mapping[str, Any], stages: list[str], redo: list[str],
    asked_to_stop: Callable[[], int],
) -> None:  # fmt: skip
    from namm_jax.train.loop import Stopped
    from namm_jax.train.run import Run
    from namm_jax.train.stages import STAGES

    needs = {stage: STAGES[stage].needs for stage in STAGES}
    with Run(workdir, config.to_dict(), experiment=name, depends=needs, overrides=overrides, redo=redo) as run:
        if run.discarded:
            say(f'discarded: {", ".join(run.discarded)}')
        experiment = _build(run, asked_to_stop)
        for stage in stages:
            if run.finished(stage):
                say(f'{stage}: finished before, skipped')
                continue
            say(f'{stage}: {"going on" if run.record(stage) else "starting"}')
            run.begin(stage, STAGES[stage].sections)
            facts = STAGES[stage].run(experiment)
            run.finish(stage, **facts)
            if asked_to_stop():
                raise Stopped(asked_to_stop())
        _say_table(run.directory)


def _say_table(directory: Path) -> None:
    path = directory / 'metrics.json'
    rows = json.loads(path.read_text()).get('rows') if path.exists() else None
    if rows:
        from namm_jax.report.table import render, summary_table

        say(render(summary_table(rows)))
    say(f'run folder: {directory}; pictures: {directory / "figures"}')


def _aggregate(workdir: Path, seeds: list[int]) -> None:
    """Writes the parent's metrics.json, `{mean, std, n}` over seeds in the place of each number, and shows it."""
    from namm_jax.train.files import write_json
    from namm_jax.train.run import aggregate

    paths = [workdir / f'seed{seed}' / 'metrics.json' for seed in seeds]
    metrics = [json.loads(path.read_text()) if path.exists() else {} for path in paths]
    if all('rows' in one for one in metrics):  # a discarded or unfinished evaluation has none
        write_json(workdir / 'metrics.json', aggregate(metrics))
        _say_table(workdir)


def _evaluate(arguments: list[str]) -> None:
    values = _evaluate_flags(arguments)
    config = _parse(values, arguments, sys.modules['__main__'].__doc__)
    if values.samples is None:
        raise UserError('--samples is missing; expected --samples=FILE.npy, fields (n, h, w, c)')
    configure_jax()
    import jax

    from namm_jax.evaluation import distance_statistics
    from namm_jax.train import tasks
    from namm_jax.train.dataset import read_fields
    from namm_jax.train.experiment import in_batches
    from namm_jax.train.files import finite
    from namm_jax.train.sharding import make_mesh

    x = read_fields(values.samples, tasks.make_family(config).shape)
    distances = in_batches(jax.jit(tasks.make_constraint(config).distance), x, min(len(x), 256), make_mesh())
    statistics = finite(distance_statistics(jax.numpy.asarray(distances)))
    result = {'constraint': config.constraint.name, 'n': len(x), 'distance': statistics}
    print(json.dumps(result | {'per_sample': finite(distances)}))
