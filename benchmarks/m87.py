#!/usr/bin/env python
"""Images M87* from published visibilities, and scenes whose truth is known seen by the same array.

    python launch/main.py --config=configs/total_brightness.py:m87 --workdir=runs/m87 \
        --stages=data,mirror,mdm,finetune,dm
    python benchmarks/m87.py --workdir=runs/m87 --data=FOLDER [--samples=16] [--only=NAME]
    [--rows=mirror_daps,daps] [--out=results/m87.json] [--pictures=FOLDER] [--FIELD=VALUE ...]

FOLDER holds the files `*_2017_<day>_<band>_*.csv` of the Event Horizon Telescope. Each is imaged by
itself, by every row. The synthetic scenes, a held-out image, two blobs and a disc, are seen by the
first file's baselines with its errors and with bad gains of every station. FIELD is one of the
config's section `assimilate`. The table of the docs is what `--table` prints.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from namm_jax.experiment.command import configure_jax


def parse() -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', default='runs/m87', help='a run folder of the preset m87')
    parser.add_argument('--data', default='.', help='a folder of the CSV files')
    parser.add_argument(
        '--table', action='store_true', help='print the table of --out, and no more'
    )
    parser.add_argument('--rows', default='mirror_daps,daps', help='samplers, separated by commas')
    parser.add_argument('--samples', type=int, default=16, help='of each posterior')
    parser.add_argument('--only', default='', help='a part of the names of what is imaged')
    parser.add_argument('--out', default='results/m87.json')
    parser.add_argument(
        '--pictures', default='', help='where a picture of each goes; none if empty'
    )
    given, rest = parser.parse_known_args()
    pairs = (word.removeprefix('--').split('=', 1) for word in rest)
    return given, {f'assimilate.{name}': json.loads(value) for name, value in pairs}


def scenes(experiment: Any) -> dict[str, np.ndarray]:
    """Returns images `(h, w)` of the right total: a held-out one of the prior, and two that it
    cannot make.
    """
    h, w, _ = experiment.problem.shape
    down, right = (np.indices((h, w)) + 0.5) / h - 0.5
    blob = lambda y, x, std: np.exp(-((down - y) ** 2 + (right - x) ** 2) / (2 * std**2))
    disc = 1 / (1 + np.exp((np.hypot(down, right) - 0.2) / 0.02))
    made = {'two blobs': blob(-0.1, -0.12, 0.05) + 0.6 * blob(0.1, 0.1, 0.06), 'disc': disc}
    total = experiment.problem.total
    made = {name: x * total / x.sum() for name, x in made.items()}
    return {'held-out ring': experiment.split('test')[3, ..., 0], **made}


def seen(experiment: Any, observation: Any, x: np.ndarray, seed: int) -> Any:
    """Returns what the baselines of an observation see of an image `(h, w)`, spoilt."""
    from namm_jax.experiment import imaging

    rng = np.random.default_rng(seed)
    operator, _ = imaging.measured(experiment.config, observation, 'visibilities')
    V = np.asarray(operator(x[None, ..., None].astype(np.float32)), float)[0].reshape(-1, 2) @ [
        1,
        1j,
    ]
    # The same signal-to-noise ratio but where V is small: there, thermal noise stays.
    std = np.hypot(0.02 * np.abs(V), observation.std / 2)
    V = V + std * (rng.normal(size=(len(V), 2)) @ [1, 1j])
    gain = {}
    for k, pair in zip(observation.scan, observation.stations, strict=True):
        for name in pair:
            size, phase = rng.normal(0, 0.2), rng.uniform(0, 2 * np.pi)
            gain.setdefault((k, name), np.exp(size + 1j * phase))
    factor = np.array(
        [
            gain[k, i] * np.conj(gain[k, j])
            for k, (i, j) in zip(observation.scan, observation.stations, strict=True)
        ]
    )
    made = observation._replace(visibility=V * factor, std=std * np.abs(factor))
    return made[np.abs(made.visibility) > experiment.config.assimilate.least_snr * made.std]


def imaged(experiment: Any, observation: Any, row: str, picture: Path | None) -> dict[str, Any]:
    """Returns what a row's posterior samples are, and the seconds that they took, compiling too."""
    import jax.numpy as jnp

    from namm_jax.experiment import imaging, solve
    from namm_jax.report.imaging import sky

    experiment.config.assimilate.sampler = row
    begun = time.perf_counter()
    x, facts = solve.posterior(experiment, observation)
    facts['seconds'] = time.perf_counter() - begun
    x = x[np.isfinite(x).all((1, 2, 3))]
    facts |= imaging.facts_of(experiment.config, observation, x)
    facts['negative'] = float(np.median(np.minimum(x, 0).sum((1, 2, 3)) / x.sum((1, 2, 3))))
    if picture:
        arrays = imaging.arrays_of(experiment.config, observation, x)
        sky(arrays).savefig(picture, dpi=100)
        np.save(picture.with_suffix('.npy'), np.asarray(jnp.asarray(x)))
    return facts


def table(kept: dict[str, Any]) -> str:
    """Returns the results as a table: medians, and 5 % and 95 % quantiles of the samples."""
    columns = {
        'χ², closure phases': ('chi_square_closure_phases', 2),
        'χ², log closure amplitudes': ('chi_square_log_closure_amplitudes', 2),
        'diameter, µas': ('diameter', 1),
        'brighter side, degrees': ('brighter_side', 0),
        'depression': ('depression', 2),
    }
    lines = [f'| scene | sampler | {" | ".join(columns)} | error of the total |']
    lines.append('|---' * (len(columns) + 3) + '|')
    for scene, rows in kept.items():
        for row, facts in rows.items():
            cells = []
            for name, digits in columns.values():
                low, median, high = (f'{facts[name][q]:.{digits}f}' for q in facts[name])
                truth = facts.get('truth', {}).get(name)
                told = '' if truth is None else f'; truth {truth:.{digits}f}'
                cells.append(f'{median} ({low} to {high}{told})')
            error = f'{facts["total_error"]:.2g}'
            lines.append(f'| {scene} | `{row}` | {" | ".join(cells)} | {error} |')
    return '\n'.join(lines)


def main() -> None:
    given, settings = parse()
    if given.table:
        print(table(json.loads(Path(given.out).read_text())))
        return
    configure_jax()
    from ml_collections import ConfigDict

    from namm_jax.experiment import imaging
    from namm_jax.experiment.config import override
    from namm_jax.experiment.experiment import make_experiment
    from namm_jax.experiment.files import finite
    from namm_jax.experiment.folder import Folder

    folder = Folder(Path(given.workdir))
    changes = {'assimilate.operator': 'closures', 'assimilate.samples': given.samples}
    config = override(ConfigDict(folder.config), changes | settings)
    experiment = make_experiment(folder)._replace(config=config)
    files = {}
    for path in sorted(Path(given.data).glob('*.csv')):
        files['_'.join(re.search(r'_(\d{3})_(\w\w)_', path.name).groups())] = path
    observations = {name: imaging.observation_of(config, path) for name, path in files.items()}
    first, truths = next(iter(observations.values())), scenes(experiment)
    for seed, (name, x) in enumerate(truths.items()):
        observations[name] = seen(experiment, first, x, seed)
    out = Path(given.out)
    kept = json.loads(out.read_text()) if out.exists() else {}
    for name, observation in observations.items():
        if given.only not in name:
            continue
        for row in given.rows.split(','):
            label = f'{name} {row}'.replace(' ', '-')
            picture = Path(given.pictures) / f'{label}.png' if given.pictures else None
            facts = imaged(experiment, observation, row, picture)
            if name in truths:
                told = imaging.facts_of(config, observation, truths[name][None, ..., None])
                facts['truth'] = {
                    key: value['median']
                    for key, value in told.items()
                    if isinstance(value, dict) and 'median' in value
                }
            kept.setdefault(name, {})[row] = finite(facts | {'settings': settings})
            out.write_text(json.dumps(kept, indent=1) + '\n')
            print(name, row, json.dumps(kept[name][row])[:400], flush=True)


if __name__ == '__main__':
    main()
