"""The pictures of a run, each with its alternative text; drawn from what is on disk."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from namm_jax import problems
from namm_jax.experiment.progress import Bar
from namm_jax.problems.base import Problem, View, parameters
from namm_jax.report import curves, figures, motion
from namm_jax.report.posterior import Posterior, posteriors
from namm_jax.report.reading import Results, training_curves
from namm_jax.report.table import in_order, row_name, three_digits


class Picture(NamedTuple):
    """An image file.

    Attributes:
        data: the file's bytes.
        kind: `png` or `webp`.
        text: what it shows, for readers who do not see it.
        still: a version without motion, where `data` moves.
    """

    data: bytes
    kind: str
    text: str
    still: bytes | None = None


def problem_of(config: Mapping[str, Any]) -> Problem:
    """Returns the problem of a run, without a user's rule, by its nested config."""
    cls, data = getattr(problems, config['data']['problem']), config['data']
    values = {name: data[name] for name in parameters(cls) if name in data}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def view_of(config: Mapping[str, Any]) -> View:
    """Returns how the fields of a run are shown, by its nested config."""
    return problem_of(config).view


Drawing = tuple[Callable[[], Figure], str]  # and what it shows, in words


def draw(results: Results) -> dict[str, Picture]:
    """Returns the pictures of a run by name; those of its training if it is not evaluated."""
    dpi = results.config['report']['dpi']
    drawings = _of_training(results) | (_of_samples(results) if results.arrays else {})
    pictures = {}
    with Bar('report', len(drawings) + 1, unit='figure') as bar:
        for name, (drawing, text) in drawings.items():
            pictures[name] = Picture(figures.png(drawing(), dpi=dpi), 'png', text)
            bar.update(len(pictures))
        if results.arrays:
            look = view_of(results.config)._asdict()
            pictures['trajectory'] = _trajectory(results, dpi, look)
        bar.update(len(drawings) + 1)
    return pictures | draw_assimilation(results.config, results.posteriors)


def _of_training(results: Results) -> dict[str, Drawing]:
    of = training_curves(results)
    records = results.records
    time = lambda: figures.distance_against_training_seconds(of)
    drawings = {}
    if any(len(curve[1]) for curve in of.values()):
        text = 'Constraint distance against training time. At the end: ' + _ends(of)
        drawings['training_time'] = time, text
    if records:
        text = (
            'Terms of the loss against the training step, a panel a stage; held-out terms dashed.'
        )
        drawings['losses'] = lambda: figures.loss_curves(records), text
    return drawings


def _of_samples(results: Results) -> dict[str, Drawing]:
    look = view_of(results.config)._asdict()
    distances = results.of('distances')
    rows = {row: (x, results.of('residuals')[row]) for row, x in results.of('samples').items()}
    robustness = results.metrics['robustness']
    names = {'f': 'f', 'f_finetuned': 'f, finetuned'}
    maps = {name: robustness[f] for f, name in names.items() if f in robustness}
    levels = dict(sigma=robustness['sigma'], curves=maps, sigma_max=robustness['sigma_max'])
    mirror = results.of('mirror')
    of_mirror = look | {'units': ('mirror space, z', 'x = f(z)')}
    every = _and(map(row_name, in_order(list(rows))))
    return {
        'samples': (
            lambda: figures.samples_with_residuals(
                rows, distances=distances, extent=problem_of(results.config).extent, **look
            ),
            f'Fields of {every}, each above the map of its residual.',
        ),
        'distances': (
            lambda: figures.distance_histograms(distances),
            'Histograms of the constraint distance. Medians: ' + _medians(distances),
        ),
        'robustness': (
            lambda: curves.robustness_curves(**levels),
            'Distance and reconstruction error of f against noise. '
            + _at_sigma_max(robustness, maps)
            + _line(robustness),
        ),
        'mirror': (
            lambda: figures.mirror_and_inverse(mirror['z'], mirror['x'], **of_mirror),
            'Samples in mirror space, each above its inverse in data space.',
        ),
    }


def draw_assimilation(
    config: Mapping[str, Any], operators: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Picture]:
    """Returns the picture `assimilation_<operator>` of each measurement operator.

    Args:
        config: the run's, nested.
        operators: operator -> arrays, as of `reading.read_posteriors`.
    """
    look = view_of(config)._asdict()
    pictures = {}
    for operator, arrays in operators.items():
        parts = {}
        for name, array in arrays.items():
            row, part = name.split('/')
            parts.setdefault(row, {})[part] = array
        truth = parts.pop('truth')
        rows = {row: Posterior(**of) for row, of in parts.items()}
        figure = posteriors(truth['field'], truth['measured'], truth['residual'], rows, **look)
        text = (
            f'Posteriors of a measured field ({operator}) by {_and(list(rows))}: mean, std, '
            'samples, residual.'
        )
        pictures[f'assimilation_{operator}'] = Picture(
            figures.png(figure, dpi=config['report']['dpi']), 'png', text
        )
    return pictures


def _trajectory(results: Results, dpi: int, look: dict[str, Any]) -> Picture:
    parts = results.of('trajectory')
    frames = motion.trajectory_frames(**parts, **look, dpi=dpi)
    distances = [three_digits(parts['distances'][index]) for index in (0, -1)]
    text = (
        f'A sample on its way from noise in {len(frames)} frames: mirror state, f of the denoised '
        f'estimate, residual. The constraint distance goes from {distances[0]} to {distances[1]}.'
    )
    seconds = results.config['report']['frame_seconds']
    return Picture(motion.animation(frames, seconds=seconds), 'webp', text, motion.still(frames))


def _and(names: Iterable[str]) -> str:
    *others, last = names
    return f'{", ".join(others)} and {last}' if others else last


def _medians(distances: dict[str, np.ndarray]) -> str:
    return _list({row: np.median(distances[row]) for row in in_order(list(distances))})


def _ends(curves_of_training: dict[str, tuple[np.ndarray, ...]]) -> str:
    return _list({row: curve[1][-1] for row, curve in curves_of_training.items() if len(curve[1])})


def _at_sigma_max(robustness: dict, maps: dict[str, dict]) -> str:
    sigma = np.asarray(robustness['sigma'])
    nearest = int(np.argmin(np.abs(sigma - robustness['sigma_max'])))
    at = lambda curve: three_digits(curve['distance_mean'][nearest])
    values = [f'{name} {at(curve)}' for name, curve in maps.items()]
    return f'Mean distance at sigma {three_digits(float(sigma[nearest]))}: {", ".join(values)}.'


def _line(robustness: dict) -> str:
    """Returns what g is to a straight line, and what the noise is to mirror points."""
    g = robustness.get('g')
    if not g:
        return ''
    ratio = three_digits(robustness['sigma_max'] / g['std'])
    return (
        f' g(x) is {three_digits(g["slope"])} x + {three_digits(g["offset"])} (R² {g["r2"]:.3f}); '
        f'the largest noise of training is {ratio} of the standard deviation of z.'
    )


def _list(values: dict[str, float]) -> str:
    texts = (f'{row_name(row)} {three_digits(value)}' for row, value in values.items())
    return f'{", ".join(texts)}.'
