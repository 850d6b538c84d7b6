"""Progress that a person can read: a bar on a terminal, a line now and then anywhere else."""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

LOG = 120  # columns of a line where there is no terminal
BAR = 12  # columns of the bar
ASCII = str.maketrans('─²', '-2')

_silent = False
_wide = False


def widen() -> None:
    """Makes tables as wide as all of their columns are."""
    global _wide
    _wide = True


def width() -> float:
    """Returns the columns that a table may have: those of the terminal, 120 in a log."""
    console = Console(stderr=True)
    return math.inf if _wide else console.width if console.is_terminal else LOG


class Lossy:
    """A text stream, of which what cannot be written is dropped: the reader of a log has gone, its
    disk is full, the terminal was closed.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stream, name)
        return functools.partial(self._try, found) if name in ('write', 'flush') else found

    def _try(self, method: Callable[..., Any], *text: str) -> Any:
        try:
            return method(*text)
        except OSError:  # what is in its buffer would fail once more as Python exits: status 120
            with contextlib.suppress(OSError):
                send_nowhere(self._stream)


def send_nowhere(stream: Any) -> None:
    """Drops what a text stream still holds, and what is written to it from now on."""
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def lossy() -> Iterator[None]:
    """Drops what cannot be written to standard error, whoever writes it."""
    # Where it is closed, the null device takes its number: no other file may.
    with contextlib.redirect_stderr(Lossy(sys.stderr or open(os.devnull, 'w'))):
        yield


def silence() -> None:
    """Makes this process say no more: of several, one speaks."""
    global _silent
    _silent = True


def say(text: str) -> None:
    """Writes a line for the user, on standard error."""
    if not _silent:
        complain(text)


def complain(text: str) -> None:
    """Writes a line for the user, silent or not: an error."""
    if 'utf' not in (sys.stderr.encoding or 'utf').lower():
        text = text.translate(ASCII)
    print(text, file=sys.stderr, flush=True)


def short(terms: Mapping[str, float], room: int = LOG) -> str:
    """Returns named terms in three digits on one line: the loss, then as many as have room."""
    first = sorted(terms.items(), key=lambda term: term[0] != 'loss')
    texts = [f'{name} {value:.3g}' for name, value in first]
    ends = itertools.accumulate(len(text) + 2 for text in texts)
    return '  '.join(text for text, end in zip(texts, ends, strict=True) if end <= room + 2)


@dataclasses.dataclass
class Bar:
    """The progress of a stage: redrawn on a terminal, elsewhere a line every ten seconds."""

    title: str
    total: int
    start: int = 0
    unit: str = 'step'

    def __post_init__(self) -> None:
        """Starts the clock."""
        self._begun = self._written = time.monotonic()
        columns = ['{task.description}', BarColumn(BAR), '{task.completed}/{task.total}']
        columns += [TimeElapsedColumn(), TimeRemainingColumn(), '{task.fields[note]}']
        console = Console(stderr=True)
        self._live = Progress(*columns, console=console)
        self._task = self._live.add_task(
            self.title, completed=self.start, total=self.total, note=''
        )
        self._terminal = console.is_terminal and not console.is_dumb_terminal and not _silent
        # Of a line: the title, the bar, two numbers, two times, and the spaces between them.
        others = len(self.title) + BAR + 2 * len(str(self.total)) + 1 + 2 * len('0:00:00') + 5
        self._room = console.width - others

    def __enter__(self) -> Self:
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._terminal:
            self._live.stop()

    def update(self, done: int, terms: Mapping[str, float] | None = None) -> None:
        """Shows that `done` of the total are done, and the terms."""
        now = time.monotonic()
        rate = (done - self.start) / max(now - self._begun, 1e-9)
        speed = f'{rate:.3g} {self.unit}s/s'
        note = f'{speed}  {short(terms or {}, self._room - len(speed) - 2)}'
        self._live.update(self._task, completed=done, note=note)
        if not self._terminal and (now - self._written >= 10 or done >= self.total):
            self._written = now
            left = (self.total - done) / rate if rate > 0 else math.inf
            head = f'{self.title} {done}/{self.total}  {speed}  {left:.0f} s left  '
            say(head + short(terms or {}, LOG - len(head)))
