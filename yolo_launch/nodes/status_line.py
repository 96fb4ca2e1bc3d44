"""Keeps one line of a terminal current: the machines that have joined, or the progress of the training."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from typing import Any, TextIO

from trainer.protocol import Heartbeat
from yolo_launch.spec import LaunchPlan
from yolo_launch.words import fitted
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.nonblocking_stream import NonblockingStream

REPEAT_S = 30.0
"""How often an unchanged roster is printed if lines cannot be rewritten."""
PROGRESS_S = 60.0
SPEED_SPAN_S = 20.0


class StatusLine:
    """Rewrites its line on a terminal; otherwise prints changes at intervals. Safe from several threads.

    ``shows_progress`` is False on the master, whose rank 0 itself writes to the terminal.
    """

    def __init__(self, stream: TextIO | None = None, *, shows_progress: bool = True) -> None:
        self._stream: Any = stream or NonblockingStream(sys.stderr)
        self._shows_progress = shows_progress
        self._lock = threading.RLock()
        self._roster, self._until, self._counts_down = "", 0.0, False
        self._plan: LaunchPlan | None = None
        self._positions: deque[tuple[float, int]] = deque()
        self._heartbeat: Heartbeat | None = None
        self._in_round = False
        self._ranks: list[str] = []
        self._shown, self._shown_at, self._drawn = "", -REPEAT_S, False

    @property
    def _is_terminal(self) -> bool:
        return bool(self._stream.isatty())  # until the launcher leaves it

    def roster(self, text: str, left_s: float, *, counts_down: bool = False) -> None:
        """Shows the machines that have joined, and, if one is missing, for how long the others wait for it."""
        with self._lock:
            self._roster, self._until = text, time.monotonic() + left_s
            self._counts_down = counts_down or " - waiting for" in text
            self._in_round = False
        self.tick()

    def round(self, plan: LaunchPlan, files: WorkerFiles) -> None:
        """Starts a round: progress is shown instead of the roster."""
        with self._lock:
            self._plan, self._in_round = plan, True
            self._roster = ""
            self._positions.clear()
            self._heartbeat = None
            self._clear()

    def ranks(self, texts: list[str]) -> None:
        """Shows the lines of the ranks here unless they were shown before."""
        if texts != self._ranks:
            self._ranks = texts
            for text in texts:
                self.over(text)

    def waiting(self) -> None:
        """Ends the round here."""
        with self._lock:
            self._in_round = False

    def progress(self, heartbeat: Heartbeat | None) -> None:
        """Shows phase, epoch and speed of this node's first rank."""
        with self._lock:
            now = time.monotonic()
            self._heartbeat = heartbeat
            if heartbeat is not None and (not self._positions or self._positions[-1][1] != heartbeat.step):
                self._positions.append((now, heartbeat.step))
            while len(self._positions) > 2 and now - self._positions[0][0] > SPEED_SPAN_S:
                self._positions.popleft()
        self.tick()

    def over(self, text: str) -> None:
        """Writes a line that stays, above the one that changes."""
        with self._lock:
            self._clear()
            self._write(text + "\n")

    def tick(self) -> None:
        """Draws the current roster or progress."""
        with self._lock:
            if self._in_round:
                if self._shows_progress:
                    self._draw(self._progress_text(), PROGRESS_S, changes_count=False)
            elif self._roster:
                left_s = max(0, int(self._until - time.monotonic()))
                left = f", {left_s // 60}m{left_s % 60:02d}s left" if self._counts_down else ""
                if self._is_terminal:
                    self._draw(self._roster + left, 0.0)
                elif self._roster != self._shown or time.monotonic() - self._shown_at >= REPEAT_S:
                    self._write(f"{self._roster}{left}\n")
                    self._shown, self._shown_at = self._roster, time.monotonic()

    def close(self) -> None:
        """Clears the line and writes what is queued."""
        with self._lock:
            self._clear()
        if isinstance(self._stream, NonblockingStream):
            self._stream.drain()

    def _progress_text(self) -> str:
        plan, heartbeat = self._plan, self._heartbeat
        if plan is None:
            return ""
        ranks = f"rank {plan.first_rank}" if len(plan.ranks) == 1 else f"ranks {plan.ranks[0]}-{plan.ranks[-1]}"
        head = f"{ranks} of {plan.world_size}"
        if heartbeat is None:
            return f"{head}: starting, connected"
        phase = heartbeat.phase
        if phase in ("train", "val"):
            phase += f", epoch {heartbeat.epoch + 1}"
        return f"{head}: {phase}{self._speed(plan.global_batch_size)}, connected"

    def _speed(self, batch: int) -> str:
        if len(self._positions) < 2:
            return ""
        (began_at, first), (ended_at, last) = self._positions[0], self._positions[-1]
        if ended_at <= began_at or last <= first:
            return ""
        return f", {(last - first) * batch / (ended_at - began_at):.1f} images/s"

    def _draw(self, text: str, every_s: float, *, changes_count: bool = True) -> None:
        now = time.monotonic()
        if self._is_terminal:
            self._write(f"\r\x1b[K{fitted(text, self._width())}")
            self._drawn = True
        elif now - self._shown_at >= every_s or (changes_count and text != self._shown):
            self._write(text + "\n")
            self._shown, self._shown_at = text, now

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            return
