"""Finds a free port of this machine by binding, and the process that listens on a busy port."""

from __future__ import annotations

import contextlib
import socket

from yolo_launch.errors import ExitCode, LaunchError


def free_port(address: str = "127.0.0.1") -> int:
    """Returns a port that could be bound a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def is_free(port: int, address: str = "") -> bool:
    """Returns True if a server could listen on ``port`` now; connections that are ending do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def holder_of(port: int) -> str:
    """Describes the process that listens on ``port``, as in 'PID 123 (command)'."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
                continue
            if connection.pid is None:
                return "a process of another user or container"
            command = ""
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(connection.pid)
                command = " ".join(process.cmdline())[:200] or process.name()
            return f"PID {connection.pid} ({command})"
    return "a process that this user may not see"


def require_free(port: int, next_command: str = "") -> None:
    """Refuses a busy port. Raises LaunchError with the process that listens on the port."""
    if not is_free(port):
        raise LaunchError(
            f"port {port} is busy",
            seen=f"{holder_of(port)} listens on it",
            expected="a free port; on one machine leave --port out and a free one is chosen",
            next_command=next_command,
            exit_code=ExitCode.ENVIRONMENT,
        )
