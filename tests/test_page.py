"""The report: whole, self-contained and readable on any screen; redrawn without JAX to the same
bytes.
"""

import base64
import html
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from namm_jax.experiment.files import UserError
from namm_jax.report import curves, figures, motion
from namm_jax.report.__main__ import main
from namm_jax.report.page import FIGURES, SECTIONS, page
from namm_jax.report.pictures import Picture
from namm_jax.report.reading import ARRAYS, find_runs, read_run, training_curves
from namm_jax.report.table import cells, row_name, three_digits

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
VOID = {'meta', 'img', 'source', 'br'}


class Parsed(html.parser.HTMLParser):
    """The tags of a page in order, each with its attributes; nesting is checked on the way."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def every(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope='module')
def written(tiny_run):
    return (tiny_run / 'report.html').read_text()


@pytest.fixture(scope='module')
def results(tiny_run):
    return read_run(tiny_run)


PICTURES = {name: Picture(b'<png>', 'png', f'"{name}" & more') for name in SECTIONS}


def test_page_is_whole_and_asks_for_nothing_else(written):
    parsed = Parsed(written)
    assert written.startswith('<!DOCTYPE html>') and len(written) < 5e6
    assert parsed.every('html')[0]['lang'] == 'en' and {'charset': 'utf-8'} in parsed.every('meta')
    assert any(meta.get('name') == 'viewport' for meta in parsed.every('meta'))
    assert not {'script', 'link', 'iframe', 'object', 'base'} & {tag for tag, _ in parsed.tags}
    sources = [tag[name] for _, tag in parsed.tags for name in ('src', 'srcset') if name in tag]
    assert len(sources) == len(SECTIONS) + 1 and all(
        source.startswith('data:image/') for source in sources
    )
    ids = [tag['id'] for _, tag in parsed.tags if 'id' in tag]
    links = {tag['href'] for tag in parsed.every('a')}
    inside = {link for link in links if link[0] == '#'}
    assert len(ids) == len(set(ids)) and inside == {f'#{name}' for name in ids}
    assert not re.search(r'url\(|@import', written)
    assert set(re.findall(r'https?:[^"]*', written)) == links - inside  # nothing but links


def test_each_figure_links_to_the_page_that_explains_it(written):
    text = (ROOT / 'docs' / FIGURES).read_text()
    anchors = {line[4:].lower().replace(' ', '-') for line in text.splitlines() if '### ' in line}
    links = [tag['href'] for tag in Parsed(written).every('a') if tag['href'][0] != '#']
    assert len(links) == len(SECTIONS)
    assert {link.partition('#')[2] for link in links} <= anchors
    assert all(f'/docs/{FIGURES}#' in link for link in links)


def test_pictures_open_and_are_described(written, tiny_run):
    images = Parsed(written).every('img')
    assert all(len(image['alt']) > 40 for image in images)
    opened = [
        PIL.Image.open(io.BytesIO(base64.b64decode(image['src'].split(',')[1], validate=True)))
        for image in images
    ]
    assert [picture.n_frames for picture in opened if picture.is_animated] == [
        4
    ]  # Heun's four times
    assert {picture.width for picture in opened} == {990}
    median = three_digits(
        json.loads((tiny_run / 'metrics.json').read_text())['rows']['dm']['distance']['median']
    )
    assert f'diffusion model {median}' in next(
        image['alt'] for image in images if 'Histograms' in image['alt']
    )


def test_table_has_the_numbers_of_the_metrics(written, results):
    for row, values in results.metrics['rows'].items():
        line = next(line for line in written.split('<tr>') if f'<code>{row}</code>' in line)
        assert html.escape(row_name(row)) in line
        assert re.findall(r'<td>(.*?)</td>', line) == [html.escape(cell) for cell in cells(values)]
    versions = results.provenance[-1]['versions']
    assert all(
        f'<th scope="row">{name}</th><td>{version}</td>' in written
        for name, version in versions.items()
    )
    assert '<th scope="row">seed</th><td>0</td>' in written and 'git revision' in written


@pytest.mark.slow
def test_redrawn_page_is_the_same_to_the_byte_without_training_code(tiny_run, tmp_path, written):
    out = tmp_path / 'again.html'
    program = (
        'import sys; from namm_jax.report.__main__ import main; status = '
        f'main({[str(tiny_run), "--out", str(out)]})'
    )
    program += '; sys.exit(3 if {"flax", "optax", "orbax"} & set(sys.modules) else status)'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f'{out}\n', done.stderr
    assert out.read_text() == written


def test_several_runs_stand_side_by_side(results):
    text = page({'runs/a': (results, PICTURES), 'runs/<b>': (results, PICTURES)})
    parsed = Parsed(text)
    assert (
        '<title>namm_jax: 2 runs side by side</title>' in text
        and 'runs/&lt;b&gt;' in text
        and '<b>' not in text
    )
    assert (
        len(parsed.every('table')) == 3 and len(parsed.every('tbody')) == 2
    )  # one table of results, two of versions
    assert len(parsed.every('figure')) == len(parsed.every('img')) == 2 * len(SECTIONS)
    assert (
        text.count('<code>mdm_finetuned</code>') == 2
        and text.count('Samples of the mirror model are') == 2
    )


def test_what_comes_from_outside_is_escaped(results):
    opening = results.provenance[-1] | {
        'command': ['launch/main.py', '--workdir=<script>alert(1)</script>'],
        'git': None,
    }
    text = page({'': (results._replace(provenance=[opening, opening]), PICTURES)})
    Parsed(text)
    assert (
        '<script' not in text
        and '&lt;script&gt;' in text
        and 'alt="&#34;samples&#34; &amp; more"' in text
    )
    assert text.count('launch/main.py') == 1 and 'not run from a clone' in text


def test_config_is_told_as_the_difference_from_its_preset(results, written):
    assert (
        '<code>burgers:tiny</code>, unchanged.' in written and '&#34;inner_steps&#34;: 4' in written
    )
    preset = json.loads(json.dumps(results.preset))
    preset['mirror']['optimizer']['clip'] = 0.0
    text = page({'': (results._replace(preset=preset), PICTURES)})
    assert text.count('(preset: ') == 1
    assert '<code>mirror.optimizer.clip = 1.0</code> (preset: <code>0.0</code>)' in text
    assert 'does not hold' in page({'': (results._replace(preset={}), PICTURES)})


def test_training_seconds_begin_where_those_of_the_ancestors_end(results):
    probe = {'seconds': 2.0, 'distance_mean': 0.5, 'distance_std': None}
    seconds = {'mirror': 10.0, 'mdm': 20.0, 'finetune': 3.0, 'dm': 40.0}
    stages = {stage: {'training_seconds': value} for stage, value in seconds.items()}
    stages['finetune']['drawing_seconds'] = 1.0
    records = [{'stage': stage, **probe} for stage in seconds] + [{'stage': 'dm', 'seconds': 3.0}]
    found = training_curves(results._replace(stages=stages, records=records))
    assert {row: list(curve[0]) for row, curve in found.items()} == {
        'dm': [2],
        'mdm': [12],
        'mdm_finetuned': [33],
    }
    assert all(curve[1] == 0.5 and np.isnan(curve[2]) for curve in found.values())


def test_seeds_are_found_in_their_order(tmp_path):
    for seed in (10, 2, 0):
        (tmp_path / f'seed{seed}').mkdir()
        (tmp_path / f'seed{seed}' / 'config.json').touch()
    assert [path.name for path in find_runs([tmp_path]).values()] == ['seed0', 'seed2', 'seed10']
    assert list(find_runs([tmp_path / 'seed2', tmp_path / 'seed0'])) == [
        str(tmp_path / name) for name in ('seed2', 'seed0')
    ]


@pytest.fixture
def refused(capsys):
    def check(*arguments, status=2):
        assert main([str(argument) for argument in arguments]) == status
        told = capsys.readouterr()
        assert told.out == '' and told.err.startswith('error: ') and told.err.count('\n') == 1
        return told.err

    return check


def test_folders_that_are_no_runs_are_refused(refused, tmp_path):
    assert 'without config.json or seed<k>/config.json, expected a run folder' in refused(tmp_path)
    assert 'no such folder' in refused(tmp_path / 'none')


def test_unfinished_run_has_a_page_of_what_there_is_and_the_command(
    refused, tiny_run, tmp_path, capsys
):
    for name in ('config.json', 'provenance.json', 'stages/data.json', 'figures/progress.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_run / name, tmp_path / name)
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / 'report.html').read_text()
    assert 'This run is not finished.' in page and 'finished: data;' in page
    assert f'python launch/main.py --config=configs/burgers.py:tiny --workdir={tmp_path}' in page
    progress = base64.b64encode((tiny_run / 'figures' / 'progress.png').read_bytes()).decode()
    assert progress in page and page.count('<img') == 1 and 'The result' not in page
    shutil.copy(tiny_run / 'metrics.jsonl', tmp_path)
    shutil.copy(tiny_run / 'metrics.json', tmp_path)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / 'report.html').read_text().count('<img') == 2  # and the losses
    capsys.readouterr()
    shutil.copy(tiny_run / 'stages' / 'evaluate.json', tmp_path / 'stages')
    assert f'{ARRAYS} is missing' in refused(tmp_path)
    (tmp_path / ARRAYS).parent.mkdir()
    (tmp_path / ARRAYS).write_bytes((tiny_run / ARRAYS).read_bytes()[:5000])
    message = refused(tmp_path)
    assert f'{ARRAYS} is damaged' in message and '--redo=evaluate' in message


def test_page_that_cannot_be_written_is_named(refused, tiny_run, tmp_path, monkeypatch):
    assert f'{tmp_path / "none"} is no folder' in refused(
        tiny_run, '--out', tmp_path / 'none' / 'page.html'
    )
    (tmp_path / 'config.json').write_text('kept')
    for out in (tmp_path, tmp_path / 'config.json'):
        assert f'{out}, which is no page' in refused(tiny_run, '--out', out)
    assert (tmp_path / 'config.json').read_text() == 'kept'
    monkeypatch.setattr('namm_jax.report.pictures.draw', lambda results: PICTURES)
    (tmp_path / 'page.html.tmp').mkdir()
    assert str(tmp_path) in refused(tiny_run, '--out', tmp_path / 'page.html', status=1)


BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
FLAGS = (
    '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run '
    '--disable-background-networking'
).split()
FLAGS += [
    '--disable-component-update',
    '--disable-sync',
    '--virtual-time-budget=5000',
    '--dump-dom',
]
MEASURE = """onload = () => document.title = [...document.querySelectorAll('iframe')].map(frame => {
  const inside = frame.contentDocument
  const loaded = [...inside.images].every(image => image.naturalWidth > 0)
  return [inside.documentElement.clientWidth, inside.documentElement.scrollWidth, loaded]
}).join(' ')"""


@pytest.mark.skipif(
    BROWSER is None,
    reason='no Chromium: none of chromium, chromium-browser, google-chrome is installed',
)
def test_page_fits_wide_and_narrow_screens(written, tmp_path):
    frame = '<iframe style="border: 0; height: 800px; width: {}px" srcdoc="{}"></iframe>'
    frames = ''.join(frame.format(width, html.escape(written)) for width in (1280, 390))
    (tmp_path / 'frames.html').write_text(
        f'<!DOCTYPE html><body>{frames}<script>{MEASURE}</script></body>'
    )
    command = [
        BROWSER,
        *FLAGS,
        f'--user-data-dir={tmp_path / "profile"}',
        f'file://{tmp_path / "frames.html"}',
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (title,) = re.findall('<title>(.*?)</title>', done.stdout.replace(html.escape(written), ''))[
        :1
    ] or ['']
    (wide, narrow) = (re.findall(r'(\d+),(\d+),true', title) + [(0, 1)] * 2)[:2]
    assert [int(size) for size in wide] == [int(wide[0])] * 2 and 1200 < int(wide[0]) <= 1280, (
        done.stderr
    )
    assert [int(size) for size in narrow] == [int(narrow[0])] * 2 and 350 < int(narrow[0]) <= 390


def test_robustness_curves_mark_the_noise_of_training():
    sigma = np.linspace(0, 0.2, 5)
    curve = {'distance_mean': 1e-3 + sigma, 'distance_std': sigma, 'error_mean': 2 * sigma}
    figure = curves.robustness_curves(sigma, {'f': curve, 'f, finetuned': curve}, sigma_max=0.1)
    left, right = figure.get_axes()
    assert left.get_yscale() == 'log' and right.get_ylim()[0] == 0
    for ax, values in ((left, 1e-3 + sigma), (right, 2 * sigma)):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ['f', 'f, finetuned']
        np.testing.assert_allclose(ax.lines[0].get_ydata(), values)
        assert (
            list(ax.lines[-1].get_xdata()) == [0.1, 0.1]
            and 'σ' in ax.get_xlabel()
            and ax.get_ylabel()
        )
    with pytest.raises(ValueError, match='curves: got none'):
        curves.robustness_curves(sigma, {}, sigma_max=0.1)


def test_frames_follow_the_trajectory_and_only_what_moves_changes():
    states, estimates = RNG.normal(size=(3, 8, 8, 1)), RNG.normal(size=(3, 8, 8, 1))
    residuals = np.stack([np.full((8, 7), 1e-1), np.full((8, 7), 1e-2), np.zeros((8, 7))])
    parts = {'residuals': residuals, 'distances': [0.1, 0.01, 0.0], 'levels': [10.0, 1.0, 0.1]}
    frames = motion.trajectory_frames(states, estimates, **parts, dpi=40)
    assert frames.shape[0] == 3 and frames.shape[2:] == (360, 3) and frames.dtype == np.uint8
    still = frames[0] == frames[1]
    assert (
        0.3 < still.all(-1).mean() < 0.95
    )  # images, marker and title move; scales, labels and the curve stay
    assert PIL.Image.open(io.BytesIO(motion.animation(frames))).n_frames == 3
    assert (np.asarray(PIL.Image.open(io.BytesIO(motion.still(frames)))) == frames[2]).all()
    with pytest.raises(ValueError, match=r'got \[3, 2, .* states, estimates'):
        motion.trajectory_frames(states, estimates[:2], **parts)


@pytest.mark.slow
@pytest.mark.parametrize('bad', [np.nan, np.inf, 0.0])
def test_figures_of_a_failed_f_can_be_drawn(bad):
    values = np.full(3, bad)
    curve = {'distance_mean': values, 'distance_std': [None] * 3, 'error_mean': values}
    assert figures.png(curves.robustness_curves(np.arange(3), {'f': curve}, sigma_max=1.0), dpi=30)
    fields, maps = np.full((3, 8, 8, 1), bad), np.full((3, 8, 7), bad)
    assert len(motion.trajectory_frames(fields, fields, maps, values, [3.0, 2.0, 1.0], dpi=30)) == 3


def test_a_trajectory_ends_at_the_first_sample(results):
    arrays = results.arrays
    ends = arrays['trajectory']['estimates'][-1], arrays['samples']['mdm_finetuned'][0]
    np.testing.assert_allclose(*ends, atol=1e-3)


def test_damaged_record_is_no_traceback(tiny_run, tmp_path):
    (tmp_path / 'config.json').write_text('{"experiment": "bur')
    with pytest.raises(UserError, match='config.json is damaged'):
        read_run(tmp_path)
