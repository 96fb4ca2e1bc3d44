"""Checks whether one node reaches a free port of another."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from types import TracebackType

GREETING = b"yolo-launch\n" * 2000
"""Many packets, so that a link which loses large ones shows."""
CONNECTION_S = 3.0
"""How long a machine that is reached may take to answer, in seconds."""
NO_ANSWER = "connects, but the answer is lost"
_REASONS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "cut off",
    errno.EHOSTUNREACH: "rejected, or no such machine",
    errno.ENETUNREACH: "no route",
    errno.EPERM: "not allowed by its own firewall",
    errno.EACCES: "not allowed by its own firewall",
}


class EchoServer:
    """Serves a greeting at a port to each client that connects, while it is entered.

    The kernel chooses the port from the range that torch, gloo and NCCL use. An empty address means all addresses.
    """

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listening = socket.socket(family, socket.SOCK_STREAM)
        self._listening.bind((address, 0))
        self._listening.listen(256)
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._answer, name="echo_server", daemon=True)

    def __enter__(self) -> EchoServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _answer(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except ConnectionError:
                continue  # the caller was gone already
            except OSError:
                return
            threading.Thread(target=_greet, args=(caller,), name="greeting", daemon=True).start()


def _greet(caller: socket.socket) -> None:
    with caller, contextlib.suppress(OSError):
        caller.settimeout(CONNECTION_S)
        caller.sendall(GREETING)


def check_connection(address: str, port: int, timeout_s: float = CONNECTION_S) -> str:
    """Connects to another node's EchoServer; returns an empty text if it answers, else the reason in a few words."""
    try:
        with socket.create_connection((address, port), timeout_s) as connection:
            return _listen(connection, time.monotonic() + timeout_s)
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return _REASONS.get(error.errno or 0) or os.strerror(error.errno or 0) or str(error)


def _listen(connection: socket.socket, deadline: float) -> str:
    received = b""
    try:
        while len(received) < len(GREETING):
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            piece = connection.recv(len(GREETING))
            if not piece:
                break
            received += piece
    except TimeoutError:
        return NO_ANSWER
    return "" if received == GREETING else "another program answers"
