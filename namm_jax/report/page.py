"""The report: one HTML file that holds everything it shows, for one finished run or several side by
side.
"""

import base64
import html
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from namm_jax.experiment.config import flatten
from namm_jax.report.pictures import Picture
from namm_jax.report.reading import Results
from namm_jax.report.style import STYLE
from namm_jax.report.table import (
    ASSIMILATION_COLUMNS,
    COLUMNS,
    assimilation_cells,
    cells,
    in_order,
    ratio_of_medians,
    row_name,
)

# picture -> heading, and what there is to see
SECTIONS = {
    'samples': (
        'Samples and their residuals',
        'All samples share one colour scale, and all residual maps another, which is logarithmic. '
        'The residual of true data is round-off: the floor.',
    ),
    'distances': (
        'Constraint distances',
        'How far from the constraint set the samples lie, all on one axis; further left is better.',
    ),
    'training_time': (
        'Distance against training time',
        'Samples drawn while each model was training. The clock of the mirror diffusion model '
        'starts with the training of the mirror map, and that of finetuning with everything '
        'before it.',
    ),
    'robustness': (
        'Robustness of f',
        'Test fields x, mapped by g, given noise, and mapped back: where f lands, up to twice the '
        'noise of its training. The noise is the same for both.',
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


def page(runs: Mapping[str, tuple[Results, Mapping[str, Picture]]]) -> str:
    """Returns the report as a self-contained HTML page.

    Args:
        runs: label -> (results, pictures as of `pictures.draw`). Labels are shown where there are
            several.
    """
    title = (
        _title(next(iter(runs.values()))[0]) if len(runs) == 1 else f'{len(runs)} runs side by side'
    )
    sections = [('table', 'The result', _table(runs))]
    sections += [
        (name, heading, _figures(name, heading, text, runs))
        for name, (heading, text) in SECTIONS.items()
    ]
    if any(results.posteriors for results, _ in runs.values()):
        sections.append(('assimilation', 'Inverse problems', _assimilation(runs)))
    sections += [
        ('config', 'Configuration', _each(runs, _config)),
        ('reproduce', 'How to reproduce', _each(runs, _reproduce)),
    ]
    links = ''.join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in sections)
    body = ''.join(
        f'<section id="{name}"><h2>{heading}</h2>{content}</section>'
        for name, heading, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>namm_jax: {_text(title)}</title><style>{STYLE}</style></head>\n'
        f'<body><header><h1>{_text(title)}</h1><p>{_ORIGIN}</p>'
        f'<nav aria-label="contents"><ul>{links}</ul></nav></header>\n'
        f'<main>{body}</main></body></html>\n'
    )


_ORIGIN = (
    'A report of namm_jax: neural approximate mirror maps, for diffusion models that obey a rule.'
)


def _title(results: Results) -> str:
    name, _, preset = results.experiment.partition(':')
    return f'{name}, preset {preset}, seed {results.config["seed"]}'


def _text(value: Any) -> str:
    return html.escape(str(value))


def _scrolled(label: str, content: str, style: str = 'scroll') -> str:
    """Returns what may be wider than the screen in a box that scrolls sideways, with the keyboard
    too.
    """
    return (
        f'<div class="{style}" tabindex="0" role="region" '
        f'aria-label="{_text(label)}">{content}</div>'
    )


def _card(label: str, picture: Picture) -> str:
    return _scrolled(label, _image(picture), 'scroll card')


def _labelled(runs: Mapping[str, Any], label: str) -> str:
    return f'<h3>{_text(label)}</h3>' if len(runs) > 1 else ''


def _each(runs: Mapping[str, tuple[Results, Any]], part: Any) -> str:
    return ''.join(
        f'{_labelled(runs, label)}{part(results)}' for label, (results, _) in runs.items()
    )


def _table(runs: Mapping[str, tuple[Results, Any]]) -> str:
    """Returns one table with a block of rows a run."""
    blocks, ratios = [], []
    for label, (results, _) in runs.items():
        rows = results.metrics['rows']
        head = (
            f'<tr><th colspan="{len(COLUMNS) + 1}" scope="rowgroup">{_text(label)}: '
            f'{_text(_title(results))}</th></tr>'
        )
        lines = [
            _line(f'{_text(row_name(row))} <code>{_text(row)}</code>', cells(rows[row]))
            for row in in_order(list(rows))
        ]
        blocks.append(f'<tbody>{head if len(runs) > 1 else ""}{"".join(lines)}</tbody>')
        ratios.append((f'{label}: ' if len(runs) > 1 else '') + (ratio_of_medians(rows) or ''))
    return (
        f'<p class="result">{"<br>".join(map(_text, ratios))}</p>'
        + _scrolled(
            'table of results',
            f'<table>{_head("row", COLUMNS)}{"".join(blocks)}</table>',
        )
        + f'<p>{_TABLE_NOTE}</p>'
    )


_TABLE_NOTE = (
    'Distances are the constraint’s own; MMD², sliced W1 (with its 95 % bootstrap interval) and '
    'spectrum (decades of power) compare with held-out data, and for true data two halves of them '
    'with each other. Calls are the network’s, a sample; training is everything that the row '
    'needed.'
)


def _figures(
    name: str, heading: str, text: str, runs: Mapping[str, tuple[Results, Mapping[str, Picture]]]
) -> str:
    figures = [
        f'<figure>{_labelled(runs, label)}{_card(heading, pictures[name])}</figure>'
        for label, (_, pictures) in runs.items()
    ]
    text += ' Each run has axes and scales of its own.' if len(runs) > 1 else ''
    return f'<p>{_text(text)}</p><div class="runs">{"".join(figures)}</div>'


def _assimilation(runs: Mapping[str, tuple[Results, Mapping[str, Picture]]]) -> str:
    """Returns a table and a figure a measurement operator, of each run that has one."""
    parts = [f'<p>{_ASSIMILATION_NOTE}</p>']
    for label, (results, pictures) in runs.items():
        for operator in results.posteriors:
            title, entries = operator.replace('_', ' '), results.metrics['assimilation'][operator]
            lines = (
                _line(f'<code>{_text(row)}</code>', assimilation_cells(entry))
                for row, entry in entries.items()
            )
            head = _head('sampler', ASSIMILATION_COLUMNS)
            table = f'<table>{head}<tbody>{"".join(lines)}</tbody></table>'
            parts += [
                f'{_labelled(runs, label)}<h3>{_text(title)}</h3>',
                _scrolled(f'posterior samplers, {title}', table),
                f'<figure>{_card(title, pictures[f"assimilation_{operator}"])}</figure>',
            ]
    return ''.join(parts)


_ASSIMILATION_NOTE = (
    'Posterior samples of test fields of which a noisy measurement is given. The misfit is about '
    '1 where samples fit the measurement as closely as its noise; RMSE is that of the posterior '
    'mean, CRPS that of the whole ensemble, and a spread of 1 times the skill means that samples '
    'differ from each other as the truth differs from their mean. The figure shows the first '
    'measurement, mapped back to an image by the transposed operator; grey was not measured.'
)


def _head(first: str, columns: Sequence[str]) -> str:
    """Returns the head of a table, each column's on one line."""
    joined = (
        column.replace('-' + chr(10), '').replace(chr(10), ' ') for column in (first, *columns)
    )
    heads = ''.join(f'<th scope="col">{_text(column)}</th>' for column in joined)
    return f'<thead><tr>{heads}</tr></thead>'


def _line(head: str, cells: Sequence[str]) -> str:
    """Returns a row of a table; its head is HTML, its cells are texts."""
    return (
        f'<tr><th scope="row">{head}</th>'
        + ''.join(f'<td>{_text(cell)}</td>' for cell in cells)
        + '</tr>'
    )


def _image(picture: Picture) -> str:
    source = lambda data: f'data:image/{picture.kind};base64,{base64.b64encode(data).decode()}'
    image = f'<img src="{source(picture.data)}" alt="{_text(picture.text)}">'
    if picture.still is None:
        return image
    reduced = f'<source media="(prefers-reduced-motion: reduce)" srcset="{source(picture.still)}">'
    return f'<picture>{reduced}{image}</picture>'


def _config(results: Results) -> str:
    preset, fields = flatten(results.preset), flatten(results.config)
    changed = [
        f'<li><code>{_text(name)} = {_text(json.dumps(value))}</code> '
        f'(preset: <code>{_text(json.dumps(preset.get(name)))}</code>)</li>'
        for name, value in fields.items()
        if preset and value != preset.get(name)
    ]
    if not preset:
        remark = 'which the folder does not hold.'
    else:
        remark = 'with these changes:' if changed else 'unchanged.'
    whole = _text(json.dumps(results.config, indent=2))
    return (
        f'<p>Preset <code>{_text(results.experiment)}</code>, {remark}</p>'
        + (f'<ul>{"".join(changed)}</ul>' if changed else '')
        + f'<details><summary>The whole config</summary><pre tabindex="0">{whole}</pre></details>'
    )


def _reproduce(results: Results) -> str:
    last = results.provenance[-1]
    commands = dict.fromkeys(
        shlex.join(['python', *opening['command']]) for opening in results.provenance
    )
    seeds = {'seed': results.config['seed'], 'seed of the data': results.config['data']['seed']}
    facts = seeds | {
        'git revision': last['git'] or 'unknown: not run from a clone',
        'host': last['host'],
    }
    facts |= {'Python': last['python']} | {
        name: version or 'unknown' for name, version in last['versions'].items()
    }
    lines = ''.join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<pre tabindex="0">{_text(chr(10).join(commands))}</pre>' + _scrolled(
        'versions', f'<table class="facts">{lines}</table>'
    )
