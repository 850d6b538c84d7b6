"""What training says as it goes: a line a record in metrics.jsonl, and the same numbers for
TensorBoard where tensorboardX is installed.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from namm_jax.experiment.files import UserError, finite, naming, write_bytes


class Records:
    """The records of a run folder, in `path`, which the first record makes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / 'metrics.jsonl'
        self._events = directory / 'tensorboard'
        self._writers: dict[str, Any] = {}

    def mend(self) -> None:
        """Cuts a last line that a kill or a full disk left half written."""
        if self.path.exists() and not (data := self.path.read_bytes()).endswith(b'\n'):
            write_bytes(self.path, data[: data.rfind(b'\n') + 1])

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends `{'stage', 'step', 'seconds', <terms>}`; a non-finite number becomes null."""
        record = finite(record)
        with naming(self.path), open(self.path, 'a') as file:
            file.write(json.dumps(record) + '\n')
        if importlib.util.find_spec('tensorboardX'):
            with naming(self._events):
                self._append_event(**record)

    def read(self) -> list[dict[str, Any]]:
        """Returns all records; a UserError names a damaged line."""
        return [self._parse(number, line) for number, line in enumerate(self._lines(), 1)]

    def drop(self, stage: str, after_step: int) -> None:
        """Drops the stage's records of later steps, which a resumed stage writes again."""
        records = zip(self.read(), self._lines(), strict=True)
        later = lambda record: record['stage'] == stage and record['step'] > after_step
        lines = [line + b'\n' for record, line in records if not later(record)]
        if len(lines) < len(self._lines()):
            write_bytes(self.path, b''.join(lines))

    def discard(self, stage: str) -> None:
        """Drops all records of a stage, TensorBoard's too."""
        self.drop(stage, -1)
        if stage in self._writers:
            self._writers.pop(stage).close()
        if (self._events / stage).exists():
            shutil.rmtree(self._events / stage)

    def close(self) -> None:
        """Ends the event files; one that a full disk keeps from being ended is left as it is."""
        while self._writers:
            with contextlib.suppress(OSError):
                self._writers.popitem()[1].close()

    def _append_event(self, stage: str, step: int, **terms: Any) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # SummaryWriter has a thread
        from tensorboardX.proto.event_pb2 import Event

        if stage not in self._writers:
            (self._events / stage).mkdir(parents=True, exist_ok=True)
            path = self._events / stage / 'events'
            self._writers[stage] = EventsWriter(str(path), f'.{os.getpid()}.{step}')
            # START: TensorBoard hides what earlier files hold of this step and later, so that a
            # stage that was stopped and goes on shows no point twice.
            start = Event(wall_time=time.time(), step=step, session_log={'status': 1})
            self._writers[stage].write_event(start)
        values = [{'tag': n, 'simple_value': v} for n, v in terms.items() if isinstance(v, float)]
        event = Event(wall_time=time.time(), step=step, summary={'value': values})
        self._writers[stage].write_event(event)
        self._writers[stage].flush()

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b'\n')[:-1] if self.path.exists() else []

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and {'stage', 'step'} <= record.keys():
                return record
        raise UserError(
            f'{self.path}, line {number} is damaged: got {line[:60]!r}, expected a JSON object '
            'with stage and step; restore the file from a copy, or delete that line'
        )
