"""Records as scalars for TensorBoard, through tensorboardX where that is installed; a run is the
same without it.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from namm_jax.experiment.files import naming


class EventFile(NamedTuple):
    """An event file: `write(record)` adds a record's numbers at its step, `close()` ends it."""

    write: Callable[[Mapping[str, Any]], None] = lambda record: None
    close: Callable[[], None] = lambda: None


def event_file(folder: Path, first: int) -> EventFile:
    """Returns an event file in the folder; it does nothing without tensorboardX.

    Each record is on disk when `write` returns. TensorBoard hides what earlier files of the folder
    hold of step `first` and later, so a stage that was stopped and goes on shows no point twice.

    Args:
        folder: where the event file goes; made if it does not exist.
        first: the first step that will be written.

    Raises:
        OSError: naming the folder, if the disk is full or read-only.
    """
    try:
        from tensorboardX.event_file_writer import (
            EventsWriter,
        )  # no thread and no queue, unlike SummaryWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError:
        return EventFile()
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(folder / 'events'), f'.{os.getpid()}.{first}')
        writer.write_event(
            Event(
                wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START)
            )
        )

    def write(record: Mapping[str, Any]) -> None:
        scalars = {name: value for name, value in record.items() if isinstance(value, float)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with naming(folder):
            writer.write_event(
                Event(wall_time=time.time(), step=record['step'], summary=Summary(value=values))
            )
            writer.flush()

    return EventFile(write, writer.close)
