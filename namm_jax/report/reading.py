"""A run, read from its folder for the report: numbers, records and arrays."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from namm_jax.experiment.files import CHECKSUMS, UserError, damage, read_checked, read_json
from namm_jax.experiment.records import Records
from namm_jax.report.table import assimilation_table, summary_table

PROGRESS = Path('figures', 'progress.png')  # the newest samples of training
ARRAYS = Path('evaluate', 'arrays.npz')  # what the figures need, in the run folder


Arrays = dict[str, dict[str, np.ndarray]]  # what, or row -> part -> array


class Results(NamedTuple):
    """What the report says of a run.

    Attributes:
        experiment: config file and preset, `burgers:quick`.
        unfinished: which stages have finished and what goes on with the rest; empty for a run
            that has been evaluated, without which `arrays` is empty.
        progress: the picture of its newest samples, PNG; empty where there is none.
        config: the resolved config, nested.
        preset: the preset's config; empty where the folder does not hold it.
        provenance: one entry an opening of the folder, as `experiment.provenance` writes it.
        stages: stage -> its record.
        metrics: `metrics.json`.
        records: the lines of `metrics.jsonl`.
        arrays: those of `samples`, `residuals`, `distances`, `mirror` and `trajectory`.
        posteriors: measurement operator -> those of `truth` and each sampler; empty without
            `assimilate`.
    """

    experiment: str
    unfinished: str
    progress: bytes
    config: dict[str, Any]
    preset: dict[str, Any]
    provenance: list[dict[str, Any]]
    stages: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    records: list[dict[str, Any]]
    arrays: Arrays
    posteriors: dict[str, Arrays]


def find_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns the run folders among and below the given ones, by the name that tells them apart.

    Args:
        folders: run folders, or folders with a run folder `seed<k>` a seed.

    Raises:
        UserError: naming a folder that is neither.
    """
    found = {}
    for folder in folders:
        by_number = lambda path: (len(path.parts[-2]), path)
        seeds = sorted(folder.glob('seed*/config.json'), key=by_number)
        if (folder / 'config.json').exists():
            found[str(folder)] = folder
        elif seeds:
            found |= {str(path.parent): path.parent for path in seeds}
        else:
            no_run = 'a folder without config.json or seed<k>/config.json'
            got = no_run if folder.is_dir() else 'no such folder'
            raise UserError(f'{folder}: got {got}, expected a run folder, as runs/burgers-quick')
    return found


def read_run(folder: Path) -> Results:
    """Returns what the report says of the run in a folder.

    Raises:
        UserError: if a file is missing or damaged; with the command.
    """
    path = folder / 'config.json'
    saved = _with(path, read_json(path), 'experiment config')
    _with(path, saved['config'], 'seed data report')
    path = folder / 'provenance.json'
    openings = read_json(path, list)
    for opening in openings or [None]:
        match _with(path, opening, 'git host python versions command'):
            case {'versions': {}, 'command': [*words]} if all(isinstance(w, str) for w in words):
                pass
            case _:
                raise damage(path, repr(opening), 'versions, a dict, and the words of a command')
    paths = (path for path in sorted((folder / 'stages').glob('*.json')) if path.name != CHECKSUMS)
    stages = {path.stem: read_json(path, dict) for path in paths}
    finished = [stage for stage, record in stages.items() if record.get('finished') is True]
    file, _, preset = saved['experiment'].partition(':')
    command = f'python launch/main.py --config=configs/{file}.py:{preset} --workdir={folder}'
    evaluated = 'evaluate' in finished
    arrays = _read_arrays(folder / ARRAYS, f'{command} --redo=evaluate') if evaluated else {}
    path = folder / 'metrics.json'
    metrics = read_metrics(folder) if evaluated or path.exists() else {}
    kept = Records(folder)
    records = kept.read() if evaluated or kept.path.exists() else []
    if evaluated and not records:
        raise damage(kept.path, 'no record', 'those of the training that the report draws')
    results = Results(
        saved['experiment'],
        '' if evaluated else f'finished: {", ".join(finished) or "nothing"}; go on with {command}',
        progress.read_bytes() if (progress := folder / PROGRESS).exists() else b'',
        saved['config'],
        read_json(folder / 'preset.json', dict) if (folder / 'preset.json').exists() else {},
        openings,
        stages,
        _with(path, metrics, 'rows robustness' if evaluated else ''),
        records,
        arrays,
        read_posteriors(folder),
    )
    try:
        training_curves(results)
    except (KeyError, TypeError) as error:
        expected = 'seconds and distances in stages/ and metrics.jsonl'
        raise damage(folder, repr(error), expected) from error
    return results


def _with(path: Path, value: Any, names: str) -> dict[str, Any]:
    """Returns a dict that has these names; raises a UserError that names the file if it has not."""
    if not isinstance(value, dict) or not {*names.split()} <= value.keys():
        raise damage(path, repr(value), f'a dict with {names}')
    return value


def read_metrics(folder: Path) -> dict[str, Any]:
    """Returns `metrics.json`.

    Raises:
        UserError: if it is missing or damaged, or holds what no table can show.
    """
    path = folder / 'metrics.json'
    metrics = read_json(path, dict)
    try:
        summary_table(metrics.get('rows', {}))
        for entries in metrics.get('assimilation', {}).values():
            assimilation_table(entries)
    except (TypeError, ValueError, AttributeError) as error:
        raise damage(path, repr(error), 'rows of numbers, as a run writes them') from error
    return metrics


def read_posteriors(folder: Path) -> dict[str, Arrays]:
    """Returns measurement operator -> what the stage `assimilate` keeps of it for the figure.

    Raises:
        UserError: if a file is damaged.
    """
    again = 'the same command with --stages=assimilate'
    paths = sorted(folder.glob('assimilate/*/arrays.npz'))
    return {path.parent.name: _read_arrays(path, again) for path in paths}


def training_curves(results: Results) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns row -> (training seconds, mean distance, its standard deviation), `(k,)` each: the
    paper's figure 4.

    A row's training seconds begin where those of the stages that it builds on end.
    """
    before = {'dm': (), 'mdm': ('mirror',), 'finetune': ('mirror', 'mdm')}
    curves = {}
    for stage, needs in before.items():
        if stage not in results.stages:  # a closed-form map has nothing to finetune
            continue
        offset = sum(results.stages.get(need, {}).get('training_seconds', 0) for need in needs)
        offset += results.stages[stage].get('drawing_seconds', 0.0)
        points = [
            (offset + record['seconds'], record['distance_mean'], record['distance_std'])
            for record in results.records
            if record['stage'] == stage and 'distance_mean' in record
        ]
        row = {'finetune': 'mdm_finetuned'}.get(stage, stage)
        # None, a number that was not finite, becomes NaN.
        curves[row] = tuple(np.array(points, float).reshape(-1, 3).T)
    return curves


def _read_arrays(path: Path, command: str) -> Arrays:
    found = {}
    try:
        with np.load(io.BytesIO(read_checked(path)), allow_pickle=False) as arrays:
            for name in arrays.files:
                what, _, part = name.partition('/')
                found.setdefault(what, {})[part] = arrays[name]
        return found
    except FileNotFoundError:
        raise UserError(f'{path} is missing; write it with {command}') from None
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f'{path} is damaged: got {error}; write it again with {command}') from error
