"""Collects the launcher's signals, readable in a thread while the main thread is inside C++."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)
)
_KEEP_IGNORED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
"""What nohup and a shell's `&` set to ignored stays ignored."""


def signal_name(number: int) -> str:
    """Returns 'Ctrl-C' for SIGINT, else the signal's name."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def note_signal(signum: int, frame: FrameType | None) -> None:
    """Does nothing as a handler: Python has written the number to the inbox already."""


class SignalInbox:
    """Collects stop signals and deaths of children while it is entered. Enter it in the main thread."""

    def __init__(self) -> None:
        self.ignored: frozenset[int] = frozenset()
        self._previous: dict[int, Any] = {}
        self._read_fd = self._write_fd = -1
        self._previous_fd = -1
        self._stopped = False

    def __enter__(self) -> SignalInbox:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self.ignored = frozenset(s for s in _KEEP_IGNORED if signal.getsignal(s) == signal.SIG_IGN)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for signum in (*STOP_SIGNALS, signal.SIGCHLD):
            if signum not in self.ignored:
                self._previous[signum] = signal.signal(signum, note_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum in (*STOP_SIGNALS, signal.SIGCHLD):
            # The elastic agent sets handlers of its own, for ignored signals too.
            previous = self._previous.get(signum, signal.SIG_IGN)
            if signum == signal.SIGINT and self._stopped:
                # All that is left is to report and exit; a third Ctrl-C must not cut that short. Only an ignored
                # signal stays so while Python shuts down.
                previous = signal.SIG_IGN
            signal.signal(signum, previous if previous is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def wait(self, timeout_s: float) -> list[signal.Signals]:
        """Returns stop signals since the last call, in order; returns early for one of them or for a child's death."""
        poller = select.poll()  # select() would refuse a descriptor above 1023
        poller.register(self._read_fd, select.POLLIN)
        poller.poll(timeout_s * 1000)
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self._read_fd, 4096)
        found = [signal.Signals(n) for n in numbers if n in STOP_SIGNALS and n not in self.ignored]
        self._stopped |= bool(found)
        return found
