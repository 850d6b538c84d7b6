"""What training says as it goes: a line a record in metrics.jsonl, and the same numbers for
TensorBoard.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from namm_jax.experiment.files import UserError, append_line, finite, write_bytes
from namm_jax.experiment.tensorboard import EventFile, event_file


class Records:
    """The records of a run folder.

    Attributes:
        path: metrics.jsonl, made by the first record.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Opens the records of a folder.

        Args:
            directory: the run folder.
        """
        self.path = Path(directory) / 'metrics.jsonl'
        self._events: dict[str, EventFile] = {}

    def mend(self) -> None:
        """Cuts a last line that a kill or a full disk left half written."""
        if self.path.exists() and not (data := self.path.read_bytes()).endswith(b'\n'):
            write_bytes(self.path, data[: data.rfind(b'\n') + 1])

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends `{'stage', 'step', 'seconds', <terms>}`; a non-finite number becomes null."""
        record, stage = finite(record), record['stage']
        append_line(self.path, json.dumps(record))
        if stage not in self._events:
            self._events[stage] = event_file(self._events_of(stage), record['step'])
        self._events[stage].write(record)

    def read(self) -> list[dict[str, Any]]:
        """Returns all records.

        Raises:
            UserError: naming the file and the line, if one is damaged.
        """
        return [self._parse(number, line) for number, line in enumerate(self._lines(), 1)]

    def drop(self, stage: str, after_step: int) -> None:
        """Drops the stage's records of later steps, which a resumed stage writes again."""
        records = self.read()
        later = [record['stage'] == stage and record['step'] > after_step for record in records]
        if any(later):
            lines = [line for line, drop in zip(self._lines(), later, strict=True) if not drop]
            write_bytes(self.path, b''.join(line + b'\n' for line in lines))

    def discard(self, stage: str) -> None:
        """Drops all records of a stage, TensorBoard's too."""
        self.drop(stage, -1)
        if stage in self._events:
            self._events.pop(stage).close()
        if self._events_of(stage).exists():
            shutil.rmtree(self._events_of(stage))

    def close(self) -> None:
        """Ends the event files; a file that a full disk keeps from being ended is left as it is."""
        while self._events:
            with contextlib.suppress(OSError):
                self._events.popitem()[1].close()

    def _events_of(self, stage: str) -> Path:
        return self.path.parent / 'tensorboard' / stage

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b'\n')[:-1] if self.path.exists() else []

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
            if isinstance(record['stage'], str) and isinstance(record['step'], int):
                return record
            fault = 'no stage and step'
        except (ValueError, TypeError, KeyError) as error:
            fault = repr(error)
        raise UserError(
            f'{self.path}, line {number} is damaged: got {fault}, expected a JSON object with '
            'stage and step; restore the file from a copy, or delete that line'
        )
