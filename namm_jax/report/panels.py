"""The parts of the figures: colour scales, strips of images, panels of curves.

Drawn here, composed in `figures`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

WIDTH = 9.0  # inches of every figure; 990 pixels at the default resolution
# Okabe and Ito's palette without its yellow: told apart by colour-blind readers and in grey
LINES = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
MARKERS = 'osD^vPX'
# A row of the table has one colour in all figures.
ROWS = {'data': '#000000', 'dm': '#0072B2', 'dm_guided': '#56B4E9', 'dm_restored': '#332288'}
ROWS |= {'dm_projected': '#88CCEE', 'dm_restored_sampling': '#44AA99', 'mdm': '#D55E00'}
ROWS |= {'dm_projected_sampling': '#117733', 'dm_mapped': '#999933', 'mdm_unlanded': '#E69F00'}
ROWS |= {'dm_mapped_finetuned': '#AA4499', 'mdm_finetuned': '#CC3311', 'dm_landed': '#DDCC77'}
ROWS |= {'dm_ppr': '#661100', 'dm_rejected': '#888888', 'dm_residual_conditioned': '#CC79A7'}
_MISSING = '0.75'  # grey, of pixels that are not finite
_TRAIN, _HELDOUT = 'train/', 'heldout/'


def linear_scale(images: Float[np.ndarray, '...'], *, centred: bool = False) -> Normalize:
    """Returns a linear colour scale between the 0.5 % and 99.5 % quantiles of the finite values,
    never of width 0; `centred` reaches as far below 0 as above, for fields whose sign matters.
    """
    finite = images[np.isfinite(images)]
    low, high = np.quantile(finite, [0.005, 0.995]) if finite.size else (0.0, 1.0)
    low, high = (-max(-low, high), max(-low, high)) if centred else (low, high)
    return Normalize(low, high if high > low else low + max(abs(low), 1.0))


def logarithmic_scale(maps: Sequence[Float[np.ndarray, '...']]) -> LogNorm:
    """Returns a logarithmic colour scale over several sets of non-negative maps: from the smallest
    of the sets' medians, or 6 decades below the top, to the largest of their 99.9 % quantiles.
    """
    positive = [values[np.isfinite(values) & (values > 0)] for values in maps]
    positive = [values for values in positive if values.size]
    if not positive:
        return LogNorm(1e-6, 1.0)
    high = max(np.quantile(values, 0.999) for values in positive)
    low = min(np.median(values) for values in positive)
    return LogNorm(max(min(low, high / 10), high / 10**6), high)


def colour_ticks(norm: Normalize) -> dict[str, Any]:
    """Returns where a colour bar has its numbers, as arguments of `Figure.colorbar`: a logarithmic
    one of less than two decades would number every tick between 1 and 10, and they overlap.
    """
    if not isinstance(norm, LogNorm) or norm.vmax / norm.vmin >= 100:
        return {}
    form = LogFormatterSciNotation(labelOnlyBase=False)
    return {'ticks': LogLocator(subs=(1.0, 3.0)), 'format': form}


def image_strip(
    axes: Collection[Axes],
    images: Float[np.ndarray, 'n h w'],
    norm: Normalize,
    colours: str,
    extent: tuple[float, float, float, float] | None = None,
) -> AxesImage:
    """Draws images `(n, h, w)` side by side in one colour scale, grey where they are not finite;
    returns the last one, for a colour bar. Axes beyond the last image are left empty. The first
    image's edges are numbered: left, right, lower and upper by `extent`, else by pixels.
    """
    colour_map = colormaps[colours].with_extremes(bad=_MISSING)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.set_visible(False)
    for ax, image in zip(axes, images, strict=False):
        ax.set_visible(True)
        # a logarithm takes 0 for missing; it is the best value there is, and gets the colour of the
        # scale's lower end
        if isinstance(norm, LogNorm) and not image.any():
            ax.text(0.5, 0.5, 'exactly 0', color='white', ha='center', transform=ax.transAxes)
        image = np.where(image <= 0, norm.vmin, image) if isinstance(norm, LogNorm) else image
        shown = ax.imshow(image, norm=norm, cmap=colour_map, interpolation='nearest')
    h, w = images.shape[1:]
    left, right, lower, upper = extent or (0, w, h, 0)
    first = next(iter(axes))
    first.set_xticks([-0.5, w - 0.5], [f'{left:g}', f'{right:.3g}'])
    first.set_yticks([h - 0.5, -0.5], [f'{lower:g}', f'{upper:.3g}'])
    first.tick_params(labelsize=7, length=2)
    first.xaxis.labelpad = -7  # between its numbers
    return shown


def strip_height(images: Float[np.ndarray, 'n h w'], columns: int) -> float:
    """Returns the height in inches of a strip of images `(n, h, w)`, so many in a figure's
    width.
    """
    return min((WIDTH - 0.8) / columns, 2.6) * images.shape[1] / images.shape[2]


def loss_panel(ax: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws one stage's loss terms, from its lines of `metrics.jsonl`, against the step: a colour a
    term, held-out dashed with markers.
    """
    names = [name for record in records for name in record]
    names = [name for name in names if name.startswith((_TRAIN, _HELDOUT))]
    terms = dict.fromkeys(name.split('/', 1)[1] for name in names)
    terms.pop('gradient_norm', None)  # beside the terms, and on no scale of theirs
    if len(terms) == 2:  # a loss of one term is that term
        terms.pop('loss', None)
    dashed = {'linestyle': '--', 'marker': 'o', 'markersize': 4}
    styles = {_TRAIN: {'linewidth': 1.4}, _HELDOUT: dashed}
    for index, term in enumerate(terms):
        colour = LINES[index % len(LINES)]
        for prefix, style in styles.items():
            steps, values = _series(records, prefix + term)
            if len(steps):
                ax.plot(steps, values, color=colour, **style)
        ax.plot([], [], color=colour, linewidth=3, label=term)
    limits = positive_limits(np.concatenate([line.get_ydata() for line in ax.lines]))
    ax.set(yscale='log', ylim=limits, xlabel='step', ylabel='loss term (dashed: held-out)')
    # below the panel: curves that fall by decades leave no corner free
    ax.legend(loc='upper center', bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8, frameon=False)
    open_frame(ax)


def curve_style(index: int, row: str = '') -> dict[str, str]:
    """Returns colour and marker of a figure's curve of this number; a row has its own colour."""
    colour = ROWS.get(row, LINES[index % len(LINES)])
    return {'color': colour, 'marker': MARKERS[index % len(MARKERS)]}


def banded_curve(
    ax: Axes,
    x: Float[np.ndarray, ' k'],
    mean: Float[np.ndarray, ' k'],
    std: Float[np.ndarray, ' k'],
    label: str,
    style: Mapping[str, str],
) -> Float[np.ndarray, ' m']:
    """Draws a positive mean `(k,)` with a band of one standard deviation to each side, for a
    logarithmic axis, in a `curve_style`.

    What is not positive and finite is a gap. Returns the ends of the band; the lower one is at
    least a tenth of the mean: at 0 it would leave the axis.
    """
    mean = np.where(np.isfinite(mean) & (mean > 0), mean, np.nan)
    std = np.where(np.isfinite(std), std, 0)
    ax.plot(x, mean, label=label, linewidth=2, **style)
    band = np.maximum(mean - std, mean / 10), mean + std
    ax.fill_between(x, *band, color=style['color'], alpha=0.2, linewidth=0)
    ax.vlines(x, *band, color=style['color'], alpha=0.5, linewidth=1)  # a single point has no band
    return np.concatenate(band)


def open_frame(ax: Axes) -> None:
    """Gives a panel of curves a light grid and a frame open to the top and right."""
    ax.grid(alpha=0.3, which='major')
    ax.spines[['top', 'right']].set_visible(False)


def positive_limits(values: Float[np.ndarray, ' n']) -> tuple[float, float]:
    """Returns the ends of a logarithmic axis that holds all positive, finite values `(n,)`, a
    factor 1.2 beyond the extremes; 1e-6 and 1 for none.
    """
    values = values[np.isfinite(values) & (values > 0)]
    return (values.min() / 1.2, values.max() * 1.2) if values.size else (1e-6, 1.0)


def time_unit(longest: float) -> tuple[int, str]:
    """Returns the length in seconds, and the name, of the unit in which a time axis reads best."""
    if longest > 3 * 3600:
        return 3600, 'hours'
    return (60, 'minutes') if longest > 3 * 60 else (1, 'seconds')


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(record['step'], record[key]) for record in records if key in record]
    steps, values = np.array(pairs, float).reshape(-1, 2).T  # None becomes NaN, a gap
    return steps, np.where(values > 0, values, np.nan)
