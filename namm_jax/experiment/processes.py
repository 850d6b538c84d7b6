"""Several processes that work as one: how they meet, and what they tell each other. The only user
of multihost_utils.

Process 0 alone writes to the run folder. What depends on what is on disk it decides, and tells the
others, so that all take the same branch. On one process each function here is the identity.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from namm_jax.experiment.files import UserError
from namm_jax.experiment.roll_call import Place, roll_call

HEARTBEAT = (
    60  # seconds without a sign of life after which a process counts as dead, and all others end
)
SMALLEST_MESSAGE = (
    1024  # bytes; messages are padded to a power of two, so that few programs are compiled
)


def is_first() -> bool:
    """Returns whether this is process 0, which writes the run folder and speaks to the user."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order; each process calls it, with JSON
    types.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    padded = np.zeros(2 ** math.ceil(math.log2(max(SMALLEST_MESSAGE, *sizes))), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def gather_rows(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, one after the other along the first axis; their shapes
    are the same.
    """
    return (
        array if jax.process_count() == 1 else multihost_utils.process_allgather(array, tiled=True)
    )


def from_first(function: Callable[[], Any]) -> Any:
    """Returns what `function` returns on process 0, which alone calls it, as JSON types.

    Raises:
        ValueError, OSError: on all processes, if it raises one.
    """
    if jax.process_count() == 1:
        return function()
    answer, raised = {}, None
    if is_first():
        try:
            answer = {'value': function()}
        except (ValueError, OSError) as error:
            answer, raised = {'error': str(error), 'users': isinstance(error, ValueError)}, error
    answer = gather(answer)[0]
    if raised is not None:
        raise raised
    if 'error' in answer:
        raise (UserError if answer['users'] else OSError)(f'process 0: {answer["error"]}')
    return answer['value']


def agreed(asked_to_stop: Callable[[], int]) -> Callable[[], int]:
    """Returns a function, for all processes to call, of the signal that any of them was sent; 0 for
    none.
    """
    return lambda: max(gather(asked_to_stop()))


def check_same(what: str, value: Any) -> None:
    """Raises on all processes unless all have the same value of a name, such as the config.

    Args:
        what: the name.
        value: a flat dict of JSON types.

    Raises:
        UserError: with the names that differ, and each process's values.
    """
    values = gather(value)
    names = sorted(
        {name for one in values for name in one if any(one[name] != v.get(name) for v in values)}
    )
    if names:
        lines = [f'  {name}: {[one.get(name) for one in values]}' for name in names]
        raise UserError(
            f'got {len(names)} differences between the {what} of the {len(values)} processes, '
            'expected none; start all of them by the same command and version\n' + '\n'.join(lines)
        )


def start(place: Place | None, *, seconds: float = 60.0) -> None:
    """Joins this process to the others, before anything else is asked of JAX.

    Args:
        place: where they meet; None where the machine says so itself: TPU pods, SLURM, Open MPI.
        seconds: to wait for all of them.

    Raises:
        UserError: naming the address, and which processes are there of those expected.
    """
    where = {}
    if place is not None:
        roll_call(place, seconds=seconds)
        where = dict(
            coordinator_address=place.coordinator, num_processes=place.count, process_id=place.index
        )
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=round(seconds),
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'--distributed: got {error}; expected a TPU pod, SLURM or Open MPI, which say '
            'themselves how many processes there are; elsewhere give --coordinator=HOST:PORT '
            '--num_processes=N --process_index=I'
        ) from error
