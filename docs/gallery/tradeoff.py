"""Distance against likeness to data: all rows of the shipped runs, read from `results/`."""

import json
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
CONFIGS = ('burgers', 'divergence', 'kolmogorov', 'total_brightness', 'periodic', 'count')
STYLES = {False: ('o', 'tab:red'), True: ('s', 'tab:blue')}  # by whether there is a mirror map
FLOOR = 1e-8  # exact zeros are drawn here

figure = Figure(figsize=(9, 5.4), layout='constrained')
for ax, config in zip(figure.subplots(2, 3).ravel(), CONFIGS, strict=True):
    files = sorted((HERE.parents[1] / 'results').glob(f'{config}-quick-seed[0-9].json'))
    rows = json.loads(files[0].read_text())
    for name, row in rows['rows'].items():
        if name != 'data':
            marker, colour = STYLES['mdm' in name or 'mapped' in name]
            distance = max(row['distance']['mean'], FLOOR)
            area = row['distribution']['two_sample']['value']
            ax.plot(area, distance, marker, color=colour, ms=6, alpha=0.6)
    floor = max(rows['rows']['data']['distance']['mean'], FLOOR)
    ax.axhline(floor, color='black', lw=1, ls=':')
    ax.set(yscale='log', title=config, xlabel='two-sample area', ylabel='mean distance')
    ax.title.set_fontsize(10)
    ax.set_xlim(0.48, 1.02)
figure.savefig(Path(__file__).with_suffix('.png'), dpi=100)
