"""The figure of images made of visibilities: the posterior on the sky, and how it fits."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Circle

from namm_jax.report.panels import WIDTH

SAMPLES, TRIANGLES = 4, 4  # shown at most
BAND = (5, 95)  # percent of the samples


def sky(arrays: Mapping[str, np.ndarray], colours: str = 'inferno') -> Figure:
    """Returns the mean, standard deviation and some of posterior samples, north up and east to the
    left; amplitudes against baseline, and closure phases against time, of the measurement with its
    errors and of nine in ten samples.

    Args:
        arrays: `samples (n, h, w)`, Jy a pixel, `field_of_view` and `beam`, microarcseconds;
            `baseline (m,)`, 1e9 wavelengths, `amplitude`, `amplitude_std`, Jy,
            `amplitude_samples (n, m)`; `triangle (k,)` names, `time`, hours, `phase`, `phase_std`,
            degrees, `phase_samples (n, k)`.
        colours: colour map of brightness.
    """
    figure = Figure(figsize=(WIDTH, 8.2), layout='constrained')
    head, middle, tail = figure.subfigures(3, 1, height_ratios=[2.2, 2.4, 2.4]).ravel()
    _images(head, arrays, colours)
    _amplitudes(middle.subplots(), arrays)
    _phases(tail, arrays)
    return figure


def _images(part: SubFigure, arrays: Mapping[str, np.ndarray], colours: str) -> None:
    samples, half = 1e3 * arrays['samples'], float(arrays['field_of_view']) / 2
    mean, std = samples.mean(0), samples.std(0)
    panels = {'mean': mean, 'standard deviation': std}
    panels |= {f'sample {i + 1}': image for i, image in enumerate(samples[:SAMPLES])}
    scale = Normalize(0, max(np.quantile(samples, 0.999), 1e-30))
    axes = np.ravel(part.subplots(1, len(panels), sharey=True))
    for ax, (name, image) in zip(axes, panels.items(), strict=True):
        norm = Normalize(0, max(std.max(), 1e-30)) if image is std else scale
        colour_map = 'cividis' if image is std else colours
        ax.imshow(image, colour_map, norm, extent=(half, -half, -half, half))
        ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=7)
        beam = float(arrays['beam']) / 2
        corner = half - 1.3 * beam
        ax.add_patch(Circle((corner, -corner), beam, fill=False, color='white', lw=0.8))
    axes[0].set_ylabel('north, µas', fontsize=8)
    axes[0].set_xlabel('east, µas', fontsize=8)
    bar = dict(location='right', shrink=0.7, pad=0.01)
    part.colorbar(ScalarMappable(scale, colours), ax=list(axes), **bar).set_label(
        'mJy a pixel', fontsize=8
    )


def _amplitudes(ax: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    order = np.argsort(arrays['baseline'])
    baseline = arrays['baseline'][order]
    low, high = np.percentile(arrays['amplitude_samples'][:, order], BAND, 0)
    ax.vlines(baseline, low, high, color='tab:orange', lw=2.5, alpha=0.6, label='samples, 90 %')
    points = arrays['amplitude'][order], arrays['amplitude_std'][order]
    ax.errorbar(baseline, *points, fmt='k.', ms=3, lw=0.7, label='measured')
    ax.set(yscale='log', xlabel='baseline, 10⁹ wavelengths', ylabel='amplitude, Jy')
    ax.legend(fontsize=8)


def _phases(part: SubFigure, arrays: Mapping[str, np.ndarray]) -> None:
    names, counts = np.unique(arrays['triangle'], return_counts=True)
    names = names[np.argsort(-counts, kind='stable')][:TRIANGLES]
    axes = np.ravel(part.subplots(1, len(names)))
    for ax, name in zip(axes, names, strict=True):
        rows = np.flatnonzero(arrays['triangle'] == name)
        rows = rows[np.argsort(arrays['time'][rows])]
        time = arrays['time'][rows]
        phase = np.rad2deg(np.unwrap(np.deg2rad(arrays['phase'][rows])))
        phase -= 360 * np.rint(np.median(phase) / 360)
        # Each sample on the turn of the circle that is nearest to what was measured.
        samples = arrays['phase_samples'][:, rows]
        samples = phase + (samples - phase + 180) % 360 - 180
        low, high = np.percentile(samples, BAND, 0)
        ax.fill_between(time, low, high, color='tab:orange', alpha=0.5)
        ax.errorbar(time, phase, arrays['phase_std'][rows], fmt='k.', ms=3, lw=0.7)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel('time, h', fontsize=8)
        ax.tick_params(labelsize=7)
    axes[0].set_ylabel('closure phase, degrees', fontsize=8)
