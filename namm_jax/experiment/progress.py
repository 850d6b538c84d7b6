"""Progress that a person can read: a bar on a terminal, a line now and then anywhere else."""

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

_silent = False


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
            with contextlib.suppress(OSError), open(os.devnull, 'w') as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


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
    print(text, file=sys.stderr, flush=True)


def short(terms: Mapping[str, float]) -> str:
    """Returns named terms in three significant digits, on one line."""
    return '  '.join(f'{name} {value:.3g}' for name, value in terms.items())


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
        columns = ['{task.description}', BarColumn(20), '{task.completed}/{task.total}']
        columns += [TimeElapsedColumn(), TimeRemainingColumn(), '{task.fields[note]}']
        self._live = Progress(*columns, console=Console(stderr=True))
        self._task = self._live.add_task(
            self.title, completed=self.start, total=self.total, note=''
        )
        self._terminal = sys.stderr.isatty() and not _silent

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
        speed, note = f'{rate:.3g} {self.unit}s/s', short(terms or {})
        self._live.update(self._task, completed=done, note=f'{speed}  {note}')
        if not self._terminal and (now - self._written >= 10 or done >= self.total):
            self._written = now
            left = (self.total - done) / rate if rate > 0 else float('inf')
            say(f'{self.title} {done}/{self.total}  {speed}  {left:.0f} s left  {note}')
