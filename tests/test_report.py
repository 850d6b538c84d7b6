"""Figures and the end table: what is shared is shared, what is missing is survived, what is written
is whole.
"""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from namm_jax.experiment.files import UserError, write_json
from namm_jax.experiment.records import Records
from namm_jax.report import figures
from namm_jax.report.__main__ import main
from namm_jax.report.panels import ROWS
from namm_jax.report.reading import read_run
from namm_jax.report.table import (
    ROW_NAMES,
    headline,
    in_order,
    render,
    row_name,
    summary_table,
    three_digits,
)

RNG = np.random.default_rng(0)


def pair(scale, count=3, shape=(8, 8)):
    return RNG.uniform(size=(count, *shape, 1)) + scale, scale * RNG.normal(size=(count, *shape))


def drawn(figure):
    return [
        ax for ax in figure.findobj(lambda artist: hasattr(artist, 'get_images')) if ax.get_images()
    ]


def scales(axes):
    return {(ax.get_images()[0].norm.vmin, ax.get_images()[0].norm.vmax) for ax in axes}


def test_samples_share_one_scale_and_residuals_another():
    rows = {'dm': pair(0.1), 'data': pair(1e-7), 'mdm_finetuned': pair(1e-3)}
    figure = figures.samples_with_residuals(rows, count=2, units=('u', '|residual of u|'))
    axes = drawn(figure)
    assert len(axes) == 3 * 2 * 2
    samples = [ax for ax in axes if ax.get_images()[0].cmap.name.startswith('viridis')]
    residuals = [ax for ax in axes if ax not in samples]
    assert len(samples) == len(residuals) == 6
    assert len(scales(samples)) == len(scales(residuals)) == 1
    ((low, high),) = scales(residuals)
    assert high / low <= 1.001e6
    assert high >= np.quantile(np.abs(rows['dm'][1][:2]), 0.99)


def test_rows_of_samples_are_titled_in_the_order_of_the_contract():
    rows = {'mdm_finetuned': pair(1e-3), 'data': pair(1e-7), 'custom': pair(1e-3)}
    distances = {'data': np.array([1e-7, 3e-7]), 'custom': np.array([1.0, np.nan])}
    figure = figures.samples_with_residuals(
        rows, distances=distances, names={'custom': 'my method'}
    )
    titles = [part.get_suptitle() for part in figure.subfigs if part.get_suptitle()]
    assert titles == [
        'true data, mean distance 2.00e-7',
        'mirror diffusion model, finetuned',
        'my method, mean distance 1.00 (1 not finite left out)',
    ]


def test_every_strip_and_colour_bar_is_labelled():
    figure = figures.samples_with_residuals(
        {'data': pair(0.1)}, axis_names=('height', 'time'), units=('u', 'r')
    )
    axes = drawn(figure)
    assert [ax.get_ylabel() for ax in axes if ax.get_ylabel()] == [
        'sample\nheight',
        'residual\nheight',
    ]
    assert [ax.get_xlabel() for ax in axes] == [''] * 3 + ['time'] * 3
    assert {'u', 'r'} <= {
        ax.get_xlabel() for ax in figure.get_axes() or figure.subfigs[0].get_axes()
    }


@pytest.mark.parametrize(
    ('extent', 'x', 'y'), [((0, 1.6, 0, 10), '0 1.6', '0 10'), (None, '0 6', '5 0')]
)
def test_edges_of_the_first_image_have_numbers(extent, x, y):
    image = np.zeros((2, 5, 6, 1)), np.zeros((2, 0, 0))
    figure = figures.samples_with_residuals({'data': image}, extent=extent)
    axes = [ax for part in figure.subfigs[1:] for ax in part.axes]
    text = lambda labels: ' '.join(label.get_text() for label in labels)
    assert text(axes[0].get_xticklabels()) == x and text(axes[0].get_yticklabels()) == y
    assert not axes[1].get_xticklabels()


def test_histograms_share_the_axis_and_count_what_they_cannot_place():
    distances = {'dm': np.array([0.1, 0.3, np.nan, np.inf]), 'data': np.array([0.0, 0.0, 1e-7])}
    axes = figures.distance_histograms(distances).get_axes()
    titles = [ax.get_title(loc='left') for ax in axes]
    assert titles == [
        'true data: median 0, n = 3, 2 exactly 0',
        'diffusion model: median 0.200, n = 4, 2 not finite',
    ]
    assert axes[0].get_xlim() == axes[1].get_xlim()
    nothing = figures.distance_histograms({'data': np.zeros(3)}).get_axes()[0]
    assert not list(nothing.get_yticks())
    assert [text.get_text() for text in nothing.texts] == ['all exactly 0']
    assert [sum(bar.get_height() for bar in ax.patches) for ax in axes] == [1, 2]
    assert [list(line.get_xdata()) for line in axes[1].lines] == [[0.2, 0.2]]
    assert (
        all(ax.get_xscale() == 'log' and ax.get_ylabel() for ax in axes) and axes[-1].get_xlabel()
    )


def test_curves_against_time_keep_their_points_in_a_readable_unit():
    curves = {
        'dm': np.array([[60, 600], [0.1, np.nan], [0.2, 0.1]]),
        'mdm': np.array([[1200], [0.01], [0.001]]),
    }
    curves = {name: tuple(curve) for name, curve in curves.items()}
    (ax,) = figures.distance_against_training_seconds(curves).get_axes()
    assert [list(line.get_xdata()) for line in ax.lines] == [[1, 10], [20]]
    assert 'minutes' in ax.get_xlabel() and ax.get_ylabel() and ax.get_yscale() == 'log'
    assert (
        0.005 < ax.get_ylim()[0] < 0.01 and ax.get_ylim()[1] > 0.3
    )  # the band of the first, 0.1 +- 0.2, does not reach to 0


def records():
    for step in range(0, 30, 10):
        yield {
            'stage': 'mirror',
            'step': step,
            'seconds': 1.0,
            'train/cycle': 1 / (1 + step),
            'train/constraint': None,
        }
        yield {'stage': 'mirror', 'step': step, 'train/gradient_norm': 9.0}  # no term of the loss
        yield {
            'stage': 'dm',
            'step': step,
            'seconds': 1.0,
            'train/total': 2.0,
            'heldout/total': 3.0,
        }
        yield {'stage': 'finetune', 'step': step, 'seconds': 1.0, 'heldout/cycle': 0.0}
        yield {'stage': 'dm', 'step': step, 'distance_mean': 0.5, 'distance_std': 0.1}


def test_losses_have_one_panel_a_stage_and_one_colour_a_term():
    axes = figures.loss_curves(list(records())).get_axes()
    assert [ax.get_title(loc='left') for ax in axes] == ['mirror', 'dm', 'finetune']
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_yscale() == 'log' for ax in axes)
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ['cycle', 'constraint']
    train, heldout, key = axes[1].lines
    assert list(train.get_ydata()) == [2, 2, 2] and list(heldout.get_ydata()) == [3, 3, 3]
    assert train.get_color() == heldout.get_color() == key.get_color()
    assert train.get_linestyle() != heldout.get_linestyle()


def test_mirror_samples_and_inverses_have_scales_of_their_own():
    z, x = 100 * RNG.normal(size=(2, 8, 8, 1)), RNG.uniform(size=(2, 8, 8, 1))
    figure = figures.mirror_and_inverse(z, x)
    axes = drawn(figure)
    above, below = scales(axes[:2]), scales(axes[2:])
    assert len(above) == len(below) == 1 and above != below
    assert len([ax for ax in figure.get_axes() if ax not in axes and ax.get_ylabel()]) == 2


@pytest.mark.slow
@pytest.mark.parametrize('bad', [np.nan, np.inf, 0.0])
def test_figures_of_failed_samples_can_be_written(bad, tmp_path):
    broken = np.full((2, 8, 8, 1), bad), np.full((2, 8, 8), bad)
    figure = figures.samples_with_residuals({'data': pair(0.1, 2), 'dm': broken})
    assert figures.save(figure, tmp_path / 'samples.png', dpi=30).exists()
    only_bad = figures.samples_with_residuals({'dm': broken})
    assert figures.save(only_bad, tmp_path / 'bad.png', dpi=30).exists()
    figures.save(
        figures.distance_histograms({'dm': np.full(4, bad)}), tmp_path / 'histograms.png', dpi=30
    )
    curve = {'dm': (np.ones(2), np.full(2, bad), np.full(2, bad))}
    figures.save(figures.distance_against_training_seconds(curve), tmp_path / 'curve.png', dpi=30)
    losses = figures.loss_curves([{'stage': 'dm', 'step': 1, 'train/total': bad}])
    figures.save(losses, tmp_path / 'losses.png', dpi=30)


def test_saved_figure_is_a_png_of_the_stated_size(tmp_path):
    path = figures.save(figures.distance_histograms({'data': np.ones(3)}), tmp_path / 'figure.png')
    assert matplotlib.image.imread(path).shape[1] == 990
    assert [file.name for file in tmp_path.iterdir()] == ['figure.png']


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    figure = figures.distance_histograms({'data': np.ones(3)})
    path = tmp_path / 'figure.png'
    path.write_text('old')

    def full(descriptor):
        raise OSError(28, 'disk full')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='disk full'):
        figures.save(figure, path)
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: figures.samples_with_residuals({}), 'rows: got none'),
        (
            lambda: figures.samples_with_residuals(
                {'dm': (np.ones((2, 8, 8, 1)), np.ones((3, 8, 8)))}
            ),
            'dm: got samples',
        ),
        (lambda: figures.distance_histograms({}), 'distances: got none'),
        (lambda: figures.distance_against_training_seconds({}), 'curves: got none'),
        (
            lambda: figures.loss_curves([{'stage': 'dm', 'distance_mean': 1.0}]),
            'records: got no loss term',
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_table_and_report_package_leave_matplotlib_alone():
    script = 'import sys, namm_jax.report.table; sys.exit("matplotlib" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', script], check=False).returncode == 0


def metrics(scale):
    ends = {'value': 1.23456e-3 * scale, 'z': -2.345}
    return {
        'distance': {'mean': 2.5 * scale, 'median': 2 * scale, 'max': None},
        'distribution': {
            'mmd': {**ends, 'value': -1.239e-5},
            'sliced_wasserstein': ends,
            'spectrum': ends,
            'two_sample': {'value': 0.5, 'std': 0.0123},
        },
        'seconds_per_sample': 0.00123456,
        'calls': 1000,
        'training_seconds': 12345.4,
        'training_flops': 123.4e12,
        'n': 10000,
    }


def test_table_orders_rows_fits_the_screen_and_gives_the_ratio():
    rows = {
        name: metrics(1e-4)
        for name in ('mdm_finetuned', 'dm_projected_sampling', 'mdm_log', 'mdm', 'data')
    }
    rows |= {'dm': metrics(1.0), 'dm_restored_median': metrics(1.0)}
    lines = render(summary_table(rows)).splitlines()
    assert max(map(len, lines)) <= 141 and '…' not in ''.join(lines)
    names = [line.split()[0] for line in lines if line.split()[0] in rows]
    assert names == [
        'data',
        'dm',
        'dm_restored_median',
        'dm_projected_sampling',
        'mdm',
        'mdm_finetuned',
        'mdm_log',
    ]
    dm = next(line for line in lines if line.startswith('dm ')).split()
    assert dm[1:4] == ['2.50', '2.00', '-'] and dm[4:7] == ['0.500', '±', '0.0123']
    assert dm[7:9] == dm[9:11] == ['0.00123', '(-2.3)'] and dm[11:13] == ['-1.24e-5', '(-2.3)']
    assert dm[13:] == ['1000', '0.00123', '205:45', '123', '10000']
    assert lines[-1].endswith('mdm_finetuned / dm: 1.00e-4')


def test_a_rule_without_residual_maps_shows_distances_and_zeros_say_so():
    samples, none = RNG.uniform(size=(3, 8, 8, 1)), np.zeros((3, 0, 0))
    distances = {'data': np.array([0.0, 0.25, 4.0])}
    figure = figures.samples_with_residuals({'data': (samples, none)}, distances=distances)
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles == ['distance 0', 'distance 0.250', 'distance 4.00']
    zero, one = np.zeros((2, 4, 4)), np.stack([np.zeros((4, 4)), np.ones((4, 4))])
    for maps, count in ((zero, 2), (one, 1)):
        figure = figures.samples_with_residuals({'data': (samples[:2], maps)})
        assert (
            sum(text.get_text() == 'exactly 0' for ax in figure.axes for text in ax.texts) == count
        )


def test_a_row_has_one_colour_in_all_figures():
    rows = ['data', 'dm', 'mdm_finetuned', 'mdm']
    histograms = figures.distance_histograms({row: np.array([0.1, 0.2]) for row in rows})
    curves = {row: (np.arange(2.0), np.ones(2), np.ones(2)) for row in ('mdm', 'dm')}
    lines = figures.distance_against_training_seconds(curves).axes[0].get_lines()
    found = {row_name(row): ROWS[row] for row in rows}
    assert {line.get_label(): line.get_color() for line in lines}.items() <= found.items()
    bars = [ax.patches[0].get_facecolor()[:3] for ax in histograms.axes]
    assert bars == [to_rgb(ROWS[row]) for row in in_order(rows)]
    assert set(ROWS) == set(ROW_NAMES) and len(set(ROWS.values())) == len(ROWS)


@pytest.mark.parametrize('width', [80, 100])
def test_a_narrow_table_goes_without_the_least_columns(width):
    rows = {name: metrics(1e-4) for name in ('data', 'dm_projected_sampling', 'mdm_finetuned')}
    wide, narrow = (render(summary_table(rows, most)).splitlines() for most in (120, width))
    assert max(map(len, narrow)) <= width < max(map(len, wide))
    assert {'median', 'area', '(z)'} <= {*narrow[0].split(), *narrow[1].split()}
    values = dict(line.split(maxsplit=1) for line in wide[3:])
    for row, of_row in (line.split(maxsplit=1) for line in narrow[3:]):
        assert all(text in values[row].split() for text in of_row.split())


def test_the_headline_says_which_is_closer_and_what_the_distance_is():
    rows = {'dm': metrics(1.0), 'mdm_finetuned': metrics(0.25)}
    assert headline(rows, 'error of a sum') == (
        "Samples of the mirror model are 4.00 times closer to the rule than the diffusion model's, "
        'by the median distance: error of a sum. Lower is better.'
    )
    assert '4.00 times farther from' in headline(
        {'dm': rows['mdm_finetuned'], 'mdm_finetuned': rows['dm']}
    )
    assert headline({'dm': metrics(1.0)}) == headline({}) == ''


def test_table_of_an_unfinished_run_has_dashes_and_no_ratio():
    assert render(summary_table({})).splitlines()[1].startswith('row')
    text = render(
        summary_table(
            {'data': {'n': 5}, 'dm': {'distance': {'median': {'mean': 0.5, 'std': 0.1, 'n': 3}}}}
        )
    )
    assert 'mdm_finetuned' not in text
    assert text.splitlines()[-2].split() == ['data', *'-----------', '5']
    assert text.splitlines()[-1].split()[:3] == ['dm', '-', '0.500']


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.012345, '0.0123'),
        (0.5, '0.500'),
        (0, '0'),
        (123.4, '123'),
        (-4.2e-9, '-4.20e-9'),
        (1234.5, '1234'),
        (0.0009999, '1.00e-3'),
        (99999, '1.00e5'),
        (float('nan'), '-'),
        (None, '-'),
        ({'mean': 2.0, 'std': 1}, '2.00'),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert three_digits(value) == text


def test_rows_have_names_for_people():
    assert row_name('mdm_finetuned') == 'mirror diffusion model, finetuned'
    assert row_name('dm_restored_simplex') == 'diffusion model, restored by simplex'
    assert row_name('mdm_log') == 'closed-form mirror map log'
    assert in_order(
        ['mine', 'mdm_log', 'mdm', 'dm_restored_shift', 'dm_projected', 'dm_restored', 'data']
    ) == [
        'data',
        'dm_restored',
        'dm_restored_shift',
        'dm_projected',
        'mdm',
        'mdm_log',
        'mine',
    ]


ROW = {'distance': {'mean': 1.0, 'median': 1.0, 'max': None}, 'n': 2}
OPENING = {'git': None, 'host': 'a', 'python': '3', 'versions': {}, 'command': []}
WHOLE = {
    'config.json': {
        'experiment': 'burgers:tiny',
        'config': {'seed': 0, 'data': {'seed': 0}, 'report': {'dpi': 50}},
    },
    'stages/evaluate.json': {'finished': True, 'sections': {}},
    'provenance.json': [OPENING],
    'metrics.json': {'rows': {'mdm': ROW}, 'robustness': {}},
}


@pytest.fixture
def results(tmp_path):
    """The smallest folder that can be read."""
    for name, value in WHOLE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_json(tmp_path / name, value)
    Records(tmp_path).append({'stage': 'dm', 'step': 1})
    (tmp_path / 'evaluate').mkdir()
    np.savez(tmp_path / 'evaluate' / 'arrays.npz', a=np.zeros(1))
    assert read_run(tmp_path).metrics == WHOLE['metrics.json']
    return tmp_path


@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.parametrize('value', [[], 3, 'a', {}, {'rows': 3}, {'config': 3}, [3], [{}]])
def test_json_of_another_shape_is_named(results, name, value):
    write_json(results / name, value)
    if name == 'stages/evaluate.json' and isinstance(value, dict):
        assert 'finished: nothing' in read_run(results).unfinished
        return
    with pytest.raises(UserError, match=name):
        read_run(results)


@pytest.mark.parametrize('fields', [{'command': 3}, {'command': [3]}, {'versions': 1.5}])
def test_a_command_that_is_none_is_named(results, fields):
    write_json(results / 'provenance.json', [OPENING | fields])
    with pytest.raises(UserError, match='provenance.json is damaged'):
        read_run(results)


@pytest.mark.parametrize(
    ('seconds', 'record'),
    [('a', {'seconds': 1.0}), (1.0, {}), (1.0, {'seconds': 'a'}), (None, {'seconds': 1.0})],
)
def test_a_clock_that_is_no_number_is_named(results, seconds, record):
    state = {'finished': True, 'sections': {}, 'training_seconds': seconds}
    for stage in ('mirror', 'mdm'):
        write_json(results / f'stages/{stage}.json', state)
    Records(results).append(
        {'stage': 'mdm', 'step': 1, 'distance_mean': 1.0, 'distance_std': 1.0} | record
    )
    with pytest.raises(UserError, match='is damaged: .* expected seconds'):
        read_run(results)


@pytest.mark.parametrize(
    'metrics',
    [{'rows': {'mdm': 3}}, {'rows': {'mdm': {'distance': 3}}}, {'rows': {'mdm': {'n': 'a'}}}]
    + [{'assimilation': 3}, {'assimilation': {'sum': 3}}, {'rows': {'mdm': ROW}}],
)
def test_metrics_that_no_table_shows_are_named(results, metrics):
    write_json(results / 'metrics.json', metrics)
    with pytest.raises(UserError, match='metrics.json is damaged: got'):
        read_run(results)


def test_missing_records_are_named(results, capsys):
    (results / 'metrics.jsonl').unlink()
    assert main([str(results)]) == 2
    assert f'error: {results}/metrics.jsonl is damaged: got no record' in capsys.readouterr().err
