"""Several processes that work as one: how they meet, and what they tell each other.

Process 0 alone writes to the run folder. What depends on what is on disk it decides, and tells the
others, so that all take the same branch. On one process each function here is the identity.
"""

import dataclasses
import json
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from namm_jax.experiment.files import UserError
from namm_jax.experiment.progress import complain

HEARTBEAT = 60  # seconds without a sign of life after which a process is dead, and all others end
SMALLEST_MESSAGE = 1024  # bytes; padded to powers of two, so that few programs are compiled
# What is raised on process 0, and then on the others.
KINDS = (ValueError, UserError), (OSError, OSError), (Exception, RuntimeError)


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among those of a run: HOST:PORT of process 0, their number, its own index."""

    coordinator: str
    count: int
    index: int

    def __post_init__(self) -> None:
        """Raises a UserError unless address, number and index can be right."""
        address = re.fullmatch('.+:([0-9]{1,5})', self.coordinator)
        if not address or int(address[1]) > 65535 or not 0 <= self.index < self.count:
            remedy = '--coordinator=HOST:PORT, and --process_index from 0 to below --num_processes'
            raise UserError(f'got {self}, expected {remedy}')


def start(place: Place | None, *, seconds: float = 60.0) -> None:
    """Joins this process to the others, before anything else is asked of JAX; ends it with a
    message and exit status 2 if they are not all there within so many seconds.

    The place is None where the machine says itself how many there are: TPU pods, SLURM, Open MPI.
    """
    remedy = (
        'start each with the same --coordinator=HOST:PORT, a free port of process 0 that all '
        'reach, the same --num_processes=N, and a --process_index of its own'
    )

    def give_up() -> None:
        where = place or '--distributed'
        complain(f'error: {where}: not all processes met within {seconds:g} s; {remedy}')
        os._exit(2)

    patience = threading.Timer(seconds, give_up)
    patience.start()
    try:
        if place and place.index == 0:  # a port in use crashes JAX, or is shared by two of index 0
            socket.create_server(('', int(place.coordinator.rpartition(':')[2]))).close()
        jax.distributed.initialize(
            *(dataclasses.astuple(place) if place else ()),
            initialization_timeout=round(seconds) + HEARTBEAT,  # after it, JAX aborts the process
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f'{place or "--distributed"}: got {error}; {remedy}') from error
    finally:
        patience.cancel()
    sys.excepthook = _end
    if place:
        check_same('numbers', {'--num_processes': place.count})


def _end(*error: Any) -> None:
    sys.__excepthook__(*error)
    leave(1)


def leave(status: int) -> NoReturn:
    """Ends this process without JAX's farewell, in which it would wait for the others."""
    sys.stderr.flush()
    try:
        time.sleep(1.0 if is_first() else 0.0)  # JAX aborts those that find process 0 gone
    finally:
        os._exit(status)


def is_first() -> bool:
    """Returns whether this is process 0, which writes the run folder and speaks to the user."""
    return jax.process_index() == 0


def tells_of_a_loss(error: Exception) -> bool:
    """Returns whether an error says that another process has gone, which JAX tells in two ways."""
    told = isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error)
    return told and jax.process_count() > 1


def gather(value: Any) -> list[Any]:
    """Returns the values, of JSON types, of all processes, each of which calls it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    padded = np.zeros(2 ** math.ceil(math.log2(max(SMALLEST_MESSAGE, *sizes))), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def gather_rows(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, of one shape, one after the other."""
    return multihost_utils.process_allgather(array, tiled=True)


def from_first(function: Callable[[], Any]) -> Any:
    """Returns, or raises, on all processes what `function` does on process 0 alone; JSON types."""
    if jax.process_count() == 1:
        return function()
    answer, raised = {}, None
    if is_first():
        try:
            answer = {'value': function()}
        except Exception as error:
            kind = next(i for i, (kind, _) in enumerate(KINDS) if isinstance(error, kind))
            answer, raised = {'error': str(error), 'kind': kind}, error
    answer = gather(answer)[0]
    if raised is not None:
        raise raised
    if 'error' in answer:
        raise KINDS[answer['kind']][1](f'process 0: {answer["error"]}')
    return answer['value']


def agreed(asked_to_stop: Callable[[], int]) -> Callable[[], int]:
    """Returns a function, for all processes to call, of the signal that any was sent; 0 if none."""
    return lambda: max(gather(asked_to_stop()))


def check_same(what: str, value: dict[str, Any]) -> None:
    """Raises a UserError on all processes unless all have the same flat dict of JSON types."""
    values = gather(value)
    names = sorted(set().union(*values))
    columns = {name: [one.get(name) for one in values] for name in names}
    lines = [f'  {name}: {each}' for name, each in columns.items() if each != each[:1] * len(each)]
    if lines:
        raise UserError(
            f'got {len(lines)} differences between the {what} of the {len(values)} processes; '
            'start all of them by the same command and version\n' + '\n'.join(lines)
        )
