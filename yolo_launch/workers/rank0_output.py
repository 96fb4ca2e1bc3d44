"""Carries what rank 0 writes to the launcher's stdout and stderr, and to rank 0's log.

A worker that wrote to the terminal itself would stop in the middle of a step while the terminal is held (Ctrl-S) and
fail once it is gone; and what C++ code prints would be in no log. So it writes to a pipe, or to a pseudo-terminal where
the launcher has a terminal, since programs look whether they have one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
import threading
import time
import tty
from pathlib import Path

from yolo_launch.workers.nonblocking_stream import NonblockingWriter

_CHUNK = 1 << 16
_PIPE_BYTES = 1 << 20
"""Room for what a worker writes while the launcher itself is stopped (Ctrl-Z)."""
_READER_S = 30.0
"""How long the end waits for the program that reads a pipe."""
STDOUT, STDERR = 1, 2


class Rank0Output:
    """The ends of the pipes that rank 0 writes to, from their making until ``close``, and the thread that empties them.

    ``logs_stdout`` is False for a worker that writes its lines to the log by itself; what it prints on stderr is kept
    in any case. ``to_stderr`` sends both streams to stderr.
    """

    def __init__(self, log: Path, *, logs_stdout: bool, to_stderr: bool) -> None:
        targets = (STDERR if to_stderr else STDOUT, STDERR)
        self._log = _RankLog(log)
        self._channels = [_Channel(targets[0], self._log if logs_stdout else None)]
        if logs_stdout and _is_same_file(*targets):
            self.stdout = self.stderr = self._channels[0].worker_end  # one channel keeps the order of both
        else:
            self._channels.append(_Channel(targets[1], self._log))
            self.stdout, self.stderr = (channel.worker_end for channel in self._channels)
        self._closing_at: float | None = None
        self._thread = threading.Thread(target=self._carry, name="rank0_output", daemon=True)
        self._thread.start()

    def close(self, grace_s: float = 1.0) -> None:
        """Carries what is left, and returns when the workers' ends are closed or nothing has come for ``grace_s``.

        A process that outlives the job may hold its end open; nothing waits for it.
        """
        for channel in self._channels:
            os.close(channel.worker_end)
        self._closing_at = time.monotonic() + grace_s
        self._thread.join(2 * grace_s)
        for channel in self._channels:
            channel.drain(grace_s)

    def _carry(self) -> None:
        poller = select.poll()
        open_ends = {channel.own_end: channel for channel in self._channels}
        for descriptor in open_ends:
            poller.register(descriptor, select.POLLIN)
        while open_ends and (self._closing_at is None or time.monotonic() < self._closing_at):
            for descriptor, _ in poller.poll(100):
                if not open_ends[descriptor].carry():
                    poller.unregister(descriptor)
                    del open_ends[descriptor]
        for channel in self._channels:
            os.close(channel.own_end)
        self._log.close()


class _Channel:
    """One pipe or pseudo-terminal, where it leads, and the log that keeps a copy."""

    def __init__(self, target: int, log: _RankLog | None) -> None:
        self._target = target
        self._log = log
        self._is_terminal = os.isatty(target)
        if self._is_terminal:
            self.own_end, self.worker_end = os.openpty()
            tty.setraw(self.worker_end)  # the real terminal turns \n into \r\n
        else:
            self.own_end, self.worker_end = os.pipe()
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(self.worker_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._size = b""
        self._follow_size()
        # A pipe or file may lead to a program that needs every byte. So much waits for it that only data holds a worker
        # up, as with plain python.
        self._writer: NonblockingWriter[bytes] = NonblockingWriter(self._write, keeps_all=not self._is_terminal)

    def carry(self) -> bool:
        """Takes what has been written; returns False if nobody can write any more."""
        try:
            data = os.read(self.own_end, _CHUNK)
        except OSError:  # how a pseudo-terminal says it
            return False
        if self._log is not None:
            self._log.write(data)
        if data:
            self._writer.put(data)
            self._follow_size()
        return bool(data)

    def drain(self, grace_s: float) -> None:
        """Waits until all is written; a terminal may be held, and has ``grace_s``."""
        self._writer.drain(grace_s if self._is_terminal else _READER_S)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._target, data) :]

    def _follow_size(self) -> None:
        """Gives the pseudo-terminal the rows and columns of the real one."""
        if self._is_terminal:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(self._target, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
                if size != self._size:
                    self._size = size
                    fcntl.ioctl(self.worker_end, termios.TIOCSWINSZ, size)


class _RankLog:
    """A log of finished lines; of a progress bar only its last state is kept."""

    def __init__(self, path: Path) -> None:
        self._stream = None
        self._line = b""
        with contextlib.suppress(OSError):
            self._stream = path.open("ab")

    def write(self, data: bytes) -> None:
        """Keeps what has become a whole line. A full disk ends the log, not the job."""
        *finished, self._line = (self._line + data).split(b"\n")
        self._line = self._line[self._line.rfind(b"\r") + 1 :]
        if finished:
            self._write(b"".join(line.rstrip(b"\r").rsplit(b"\r", 1)[-1] + b"\n" for line in finished))

    def close(self) -> None:
        """Writes what the last line has so far."""
        if self._line:
            self._write(self._line + b"\n")
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()

    def _write(self, data: bytes) -> None:
        if self._stream is not None:
            try:
                self._stream.write(data)
                self._stream.flush()
            except OSError:
                self._stream = None


def _is_same_file(first: int, second: int) -> bool:
    try:
        one, other = os.fstat(first), os.fstat(second)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
