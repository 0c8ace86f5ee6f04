"""Processes find each other before JAX's runtime starts, which ends a process that waits in vain.

Process 0 listens where its coordinator will; the others call, each with its index. When all have
called, or the time is over, process 0 answers with who is missing.
"""

import contextlib
import json
import socket
import time

_BETWEEN_CALLS = 0.2  # seconds
_LONGEST_LINE = 2.0  # seconds until it has come
_HERE = ("127.0.0.1", "::1", "localhost")


def missing(coordinator: str, processes: int, index: int, seconds: float) -> list[int]:
    """Waits for all processes.

    Args:
      coordinator: `host:port` of process 0, on which nothing listens yet.
      processes: how many there are.
      index: this one.
      seconds: how long to wait.

    Returns:
      Who did not come, as far as this process can know; empty where all did.

    Raises:
      OSError: process 0 cannot listen there.
    """
    deadline = time.monotonic() + seconds
    host, _, port = coordinator.rpartition(":")
    address = host.strip("[]"), int(port)
    if index == 0:
        return _gather(address, processes, deadline)
    # Process 0 answers when its own time is over: a little later than ours, if it started later.
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            left = deadline - time.monotonic()
            with socket.create_connection(address, timeout=max(left, _BETWEEN_CALLS)) as call:
                call.sendall(f"{index}\n".encode())
                call.settimeout(left + seconds)
                with call.makefile() as answer:
                    return json.loads(answer.readline())
        time.sleep(_BETWEEN_CALLS)
    return [0]


def _gather(address: tuple[str, int], processes: int, deadline: float) -> list[int]:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    absent = set(range(1, processes))
    calls: list[socket.socket] = []
    # Like JAX's own server, on all interfaces: the address may be one that only others know.
    if address[0] not in _HERE:
        address = "", address[1]
    with socket.create_server(address, family=family, backlog=processes) as server:
        while absent and time.monotonic() < deadline:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            with contextlib.suppress(OSError, ValueError):  # the time is over; a stranger's call
                call, _ = server.accept()
                calls.append(call)
                call.settimeout(_LONGEST_LINE)
                absent.discard(int(call.makefile().readline()))
        for call in calls:
            with contextlib.suppress(OSError):
                call.sendall(json.dumps(sorted(absent)).encode() + b"\n")
        # The callers close first, so that no closing connection of ours keeps the port.
        for call in calls:
            with contextlib.suppress(OSError):
                call.recv(1)
            call.close()
    return sorted(absent)
