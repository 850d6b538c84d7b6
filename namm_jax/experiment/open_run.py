"""A finished run folder for a notebook: its data, rule, maps and priors, read and never written.

No lock is taken, so that many may read one folder, and a read-only share is enough.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array
from ml_collections import ConfigDict

from namm_jax._arrays import Constraint, Fields, Measure, as_pytree
from namm_jax._checks import choose
from namm_jax.denoising.prior import NetworkDenoiser, Prior, prior, sample
from namm_jax.experiment import build
from namm_jax.experiment.dataset import SPLITS
from namm_jax.experiment.devices import make_mesh
from namm_jax.experiment.drawing import scheme_of
from namm_jax.experiment.experiment import (
    STREAMS,
    check_finished,
    finetuned_parameters,
    make_experiment,
    mirror_parameters,
    score_parameters,
)
from namm_jax.experiment.files import UserError, local
from namm_jax.experiment.folder import Folder
from namm_jax.experiment.problem import check_files
from namm_jax.inverse.given import given
from namm_jax.inverse.operators import Composition
from namm_jax.mirror import Mirror
from namm_jax.problems.base import Problem

EXAMPLES = 16  # held-out fields that a prior measures its estimates on


class OpenRun:
    """A run folder, read only; everything is in the units of its data.

    Attributes:
        config: the resolved config.
        problem: the data's sizes and coefficients, and their view.
    """

    config: ConfigDict
    problem: Problem

    def __init__(self, folder: Path) -> None:
        """Reads the config of a folder; the rest is read when it is first asked for."""
        run = Folder(folder)
        check_files(run.record, goes_on=False)
        self._experiment = make_experiment(run, mesh=make_mesh(jax.local_devices()[:1]))
        self.config = self._experiment.config
        self.problem = self._experiment.problem

    def data(self, split: str = 'test') -> np.ndarray:
        """Returns a split of the data, `train`, `validation` or `test`, `(n, h, w, c)`."""
        choose('split', split, dict.fromkeys(SPLITS))
        return self._experiment.split(split)[:]

    @functools.cached_property
    def constraint(self) -> Constraint:
        """The rule."""
        return self._experiment.constraint

    @functools.cached_property
    def mirror(self) -> Mirror:
        """The learned networks, finetuned where the stage has finished, f without its last steps;
        a ValueError if the run's map is not a learned one: `g` and `f` are there for all.
        """
        section = self.config.mirror
        if not build.learns_map(self.config) or section.forward in build.FORWARD_MAPS:
            raise UserError(
                f'mirror: got map {section.map!r} with forward {section.forward!r}, expected namm '
                'with icnn; g and f are there for all'
            )
        return build.fitted_mirror(self.config, self._parameters)

    @functools.cached_property
    def _parameters(self) -> Any:
        finished = self._experiment.run.finished('finetune')
        return (finetuned_parameters if finished else mirror_parameters)(self._experiment)

    @functools.cached_property
    def g(self) -> Partial:
        """The forward map, data `(b, h, w, c)` to mirror points."""
        return self._experiment.landed(self._parameters)[0]

    @functools.cached_property
    def f(self) -> Partial:
        """The inverse map, mirror points `(b, h, w, c)` to data, its last steps included."""
        return self._experiment.landed(self._parameters)[1]

    @functools.cached_property
    def dm(self) -> Prior:
        """The diffusion model of the data."""
        mean, scale = (jnp.asarray(part, jnp.float32) for part in self.problem.units)
        inner = self._prior('dm', lambda x: x)
        return dataclasses.replace(inner, mean=mean + scale * inner.mean, width=scale * inner.width)

    @functools.cached_property
    def mdm(self) -> Prior:
        """The diffusion model of mirror points."""
        return self._prior('mdm', self.g)

    def _prior(self, model: str, to_model: Any) -> Prior:
        check_finished(self._experiment, model)
        record = self._experiment.run.record(model)
        params = score_parameters(self._experiment, model)
        score = self.config.score
        moments = jnp.float32(record['mean']), jnp.float32(record['std'])
        examples = to_model(jnp.asarray(self.data('validation')[:EXAMPLES]))
        if callable(params):  # one's own denoiser
            mean, std = map(float, moments)
            return prior(params, self.problem.shape, mean=mean, std=std, examples=examples)
        denoiser = NetworkDenoiser(params, build.make_score(self.config), score.parameterisation)
        return Prior(denoiser, *moments, examples, self.problem.shape)

    def sample(self, n: int, *, seed: int = 0) -> Fields:
        """Returns n samples `(n, h, w, c)` of the mirror model, in the units of the data; another
        seed gives others, and the run's own those of its table.
        """
        section = self.config.sample
        options = dict(sampler=scheme_of(section), steps=section.steps)
        return self.f(sample(self.mdm, self._key('sample', seed), n, **options))

    def posterior(
        self,
        y: Array,
        operator: Measure,
        noise_std: float | None = None,
        n: int = 16,
        *,
        seed: int = 0,
    ) -> Fields:
        """Returns n samples `(n, h, w, c)` of the mirror model given a measurement.

        Args:
            y: one measurement, `(*m)` or `(1, *m)`.
            operator: A, fields `(b, h, w, c) -> (b, *m)` in the units of the data; an operator of
                `inverse.operators`, or a JAX function.
            noise_std: of y's noise, > 0, in its unit; None where the operator has its own noise.
            n: number of samples, >= 1.
            seed: another one gives other samples.

        Raises:
            ValueError: if y is not what the operator measures.
        """
        y = jnp.asarray(y)
        one = jax.eval_shape(operator, jax.ShapeDtypeStruct((1, *self.problem.shape), jnp.float32))
        y = y[None] if y.ndim == one.ndim - 1 else y
        if y.shape != one.shape:
            raise ValueError(f'y: got shape {y.shape}, expected one measurement, {one.shape}')
        _, network = self._experiment.mirror.bind(self._parameters)  # as `posteriors.draw_of`
        posterior = given(self.mdm, Composition(as_pytree(operator), network), y, noise_std)
        steps = self.config.assimilate.few_steps
        return self.f(sample(posterior, self._key('posterior', seed), n, steps=steps))

    def _key(self, stream: str, seed: int) -> Any:
        return jax.random.fold_in(jax.random.key(seed), STREAMS.index(stream))


def open_run(folder: str | os.PathLike[str]) -> OpenRun:
    """Returns a finished run folder for reading: data, rule, maps, priors, samples, posteriors.

    Args:
        folder: of the run, such as `runs/burgers-quick`.

    Raises:
        ValueError: if it is no run folder, one of another version, or what is asked of it has not
            finished or is damaged: one message, when it is first asked for.
    """
    return OpenRun(local(folder))
