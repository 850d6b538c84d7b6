"""Progress that a person can read: a bar on a terminal, a line every few seconds in a log file or a
notebook.
"""

import sys
import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_silent = False


def silence() -> None:
    """Makes this process say no more: of several, one speaks."""
    global _silent
    _silent = True


def say(text: str) -> None:
    """Writes a line for the user, on standard error."""
    if not _silent:
        print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Writes a line for the user, silent or not: an error."""
    print(text, file=sys.stderr, flush=True)


def short(terms: Mapping[str, float]) -> str:
    """Returns named terms in three significant digits, on one line."""
    return '  '.join(f'{name} {value:.3g}' for name, value in terms.items())


class Bar:
    """The progress of one stage.

    On a terminal a bar is redrawn in place; anywhere else a line is written every `every` seconds.
    """

    def __init__(
        self, title: str, total: int, *, start: int = 0, unit: str = 'step', every: float = 10.0
    ) -> None:
        self._title, self._total, self._unit, self._every = title, total, unit, every
        self._begun, self._start, self._written, self._terms = (
            time.monotonic(),
            start,
            time.monotonic(),
            '',
        )
        self._live = None
        if sys.stderr.isatty() and not _silent:
            columns = (
                TextColumn('{task.description}'),
                BarColumn(20),
                TextColumn('{task.completed}/{task.total}'),
            )
            columns += (
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn('{task.fields[rate]}  {task.fields[terms]}'),
            )
            self._live = Progress(*columns, console=Console(stderr=True))
            self._task = self._live.add_task(title, total=total, completed=start, rate='', terms='')

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, terms: Mapping[str, float] | None = None) -> None:
        """Shows that `done` of the total are done, and the newest terms."""
        self._terms = short(terms) if terms else self._terms
        now = time.monotonic()
        rate = (done - self._start) / max(now - self._begun, 1e-9)
        text = f'{rate:.3g} {self._unit}s/s'
        if self._live:
            self._live.update(self._task, completed=done, rate=text, terms=self._terms)
        elif now - self._written >= self._every or done >= self._total:
            self._written = now
            left = (self._total - done) / rate if rate > 0 else float('inf')
            line = f'{self._title} {done}/{self._total}  {text}  {left:.0f} s left  {self._terms}'
            say(line)
