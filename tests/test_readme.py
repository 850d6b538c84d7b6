"""The README is short, it and the pages under docs/ say what is so, and their programs run as they
stand, with fewer fields and steps, and smaller networks.
"""

import importlib.util
import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_formats import save_net, save_page_files

from namm_jax.experiment import schema
from namm_jax.experiment.methods import ACTS, METHODS
from namm_jax.networks.icnn import ICNN
from namm_jax.networks.unet import UNet
from namm_jax.training import recipes

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.glob('docs/**/*.md')}
TEXTS |= {name: (ROOT / name).read_text() for name in ('README.md', 'CONTRIBUTING.md')}

PROGRAM = re.compile(r'^```python\n(.*?)^```', re.DOTALL | re.MULTILINE)
PROGRAMS = PROGRAM.findall(README)
# Each page is one program. The blocks of extending.md are files: `test_extending.py` has them.
PAGES = ('docs/choosing.md', 'docs/inverse-problems.md', 'docs/your-own.md')
SMALLER = {
    'points=32, states=32': 'points=16, states=8, inner_steps=1',
    ', 1024)': ', 64)',
    '(512, 16, 16, 1)': '(64, 8, 8, 1)',
    'steps=500': 'steps=2',
    'steps=20,': 'steps=2,',
    '16))': '2))',
    ', 16)': ', 2)',
    'k=4': 'k=2',
}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Makes the networks that `namm` and `diffusion` take by themselves quick to compile."""
    convex = lambda **fields: ICNN(**fields | {'filters': 4, 'layers': 1})
    monkeypatch.setattr(recipes, 'ICNN', convex)
    monkeypatch.setattr(recipes, 'UNet', lambda channels, **fields: UNet((8,), head=4, **fields))


def run(program, name):
    """Executes a program, made smaller; returns its names."""
    for large, small in SMALLER.items():
        program = program.replace(large, small)
    scope = {}
    exec(compile(program, name, 'exec'), scope)
    arrays = [value for name, value in scope.items() if name in ('samples', 'found', 'guided')]
    assert all(np.isfinite(array).all() for array in arrays)
    return scope


@pytest.mark.parametrize('index', range(len(PROGRAMS)))
def test_a_program_runs_as_printed_but_for_its_sizes(index):
    run(PROGRAMS[index], 'README.md')
    assert len(PROGRAMS) == 2


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_the_programs_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page == 'docs/your-own.md':
        save_page_files(tmp_path)
        save_net(tmp_path)
    scope = run('\n\n'.join(PROGRAM.findall(TEXTS[page])), page)
    for name in {'projected', 'restored', 'while_sampling'} & set(scope):  # their sum is 10
        np.testing.assert_allclose(np.asarray(scope[name]).sum((1, 2, 3)), 10, rtol=1e-4)
    if 'models' in scope:
        again = scope['models']['mirror'].inverse(scope['x'][:2])
        np.testing.assert_array_equal(again, scope['mirror'].inverse(scope['x'][:2]))


def test_the_first_program_is_the_front_door_and_explained_as_it_stands():
    assert 'nj.fit(nj.namm(burgers), x, steps=500)' in PROGRAMS[0]
    assert README[: README.index('```python')].count('\n') < 40
    explained = ''.join(PROGRAM.findall(TEXTS['docs/getting-started.md']))
    lines = lambda program: [line for line in program.splitlines() if line]
    assert lines(explained) == lines(PROGRAMS[0])


def prose(text):
    """Returns a text without its programs, tables, comments, pictures and addresses."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r'^\|.*$|<!--.*?-->|!\[.*?\]\(.*?\)', '', text, flags=re.MULTILINE)
    return re.sub(r'(\[[^\]]*\])\([^)]*\)', r'\1', text)


def test_the_readme_takes_five_minutes():
    text = prose(README)
    words = len(text.split())
    numbers = re.findall(r'(?<![\w.])\d[\d.,]*(?:e-?\d+)?', text)
    assert README.count('\n') <= 150
    assert len(numbers) <= 1.5 * words / 100, numbers
    sentences = re.split(r'(?<=[.:?!])[*`]*\s+|\n\s*\n', text)
    assert [one for one in sentences if len(one.split()) > 30] == []


NAMED = re.compile(r'`((?:namm_jax|tests|configs|launch|benchmarks|docs|results)/[\w/.*-]+)')


@pytest.mark.parametrize('text', TEXTS)
def test_files_that_a_text_names_exist(text):
    named = {name.rstrip('.') for name in NAMED.findall(TEXTS[text])}
    made = {'configs/rod.py', 'namm_jax/problems/warm_rod.py'}  # by the reader
    missing = [name for name in named - made if not list(ROOT.glob(name))]
    assert not missing, f'{text} names {missing}'


def test_pictures_and_pages_that_the_readme_links_exist():
    links = re.findall(r'(?:\]\(|src=")(docs/[^)"#]+)', README)
    assert len(links) > 10 and not [link for link in links if not (ROOT / link).exists()]


def test_a_release_gives_every_link_the_address_of_the_repository():
    (names,) = re.findall(
        r'OWNER/namm_jax#\$repository#" (.*)', (ROOT / '.ci' / 'build').read_text()
    )
    replaced = {path for name in names.split() for path in ROOT.glob(name)}
    texts = [*(ROOT / name for name in TEXTS), ROOT / 'setup.cfg', *ROOT.glob('notebooks/*')]
    placed = {path for path in texts if path.is_file() and 'OWNER/namm_jax' in path.read_text()}
    assert len(placed) == 5 and placed == replaced


def test_every_program_of_the_gallery_is_on_its_page():
    programs = [path.name for path in ROOT.glob('docs/gallery/*.py')]
    assert len(programs) > 10
    assert not [name for name in programs if f'gallery/{name}' not in TEXTS['docs/gallery.md']]


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(path.name for path in ROOT.glob('docs/gallery/*.py')))
def test_a_program_of_the_gallery_draws(name, tmp_path):
    folder = tmp_path / 'docs' / 'gallery'
    folder.mkdir(parents=True)
    shutil.copy(ROOT / 'docs' / 'gallery' / name, folder)
    shutil.copy(ROOT / 'docs' / 'burgers-samples.png', folder.parent)
    shutil.copytree(ROOT / 'results', tmp_path / 'results')
    before = set(tmp_path.rglob('*.png'))
    runpy.run_path(str(folder / name), run_name='__main__')
    assert set(tmp_path.rglob('*.png')) - before


def test_every_section_of_the_config_is_on_the_page_of_fields():
    shown = set(re.findall(r'config-fields:: (\w+)', TEXTS['docs/running/fields.md']))
    fields = [*schema.fields('galaxies'), *schema.fields('own')]
    assert shown | {'constraint'} == {name.split('.')[0] for name in fields}  # with `data`


def test_every_page_is_reached_from_another():
    pages = {Path(name) for name in TEXTS if name.startswith('docs/') and name != 'docs/index.md'}
    reached = set()
    for name, text in TEXTS.items():
        trees = re.findall(r'^```\{toctree\}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
        entries = [line for tree in trees for line in tree.splitlines() if line[:1].isalpha()]
        reached |= {Path(name).parent / f'{entry}.md' for entry in entries}
    assert pages <= reached


OWN = re.findall(
    r'^python (docs/own_rule\.py|launch/main\.py --config=configs/own\.py.*)$',
    TEXTS['docs/your-own.md'],
    re.MULTILINE,
)


def own_rule(tmp_path, monkeypatch):
    """Follows the page up to its command, in another folder; returns that command's
    arguments.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'docs').mkdir()
    shutil.copy(ROOT / OWN[0], tmp_path / 'docs')
    runpy.run_path(str(tmp_path / OWN[0]), run_name='__main__')
    return OWN[1].replace('own.py ', 'own.py:tiny ').split()[1:]


def test_rule_of_ones_own_is_checked_first(tmp_path, monkeypatch, launch, capsys):
    arguments = own_rule(tmp_path, monkeypatch)
    assert launch('--workdir=run', '--stages=data', *arguments) == 0
    told = capsys.readouterr().err
    assert re.search(r'distance: \S+e-0[6-9] on your data', told) and 'warning' not in told
    record = json.loads((tmp_path / 'run' / 'stages' / 'data.json').read_text())
    assert record['floor_max'] < 1e-5 < 1e-2 < record['perturbed_mean']


def test_data_that_do_not_obey_are_told(tmp_path, monkeypatch, launch, capsys):
    arguments = own_rule(tmp_path, monkeypatch)
    np.save(
        'own_data.npy', np.random.default_rng(0).normal(size=(200, 16, 16, 1)).astype(np.float32)
    )
    assert launch('--workdir=run', '--stages=data', *arguments) == 0
    assert 'warning: your data do not obey your rule well' in capsys.readouterr().err


@pytest.mark.slow
def test_rule_of_ones_own_from_data_to_report(tmp_path, monkeypatch, launch):
    arguments = own_rule(tmp_path, monkeypatch)
    assert launch('--workdir=run', *arguments) == 0
    assert (tmp_path / 'run' / 'report.html').exists()
    rows = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['rows']
    assert rows['data']['distance']['max'] < 1e-5 and np.isfinite(
        rows['mdm_finetuned']['distance']['mean']
    )


@pytest.fixture(scope='module')
def results():
    spec = importlib.util.spec_from_file_location('results', ROOT / 'benchmarks' / 'results.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_has_a_place_in_the_tables(results):
    rows = {name for name, method in METHODS.items() if method.act in ACTS}
    assert rows == {'dm', 'mdm', *results.WAYS}


def test_a_number_that_some_seeds_have_says_of_how_many_it_is(results):
    rows = [{'n': 1.0}, {}, {'n': 3.0}, None]
    assert results.cell(rows, ('n',)) == '2.00 ± 1 (2 of 4)'
    assert results.cell(rows[:1], ('n',)) == '1.00' and not results.cell(rows[1:2], ('n',))


def test_tables_are_those_of_the_results(results):
    pages = results.pages()
    assert ROOT / 'README.md' in pages and len(pages) > 8
    for page in pages:
        text = page.read_text()
        assert results.with_tables(text) == text, (
            f'{page}: write them again: python benchmarks/results.py --readme'
        )
