"""The command `run`: stages in a run folder, one folder a seed; and a folder opened as it is."""

import argparse
import contextlib
import functools
import os
import signal
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from namm_jax.experiment import processes
from namm_jax.experiment.advice import advise
from namm_jax.experiment.config import flatten, override
from namm_jax.experiment.experiment import Experiment, check, make_experiment
from namm_jax.experiment.files import UserError, local, read_json, write_json
from namm_jax.experiment.folder import Run, SharedRun, aggregate, check_needs
from namm_jax.experiment.loop import Diverged, Stopped
from namm_jax.experiment.problem import check_files, user_files, with_own_data
from namm_jax.experiment.processes import Place
from namm_jax.experiment.progress import LOG, complain, say, silence, widen, width
from namm_jax.experiment.provenance import provenance
from namm_jax.experiment.stages import STAGES, check_stages, stages_of


def configure_jax() -> None:
    """Switches float64 off, and the persistent compilation cache on where its folder can be
    written; the cache's environment variables win.
    """
    if jax.config.jax_enable_x64:
        say('JAX_ENABLE_X64: a run computes in float32, and goes on in it')
        jax.config.update('jax_enable_x64', False)
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        try:
            base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
            folder = Path(base, 'namm_jax')
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            jax.config.update('jax_compilation_cache_dir', str(folder))
        except (OSError, RuntimeError) as error:  # a RuntimeError where HOME is nowhere
            say(f'no compilation cache, so that each start compiles anew: {error}')


def run(given: argparse.Namespace) -> None:
    """Runs what the command line gives (`cli.parse`), in one folder or one a seed."""
    configure_jax()
    if given.wide:
        widen()
    address = given.coordinator, given.num_processes, given.process_index
    place = None if address == ('', 0, -1) else Place(*address)
    if place or given.distributed:
        _join(given, place)
    parent = local(given.workdir or f'runs/{given.name.replace(":", "-")}')
    if given.seeds and (parent / 'config.json').exists():
        raise UserError(
            f'{parent} is a run, whose table --seeds replaces; choose another --workdir'
        )
    try:
        with _listening() as signal_number:
            given.signal = processes.agreed(signal_number)
            if not given.seeds:
                _run(parent, given)
            for seed in given.seeds:
                given.overrides['seed'] = given.config.seed = seed
                _run(parent / f'seed{seed}', given)
                jax.clear_caches()  # what is compiled for a seed holds its arrays
            if given.seeds:
                processes.from_first(lambda: _aggregate(parent, given.seeds))
    except Stopped as stopped:
        say(f'{stopped}; the same command goes on from here')
        raise SystemExit(128 + stopped.signal) from stopped
    except Diverged as error:
        complain(f'error: {error}')
        raise SystemExit(1) from error
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not processes.tells_of_a_loss(error):
            raise
        again = 'error: another process has gone; start all of them again, and the run goes on'
        complain(f'{again}: {str(error).splitlines()[0]}')
        raise SystemExit(1) from error


def _join(given: argparse.Namespace, place: Place | None) -> None:
    """Joins this process to the others; raises unless all are of one version, and are to do the
    same.
    """
    processes.start(place)
    if not processes.is_first():
        silence()
    origin = provenance()
    versions = origin['versions'] | {'git': origin['git'], 'python': origin['python']}
    processes.check_same('versions', versions)
    stages = given.redo + given.stages
    config = flatten(override(given.config.to_dict(), {}))
    processes.check_same('configs', config | {'stages': stages})
    say(f'{jax.process_count()} processes, {jax.device_count()} devices')


@contextlib.contextmanager
def _listening() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the number of the first SIGINT, SIGTERM or SIGHUP, 0 before; the
    second one kills, but for SIGHUP: a terminal that is closed sends it twice.
    """
    received = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        with contextlib.suppress(RuntimeError):  # it came while a line was being written
            say(f'signal {number}: saving, then stopping; once more to stop at once')

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
        numbers.pop()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():  # a notebook interrupts its cells by SIGINT
            signal.signal(number, handler or signal.SIG_DFL)


def _needs(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the stages of a config, each with those that it builds on."""
    return {name: stage.needs for name, stage in stages_of(ConfigDict(config)).items()}


def _run(workdir: Path, given: argparse.Namespace) -> None:
    stages_in = lambda config: check_stages(given.stages, _needs(config))
    path = workdir / 'config.json'

    def check_all(config: Mapping[str, Any], records: Mapping[str, Any]) -> None:
        stages = stages_in(config)
        check_needs(stages, _needs(config), records)
        left = [stage for stage in stages if not records.get(stage, {}).get('finished')]
        old = flatten(read_json(path, dict)['config']) if path.exists() else {}
        new = flatten(config)
        changes = {name.split('.')[0] for name in given.overrides if new[name] != old.get(name)}
        check_files(records.get, goes_on=bool(left), stays=True)
        if not left and not changes:
            return  # and nothing of a user's is executed
        config = with_own_data(ConfigDict(config), records.get('data'))
        check(config, given.preset)
        for stage in changes.union(stages) & STAGES.keys():
            STAGES[stage].check(config)

    open_run = functools.partial(
        Run,
        workdir,
        given.config.to_dict(),
        experiment=given.name,
        depends=_needs,
        overrides=given.overrides,
        redo=given.redo,
        check=check_all,
    )
    with SharedRun(open_run) as run:
        _say_config(run.config, given)
        preset = run.directory / 'preset.json'
        processes.from_first(lambda: write_json(preset, given.preset.to_dict()))
        if run.discarded:
            say(f'discarded: {", ".join(run.discarded)}')
        experiment = functools.cache(lambda: make_experiment(run, given.signal))
        for stage in stages_in(run.config):
            if run.finished(stage):
                say(f'{stage}: finished before, skipped')
            else:
                _run_stage(experiment(), stage)
        if given.name.endswith(':tiny'):
            say('the preset tiny trains for seconds: its numbers prove nothing')
        _say_table(run.directory, evaluated=run.finished('evaluate'))


def _say_config(config: Mapping[str, Any], given: argparse.Namespace) -> None:
    """Says how a run's config, saved one and overrides together, differs from its preset."""
    old = flatten(override(given.preset.to_dict(), {}))
    changed = {field: value for field, value in flatten(config).items() if value != old[field]}
    lines = [f'  {field} = {value!r} (preset: {old[field]!r})' for field, value in changed.items()]
    say('\n'.join([f'{given.name}, with' if lines else given.name, *lines]))


def _run_stage(experiment: Experiment, stage: str) -> None:
    run = experiment.run
    say(f'{stage}: {"going on" if run.record(stage) else "starting"}')
    sections = STAGES[stage].sections
    facts = STAGES[stage].ready(experiment)
    run.begin(stage, sections, files=user_files({name: run.config[name] for name in sections}))
    run.finish(stage, **facts, **STAGES[stage].run(experiment))
    experiment.pause()


def _say_table(directory: Path, *, evaluated: bool) -> None:
    path, page = directory / 'metrics.json', directory / 'report.html'
    if evaluated or path.exists():
        from namm_jax.report.reading import read_metrics
        from namm_jax.report.table import render, summary_table

        metrics = read_metrics(directory)
        if rows := metrics.get('rows'):
            say(render(summary_table(rows, width())))
        if advice := metrics.get('advice'):
            say(textwrap.fill(advice['text'], int(min(width(), LOG))))
    say(f'run folder: {directory}' + (f'; report: {page}' if page.exists() else ''))


def _aggregate(workdir: Path, seeds: list[int]) -> None:
    """Writes the parent's metrics.json, `{mean, std, n}` over seeds in the place of each number,
    and shows it.
    """
    paths = [workdir / f'seed{seed}' / 'metrics.json' for seed in seeds]
    metrics = [read_json(path, dict) if path.exists() else {} for path in paths]
    if all('rows' in one for one in metrics):  # a discarded or unfinished evaluation has none
        numbers = [{k: v for k, v in one.items() if k != 'advice'} for one in metrics]
        means = aggregate(numbers)
        advice = advise(means['rows'])
        write_json(workdir / 'metrics.json', means | ({'advice': advice} if advice else {}))
        _say_table(workdir, evaluated=True)
