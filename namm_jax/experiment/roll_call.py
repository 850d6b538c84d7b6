"""How the processes of a run find each other, before JAX knows of them: process 0 calls the roll,
the others answer.

JAX's own service ends a process that waits in vain without a word of who is missing.
"""

import contextlib
import json
import socket
import time
from typing import NamedTuple

from namm_jax.experiment.files import UserError


class Place(NamedTuple):
    """A process among those of a run: `HOST:PORT` where process 0 listens, their number, and its
    own index.
    """

    coordinator: str
    count: int
    index: int


def roll_call(place: Place, *, seconds: float) -> None:
    """Returns once all processes are there.

    Each of the others tells process 0 its index and their number, and waits for its answer.

    Args:
        place: where they meet.
        seconds: to wait.

    Raises:
        UserError: on every process that can be told, naming the address and which of the expected
            processes are there.
    """
    address, deadline = address_of(place), time.monotonic() + seconds
    if place.index == 0:
        _call(place, address, deadline, seconds)
    else:
        _answer(place, address, deadline, seconds)


def address_of(place: Place) -> tuple[str, int]:
    """Returns host and port of process 0; raises a UserError unless they, the number and the index
    can be right.
    """
    host, _, port = place.coordinator.rpartition(':')
    if (
        not host
        or not port.isdecimal()
        or len(port) > 5
        or int(port) > 65535
        or not 0 <= place.index < place.count
    ):
        raise UserError(
            f'got --coordinator={place.coordinator} --num_processes={place.count} '
            f'--process_index={place.index}, expected HOST:PORT, the number of processes, and an '
            'index from 0 below it'
        )
    return host, int(port)


def _call(place: Place, address: tuple[str, int], deadline: float, seconds: float) -> None:
    try:
        # On all interfaces, as JAX's service does: the name may resolve to another one of this
        # host.
        server = socket.create_server(('', address[1]))
    except OSError as error:
        raise UserError(
            f'{place.coordinator}: got {error}, expected a free port; choose another one'
        ) from error
    there: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as stack:
        fault = ''
        while not fault and len(there) + 1 < place.count:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer = stack.enter_context(server.accept()[0])
                hello = json.loads(_line(peer, deadline))
                index, count = int(hello['index']), int(hello['count'])
            except TimeoutError:
                missing = sorted(set(range(1, place.count)) - there.keys())
                fault = (
                    f'got the processes {[0, *sorted(there)]} at {place.coordinator} within '
                    f'{seconds:g} s, expected {place.count}: {missing} are missing; start them, or '
                    'give another --num_processes'
                )
                break
            except (ValueError, KeyError, TypeError, OSError):
                continue  # somebody else who knocked
            if count != place.count or index in there or not 0 < index < place.count:
                fault = (
                    f'got process {index} of {count} at {place.coordinator}, expected one of '
                    f'{sorted(set(range(1, place.count)) - there.keys())} of {place.count}; give '
                    'each process the same --num_processes and an index of its own'
                )
            there[index if not fault else -1] = peer
        for peer in there.values():
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps({'fault': fault}).encode() + b'\n')
    if fault:
        raise UserError(fault)


def _answer(place: Place, address: tuple[str, int], deadline: float, seconds: float) -> None:
    reason: object = ''
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(
                address, timeout=max(0.01, deadline - time.monotonic())
            ) as peer:
                peer.sendall(
                    json.dumps({'index': place.index, 'count': place.count}).encode() + b'\n'
                )
                fault = json.loads(_line(peer, deadline + 5))[
                    'fault'
                ]  # process 0 is the first to give up
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error
            time.sleep(0.2)
            continue
        if fault:
            raise UserError(fault)
        return
    raise UserError(
        f'process {place.index} of {place.count} found no process 0 at {place.coordinator} within '
        f'{seconds:g} s ({reason}); expected it there: check the address, the port, and that '
        'process 0 has been started'
    )


def _line(peer: socket.socket, deadline: float) -> bytes:
    """Returns what the peer says up to the end of a line."""
    data = b''
    while not data.endswith(b'\n'):
        peer.settimeout(max(0.01, deadline - time.monotonic()))
        part = peer.recv(4096)
        if not part:
            raise ConnectionError('closed without an answer')
        data += part
        if len(data) > 2**16:
            raise ValueError('too long')
    return data
