"""The command `launch/evaluate.py`: the constraint distances of a file's samples, as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from namm_jax.experiment.arguments import evaluate_flags, parse, tell
from namm_jax.experiment.command import configure_jax, guarded, open_experiment
from namm_jax.experiment.files import UserError, finite


def evaluate(arguments: list[str]) -> int:
    """Runs `launch/evaluate.py` with these arguments, the program's name first; returns the exit
    status.
    """
    return guarded(_evaluate, arguments)


def _evaluate(arguments: list[str]) -> None:
    values = evaluate_flags(arguments)
    config = parse(values, arguments, sys.modules['__main__'].__doc__)
    if values.samples is None:
        raise UserError('--samples is missing; expected --samples=FILE.npy, fields (n, h, w, c)')
    configure_jax()
    import jax

    from namm_jax.experiment.dataset import read_fields
    from namm_jax.experiment.devices import make_mesh
    from namm_jax.experiment.drawing import in_batches
    from namm_jax.experiment.problem import make_problem
    from namm_jax.metrics import distance_statistics

    problem = make_problem(config)
    fields = read_fields(values.samples, problem.file_shape if all(problem.file_shape) else None)
    x = np.asarray(problem.pack(jax.numpy.asarray(fields)))
    constraint = _constraint_of(config, Path(values.workdir) if values.workdir else None)
    distances = in_batches(jax.jit(constraint.distance), x, min(len(x), 256), make_mesh())
    statistics = finite(distance_statistics(jax.numpy.asarray(distances)))
    result = {'constraint': config.constraint.name, 'n': len(x), 'distance': statistics}
    tell(json.dumps(result | {'per_sample': finite(distances)}))


def _constraint_of(config: ConfigDict, workdir: Path | None) -> Any:
    """Returns the config's constraint; the network that it may hold is that of the run folder."""
    from namm_jax.experiment import build

    if not build.holds_network(config):
        return build.make_constraint(config)
    if workdir is None:
        raise UserError(
            f'--workdir is missing: the constraint {config.constraint.name} holds a trained '
            'network; expected a run folder whose stage counter has finished'
        )
    with open_experiment(workdir) as experiment:
        return experiment.constraint
