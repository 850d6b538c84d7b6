"""Figures as pure functions: arrays in, a `matplotlib` figure out, and `save` to write one.

Nothing here touches pyplot, a display or global state. A value that is not finite is grey in an
image, missing from a curve and counted beside a histogram. Rows are keyed as in `metrics.json` and
titled by `report.table.row_name`.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from namm_jax.experiment.files import write_bytes
from namm_jax.report.panels import (
    WIDTH,
    banded_curve,
    colour_ticks,
    curve_style,
    image_strip,
    linear_scale,
    logarithmic_scale,
    loss_panel,
    open_frame,
    positive_limits,
    strip_height,
    time_unit,
)
from namm_jax.report.table import in_order, row_name, three_digits

Array = np.ndarray


def samples_with_residuals(
    rows: Mapping[str, tuple[Float[Any, '_n _h _w _c'], Float[Any, '_n _h2 _w2']]],
    *,
    distances: Mapping[str, Float[Any, ' _m']] | None = None,
    names: Mapping[str, str] | None = None,
    units: tuple[str, str] = ('x', '|residual|'),
    axis_names: tuple[str, str] = ('space', 'time'),
    colours: str = 'viridis',
    centred: bool = False,
    extent: tuple[float, float, float, float] | None = None,
    count: int = 6,
) -> Figure:
    """Returns samples of every row, each above the map of its residual, in colours that compare
    across rows; of a rule without such maps, each below its distance.

    All samples share one linear scale, that of the first row, which is the data where they are
    given; all residual maps one logarithmic scale of at most 6 decades.

    Args:
        rows: row key -> (samples `(n, h, w, c)`, residual maps `(n, h', w')`, of any sign, or
            `(n, 0, 0)`).
        distances: row key -> constraint distances `(m,)`, whose mean is put into the row's title.
        names: row key -> title, in the place of `row_name`.
        units: labels of the two colour bars.
        axis_names: what rows and columns of an image are.
        colours: the samples' colour map.
        centred: whether their scale is centred on 0.
        extent: edges of an image, left, right, lower, upper; its pixels are counted unless given.
        count: how many samples of each row, at most; of each their first channel.

    Raises:
        ValueError: if there are no rows, or samples and residual maps differ in number.
    """
    rows = {name: _first(name, *rows[name], count) for name in in_order(rows)}
    if not rows:
        raise ValueError('rows: got none, expected {"data": (samples, residual maps)}')
    samples, residuals = zip(*rows.values(), strict=True)
    norms = linear_scale(samples[0], centred=centred), logarithmic_scale(residuals)
    columns = max(map(len, samples))
    strips = 2 if residuals[0].size else 1
    height = lambda row: sum(strip_height(images, columns) for images in row[:strips])
    heights = [height(row) + 0.55 for row in rows.values()]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.75), layout='constrained')
    head, *parts = figure.subfigures(len(rows) + 1, 1, height_ratios=[0.75, *heights]).ravel()
    for part, (name, (images, maps)) in zip(parts, rows.items(), strict=True):
        of_row = (distances or {}).get(name)
        title = (names or {}).get(name, row_name(name)) + _mean(of_row)
        part.suptitle(title, x=0.01, ha='left', fontsize=11, weight='bold')
        axes = part.subplots(strips, columns, squeeze=False)
        looks = zip(axes, (images, maps), norms, (colours, 'magma'), strict=False)
        shown = [image_strip(*look, extent) for look in looks]
        for label, line in zip(('sample', 'residual'), axes, strict=False):
            line[0].set_ylabel(f'{label}\n{axis_names[0]}', fontsize=9)
        for ax in axes[-1]:
            ax.set_xlabel(axis_names[1], fontsize=9)
        if strips == 1 and of_row is not None:
            for ax, distance in zip(axes[0], of_row, strict=False):
                ax.set_title(f'distance {three_digits(distance)}', fontsize=9)
    bars = head.subplots(1, strips, squeeze=False)[0]
    for bar, image, label in zip(bars, shown, units, strict=False):
        look = {'orientation': 'horizontal', 'label': label, 'extend': 'both'}
        head.colorbar(image, cax=bar, **look, **colour_ticks(image.norm)).minorticks_off()
        bar.set_box_aspect(0.05)
    return figure


def distance_histograms(distances: Mapping[str, Float[Any, ' _n']]) -> Figure:
    """Returns histograms of the constraint distance, one strip a row over one logarithmic axis,
    with the median marked (the paper's figure 3).

    Args:
        distances: row key -> `(n,)` distances `>= 0`; exact zeros and values that are not finite
            have no place on the axis and are counted in the strip's title instead.

    Raises:
        ValueError: if there are no rows.
    """
    if not distances:
        raise ValueError('distances: got none, expected {"data": constraint.distance(x)}')
    rows = {name: np.asarray(distances[name], float) for name in in_order(distances)}
    placed = {name: values[np.isfinite(values) & (values > 0)] for name, values in rows.items()}
    bins = np.geomspace(*positive_limits(np.concatenate(list(placed.values()))), 61)
    figure = Figure(figsize=(WIDTH, 0.85 * len(rows) + 0.7), layout='constrained')
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for index, (ax, (name, values)) in enumerate(zip(axes, rows.items(), strict=True)):
        colour = curve_style(index, name)['color']
        ax.hist(placed[name], bins=bins, color=colour, alpha=0.75)
        median = np.median(values[np.isfinite(values)]) if np.isfinite(values).any() else np.nan
        if median > 0:
            ax.axvline(median, color='black', linewidth=1.5)
        ax.set_title(f'{row_name(name)}: {_counts(values, median)}', loc='left', fontsize=10)
        ax.set(xscale='log', xlim=(bins[0], bins[-1]), ylabel='samples')
        if not placed[name].size:
            ax.set(yticks=[], ylim=(0, 1))
            words = 'all exactly 0' if np.all(values == 0) else 'none on this axis'
            ax.text(0.5, 0.4, words, ha='center', transform=ax.transAxes)
        ax.spines[['top', 'right']].set_visible(False)
    axes[-1].set_xlabel('constraint distance; black line: median')
    return figure


def distance_against_training_seconds(
    curves: Mapping[str, tuple[Float[Any, ' _k'], Float[Any, ' _k'], Float[Any, ' _k']]],
) -> Figure:
    """Returns the constraint distance of samples against the training time that they needed, on a
    logarithmic axis (the paper's figure 4).

    Args:
        curves: row key -> (seconds, mean, standard deviation over samples), each `(k,)`.

    Raises:
        ValueError: if there are no curves.
    """
    if not curves:
        raise ValueError('curves: got none, expected {"dm": (seconds, mean, std)}')
    parts = lambda curve: [np.asarray(part, float) for part in curve]
    arrays = {name: parts(curves[name]) for name in in_order(curves)}
    length, unit = time_unit(max(seconds.max(initial=0) for seconds, _, _ in arrays.values()))
    figure = Figure(figsize=(WIDTH, 4.6), layout='constrained')
    ax = figure.subplots()
    bands = []
    for index, (name, (seconds, mean, std)) in enumerate(arrays.items()):
        look = row_name(name), curve_style(index, name)
        bands.append(banded_curve(ax, seconds / length, mean, std, *look))
    ax.set(yscale='log', ylim=positive_limits(np.concatenate(bands)))
    ax.set_xlabel(f'training time ({unit})')
    ax.set_ylabel('constraint distance, mean and one std of samples')
    ax.legend(fontsize=9, framealpha=0.8)
    open_frame(ax)
    return figure


def loss_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns the training and held-out terms of the loss, one panel a stage: a colour a term,
    training as a line, held-out dashed with markers.

    Args:
        records: the lines of `metrics.jsonl`,
            `{'stage', 'step', 'train/<term>', 'heldout/<term>', ...}`; None is a gap.

    Raises:
        ValueError: if no record has a term to draw.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if any(key.startswith(('train/', 'heldout/')) for key in record):
            stages.setdefault(record['stage'], []).append(record)
    if not stages:
        raise ValueError('records: got no loss term, expected keys train/<term>, heldout/<term>')
    columns = min(2, len(stages))
    lines = -(-len(stages) // columns)
    figure = Figure(figsize=(WIDTH, 3.6 * lines + 0.2), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (stage, chosen) in zip(axes, stages.items(), strict=False):
        loss_panel(ax, chosen)
        ax.set_title(stage, loc='left', weight='bold', fontsize=11)
    for ax in axes[len(stages) :]:
        ax.remove()
    return figure


def mirror_and_inverse(
    z: Float[Any, '_n _h _w _c'],
    x: Float[Any, '_n _h _w _c'],
    *,
    units: tuple[str, str] = ('mirror space, z', 'data space, x = f(z)'),
    axis_names: tuple[str, str] = ('space', 'time'),
    colours: str = 'viridis',
    centred: bool = False,
) -> Figure:
    """Returns mirror samples `z (n, h, w, c)` above their inverses `x = f(z)`, each with its own
    scale: the two spaces have no unit in common. Arguments as of `samples_with_residuals`; a
    ValueError says if z and x differ in number.
    """
    z, x = _first('mirror samples', z, np.asarray(x)[..., 0])
    height = strip_height(z, len(z)) + strip_height(x, len(z)) + 0.5
    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    axes = figure.subplots(2, len(z), squeeze=False)
    for line, images, unit in zip(axes, (z, x), units, strict=True):
        image = image_strip(line, images, linear_scale(images, centred=centred), colours)
        figure.colorbar(image, ax=line.tolist(), label=unit, extend='both', aspect=12, shrink=0.85)
        line[0].set_ylabel(axis_names[0], fontsize=9)
    for ax in axes[1]:
        ax.set_xlabel(axis_names[1], fontsize=9)
    return figure


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """Returns a figure as a PNG file; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=dpi)
    return file.getvalue()


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 110) -> Path:
    """Writes a figure as PNG, whole or not at all, and returns the path."""
    write_bytes(path, png(figure, dpi=dpi))
    return Path(path)


def _first(name: str, samples: Any, maps: Any, count: int = 6) -> tuple[Array, Array]:
    """Returns the first channel of the first samples, and their maps without sign."""
    samples, maps = np.asarray(samples), np.asarray(maps)
    if samples.ndim == 4:  # of wide images, such as mosaics, fewer fit beside each other
        count = max(1, round(count / max(1.0, samples.shape[2] / samples.shape[1]) ** 0.5))
    samples, maps = samples[:count], maps[:count]
    if samples.ndim != 4 or maps.ndim != 3 or len(samples) != len(maps) or not len(maps):
        raise ValueError(
            f'{name}: got samples {samples.shape} and maps {maps.shape}, expected (n, h, w, c) and '
            '(n, h, w), n >= 1; pass one map a sample, reduced over channels'
        )
    return samples[..., 0], np.abs(maps)


def _mean(distances: Any | None) -> str:
    if distances is None:
        return ''
    values = np.asarray(distances, float)
    finite = values[np.isfinite(values)]
    missing = len(values) - len(finite)
    left_out = f' ({missing} not finite left out)' if missing else ''
    return f', mean distance {three_digits(finite.mean() if finite.size else None)}{left_out}'


def _counts(values: Array, median: float) -> str:
    zeros, missing = np.sum(values == 0), np.sum(~np.isfinite(values))
    notes = [f'median {three_digits(median)}', f'n = {len(values)}']
    return ', '.join(
        notes + [f'{zeros} exactly 0'] * bool(zeros) + [f'{missing} not finite'] * bool(missing)
    )
