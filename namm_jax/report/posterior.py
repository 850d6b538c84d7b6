"""The figure of an inverse problem: what was measured of a field, and what each posterior sampler
made of it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from namm_jax.report.panels import (
    WIDTH,
    colour_ticks,
    image_strip,
    linear_scale,
    logarithmic_scale,
    strip_height,
)

Image = Float[np.ndarray, '_h _w']
SAMPLES = 3  # shown of each sampler, at most


def posteriors(
    truth: Mapping[str, Image],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    units: tuple[str, str] = ('x', '|residual|'),
    axis_names: tuple[str, str] = ('space', 'time'),
    colours: str = 'viridis',
    centred: bool = False,
) -> Figure:
    """Returns a field, its measurement, and each sampler's posterior: mean, standard deviation,
    samples, and their residual.

    Fields and means share one linear scale, that of the truth; standard deviations one from 0;
    residual maps one logarithmic scale; the measurement has its own, as it may be in another unit.

    Args:
        truth: the `field` `(h, w)`; `measured`, the measurement mapped back to an image by the
            transposed operator, NaN where nothing was measured; and `residual`, the map of what
            breaks the rule in the field, `(h', w')`, of any sign.
        rows: sampler -> the `mean` and `std` of its samples, NaN where there is none, some
            `samples` `(k, h, w)`, and the `residual` of the first.
        units, axis_names, colours, centred: as of `figures.samples_with_residuals`.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError('rows: got none, expected at least one sampler with its posterior')
    field, measured, residual = (truth[part] for part in ('field', 'measured', 'residual'))
    # Of wide images fewer, and larger.
    count = max(1, round(SAMPLES * min(1.0, field.shape[0] / field.shape[1])))
    columns = 3 + count
    residuals = [residual, *(row['residual'] for row in rows.values())]
    scales = {
        'field': (linear_scale(field, centred=centred), colours),
        'measurement': (linear_scale(measured, centred=centred), colours),
        'std': (Normalize(0, _largest([row['std'] for row in rows.values()])), 'cividis'),
        'residual': (logarithmic_scale([np.abs(maps) for maps in residuals]), 'magma'),
    }
    images = [field, residual] if residual.size else [field]
    height = max(strip_height(image[None], columns) for image in images) + 0.7
    figure = Figure(figsize=(WIDTH, height * (len(rows) + 1) + 0.9), layout='constrained')
    heights = [height, 0.9, *[height] * len(rows)]
    head, bars, *parts = figure.subfigures(len(rows) + 2, 1, height_ratios=heights).ravel()
    panels = [('truth', 'field', field), ('measurement', 'measurement', measured)]
    panels += [('residual', 'residual', residual)]
    _strip(head, 'truth', panels, scales, columns, axis_names)
    for part, (name, row) in zip(parts, rows.items(), strict=True):
        panels = [('mean', 'field', row['mean']), ('std', 'std', row['std'])]
        for i, image in enumerate(row['samples'][:count]):
            panels.append((f'sample {i + 1}', 'field', image))
        panels += [('residual of sample 1', 'residual', row['residual'])]
        _strip(part, name, panels, scales, columns, axis_names)
    labels = {'field': units[0], 'std': f'std of {units[0]}', 'residual': units[1]}
    if not residual.size:
        labels.pop('residual')
    for ax, (kind, label) in zip(bars.subplots(1, len(labels)), labels.items(), strict=True):
        norm, colour_map = scales[kind]
        bar = {'orientation': 'horizontal', 'label': label, 'extend': 'both'} | colour_ticks(norm)
        bars.colorbar(ScalarMappable(norm, colour_map), cax=ax, **bar).minorticks_off()
        ax.set_box_aspect(0.06)
    return figure


def _strip(
    part: SubFigure,
    title: str,
    panels: list[tuple[str, str, Image]],
    scales: Mapping[str, tuple[Normalize, str]],
    columns: int,
    axis_names: tuple[str, str],
) -> None:
    """Draws panels `(title, kind of scale, image)` side by side."""
    part.suptitle(title, x=0.01, ha='left', fontsize=11, weight='bold')
    panels = [panel for panel in panels if panel[2].size]  # a rule may have no residual map
    axes: list[Axes] = list(part.subplots(1, columns, squeeze=False)[0])
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, (label, kind, image) in zip(axes, panels, strict=False):
        image = np.abs(image) if kind == 'residual' else image
        image_strip([ax], image[None], *scales[kind])
        ax.set_title(label, fontsize=9)
    axes[0].set_xlabel(axis_names[1], fontsize=9)
    axes[0].set_ylabel(axis_names[0], fontsize=9)


def _largest(images: Any) -> float:
    """Returns the 99.5 % quantile of the largest of the images; 1 where nothing is positive and
    finite.
    """
    values = [image[np.isfinite(image)] for image in images]
    high = max((float(np.quantile(image, 0.995)) for image in values if image.size), default=0.0)
    return high if high > 0 else 1.0
