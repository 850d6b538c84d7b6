"""`launch/main.py` from its arguments to its exit status, and what its two neighbours share with
it.

JAX is configured here, before its first use: the compilation cache.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from namm_jax.experiment.arguments import (
    experiment_name,
    main_flags,
    overrides_of,
    parse,
    place_of,
    preset_of,
)
from namm_jax.experiment.config import flatten, override
from namm_jax.experiment.files import UserError, local, read_json, write_json
from namm_jax.experiment.folder import Folder, Run, SharedRun, aggregate
from namm_jax.experiment.processes import Place, leave
from namm_jax.experiment.progress import complain, say, silence
from namm_jax.experiment.provenance import provenance


def configure_jax() -> None:
    """Switches the persistent compilation cache on, in the user's cache folder; environment
    variables win.
    """
    import jax

    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'namm_jax'
        jax.config.update('jax_compilation_cache_dir', str(cache))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def guarded(command: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Runs a command; returns its exit status."""
    import jax

    from namm_jax.experiment.loop import Diverged, Stopped

    try:
        command(arguments)
    except Stopped as stopped:
        say(f'{stopped}; the same command goes on from here')
        return 128 + stopped.signal
    except KeyboardInterrupt:  # before anything listens for signals
        say(f'stopped by signal {signal.SIGINT:d}')
        return 128 + signal.SIGINT
    except (
        ValueError
    ) as error:  # raised where an object is built or a file is read: the values came from the user
        if os.environ.get('NAMM_JAX_TRACEBACK'):
            raise
        complain(f'error: {error}')
        return 2
    except (Diverged, OSError) as error:
        complain(f'error: {error}')
        return 1
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        first = str(error).splitlines()[0]
        complain(
            'error: another process has gone; start all of them again, and the run goes on: '
            f'{first}'
        )
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Runs `launch/main.py` with these arguments, the program's name first; returns the exit
    status.

    Of several processes, one that fails ends at once: JAX would have it wait for the others, which
    wait for it.
    """
    status = guarded(_main, arguments)
    # Looked up, not imported: most mistakes are found before JAX is loaded, and need not wait for
    # it.
    if status and (jax := sys.modules.get('jax')) and jax.distributed.is_initialized():
        leave(status)
    return status


def _main(arguments: list[str]) -> None:
    values = main_flags(arguments)
    config = parse(values, arguments, sys.modules['__main__'].__doc__)
    configure_jax()
    if (place := place_of(values)) or values.distributed:
        _join(place, config, values.redo + (values.stages or []))
    from namm_jax.experiment.processes import agreed, from_first
    from namm_jax.experiment.stages import STAGES, check_stages

    check_stages([*(values.stages or []), *values.redo], STAGES)
    name, overrides = experiment_name(values), overrides_of(values)
    workdir = local(values.workdir or f'runs/{name.replace(":", "-")}')
    with _listening() as asked_to_stop:
        asked = Asked(
            name,
            preset_of(values),
            overrides,
            values.stages or [],
            values.redo,
            agreed(asked_to_stop),
        )
        if not values.seeds:
            _run(workdir, config, asked)
            return
        for seed in _seeds(values.seeds):
            with config.unlocked():
                config.seed = seed
            _run(
                workdir / f'seed{seed}',
                config,
                asked._replace(overrides=overrides | {'seed': seed}),
            )
        from_first(lambda: _aggregate(workdir, _seeds(values.seeds)))


def _join(place: Place | None, config: ConfigDict, asked: list[str]) -> None:
    """Joins this process to the others; raises unless all are of one version, and asked to do the
    same.
    """
    import jax

    from namm_jax.experiment.processes import check_same, is_first, start

    start(place)
    if not is_first():
        silence()
    origin = provenance()
    check_same('versions', origin['versions'] | {'git': origin['git'], 'python': origin['python']})
    check_same('configs', flatten(override(config.to_dict(), {})) | {'stages': asked})
    say(f'{jax.process_count()} processes, {jax.device_count()} devices')


def _seeds(texts: Iterable[str]) -> list[int]:
    if not all(text.strip().isdecimal() for text in texts):
        raise UserError(
            f'--seeds: got {",".join(texts)}, expected non-negative integers, such as 0,1,2'
        )
    return [int(text) for text in texts]


def _say_config(config: Mapping[str, Any], name: str, preset: ConfigDict) -> None:
    """Says how a run's config, saved one and overrides together, differs from its preset."""
    old = flatten(override(preset.to_dict(), {}))
    changed = {field: value for field, value in flatten(config).items() if value != old[field]}
    lines = [f'  {field} = {value!r} (preset: {old[field]!r})' for field, value in changed.items()]
    say('\n'.join([f'{name}, with' if lines else name, *lines]))


@contextlib.contextmanager
def _listening() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the number of the first SIGINT or SIGTERM, 0 before; the second
    one kills.
    """
    received = []

    def handle(number: int, frame: object) -> None:
        say(f'signal {number}: saving, then stopping; once more to stop at once')
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():  # a notebook interrupts its cells by SIGINT
            signal.signal(number, handler or signal.SIG_DFL)


def _needs(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the stages of a config, each with those that it builds on."""
    from namm_jax.experiment.stages import stages_of

    return {name: stage.needs for name, stage in stages_of(ConfigDict(config)).items()}


def _build(run: Any, asked_to_stop: Callable[[], int]) -> Any:
    """Returns the `Experiment` of an open run folder."""
    from namm_jax.experiment import build
    from namm_jax.experiment.devices import first_devices, make_mesh
    from namm_jax.experiment.experiment import Experiment
    from namm_jax.experiment.problem import make_problem, measured

    config = measured(ConfigDict(run.config), run.record('data'))
    mesh = make_mesh(first_devices(config.train.devices))
    return Experiment(
        config, run, mesh, make_problem(config), build.make_mirror(config), asked_to_stop
    )


@contextlib.contextmanager
def open_experiment(workdir: Path) -> Iterator[Any]:
    """Yields the `Experiment` of an existing run folder, which is read and never written."""
    yield _build(Folder(local(workdir)), lambda: 0)


class Asked(NamedTuple):
    """What a command asks for.

    Attributes:
        name: config file and preset, `burgers:quick`.
        preset: the preset's config.
        overrides: dotted field -> value: what the command line changes.
        stages: the stages to run; none for all.
        redo: the stages to discard first.
        to_stop: returns the number of a signal that asks the run to stop, else 0.
    """

    name: str
    preset: ConfigDict
    overrides: Mapping[str, Any]
    stages: list[str]
    redo: list[str]
    to_stop: Callable[[], int]

    def stages_of(self, config: Mapping[str, Any]) -> list[str]:
        """Returns the stages to run of an experiment with this config, in order.

        Raises:
            ValueError: if it has no such stage.
        """
        from namm_jax.experiment.stages import check_stages

        return check_stages(self.stages, _needs(config))


def _run(workdir: Path, config: ConfigDict, asked: Asked) -> None:
    from namm_jax.experiment.experiment import check
    from namm_jax.experiment.problem import measured
    from namm_jax.experiment.processes import from_first
    from namm_jax.experiment.stages import STAGES

    def check_all(resolved: Mapping[str, Any]) -> None:
        path = workdir / 'stages' / 'data.json'
        record = read_json(path) if path.exists() and 'data' not in asked.redo else None
        resolved = measured(ConfigDict(resolved), record)
        check(resolved, asked.preset)
        for stage in asked.stages_of(resolved):
            STAGES[stage].check(resolved)

    open_run = lambda: Run(
        workdir,
        config.to_dict(),
        experiment=asked.name,
        depends=_needs,
        overrides=asked.overrides,
        redo=asked.redo,
        check=check_all,
    )
    with SharedRun(open_run) as run:
        _say_config(run.config, asked.name, asked.preset)
        from_first(lambda: write_json(run.directory / 'preset.json', asked.preset.to_dict()))
        if run.discarded:
            say(f'discarded: {", ".join(run.discarded)}')
        experiment = _build(run, asked.to_stop)
        for stage in asked.stages_of(run.config):
            _run_stage(experiment, stage)
        _say_table(run.directory, evaluated=run.finished('evaluate'))


def _run_stage(experiment: Any, stage: str) -> None:
    from namm_jax.experiment.stages import STAGES

    run = experiment.run
    if run.finished(stage):
        say(f'{stage}: finished before, skipped')
        return
    say(f'{stage}: {"going on" if run.record(stage) else "starting"}')
    run.begin(stage, STAGES[stage].sections)
    run.finish(stage, **STAGES[stage].run(experiment))
    experiment.pause()


def _say_table(directory: Path, *, evaluated: bool) -> None:
    path = directory / 'metrics.json'
    rows = read_json(path).get('rows') if evaluated or path.exists() else None
    if rows:
        from namm_jax.report.table import render, summary_table

        say(render(summary_table(rows)))
    page = directory / 'report.html'
    say(f'run folder: {directory}' + (f'; report: {page}' if page.exists() else ''))


def _aggregate(workdir: Path, seeds: list[int]) -> None:
    """Writes the parent's metrics.json, `{mean, std, n}` over seeds in the place of each number,
    and shows it.
    """
    paths = [workdir / f'seed{seed}' / 'metrics.json' for seed in seeds]
    metrics = [read_json(path) if path.exists() else {} for path in paths]
    if all('rows' in one for one in metrics):  # a discarded or unfinished evaluation has none
        write_json(workdir / 'metrics.json', aggregate(metrics))
        _say_table(workdir, evaluated=True)
