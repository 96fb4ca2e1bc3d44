"""Counts on a terminal how much of something long is done."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_EVERY_S = 0.2


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that takes (done, in all), and draws them where stderr is a terminal; nothing is left of it."""
    is_terminal = sys.stderr.isatty()
    shown_at = time.monotonic()
    drawn = False

    def show(done: int, of: int) -> None:
        nonlocal shown_at, drawn
        if is_terminal and time.monotonic() - shown_at > _EVERY_S:
            sys.stderr.write(f"\r\x1b[K{done} of {of} {what}")
            sys.stderr.flush()
            shown_at, drawn = time.monotonic(), True

    try:
        yield show
    finally:
        if drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
