"""Checks that a terminal that takes nothing does not block the program."""

from __future__ import annotations

import io
import threading
import time

from yolo_launch.workers.nonblocking_stream import MOST_WAITING, NonblockingStream


class Held(io.StringIO):
    """Simulates a terminal that is held with Ctrl-S until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.go_on.wait(20)
        return super().write(text)


def test_a_held_terminal_holds_nobody_up_and_gets_everything_later():
    held = Held()
    stream = NonblockingStream(held)
    began_at = time.monotonic()
    for number in range(50):
        stream.write(f"line {number}\n")
    stream.drain(0.1)
    assert time.monotonic() - began_at < 2
    held.go_on.set()
    stream.drain(10)
    assert held.getvalue() == "".join(f"line {number}\n" for number in range(50))


def test_what_nobody_reads_is_dropped_in_the_end():
    held = Held()
    stream = NonblockingStream(held)
    for number in range(MOST_WAITING + 100):
        stream.write(f"{number}\n")
    held.go_on.set()
    stream.drain(10)
    assert len(held.getvalue().splitlines()) in (MOST_WAITING, MOST_WAITING + 1)
