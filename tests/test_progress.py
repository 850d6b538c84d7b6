"""Progress on a terminal, and where there is none: a log file, a notebook."""

import io
import re
import subprocess
import sys
import time

import pytest

from namm_jax.experiment.progress import Bar, say, short


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Returns a list whose last entry is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[-1])
    return now


def test_a_log_file_gets_a_line_every_ten_seconds_and_the_last(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr('sys.stderr', log)
    with Bar('mirror', 1000) as bar:
        for step in range(10, 1001, 10):
            clock.append(step / 20)  # 50 s in all
            bar.update(step, {'loss': 1 / step})
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [
        '200/1000',
        '400/1000',
        '600/1000',
        '800/1000',
        '1000/1000',
    ]
    assert lines[1] == 'mirror 400/1000  20 steps/s  30 s left  loss 0.0025'


def test_a_resumed_stage_counts_its_own_steps_for_the_rate(clock, monkeypatch, capsys):
    with Bar('dm', 100, start=90, unit='field') as bar:
        clock.append(5.0)
        bar.update(100)
    assert capsys.readouterr().err == 'dm 100/100  2 fields/s  0 s left  \n'


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    monkeypatch.setenv('TERM', 'xterm')
    with Bar('mirror', 10) as bar:
        bar.update(5, {'loss': 0.5})
        bar.update(10, {'loss': 0.25})
    assert (
        'mirror' in terminal.getvalue()
        and '10/10' in terminal.getvalue()
        and 'loss 0.25' in terminal.getvalue()
    )


def test_terms_have_three_digits_and_the_loss_comes_first():
    terms = {'distance': 1234567.0, 'loss': 0.123456, 'cycle': 1.0}
    assert short(terms) == 'loss 0.123  distance 1.23e+06  cycle 1'
    assert short(terms, 29) == 'loss 0.123  distance 1.23e+06'
    assert short(terms, 28) == 'loss 0.123' and short(terms, 9) == ''


@pytest.mark.parametrize('columns', [80, 120])
def test_stage_bar_steps_and_time_stay_whatever_the_terms(columns, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', str(columns))
    with Bar('finetune', 5200) as bar:
        bar.update(5199, {f'heldout/term_{i}': 0.123 for i in range(9)} | {'loss': 0.5})
    last = re.sub(r'\x1b\[[\d;?]*[a-zA-Z]', '', terminal.getvalue()).rstrip().splitlines()[-1]
    assert re.match(r'finetune \S+ 5199/5200 [\d:]{7} [\d:-]{7} ', last), last
    assert len(last.rstrip()) <= columns and 'loss 0.5' in last


@pytest.mark.parametrize('term', ['dumb', 'unknown'])
def test_a_terminal_that_cannot_redraw_gets_lines(term, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    monkeypatch.setenv('TERM', term)
    with Bar('mirror', 10) as bar:
        bar.update(10, {'loss': 0.25})
    assert terminal.getvalue().startswith('mirror 10/10  ') and '\x1b' not in terminal.getvalue()


def test_a_terminal_of_ascii_alone_gets_no_other_character(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr('sys.stderr', io.TextIOWrapper(raw, 'ascii', write_through=True))
    say('MMD² ──')
    assert raw.getvalue() == b'MMD2 --\n'


def test_a_reader_that_has_gone_is_no_error():
    """As of `2>&1 | tee log`, where a signal ends tee first."""
    program = """
from namm_jax.experiment.progress import lossy, say
with lossy():
    say('a')
    say('b')
print('done')
"""
    process = subprocess.Popen(
        [sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stderr.close()
    assert process.stdout.read() == 'done\n'
    process.wait()
