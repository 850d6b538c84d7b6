"""What a closure phase does not see: the gains of the telescopes.

Four stations watch one black-hole image. The atmosphere over each turns the phase of all that it
records, by an angle of its own. Around a triangle of stations these angles cancel.
"""

import itertools
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import namm_jax as nj
from namm_jax.inverse import closures, interferometry

WIDTH = 160.0  # of the image, in microarcseconds
SITES = {name: interferometry.STATIONS[name] for name in ('ALMA', 'SMT', 'LMT', 'SMA')}
image = nj.problems.black_holes(points=48).sample(jax.random.key(3), 4)[3:]
pairs = list(itertools.combinations(SITES, 2))
tracks = [  # all four see the source in these hours
    interferometry.eht_coverage(
        field_of_view=WIDTH, hours=(6, 8.5), stations={i: SITES[i], j: SITES[j]}
    )
    for i, j in pairs
]
scans = len(tracks[0])
cycles = np.concatenate(tracks)
parts = np.asarray(nj.operators.sparse_fourier(image.shape[1:], uv=cycles * [-1, 1])(image)[0])
truth = closures.Observation(
    time=np.tile(np.arange(scans), len(pairs)),
    scan=np.tile(np.arange(scans), len(pairs)),
    stations=np.repeat(pairs, scans, axis=0),
    uv=cycles / (WIDTH * interferometry.MICROARCSECOND),
    visibility=parts[:, 0] + 1j * parts[:, 1],
    std=np.ones(len(cycles)),
)
rng = np.random.default_rng(0)
gain = {site: np.exp(1j * rng.uniform(-np.pi, np.pi, scans)) for site in SITES}
turn = np.ravel([gain[i] * gain[j].conj() for i, j in pairs])
spoilt = truth._replace(visibility=truth.visibility * turn)

triangles = closures.triangles(truth)
degrees = lambda phase: np.rad2deg(np.angle(np.exp(1j * phase)))
phases = [degrees(np.angle(one.visibility)) for one in (truth, spoilt)]
around = [degrees(triangles @ np.angle(one.visibility)) for one in (truth, spoilt)]

figure = Figure(figsize=(9, 3.2), layout='constrained')
left, middle, right = figure.subplots(1, 3)
half = WIDTH / 2
left.imshow(image[0, ..., 0], cmap='inferno', extent=(half, -half, -half, half))
left.set(title='image', xlabel='east in µas', ylabel='north in µas')
for ax, (of, behind), title in (
    (middle, phases, 'phases of baselines'),
    (right, around, 'closure phases of triangles'),
):
    ax.plot([-180, 180], [-180, 180], color='black', lw=1)
    ax.plot(of, behind, 'o', color='tab:blue', ms=4, alpha=0.7)
    ax.set(title=title, xlabel='without gains, in degrees', ylabel='with gains, in degrees')
    ax.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90), aspect='equal')
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
