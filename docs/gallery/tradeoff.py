"""Distance against time: all rows of the shipped runs, read from `results/`."""

import json
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
CONFIGS = ('burgers', 'divergence', 'kolmogorov', 'total_brightness', 'periodic', 'count')
STYLES = {'dm': ('o', 'tab:red'), 'mdm': ('s', 'tab:blue')}
FLOOR = 1e-8  # exact zeros are drawn here

figure = Figure(figsize=(9, 5.4), layout='constrained')
for ax, config in zip(figure.subplots(2, 3).ravel(), CONFIGS, strict=True):
    rows = json.loads((HERE.parents[1] / 'results' / f'{config}-quick-seed0.json').read_text())
    for name, row in rows['rows'].items():
        if name != 'data':
            marker, colour = STYLES[name.split('_')[0]]
            distance = max(row['distance']['mean'], FLOOR)
            ax.plot(row['seconds_per_sample'], distance, marker, color=colour, ms=6, alpha=0.6)
    floor = max(rows['rows']['data']['distance']['mean'], FLOOR)
    ax.axhline(floor, color='black', lw=1, ls=':')
    ax.set(yscale='log', title=config, xlabel='seconds a sample', ylabel='mean distance')
    ax.title.set_fontsize(10)
    ax.locator_params(axis='x', nbins=4)
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
