"""Writes to a stream in a thread, so that a terminal that is held with Ctrl-S does not block the program."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TextIO

MOST_WAITING = 1000
"""Texts that wait for a stream that takes none; further texts are dropped."""
DRAIN_S = 1.0


class NonblockingStream:
    """Hands texts to a thread that writes them, in order."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: queue.Queue[str | threading.Event] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._write_on, name="terminal", daemon=True).start()

    def write(self, text: str) -> None:
        """Queues a text for the thread; drops it if the queue is full."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(text)

    def flush(self) -> None:
        """Does nothing: the thread flushes each text."""

    def isatty(self) -> bool:
        """Returns whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Returns the stream's own descriptor."""
        return self._stream.fileno()

    def drain(self, timeout_s: float = DRAIN_S) -> None:
        """Waits until all texts are written, for about twice ``timeout_s`` at most."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._waiting.put(written, timeout=timeout_s)
            written.wait(timeout_s)

    def _write_on(self) -> None:
        while True:
            text = self._waiting.get()
            if isinstance(text, threading.Event):
                text.set()
                continue
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
