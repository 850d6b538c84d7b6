"""The report: one HTML file, `page.html` filled in, that holds everything it shows, for one
finished run or several side by side.
"""

import base64
import importlib.metadata
import json
import shlex
from collections.abc import Mapping
from typing import Any

import jinja2

from namm_jax import problems
from namm_jax.experiment.config import flatten
from namm_jax.report.pictures import Picture
from namm_jax.report.reading import Results
from namm_jax.report.table import (
    ASSIMILATION_COLUMNS,
    COLUMNS,
    cells,
    headline,
    in_order,
    row_name,
    three_digits,
)

# picture -> heading, and what there is to see
SECTIONS = {
    'samples': (
        'Samples and their residuals',
        'All samples share one colour scale, and all residual maps another, which is logarithmic. '
        'The distance of true data is the floor. A rule without a residual map has the distance '
        'of each sample above it.',
    ),
    'distances': (
        'Constraint distances',
        'How far from the constraint set the samples lie, all on one axis; further left is better.',
    ),
    'training_time': (
        'Distance against training time',
        'Samples drawn while each model was training. The clock of the mirror diffusion model '
        'starts with the training of the mirror map, and that of finetuning with everything '
        'before it. Here f is its network, without the steps that end it in the table.',
    ),
    'robustness': (
        'Robustness of f',
        'Test fields x, mapped by g, given noise, and mapped back: where f lands, up to twice the '
        'noise of its training. The noise is the same for both. Here f is its network alone.',
    ),
    'trajectory': (
        'One sample on its way',
        'Reverse diffusion in mirror space, from noise to the first finetuned sample above. '
        'Beside each state: f of the denoiser’s estimate, with its residual and its constraint '
        'distance. Early estimates are averages over all that the noise hides; those may obey the '
        'rule too.',
    ),
    'mirror': (
        'Mirror space',
        'Samples of the mirror diffusion model, above, and what f makes of them, below.',
    ),
    'losses': (
        'Losses',
        'One panel a stage, a colour a term. Solid lines: training; dashed: held-out data.',
    ),
}
FIGURES = 'running/folder.md'  # of the documentation: a section of the same heading tells more
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader(__package__, '.'), autoescape=True)


def page(runs: Mapping[str, tuple[Results, Mapping[str, Picture]]]) -> str:
    """Returns the report as a self-contained HTML page.

    Args:
        runs: label -> (results, pictures as of `pictures.draw`). Labels are shown where there are
            several.
    """
    views = [_view(label, *run) for label, run in runs.items()]
    one_line = lambda columns: [name.replace('-\n', '').replace('\n', ' ') for name in columns]
    return TEMPLATES.get_template('page.html').render(
        title=views[0]['title'] if len(views) == 1 else f'{len(views)} runs side by side',
        runs=views,
        sections=SECTIONS,
        columns=one_line(COLUMNS),
        assimilation_columns=one_line(ASSIMILATION_COLUMNS),
        inverse_problems=any(view['posteriors'] for view in views),
        source=_source,
        explained=_explained,
    )


def _explained(heading: str) -> str:
    """Returns the address of the documentation on a figure; empty where the package has none."""
    try:
        urls = importlib.metadata.metadata('namm_jax').get_all('Project-URL') or []
    except importlib.metadata.PackageNotFoundError:
        return ''
    site = dict(url.split(', ', 1) for url in urls).get('Documentation', '')
    return site and f'{site}/{FIGURES}#{heading.lower().replace(" ", "-")}'


def _source(picture: Picture, data: bytes) -> str:
    return f'data:image/{picture.kind};base64,{base64.b64encode(data).decode()}'


def _distance_words(config: Mapping[str, Any]) -> str:
    problem = getattr(problems, config['data']['problem'])
    return problem.distance_words.get(config['constraint']['name'], "the rule's own")


def _view(label: str, results: Results, pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Returns what the page says of a run."""
    rows = results.metrics.get('rows', {})
    entries = {name: results.metrics['assimilation'][name] for name in results.posteriors}
    lines = lambda entry: [(row, cells(of, ASSIMILATION_COLUMNS)) for row, of in entry.items()]
    copies = {row: of['memorisation'] for row, of in rows.items() if 'memorisation' in of}
    commands = (shlex.join(['python', *opening['command']]) for opening in results.provenance)
    name, _, preset = results.experiment.partition(':')
    of_preset = flatten(results.preset)
    changes = {
        field: (json.dumps(value), json.dumps(of_preset.get(field)))
        for field, value in flatten(results.config).items()
        if value != of_preset.get(field)
    }
    last = results.provenance[-1]
    facts = {'seed': results.config['seed'], 'seed of the data': results.config['data']['seed']}
    facts |= {'git revision': last['git'] or 'unknown: not run from a clone', 'host': last['host']}
    facts |= {'Python': last['python']}
    facts |= {package: version or 'unknown' for package, version in last['versions'].items()}
    return {
        'label': label,
        'tiny': preset == 'tiny',
        'unfinished': results.unfinished,
        'progress': results.progress
        and Picture(results.progress, 'png', 'Data, and samples so far.'),
        'title': f'{name}, preset {preset}, seed {results.config["seed"]}',
        'experiment': results.experiment,
        'headline': headline(rows, _distance_words(results.config)),
        'advice': results.metrics.get('advice', {}).get('text', ''),
        'copies': {row: three_digits(ratio) for row, ratio in copies.items()},
        'rows': [(row, row_name(row), cells(rows[row])) for row in in_order(rows)],
        'posteriors': {operator: lines(entry) for operator, entry in entries.items()},
        'pictures': pictures,
        'preset': results.preset,
        'changes': changes,
        'config': json.dumps(results.config, indent=2),
        'commands': dict.fromkeys(commands),
        'facts': facts,
    }
