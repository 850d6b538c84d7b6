"""Sampling in motion: the frames of one trajectory, and the animation that a browser plays."""

import io
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from namm_jax.report.panels import (
    LINES,
    WIDTH,
    colour_ticks,
    image_strip,
    linear_scale,
    logarithmic_scale,
    open_frame,
    positive_limits,
)
from namm_jax.report.table import three_digits

Array = np.ndarray
Frames = UInt8[np.ndarray, 'k height width 3']
_HOLD = 2.0  # seconds for which an animation rests on its last frame


def trajectory_frames(
    states: Float[Any, 'k h w c'],
    estimates: Float[Any, 'k h w c'],
    residuals: Float[Any, 'k h2 w2'],
    distances: Float[Any, ' k'],
    levels: Float[Any, ' k'],
    *,
    units: tuple[str, str] = ('x', '|residual|'),
    axis_names: tuple[str, str] = ('space', 'time'),
    colours: str = 'viridis',
    centred: bool = False,
    dpi: int = 110,
) -> Frames:
    """Returns the frames of one sample on its way through mirror space, from noise to the sample,
    for `animation`.

    Each frame shows the state `z_t`, which is standardised because its scale falls by orders of
    magnitude; f of the denoised estimate of it; the residual map of that; and how its constraint
    distance has fallen so far. The scales are those of the whole trajectory, the estimates' that of
    the last one.

    Args:
        states: `z_t` at k times, `(k, h, w, c)`.
        estimates: `f(E[z_0 given z_t])`, `(k, h, w, c)`.
        residuals: their residual maps, of any sign, `(k, h', w')`, or `(k, 0, 0)`.
        distances: their constraint distances, `(k,)`.
        levels: noise levels, falling, `(k,)`, in the units of mirror space.
        units, axis_names, colours, centred: as of `figures.samples_with_residuals`.
        dpi: pixels an inch; a frame is 9 inches wide.

    Raises:
        ValueError: unless there are as many of each, at least one.
    """
    parts = [np.asarray(part) for part in (states, estimates, residuals, distances, levels)]
    sizes = [len(part) for part in parts]
    if len({*sizes}) > 1 or not sizes[0]:
        raise ValueError(f'got {sizes} states, estimates, ..., levels, expected as many of each')
    states, estimates, residuals, distances, levels = parts
    states = states[..., 0]
    estimates = estimates[..., 0]
    residuals = np.abs(residuals)
    placed = np.where(distances > 0, distances, np.nan)  # 0 has no place on a logarithmic axis
    scale = logarithmic_scale([residuals])
    strips = [
        # 2.5 standard deviations to each side hold what there is to see
        (_standardised(states), Normalize(-2.5, 2.5), colours),
        (estimates, linear_scale(estimates[-1], centred=centred), colours),
        # a logarithm takes 0 for missing
        (np.where(residuals <= 0, scale.vmin, residuals), scale, 'magma'),
    ]
    strips = strips[: 3 if residuals.size else 2]
    figure, shown, marker = _stage(strips, placed, levels, units, axis_names)
    canvas, frames = FigureCanvasAgg(figure), []
    figure.set_dpi(dpi)
    canvas.draw()
    figure.set_layout_engine('none')  # a layout of its own would make each frame jump
    for now in range(len(states)):
        for image, (series, *_) in zip(shown, strips, strict=True):
            image.set_data(series[now])
        marker.set_data(levels[now : now + 1], placed[now : now + 1])
        title = f'frame {now + 1} of {len(states)}: noise level {three_digits(levels[now])}, '
        title += f'constraint distance of f(estimate) {three_digits(distances[now])}'
        figure.suptitle(title, fontsize=11)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)


def animation(frames: Frames, *, seconds: float = 0.25) -> bytes:
    """Returns frames as an animated, lossless WebP that repeats for ever, each shown for so many
    seconds, the last one for two.
    """
    first, *others = map(Image.fromarray, frames)
    if not others:
        return still(frames)
    milliseconds = [round(1000 * seconds)] * len(others) + [round(1000 * _HOLD)]
    of_all = {'save_all': True, 'append_images': others, 'duration': milliseconds, 'loop': 0}
    return _webp(first, **of_all)


def still(frames: Frames) -> bytes:
    """Returns the last frame as a WebP, for readers who want no motion."""
    return _webp(Image.fromarray(frames[-1]))


def _webp(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format='WEBP', lossless=True, method=2, **options)
    return file.getvalue()


def _standardised(states: Float[Array, 'k h w']) -> Float[Array, 'k h w']:
    states = np.where(np.isfinite(states), states, np.nan)
    mean, std = states.mean((1, 2), keepdims=True), states.std((1, 2), keepdims=True)
    return (states - mean) / np.where(std > 0, std, 1)


def _stage(
    strips: list[tuple[Array, Normalize, str]],
    distances: Array,
    levels: Array,
    units: tuple[str, str],
    axis_names: tuple[str, str],
) -> tuple[Figure, list[AxesImage], Any]:
    """Returns the figure of the first frame, its images, and the marker on the distance's curve; a
    strip is a series of images, its colour scale and its colour map.
    """
    figure = Figure(figsize=(WIDTH, 5.0), layout='constrained')
    figure.suptitle(' ', fontsize=11)
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    titles = ('state z_t', 'f(estimate of z_0)', 'its residual')
    labels = ('(z_t − mean) / std', *units)
    panels = zip(above.subplots(1, len(strips)), strips, titles, labels, strict=False)
    shown = []
    for ax, (series, norm, colours), title, label in panels:
        shown.append(image_strip([ax], series[:1], norm, colours))
        ax.set_title(title, fontsize=11)
        ax.set_xlabel(axis_names[1], fontsize=9)
        ax.set_ylabel(axis_names[0], fontsize=9)
        look = {'label': label, 'extend': 'both', 'aspect': 15, 'shrink': 0.8}
        above.colorbar(shown[-1], ax=ax, **look, **colour_ticks(norm)).minorticks_off()
    ax = below.subplots()
    ax.plot(levels, distances, color=LINES[0], linewidth=1.5, marker='o', markersize=3)
    (marker,) = ax.plot(levels[:1], distances[:1], 'o', color=LINES[1], markersize=9)
    ax.set(xscale='log', yscale='log', ylim=positive_limits(distances))
    ax.set_ylabel('constraint distance')
    ax.set_xlabel('noise level of z_t, falling to the right')
    ax.invert_xaxis()
    open_frame(ax)
    return figure, shown, marker
