"""The distribution of samples against that of the data, and what true samples score."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from namm_jax import metrics
from namm_jax._arrays import Key
from namm_jax.experiment.progress import say
from namm_jax.problems.base import Problem

COMPONENTS = 48  # of the data, that the two-sample test looks at
LEAST = 10  # fields on each side of it
COPIES = 0.9  # below it, samples are nearer to the training data than the distribution is

Compare = Callable[[np.ndarray], dict[str, float]]


def comparison(
    problem: Problem, reference: np.ndarray, test: np.ndarray, key: Key, *, projections: int
) -> Compare:
    """Returns the function from fields to their distribution metrics against a test set.

    The two-sample test sees as many of both, by the scores of the first principal components of
    other fields, the `reference`, their squares, `metrics.summaries` and the problem's `features`.
    """
    axes = problem.spatial_axes
    mean, basis = metrics.principal_axes(reference[:500], COMPONENTS)

    @jax.jit
    def features(x: jax.Array) -> jax.Array:
        scores = (x.reshape(len(x), -1) - mean) @ basis
        summaries = metrics.summaries(problem.seamless(x), axes)
        return jnp.concatenate([scores, scores**2, summaries, problem.features(x)], axis=1)

    test = jnp.asarray(test)
    others, seamless = features(test), problem.seamless(test)

    def compare(x: np.ndarray) -> dict[str, float]:
        x = jnp.asarray(x)
        options = dict(spatial_axes=axes, projections=projections)
        found = metrics.distribution_distances(key, problem.seamless(x), seamless, **options)
        n = min(len(x), len(test))
        if n >= LEAST:
            area = metrics.two_sample_area(key, features(x)[:n], others[:n])
            found['two_sample'] = area['value']
        return {name: float(value) for name, value in found.items()}

    return compare


def floors(
    compare: Compare, fields: np.ndarray, n: int, *, sets: int, seed: int
) -> dict[str, dict[str, float]]:
    """Returns what sets of n true fields score: mean `value` and standard deviation `std` of each
    metric over so many sets, each without repetition.
    """
    generator = np.random.default_rng(seed)
    found = [compare(fields[generator.permutation(len(fields))[:n]]) for _ in range(sets)]
    of = {name: np.array([values[name] for values in found]) for name in found[0]}
    moments = lambda values: {'value': float(values.mean()), 'std': float(values.std(ddof=1))}
    return {name: moments(values) | {'n': n, 'sets': sets} for name, values in of.items()}


def against(
    floor: Mapping[str, Mapping[str, float]], values: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Returns values, each beside its distance `z` from the floor, in standard deviations of it."""
    z = lambda name: (values[name] - floor[name]['value']) / (floor[name]['std'] or math.nan)
    return {name: {'value': value, 'z': z(name)} for name, value in values.items()}


def copying(row: str, x: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Returns how far samples lie from the training data, over how far from as many held-out
    fields; warns where they copy the data.
    """
    m = min(len(train), len(test), 1000)
    ratio = float(metrics.memorisation(x, train[:m], test[:m]))
    if ratio < COPIES:
        say(
            f'warning: {row}: its samples lie {ratio:.2f} times as far from the nearest training '
            'field as from the nearest held-out one; they copy the data: train less, or on more'
        )
    return ratio
