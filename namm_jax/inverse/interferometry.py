"""Radio interferometry: which frequencies of an image an array of telescopes samples while the
Earth turns.
"""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from namm_jax._checks import check_within

# Sites of the Event Horizon Telescope of 2017 that see M87: latitude and east longitude in degrees.
STATIONS = {
    'ALMA': (-23.03, -67.75),
    'SMT': (32.70, -109.89),
    'LMT': (18.99, -97.31),
    'SMA': (19.82, -155.48),
    'PV': (37.07, -3.39),
}
EARTH_RADIUS = 6.371e6  # m
MICROARCSECOND = np.pi / 180 / 3600 / 1e6  # rad


def eht_coverage(
    *,
    field_of_view: float = 160.0,
    hours: tuple[float, float] = (0.0, 12.0),
    interval: float = 20.0,
    declination: float = 12.4,
    wavelength: float = 1.3e-3,
    elevation: float = 10.0,
    stations: Mapping[str, tuple[float, float]] = STATIONS,
) -> Float[np.ndarray, 'm 2']:
    """Returns the frequencies `(m, 2)`, east and north, in cycles per field of view, that pairs of
    stations sample while the Earth turns: part of an ellipse for each pair.

    At Greenwich hour angle H and declination d, the source is at
    `s = (cos d cos H, -cos d sin H, sin d)`, east and north on the sky are `e = (sin H, cos H, 0)`
    and `n = (-sin d cos H, sin d sin H, cos d)`, and a baseline B, in wavelengths, samples
    `(u, v) = (B . e, B . n)`. Its reverse samples `(-u, -v)`, the conjugate, and is left out.

    Args:
        field_of_view: width of the image in microarcseconds, > 0. The ring of M87 is 42 across.
        hours: first and last H, in hours.
        interval: time from one sample to the next, in minutes, > 0.
        declination: d in degrees, by default that of M87.
        wavelength: in metres, > 0.
        elevation: least elevation of the source at which a station sees it, in degrees.
        stations: name to latitude and east longitude, in degrees.

    Raises:
        ValueError: if a number is out of its range, or no two stations see the source together.

    Reference: Thompson, Moran & Swenson, "Interferometry and Synthesis in Radio Astronomy", 3rd ed.
    2017, chapter 4.
    """
    check_within('(0, inf)', field_of_view=field_of_view, interval=interval, wavelength=wavelength)
    hour = np.deg2rad(15 * np.arange(hours[0], hours[1] + 1e-6, interval / 60))
    d = np.deg2rad(declination)
    source = _direction(d, -hour)
    north = _direction(d + np.pi / 2, -hour)
    east = _direction(0, np.pi / 2 - hour)
    sites = _direction(*np.deg2rad(np.reshape(list(stations.values()), (-1, 2))).T)
    sees = sites @ source.T >= np.sin(np.deg2rad(elevation))
    i, j = np.triu_indices(len(sites), 1)
    baselines = EARTH_RADIUS / wavelength * (sites[j] - sites[i])
    uv = np.stack([baselines @ east.T, baselines @ north.T], -1)[sees[i] & sees[j]]
    if not len(uv):
        raise ValueError(
            'stations: got none of which two see the source together; give others, or other hours'
        )
    return field_of_view * MICROARCSECOND * uv


def _direction(latitude: ArrayLike, longitude: ArrayLike) -> Float[np.ndarray, 'n 3']:
    x, y = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude)
    return np.stack(np.broadcast_arrays(x, y, np.sin(latitude)), -1)
