"""Calibrated visibilities as the Event Horizon Telescope publishes them: a CSV file, one row a
baseline and a time, averaged here over scans.
"""

import csv
from pathlib import Path

import numpy as np

from namm_jax._checks import choose
from namm_jax.experiment.files import UserError, naming
from namm_jax.inverse.closures import Observation

COLUMNS = ('time', 'T1', 'T2', 'U', 'V', 'Iamp', 'Iphase', 'Isigma')  # before their units
# ALMA, APEX, SMT, Greenland, JCMT, Kitt Peak, LMT, NOEMA, IRAM 30 m, SMA, SPT.
STATIONS = dict.fromkeys('AA AP AZ GL JC KT LM NN PV SM SP'.split())


def read_observation(
    path: Path, *, scan_gap: float, systematic: float, least_snr: float, least_baseline: float
) -> Observation:
    """Returns the visibilities of a CSV file, averaged over scans; a UserError names what is wrong.

    Amplitudes are averaged without their phases, `A^2 = mean Re(V_k conj V_{k+1})` over neighbours
    in time, whose noise is independent: unlike `mean |V|^2` it has no bias to take off. Phases are
    those of the mean, and `std^2 = (sigma^2 / n) (1 + sigma^2 / (2 A^2)) + (systematic A)^2`. Rows
    are left out that have a column `flag` which is not 0, or a sigma that is not positive.

    The files' u and v go from the second station to the first, with `V = sum I exp(2 pi i (...))`;
    here they have the other sign, as `Observation` does.

    Args:
        path: of the file, with a line `#time(UTC),T1,T2,U(lambda),...` over its rows; amplitudes in
            Jy, phases in degrees, sigma that of the real and of the imaginary part.
        scan_gap: longest time between rows of a scan, in seconds.
        systematic: relative error of an average that more time does not make smaller.
        least_snr: of amplitude over thermal error, of the averages that are used.
        least_baseline: in wavelengths; shorter ones see what is far outside of an image.
    """
    stations, numbers = _rows(path)
    time, u, v, amplitude, phase, sigma = numbers.T
    V = amplitude * np.exp(1j * np.deg2rad(phase))
    uv = -np.stack([u, v], -1)  # the file's are of the first station less the second
    swapped = stations[:, 0] > stations[:, 1]
    stations[swapped] = stations[swapped, ::-1]
    uv[swapped] *= -1
    V[swapped] = V[swapped].conj()
    times = np.unique(time)
    starts = times[1:][np.diff(times) * 3600 > scan_gap]
    scan = np.searchsorted(starts, time, side='right')
    groups: dict[tuple, list[int]] = {}
    for row in np.argsort(time, kind='stable'):
        groups.setdefault((scan[row], *stations[row]), []).append(row)
    parts = []
    for (number, *pair), rows in sorted(groups.items()):
        value, std = _average(V[rows], sigma[rows])
        parts.append((time[rows].mean(), number, pair, uv[rows].mean(0), value, std))
    averages = Observation(*map(np.array, zip(*parts, strict=True)))
    size = np.abs(averages.visibility)
    long = np.hypot(*averages.uv.T) >= least_baseline
    used = averages[long & (size > 0) & (size >= least_snr * averages.std)]
    if not len(used.std):
        raise UserError(
            f'{path}: got {len(size)} averages over scans, {long.sum()} of them on baselines of '
            f'{least_baseline:g} wavelengths, none {least_snr:g} times its error; expected some: '
            'see assimilate.least_baseline and assimilate.least_snr'
        )
    return used._replace(std=np.hypot(used.std, systematic * np.abs(used.visibility)))


def _average(V: np.ndarray, sigma: np.ndarray) -> tuple[complex, float]:
    """Returns the average of one baseline's visibilities in the order of time, and its error."""
    single = np.abs(V[0]) ** 2 - sigma[0] ** 2
    square = np.mean((V[1:] * V[:-1].conj()).real) if len(V) > 1 else single
    mean = np.average(V, weights=sigma**-2.0)
    size, variance = np.sqrt(max(square, 0)), 1 / np.mean(sigma**-2.0)
    std = np.sqrt(variance / len(V) * (1 + variance / max(2 * square, variance)))
    return size * np.exp(1j * np.angle(mean)), std


def _rows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stations `(n, 2)` and the other columns `(n, 6)` of the rows that are used."""
    with naming(path):
        lines = path.read_text(errors='replace').splitlines()
    titles = [line.lstrip('# ') for line in lines if 'T1' in line.lstrip('# ').split(',')]
    names = [name.split('(')[0].strip() for name in (titles or [''])[0].split(',')]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        got = ', '.join(filter(None, names)) or 'no line that names the columns'
        raise UserError(
            f'{path}: got {got}, expected the columns {", ".join(COLUMNS)}, their units in '
            f'brackets; missing: {", ".join(missing)}'
        )
    places = [names.index(name) for name in COLUMNS]
    flag = names.index('flag') if 'flag' in names else None
    stations, numbers, flagged = [], [], 0
    for index, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith('#') or line.lstrip('# ') in titles:
            continue
        cells = next(csv.reader([line]))
        try:
            row = [cells[place].strip() for place in places]
            number = [float(row[0]), *map(float, row[3:])]
            bad = flag is not None and float(cells[flag]) != 0
        except (ValueError, IndexError) as error:
            raise UserError(
                f'{path}, line {index + 1}: got {line[:80]!r}, expected {len(names)} cells, '
                'two stations and numbers'
            ) from error
        if bad or number[-1] <= 0 or row[1] == row[2]:
            flagged += 1
            continue
        if not np.isfinite(number).all() or number[3] < 0:
            raise UserError(
                f'{path}, line {index + 1}: got {line[:80]!r}, expected finite numbers, an '
                'amplitude >= 0; give what is not to be used a sigma of 0'
            )
        for station in row[1:3]:
            choose(f'{path}, line {index + 1}: station', station, STATIONS)
        stations.append(row[1:3])
        numbers.append(number)
    if not stations:
        raise UserError(f'{path}: got no rows, {flagged} flagged; expected some that are not')
    return np.array(stations), np.array(numbers)
