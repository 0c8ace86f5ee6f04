"""Finds the processes of a run before JAX's runtime starts.

JAX's runtime kills a process that waits in vain, without saying which processes are missing. So
process 0 first listens at the coordinator's address, and the others send it their indices. When all
have done so, or the time is over, process 0 answers with the indices that are missing.
"""

import contextlib
import json
import socket
import time

_BETWEEN_CALLS = 0.2  # seconds
_LONGEST_LINE = 2.0  # seconds until a caller's index must have arrived
_HERE = ("127.0.0.1", "::1", "localhost")


def missing(coordinator: str, processes: int, index: int, seconds: float) -> list[int]:
    """Waits for all processes, and returns those that are missing.

    Args:
      coordinator: `host:port` of process 0, on which nothing listens yet.
      processes: number of processes.
      index: this process's index.
      seconds: how long to wait.

    Returns:
      Indices of the processes that did not come in time: [0] where process 0 did not answer, empty
      where all came.

    Raises:
      OSError: process 0 cannot listen at that address.
    """
    deadline = time.monotonic() + seconds
    host, _, port = coordinator.rpartition(":")
    address = host.strip("[]"), int(port)
    if index == 0:
        return _gather(address, processes, deadline)
    # Process 0 answers when its time is over, which is later than ours if it started later.
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
    # On all interfaces, as JAX's server: this machine may not know the address by which the others
    # reach it.
    if address[0] not in _HERE:
        address = "", address[1]
    with socket.create_server(address, family=family, backlog=processes) as server:
        while absent and time.monotonic() < deadline:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            with contextlib.suppress(OSError, ValueError):  # time is over, or no process called
                call, _ = server.accept()
                calls.append(call)
                call.settimeout(_LONGEST_LINE)
                absent.discard(int(call.makefile().readline()))
        for call in calls:
            with contextlib.suppress(OSError):
                call.sendall(json.dumps(sorted(absent)).encode() + b"\n")
        # The callers close first. If this process did, its closing connections would keep the port.
        for call in calls:
            with contextlib.suppress(OSError):
                call.recv(1)
            call.close()
    return sorted(absent)
