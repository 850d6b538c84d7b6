"""The notebook: its two files hold the same cells, and every cell runs."""

import json
import re
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / 'notebooks'
SOURCE = (FOLDER / 'explore.py').read_text()


def cells_of_source():
    """Returns (kind, text) of each cell of the py:percent file, magics without the comment sign
    that hides them.
    """
    parts = re.split(r'^# %%(.*)\n', SOURCE, flags=re.MULTILINE)[1:]
    cells = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        prose = '[markdown]' in mark
        text = re.sub(r'^# ?' if prose else r'^# (?=%)', '', text.strip('\n'), flags=re.MULTILINE)
        cells.append(('markdown' if prose else 'code', text))
    return cells


def test_both_files_hold_the_same_cells_and_no_output():
    notebook = json.loads((FOLDER / 'explore.ipynb').read_text())
    assert [
        (cell['cell_type'], ''.join(cell['source'])) for cell in notebook['cells']
    ] == cells_of_source(), 'make it again: jupytext --to ipynb notebooks/explore.py'
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert len(code) > 6 and not any(cell['outputs'] or cell['execution_count'] for cell in code)
    assert 'REPOSITORY = ' in ''.join(code[0]['source'])  # as in Colab


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_cell_runs(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER)
    folder = shutil.copytree(tiny_run, tmp_path / 'run')
    source = SOURCE.replace("RUN = Path('runs', 'explore')", f'RUN = Path({str(folder)!r})')
    assert source != SOURCE
    scope = {'__name__': 'explore'}
    exec(compile(source, 'explore.py', 'exec'), scope)
    for name in ('samples_figure', 'mirror_figure', 'noise_figure', 'own_figure'):
        assert scope['figures'].png(scope[name]).startswith(b'\x89PNG')
    before, after = (
        scope['own'].distance(scope['noisy'][name]).mean()
        for name in ('x + noise', 'f(g(x) + noise)')
    )
    assert after < before / 2  # the rule of one's own is learned
