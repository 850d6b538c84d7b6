"""Images of visibilities: the measurement that a file of them makes, and what posterior samples say
of it and of the ring.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from namm_jax._arrays import Measurement
from namm_jax.experiment.problem import make_problem
from namm_jax.experiment.visibilities import read_observation
from namm_jax.inverse.closures import Observation, chi_squares, interferometer, triangles
from namm_jax.inverse.interferometry import MICROARCSECOND
from namm_jax.inverse.operators import Operator
from namm_jax.inverse.rings import rings

READ = ('scan_gap', 'systematic', 'least_snr', 'least_baseline')
INTERVAL = (5, 50, 95)  # percent: low, median and high


def observation_of(config: ConfigDict, path: Path) -> Observation:
    """Returns the averaged visibilities of a file, as the section `assimilate` says."""
    return read_observation(path, **{name: config.assimilate[name] for name in READ})


def measured(
    config: ConfigDict, observation: Observation, name: str
) -> tuple[Operator, Measurement]:
    """Returns the operator of that name in `MEASUREMENTS`, for images of a config's problem, and
    what was measured.
    """
    problem, section = make_problem(config), config.assimilate
    view = dict(field_of_view=section.field_of_view, unit=section.flux / problem.total)
    return interferometer(problem.shape, observation, name, **view)


def facts_of(config: ConfigDict, observation: Observation, x: np.ndarray) -> dict[str, Any]:
    """Returns what is told of posterior samples `(n, h, w, 1)` that are finite: reduced
    chi-squares of both closures, diameter and brighter side of the ring, and the sum.
    """
    width, ring = config.assimilate.field_of_view, rings(x[..., 0])
    chi = {}
    for name in ('closure_phases', 'log_closure_amplitudes'):
        found = chi_squares(*measured(config, observation, name), jnp.asarray(x))
        chi[f'chi_square_{name}'] = np.asarray(found[name])
    lengths = {name: width * getattr(ring, name) for name in ('diameter', 'peak', 'thickness')}
    each = chi | lengths | {'depression': ring.depression}
    facts = {name: _interval(values) for name, values in each.items()}
    # About their circular mean, so that 359 and 1 degrees are near.
    middle = np.rad2deg(np.angle(np.exp(1j * np.deg2rad(ring.brighter_side)).mean()))
    turned = (ring.brighter_side - middle + 180) % 360 - 180
    side = {name: middle + value for name, value in _interval(turned).items()}
    facts['brighter_side'] = {name: float(value % 360) for name, value in side.items()}
    total = make_problem(config).total
    facts['total_error'] = float(np.median(np.abs(x.sum((1, 2, 3)) / total - 1)))
    return facts | {'chi_squares': chi}


def _interval(values: np.ndarray) -> dict[str, float]:
    numbers = np.percentile(values, INTERVAL).tolist()
    return dict(zip(('low', 'median', 'high'), numbers, strict=True))


def arrays_of(config: ConfigDict, observation: Observation, x: np.ndarray) -> dict[str, Any]:
    """Returns what `report.imaging` draws of posterior samples `(n, h, w, 1)` that are finite; of
    those by closures, which see no place, images are moved by whole pixels to a common one.
    """
    x, section = jnp.asarray(x), config.assimilate
    T, length = triangles(observation), np.hypot(*observation.uv.T)
    amplitudes, y = measured(config, observation, 'amplitudes')
    phases, psi = measured(config, observation, 'closure_phases')
    relative = observation.std / np.abs(observation.visibility)
    names = ['-'.join(np.unique(observation.stations[row != 0])) for row in T]
    degrees = lambda phase: np.rad2deg(np.asarray(phase))
    return {
        'samples': _aligned(np.asarray(x[..., 0])) * section.flux / make_problem(config).total,
        'field_of_view': section.field_of_view,
        'beam': 1 / length.max() / MICROARCSECOND,
        'baseline': length / 1e9,
        'amplitude': y[0],
        'amplitude_std': observation.std,
        'amplitude_samples': np.asarray(amplitudes(x)),
        'triangle': np.array(names),
        'time': np.array([observation.time[row != 0].mean() for row in T]),
        'phase': degrees(psi[0]),
        'phase_std': degrees(np.sqrt(np.abs(T) @ relative**2)),
        'phase_samples': degrees(phases(x)),
    }


def _aligned(images: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Returns images `(n, h, w)`, each rolled to where it is most like their mean, which is moved
    to have its centroid in the middle.
    """
    rows, columns = np.indices(images.shape[1:])
    for _ in range(rounds):
        mean = np.maximum(images.mean(0), 0)
        middle = [
            round((size - 1) / 2 - (mean * at).sum() / mean.sum())
            for size, at in zip(mean.shape, (rows, columns), strict=True)
        ]
        mean = np.roll(mean, middle, (0, 1))
        likeness = np.fft.ifft2(np.fft.fft2(mean) * np.fft.fft2(images).conj()).real
        places = [np.unravel_index(one.argmax(), one.shape) for one in likeness]
        images = np.stack([np.roll(x, at, (0, 1)) for x, at in zip(images, places, strict=True)])
    return images
