"""Rejection: of many draws of the diffusion model, those that obey the rule as well as data do."""

import itertools
from collections.abc import Callable, Iterable

import jax
import numpy as np

from namm_jax._arrays import Key
from namm_jax.experiment.drawing import in_batches
from namm_jax.experiment.experiment import Experiment
from namm_jax.experiment.processes import from_first

QUANTILE = 0.95  # of the data's distances, the largest that passes
PATIENCE = 200  # candidates for one that passes, at most


def accepted(
    blocks: Iterable[np.ndarray], passes: Callable[[np.ndarray], np.ndarray], n: int
) -> tuple[np.ndarray, float] | None:
    """Returns the first n fields that pass, and how many were drawn for each that did; None as soon
    as they are more than `PATIENCE`, or would be if one had passed. Blocks `(m, ...)` of fields are
    drawn as they are asked for, without end; `passes` returns booleans `(m,)`.
    """
    kept = []
    drawn = 0
    for x in blocks:
        kept.append(x[passes(x)])
        drawn += len(x)
        passed = sum(map(len, kept))
        if drawn > PATIENCE * max(passed, 1):
            return None
        if passed >= n:
            return np.concatenate(kept)[:n], drawn / passed
    raise ValueError(f'blocks: got {drawn} fields, expected no end of them')


def bound(experiment: Experiment) -> float:
    """Returns the largest distance that passes: the 95 % quantile of validation fields, each value
    off by a rounding of single precision, as data that obey to the bit have no other distance.
    """
    x = experiment.split('validation')
    rounding = np.finfo(np.float32).eps * jax.random.normal(experiment.key('probe'), x.shape)
    off = experiment.distances(np.asarray(x * (1 + rounding)))
    return float(np.quantile(np.maximum(experiment.distances(x), off), QUANTILE))


def rejection(
    experiment: Experiment, x: np.ndarray, draw: Callable[[Key], jax.Array]
) -> tuple[np.ndarray, float] | None:
    """Returns as many samples that pass as there are first candidates x, and the candidates for
    each, as of `accepted`. Candidate i is the sample of key i, and kept on disk as it is drawn.
    """
    n, limit = len(x), bound(experiment)
    passes = lambda x: experiment.distances(x) <= limit
    size = min(n, experiment.config.sample.batch_size)

    def block(i: int) -> np.ndarray:
        path = experiment.run.directory / 'sample' / f'candidates-{i}.npy'
        if not from_first(path.exists):
            keys = experiment.keys('sample', i * n, n)
            x = in_batches(draw, keys, size, experiment.local_mesh, between=experiment.pause)
            experiment.save(path, x)
        return experiment.load(path)

    return accepted(itertools.chain([x], map(block, itertools.count(1))), passes, n)
