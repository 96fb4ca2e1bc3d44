"""Writes in a thread, so that a terminal that is held with Ctrl-S, or a pipe that nobody reads, blocks nobody else."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Generic, TextIO, TypeVar

MOST_WAITING = 1000
"""Items that wait for a stream that takes none."""
DRAIN_S = 1.0
T = TypeVar("T")


class NonblockingWriter(Generic[T]):
    """Hands items to a thread that writes them, in order. What cannot be written is dropped.

    With ``keeps_all`` a full queue makes ``put`` wait; without, it drops the item.
    """

    def __init__(self, write: Callable[[T], object], *, keeps_all: bool = False) -> None:
        self._write = write
        self._keeps_all = keeps_all
        self._waiting: queue.Queue[T | threading.Event] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._write_on, name="terminal", daemon=True).start()

    def put(self, item: T) -> None:
        """Queues an item for the thread."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(item, block=self._keeps_all)

    def drain(self, timeout_s: float = DRAIN_S) -> None:
        """Waits until all items are written, for about twice ``timeout_s`` at most."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._waiting.put(written, timeout=timeout_s)
            written.wait(timeout_s)

    def _write_on(self) -> None:
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            with contextlib.suppress(OSError, ValueError):
                self._write(item)


class NonblockingStream:
    """A text stream whose writes return at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._writer: NonblockingWriter[str] = NonblockingWriter(self._write_through)
        self.drain = self._writer.drain

    def write(self, text: str) -> None:
        """Queues a text for the thread; drops it if the queue is full."""
        self._writer.put(text)

    def flush(self) -> None:
        """Does nothing: the thread flushes each text."""

    def isatty(self) -> bool:
        """Returns whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Returns the stream's own descriptor."""
        return self._stream.fileno()

    def _write_through(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
