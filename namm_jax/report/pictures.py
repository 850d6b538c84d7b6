"""The pictures of a run, each with its alternative text; drawn from what is on disk."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from namm_jax import problems
from namm_jax.experiment.progress import Bar
from namm_jax.problems.base import Problem, parameters
from namm_jax.report import curves, figures, motion
from namm_jax.report.posterior import posteriors
from namm_jax.report.reading import Arrays, Results, training_curves
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
            pictures['trajectory'] = _trajectory(results, dpi)
        bar.update(len(drawings) + 1)
    return pictures | draw_assimilation(results.config, results.posteriors)


def _of_training(results: Results) -> dict[str, Drawing]:
    curves_of = training_curves(results)
    drawings = {}
    if ends := {row: mean[-1] for row, (_, mean, _) in curves_of.items() if len(mean)}:
        drawings['training_time'] = (
            lambda: figures.distance_against_training_seconds(curves_of),
            'Constraint distance against training time. At the end: ' + _list(ends),
        )
    if results.records:
        drawings['losses'] = (
            lambda: figures.loss_curves(results.records),
            'Terms of the loss against the training step, a panel a stage; held-out terms dashed.',
        )
    return drawings


def _of_samples(results: Results) -> dict[str, Drawing]:
    problem = problem_of(results.config)
    look = problem.view._asdict()
    distances = results.arrays['distances']
    residuals = results.arrays['residuals']
    rows = {row: (x, residuals[row]) for row, x in results.arrays['samples'].items()}
    robustness = results.metrics['robustness']
    names = {'f': 'f', 'f_finetuned': 'f, finetuned'}
    maps = {name: robustness[f] for f, name in names.items() if f in robustness}
    levels = dict(sigma=robustness['sigma'], curves=maps, sigma_max=robustness['sigma_max'])
    mirror = results.arrays['mirror']
    of_mirror = look | {'units': ('mirror space, z', 'x = f(z)')}
    medians = {row: np.median(distances[row]) for row in in_order(distances)}
    return {
        'samples': (
            lambda: figures.samples_with_residuals(
                rows, distances=distances, extent=problem.extent, **look
            ),
            f'Fields of {_and(map(row_name, in_order(rows)))}, each above the map of its residual.',
        ),
        'distances': (
            lambda: figures.distance_histograms(distances),
            'Histograms of the constraint distance. Medians: ' + _list(medians),
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
    config: Mapping[str, Any], operators: Mapping[str, Arrays]
) -> dict[str, Picture]:
    """Returns the picture `assimilation_<operator>` of each measurement operator.

    Args:
        config: the run's, nested.
        operators: operator -> arrays, as of `reading.read_posteriors`.
    """
    look = problem_of(config).view._asdict()
    pictures = {}
    for operator, arrays in operators.items():
        rows = {row: of for row, of in arrays.items() if row != 'truth'}
        data = figures.png(posteriors(arrays['truth'], rows, **look), dpi=config['report']['dpi'])
        text = (
            f'Posteriors of a measured field ({operator}) by {_and(rows)}: mean, std, samples, '
            'residual.'
        )
        pictures[f'assimilation_{operator}'] = Picture(data, 'png', text)
    return pictures


def _trajectory(results: Results, dpi: int) -> Picture:
    parts = results.arrays['trajectory']
    look = problem_of(results.config).view._asdict()
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
